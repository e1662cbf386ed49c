"""`kvnode snapshot` against the real front door: a file that is whole and checked or absent, a directory likewise."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kvnode import errors, restore
from kvnode.cli.main import cli
from kvnode.kv.requests import LeaseGrant, Put
from kvnode.machine.backend import Row
from kvnode.machine.restore import SKIPPED
from kvnode.storage import datadir
from kvnode.storage.datadir import DataDir
from kvnode.storage.realdisk import RealDisk
from tests.cli.cluster import ServedNode, serving
from tests.client.local_node import LocalBackup, LocalNode

Run = Callable[..., Result]
ROWS = 2_000


@pytest.fixture
def served() -> Iterator[ServedNode]:
    node = LocalNode()
    for number in range(ROWS):
        apply(node, Put(b"app/%05d" % number, b"value %d " % number * 20))
    apply(node, LeaseGrant(60_000))
    with serving(node) as found:
        yield found


@pytest.fixture
def run(served: ServedNode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("KVNODE_ENDPOINTS", served.endpoint)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(cli, arguments)


def apply(node: LocalNode, request: Any) -> None:
    index: Any = node.machine.applied_index + 1
    node.machine.apply(index, node.clock.next(1_790_000_000_000), request)


def files() -> list[str]:
    return sorted(os.listdir("."))


RESTORE = ("snapshot", "restore", "b", "--data-dir", "d", "--peer", "127.0.0.1:7501", "--allow-unsafe-filesystem")


def test_what_is_saved_is_whole_and_says_what_it_is(run: Run, served: ServedNode) -> None:
    result = run("snapshot", "save", "b", "-o", "json")
    assert result.exit_code == 0, result.output
    assert files() == ["b"]
    assert stat.S_IMODE(os.stat("b").st_mode) == 0o600
    facts = json.loads(result.stdout)
    machine = served.node.machine
    assert (facts["cluster_id"], facts["revision"], facts["index"]) == (
        "00000000000000aa",
        machine.revision,
        machine.applied_index,
    )
    assert (facts["members"], facts["bytes"]) == (["1=127.0.0.1:7501"], os.path.getsize("b"))
    assert json.loads(run("snapshot", "verify", "b", "-o", "json").stdout) == facts
    shown = run("snapshot", "verify", "b").stdout
    assert facts["chain"] in shown
    assert "2026-09-21T" in shown, "the time of its newest entry"


def test_a_file_that_is_there_is_kept_unless_told_otherwise(run: Run) -> None:
    Path("b").write_bytes(b"precious")
    result = run("snapshot", "save", "b")
    assert (result.exit_code, Path("b").read_bytes()) == (1, b"precious")
    assert "--force" in result.stderr
    assert run("snapshot", "save", "b", "--force").exit_code == 0
    assert run("snapshot", "verify", "b").exit_code == 0


def test_a_stream_that_is_cut_off_leaves_no_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for blocks in (0, 1, 3):
        monkeypatch.setattr(LocalBackup, "broken_after", blocks)
        result = run("snapshot", "save", "b")
        assert result.exit_code == 3, result.output
        assert "broke off" in result.stderr
        assert "b was not written" in result.stderr
        assert files() == []


def test_a_stream_that_is_damaged_leaves_no_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = LocalBackup.block

    async def damaged(self: LocalBackup, number: int) -> bytes | None:
        block = await whole(self, number)
        return block[:-1] + bytes([block[-1] ^ 1]) if block and number == 2 else block

    monkeypatch.setattr(LocalBackup, "block", damaged)
    result = run("snapshot", "save", "b")
    assert (result.exit_code, files()) == (1, [])
    assert "block 2 of the snapshot is damaged" in result.stderr


def test_a_node_that_makes_none_is_passed_over(run: Run, served: ServedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    served.node.refuse_next(errors.Overloaded("2 backups are being read"))
    result = run("snapshot", "save", "b")
    assert (result.exit_code, files()) == (3, [])
    monkeypatch.setenv("KVNODE_ENDPOINTS", f"127.0.0.1:1,{served.endpoint}")
    assert run("snapshot", "save", "b").exit_code == 0


def test_every_byte_counts(run: Run, tmp_path: Path) -> None:
    """Each byte of a small backup changed, and each length it may be cut to: never taken for whole."""
    with serving() as served:
        apply(served.node, Put(b"k", b"v"))
        result = CliRunner().invoke(cli, ("snapshot", "save", "small", "--endpoint", served.endpoint))
        assert result.exit_code == 0, result.output
    data = Path("small").read_bytes()
    assert len(data) < 2_000
    for place in range(len(data)):
        for changed in (data[:place], data[:place] + bytes([data[place] ^ 0x41]) + data[place + 1 :]):
            Path("b").write_bytes(changed)
            with Path("b").open("rb") as file, pytest.raises(errors.SnapshotRefused):
                restore.verify(file)
    Path("b").write_bytes(data[:-1] + b"?")
    result = run("snapshot", "verify", "b")
    assert result.exit_code == 1
    assert "block 2 of the snapshot is damaged" in result.stderr
    result = run(*RESTORE)
    assert (result.exit_code, "d" in files()) == (1, False)
    Path("b").write_bytes(data + b"more")
    assert run("snapshot", "verify", "b").exit_code == 1


def test_a_directory_is_made_once_and_nothing_else_is_touched(run: Run) -> None:
    run("snapshot", "save", "b")
    result = run(*RESTORE, "-o", "json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["old_cluster_id"], told["revision"]) == ("00000000000000aa", told["old_revision"] + SKIPPED)
    data = open_directory()
    assert (f"{data.identity.cluster_id:016x}", data.identity.member) == (told["cluster_id"], 1)
    data.close()
    again = run(*RESTORE)
    assert again.exit_code == 5
    assert "is a data directory already" in again.stderr
    Path("other").mkdir()
    Path("other/file").write_text("precious")
    refused = run("snapshot", "restore", "b", "--data-dir", "other", "--peer", "127.0.0.1:7501")
    assert (refused.exit_code, os.listdir("other")) == (5, ["file"])


def open_directory() -> DataDir:
    return DataDir.open(
        RealDisk(), "d", member=1, cluster_name="local", random_u64=lambda: 7, allow_unsafe_filesystem=True
    )


def test_each_restore_is_another_cluster(run: Run) -> None:
    run("snapshot", "save", "b")
    ids = set()
    for name in ("d1", "d2"):
        made = run(
            "snapshot", "restore", "b", "--data-dir", name, "--peer", "127.0.0.1:7501", "--allow-unsafe-filesystem",
            "-o", "json",
        )  # fmt: skip
        ids.add(json.loads(made.stdout)["cluster_id"])
    assert len(ids | {"00000000000000aa"}) == 3


@pytest.mark.parametrize("blocks", [0, 1, 2, 5])
def test_a_restore_that_is_cut_short_leaves_nothing_that_starts(
    run: Run, monkeypatch: pytest.MonkeyPatch, blocks: int
) -> None:
    run("snapshot", "save", "b")
    whole = restore._pieces_of_rows

    def cut_short(*given: Any) -> Iterator[list[Row]]:
        for number, piece in enumerate(whole(*given)):
            if number == blocks:
                raise KeyboardInterrupt
            yield list(piece)

    monkeypatch.setattr(restore, "_pieces_of_rows", cut_short)
    result = run(*RESTORE)
    assert result.exit_code == 3
    assert "remove it" in result.stderr
    with pytest.raises(errors.IdentityRefused):
        open_directory()


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_the_identity_comes_last(run: Run, monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    """Cut short at each of the small files behind the store; what is left is refused, and in the way of nothing."""
    run("snapshot", "save", "b")
    count = iter(range(10))
    whole = datadir.write_small

    def write(*given: Any) -> None:
        if next(count) == writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(*given)

    with monkeypatch.context() as patch:
        patch.setattr(datadir, "write_small", write)
        result = run(*RESTORE)
    assert result.exit_code == 5
    assert "No space left on device; remove it" in result.stderr
    with pytest.raises(errors.IdentityRefused):
        open_directory()
    assert "is not empty" in run(*RESTORE).stderr
    shutil.rmtree("d")
    assert run(*RESTORE).exit_code == 0


def test_bad_arguments_are_named(run: Run) -> None:
    run("snapshot", "save", "b")
    for peer in ("nowhere", "0.0.0.0:7501", "127.0.0.1:0"):
        result = run("snapshot", "restore", "b", "--data-dir", "d", "--peer", peer)
        assert result.exit_code == 2, peer
        assert "--peer" in result.stderr
    assert run(*RESTORE, "--bump", "0").exit_code == 2
    assert run(*RESTORE, "--bump", str(1 << 50)).exit_code == 1
    assert "d" not in files()
    assert run("snapshot", "verify", "missing").exit_code == 5
    assert run("snapshot", "save", "missing/b").exit_code == 2
