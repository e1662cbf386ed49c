"""``kvnode import-etcd`` and ``export-etcd``: the other side is a node, asked in etcd's words."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from click.testing import Result

from kvnode.client import etcd
from kvnode.errors import BadRequest
from tests.cli.cluster import ServedNode, serving
from tests.cli.conftest import Run, _invoke

KEYS = 5


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedNode]:
    """The etcd cluster, with keys in it, in pages of two."""
    monkeypatch.setattr(etcd, "PAGE_ITEMS", 2)
    with serving() as served:
        for number in range(KEYS):
            at(served, "put", f"app/{number}", f"value {number}")
        at(served, "put", "other", "\x00\xff")
        at(served, "put", "app/leased", "x", "--ttl", "600s")
        yield served


def at(served: ServedNode, *arguments: str) -> Result:
    result = _invoke(*arguments, "--endpoint", served.endpoint)
    assert result.exit_code == 0, result.output
    return result


def read(served: ServedNode, key: str) -> str:
    return at(served, "get", key).stdout


def test_keys_come_over_and_again_nothing_is_done(run_alone: Run, alone: ServedNode, other: ServedNode) -> None:
    first = run_alone("import-etcd", f"http://{other.endpoint}")
    assert first.exit_code == 0, first.output
    assert first.stdout == f"{KEYS + 1} created, 1 left out\n"
    assert "--with-leased" in first.stderr
    assert read(alone, "app/3") == "value 3"
    again = run_alone("import-etcd", other.endpoint, "--with-leased", "-o", "json")
    found = json.loads(again.stdout)
    assert (found["created"], found["same"], found["source"]) == (1, KEYS + 1, f"http://{other.endpoint}")


def test_a_prefix_gets_another_name(run_alone: Run, alone: ServedNode, other: ServedNode) -> None:
    url = f"http://{other.endpoint}"
    result = run_alone("import-etcd", url, "--prefix", "app/", "--prefix-map", "app/=copy/")
    assert result.exit_code == 0, result.output
    assert at(alone, "ls", "").stdout.split() == [f"copy/{number}" for number in range(KEYS)]
    refused = run_alone("import-etcd", url, "--prefix-map", "app/=copy/")
    assert refused.exit_code == 2
    assert "--prefix OLD" in refused.stderr


def test_conflicts_are_told_and_kept_or_overwritten(run_alone: Run, alone: ServedNode, other: ServedNode) -> None:
    at(alone, "put", "app/2", "mine")
    url = f"http://{other.endpoint}"
    dry = run_alone("import-etcd", url, "--dry-run")
    assert dry.exit_code == 1
    assert "app/2: has another value" in dry.stderr
    assert run_alone("import-etcd", url).exit_code == 1
    assert read(alone, "app/2") == "mine"
    assert "1 keep another value" in run_alone("import-etcd", url, "--on-conflict", "skip").stdout
    assert "1 overwritten" in run_alone("import-etcd", url, "--on-conflict", "overwrite").stdout
    assert read(alone, "app/2") == "value 2"


def test_as_an_older_revision_shows_them(run_alone: Run, alone: ServedNode, other: ServedNode) -> None:
    revision = json.loads(at(other, "get", "app/1", "-o", "json").stdout)["mod_revision"]
    at(other, "put", "app/1", "newer")
    assert run_alone("import-etcd", other.endpoint, "--rev", str(revision)).stdout == "2 created\n"
    assert read(alone, "app/1") == "value 1"
    at(other, "compact", str(revision + 1))
    gone = run_alone("import-etcd", other.endpoint, "--rev", str(revision))
    assert gone.exit_code == 1
    assert "without --rev" in gone.stderr


def test_keys_go_over_in_etcds_words(run_alone: Run, alone: ServedNode, other: ServedNode) -> None:
    for key in ("app/2", "new/1", "new/2"):
        at(alone, "put", key, "ours")
    url = f"http://{other.endpoint}"
    assert run_alone("export-etcd", url).exit_code == 1
    done = run_alone("export-etcd", url, "--on-conflict", "overwrite")
    assert done.stdout in ("2 created, 1 overwritten\n", "0 created, 1 overwritten, 2 had their value already\n")
    assert [read(other, key) for key in ("app/2", "new/1", "app/3")] == ["ours", "ours", "value 3"]
    assert run_alone("export-etcd", url).stdout == "0 created, 3 had their value already\n"


def test_who_does_not_speak_etcd_is_named(run_alone: Run, other: ServedNode) -> None:
    nobody = run_alone("import-etcd", "http://127.0.0.1:1", "--timeout", "100ms")
    assert nobody.exit_code == 3
    assert "http://127.0.0.1:1: cannot connect" in nobody.stderr
    assert "nothing was written" in nobody.stderr


@pytest.mark.parametrize("url", ["ftp://a:1", "http://", "http://a:b", "http://a:1/v3", "http://a:99999"])
def test_what_is_no_url_of_etcd_is_refused(url: str) -> None:
    with pytest.raises(BadRequest):
        etcd.EtcdCaller(url, 1_000)
    assert _invoke("import-etcd", url).exit_code == 2
