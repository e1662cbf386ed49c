"""What `kvnode dev` prepares before it starts anything."""

from __future__ import annotations

import shutil
import socket
import stat
from pathlib import Path

import pytest

from kvnode.cli import dev
from kvnode.config import load
from kvnode.errors import ConfigInvalid

CONFIG = Path(__file__).parent.parent.parent / "config"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_repository_files_serve_three_nodes():
    assert dev.config_files(3, CONFIG) == [CONFIG / f"node{number}.toml" for number in (1, 2, 3)]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_files_for_another_number_are_written(count: int):
    shutil.copytree(CONFIG, dev.CONFIG_DIR)
    files = dev.config_files(count, dev.CONFIG_DIR)
    assert files == [Path(f"data/dev/{count}/node{number}.toml") for number in range(1, count + 1)]
    configs = [load(file, environment={}) for file in files]
    assert [settings.node.id for settings in configs] == list(range(1, count + 1))
    assert len({settings.node.data_dir for settings in configs}) == count
    assert all(len(settings.initial_members()) == count for settings in configs)
    assert {name for settings in configs for name in [settings.cluster.secret_file]} == {"data/secret"}


def test_a_named_directory_that_lacks_a_node_is_an_error(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "node1.toml").write_text("")
    with pytest.raises(ConfigInvalid, match="does not describe a cluster of 2 nodes"):
        dev.config_files(2, tmp_path / "mine")


def test_the_secret_is_made_once_and_private():
    dev.make_secret("data/secret")
    path = Path("data/secret")
    first = path.read_bytes()
    assert len(first) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    dev.make_secret("data/secret")
    assert path.read_bytes() == first
    assert [entry.name for entry in Path("data").iterdir()] == ["secret"]


def test_a_port_in_use_is_named_before_anything_starts():
    files = dev.config_files(1, dev.CONFIG_DIR)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        files[0].write_text(files[0].read_text().replace("127.0.0.1:7401", f"127.0.0.1:{port}"))
        with pytest.raises(ConfigInvalid, match=rf"127\.0\.0\.1:{port} \(client\.listen of data/dev/1/node1\.toml\)"):
            dev.check_ports({files[0]: load(files[0], environment={})})


def test_fresh_drops_only_what_looks_like_a_data_directory():
    node, other = Path("data/n1"), Path("precious")
    (node / "wal").mkdir(parents=True)
    other.mkdir()
    (other / "thesis.tex").touch()
    dev.drop_data(node)
    assert not node.exists()
    with pytest.raises(ConfigInvalid, match="does not look like"):
        dev.drop_data(other)
    assert (other / "thesis.tex").exists()


def test_the_lines_to_try_name_the_first_and_the_last_node():
    text = dev.things_to_try(["127.0.0.1:7401", "127.0.0.1:7402", "127.0.0.1:7403"])
    assert "curl -X PUT localhost:7401/v1/kv/greeting -d hello" in text
    assert "curl localhost:7403/v1/kv/greeting" in text
