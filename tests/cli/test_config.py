"""`kvnode config`: value, source and meaning of every setting; the files written from the declarations are current."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvnode import config
from kvnode.cli.config import example_toml, overrides, reference_markdown
from kvnode.cli.main import cli
from kvnode.errors import ConfigInvalid

ROOT = Path(__file__).parent.parent.parent


def explained(*arguments: str, env: dict[str, str] | None = None) -> dict[str, dict[str, object]]:
    result = CliRunner().invoke(cli, ["config", "-o", "json", *arguments], env=env)
    assert result.exit_code == 0, result.stderr
    return {row["name"]: row for row in json.loads(result.stdout)}


def test_every_setting_is_explained_with_its_source(tmp_path):
    file = tmp_path / "node.toml"
    file.write_text("[raft]\nheartbeat_ms = 40\nelection_timeout_ms = 400\n")
    rows = explained(
        "--config", str(file), "--set", "raft.heartbeat_ms=30", env={"KVNODE_RAFT__ELECTION_TIMEOUT_MS": "500"}
    )
    assert list(rows) == [setting.name for setting in config.settings()]
    assert (rows["raft.heartbeat_ms"]["value"], rows["raft.heartbeat_ms"]["source"]) == (30, "flag --set")
    timeout = rows["raft.election_timeout_ms"]
    assert (timeout["value"], timeout["source"]) == (500, "environment KVNODE_RAFT__ELECTION_TIMEOUT_MS")
    assert explained("--config", str(file))["raft.heartbeat_ms"]["source"] == f"file {file}"
    assert rows["node.id"]["source"] == "default"


def test_explain_for_people():
    text = CliRunner().invoke(cli, ["config", "--explain"]).stdout
    assert "raft.heartbeat_ms = 50 ms\n    from default; default 0; scope cluster\n" in text


def test_the_effective_settings_are_toml_that_loads_again(tmp_path):
    result = CliRunner().invoke(cli, ["config", "--config", str(ROOT / "config/node2.toml")])
    again = tmp_path / "again.toml"
    again.write_text(result.stdout)
    assert config.load(again, environment={}) == config.load(ROOT / "config/node2.toml", environment={})


def test_overrides():
    assert overrides(["raft.heartbeat_ms=50", "cluster.members=1=a:1,2=b:2"]) == {
        "raft.heartbeat_ms": "50",
        "cluster.members": ["1=a:1", "2=b:2"],
    }
    with pytest.raises(ConfigInvalid):
        overrides(["nonsense"])


def assert_current(file: Path, text: str) -> None:
    if os.environ.get("KVNODE_DOCS_REWRITE"):
        file.write_text(text, encoding="utf-8")
    assert file.read_text(encoding="utf-8") == text, "run: make golden"


def test_the_example_file_is_current_and_loads(tmp_path):
    file = ROOT / "config/kvnode.example.toml"
    assert_current(file, example_toml())
    assert config.load(file, environment={}) == config.Config()
    lines = [
        line[2:] if line.startswith("# ") and " = " in line and "(" not in line else line
        for line in example_toml().splitlines()
    ]
    uncommented = tmp_path / "all.toml"
    uncommented.write_text("\n".join(lines))
    named = {
        f"{section}.{field}" for section, fields in tomllib.loads(uncommented.read_text()).items() for field in fields
    }
    assert named == {setting.name for setting in config.settings()}


def test_the_reference_page_is_current():
    assert_current(ROOT / "docs/configuration.md", reference_markdown())


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_local_cluster_files(number: int):
    loaded = config.load(ROOT / f"config/node{number}.toml", environment={})
    assert (loaded.node.id, loaded.node.data_dir) == (number, f"data/n{number}")
    assert (loaded.client.listen, loaded.peer.listen) == (f"127.0.0.1:740{number}", f"127.0.0.1:750{number}")
    assert loaded.initial_members() == {n: f"127.0.0.1:750{n}" for n in (1, 2, 3)}


def test_a_misspelt_variable_is_refused_and_foreign_ones_are_left_alone():
    with pytest.raises(ConfigInvalid, match="KVNODE_RAFT__HARTBEAT_MS; did you mean KVNODE_RAFT__HEARTBEAT_MS"):
        config.load(environment={"KVNODE_RAFT__HARTBEAT_MS": "50"})
    config.load(environment={"KVNODE_CLIENT_PORT": "tcp://10.0.0.1:7401", "KVNODE_ENDPOINTS": "a:1", "A__B": "c"})
