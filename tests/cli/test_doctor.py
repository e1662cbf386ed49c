"""``kvnode doctor``: what it prints, its JSON, and how it exits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kvnode.cli import doctor as command
from kvnode.cli.main import cli
from kvnode.doctor import aside, cluster
from kvnode.storage.segment import HEADER_BYTES
from tests.cli.cluster import ServedNode
from tests.cli.conftest import Run
from tests.doctor.homes import carry_out_here, flip, make_home, segments


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CLOCK_SAMPLE_S", 0)


@pytest.fixture
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process aside."""
    monkeypatch.setattr(
        aside, "carry_out_aside", lambda job, kind, *, on_sign, seconds: carry_out_here(job, kind, on_sign=on_sign)
    )


def examine(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["doctor", *arguments])


@pytest.mark.slow
def test_a_sound_directory_exits_0(tmp_path: Path):
    """With the processes that read it, as it is run."""
    home = make_home(tmp_path / "n1")
    result = examine(str(home), "--config", str(_config(tmp_path, home)))
    assert result.exit_code == 0, result.stdout
    lines = result.stdout.splitlines()
    assert lines[0] == str(home)
    assert lines[1] == "  ok       lock: not in use"
    assert any(line.startswith("  ok       store: ") for line in lines)
    assert any(line.startswith("  ok       log: entries 1-60") for line in lines)


@pytest.mark.usefixtures("_here")
def test_damage_exits_1_and_says_what_to_type(tmp_path: Path):
    home = make_home(tmp_path / "n1")
    flip(segments(home)[-2], HEADER_BYTES + 8)
    result = examine(str(home), "--no-disk-test")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("  problem  log: damaged: "))
    assert f"{segments(home)[-2]}, offset {HEADER_BYTES}" in lines[at]
    assert lines[at + 1] == "             → kvnode serve --config FILE"
    assert lines[-1].startswith("1 problem")


@pytest.mark.usefixtures("_here")
def test_the_json_has_a_shape(tmp_path: Path, shared: ServedNode):
    home = make_home(tmp_path / "n1")
    result = examine(str(home), str(tmp_path / "gone"), shared.endpoint, "-o", "json")
    assert result.exit_code == 5
    document = json.loads(result.stdout)
    assert set(document) == {"worst", "exit_code", "count", "reports"}
    assert (document["worst"], document["exit_code"]) == ("problem", 5)
    assert list(document["count"]) == ["problem", "warning", "note", "ok"]
    assert [report["kind"] for report in document["reports"]] == ["directory", "directory", "cluster"]
    assert document["reports"][1]["findings"] == [
        {
            "level": "problem",
            "check": "directory",
            "what": f"{tmp_path / 'gone'} cannot be read: No such file or directory",
            "do": ["kvnode doctor HOST:PORT"],
            "unread": True,
        }
    ]
    assert "leader" in {one["check"] for one in document["reports"][2]["findings"]}


@pytest.mark.usefixtures("_here")
def test_a_configuration_of_another_node_is_told(tmp_path: Path):
    home = make_home(tmp_path / "n2", member=2)
    result = examine(str(home), "--config", str(_config(tmp_path, home)))
    assert result.exit_code == 1
    assert "problem  settings: it belongs to member 2, but node.id is 1" in result.stdout
    assert examine(str(home), "--config", str(tmp_path / "none.toml")).exit_code == 5


def test_a_live_cluster_exits_0(run: Run, shared: ServedNode):
    result = run("doctor")
    assert result.exit_code == 0, result.stdout
    lines = result.stdout.splitlines()
    assert lines[0] == shared.endpoint
    assert any(line.startswith("  ok       leader: node 1 ") for line in lines)
    assert run("doctor", f"http://{shared.endpoint}/").exit_code == 0


def test_no_node_that_answers_exits_5():
    result = examine("127.0.0.1:9", "--timeout", "500ms")
    assert result.exit_code == 5
    assert "cannot connect" in result.stdout


def test_a_directory_that_is_called_like_an_address_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "n1:7401").mkdir()
    assert command._sorted_out(("n1:7401", "n2:7401", "data/n1", "http://[::1]:1/")) == (
        ["n1:7401", "data/n1"],
        ["n2:7401", "[::1]:1"],
    )


def test_an_address_that_cannot_be_asked_is_a_usage_error():
    result = examine("https://n1.example:7401")
    assert result.exit_code == 2
    assert "'https://n1.example:7401' is not of the form host:port" in result.stderr


def _config(tmp_path: Path, home: Path) -> Path:
    """For node 1, wherever the test's files lie."""
    file = tmp_path / "node.toml"
    file.write_text(
        f'[node]\nid = 1\ndata_dir = "{home}"\n[storage]\nallow_unsafe_filesystem = true\nfree_bytes_min = 0\n',
    )
    return file
