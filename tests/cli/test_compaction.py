"""`kvnode compact` against the real front door."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result

from kvnode.cli.main import cli
from tests.cli.cluster import serving

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    with serving() as served:
        monkeypatch.setenv("KVNODE_ENDPOINTS", served.endpoint)
        yield lambda *arguments: CliRunner().invoke(cli, arguments)


def test_history_below_a_revision_is_given_up(run: Run) -> None:
    for number in range(4):
        run("put", "k", str(number))
    assert run("compact", "4").stdout == "compact revision 4\n"
    assert json.loads(run("compact", "2", "-o", "json").stdout) == {"revision": 5, "compact_revision": 4}
    refused = run("get", "k", "--at-rev", "3")
    assert refused.exit_code == 1
    assert "[compacted]" in refused.stderr
    assert run("get", "k", "--at-rev", "4").stdout == "2"
    ahead = run("compact", "6")
    assert ahead.exit_code == 1
    assert "[future_revision]" in ahead.stderr


def test_an_age_is_kept(run: Run) -> None:
    for number in range(4):
        run("put", "k", str(number))
    assert run("compact", "--keep", "87600h").stdout == "compact revision 1\n", "ten years ago there was nothing"
    assert run("compact", "4").exit_code == 0
    assert run("compact", "--keep", "87600h").stdout == "compact revision 4\n", "given up already"
    assert run("compact", "--keep", "1s").stdout == "compact revision 5\n", "all was written longer ago"


@pytest.mark.parametrize("arguments", [(), ("3", "--keep", "1h"), ("0",), ("--keep", "x")])
def test_one_of_both_is_named(run: Run, arguments: tuple[str, ...]) -> None:
    assert run("compact", *arguments).exit_code in {1, 2}
