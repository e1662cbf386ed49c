"""What `scripts/patroni.py` finds out about its machine, and that it fails when what it is to show does not hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvnode.bench.cluster import KvnodeCluster
from scripts import patroni

OLDER = "WARNING: Connected to Etcd node with term 3. Old known term 4. Switching to another node."
STARTED = "2026-01-01 00:00:00"


class FakeServer:
    """A primary that answers, and has the rows that it was given."""

    port, name = 1, "pg1"

    def __init__(self, log: Path) -> None:
        self.rows = [1, 2, 3]
        self.timeline = 1
        self.log = log
        self.log.touch()

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        return 200, f'{{"timeline": {self.timeline}, "postmaster_start_time": "{STARTED}"}}'

    def query(self, sql: str) -> list[tuple[int]]:
        return [(len(self.rows),)] if "count" in sql else [(row,) for row in self.rows]

    def logged(self, since: int = 0) -> list[str]:
        return self.log.read_bytes()[since:].decode().splitlines()


class FakeCluster(KvnodeCluster):
    """Whose node 1 dies when asked, with consequences."""

    def __init__(self, consequences: Callable[[], None]) -> None:
        self.processes = {1: SimpleNamespace(kill=consequences)}  # type: ignore[dict-item]

    async def wait_ready(self, limit_s: float = 1.0) -> int:
        return 2

    def start(self, node: int) -> Any:
        return None


@pytest.fixture
def server(tmp_path: Path) -> FakeServer:
    return FakeServer(tmp_path / "log")


@pytest.fixture
def lose(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], None]], None]:
    """Plays the death of a node that has these consequences for the server, or for the writer."""
    monkeypatch.setattr(patroni, "WATCHED_S", 0.1)
    monkeypatch.setattr(patroni, "sleep", lambda _: None)

    def lose(consequences: Callable[[Any], None]) -> None:
        scene = patroni.Scene(patroni.Story(), FakeCluster(lambda: consequences(scene)), [server])  # type: ignore[list-item]
        scene._lose_node("the leader", 1)
        scene._count()

    return lose


def commits(scene: Any, *numbers: int) -> None:
    scene._writer.committed += [(number, 0.0) for number in numbers]


def test_a_node_may_die_unnoticed(lose: Any) -> None:
    lose(lambda scene: commits(scene, 1))


def test_an_older_term_is_excused_in_an_election(lose: Any, server: FakeServer) -> None:
    def consequences(scene: Any) -> None:
        commits(scene, 1)
        server.log.write_text(OLDER)

    lose(consequences)


def test_a_demotion_is_noticed(lose: Any, server: FakeServer) -> None:
    def consequences(scene: Any) -> None:
        commits(scene, 1)
        server.log.write_text("demoted self because DCS is not accessible and I was a leader\n")

    with pytest.raises(patroni.Failed, match="demoted self"):
        lose(consequences)


def test_another_timeline_is_noticed(lose: Any, server: FakeServer) -> None:
    with pytest.raises(patroni.Failed, match=r"'pg1', 1.* has become .*'pg1', 2"):
        lose(lambda _: setattr(server, "timeline", 2))


def test_that_nothing_was_written_is_noticed(lose: Any) -> None:
    with pytest.raises(patroni.Failed, match="no row"):
        lose(lambda _: None)


@pytest.mark.parametrize(
    ("told", "logged", "failure"),
    [
        ([1, 2, 3], "", None),
        ([1, 3], "", None),
        ([2, 3, 4], "", "1 acknowledged rows are lost: .4."),
        ([1], OLDER, "term 3"),
        ([1], "WARNING: Etcd Cluster ID changed from 1 to 2", "Cluster ID changed"),
    ],
)
def test_what_is_counted_in_the_end(server: FakeServer, told: list[int], logged: str, failure: str | None) -> None:
    server.log.write_text(logged)
    scene = patroni.Scene(patroni.Story(), FakeCluster(lambda: None), [server])  # type: ignore[list-item]
    commits(scene, *told)
    if failure is None:
        scene._count()
        return
    with pytest.raises(patroni.Failed, match=failure):
        scene._count()


def test_a_wait_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patroni, "sleep", lambda _: None)
    with pytest.raises(patroni.Failed, match="in vain waited for: rain"):
        patroni.Story().until(lambda: False, "rain", limit_s=0.0)


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["patroni.py", "--dcs", "etcd"])
    assert patroni.main() == 0
    assert capsys.readouterr().out == "skipped: there is no etcd on the PATH\n"


def test_postgresql_is_found_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    some, whole = tmp_path / "some", tmp_path / "whole"
    for directory, tools in ((some, patroni.TOOLS[:2]), (whole, patroni.TOOLS)):
        directory.mkdir()
        for tool in tools:
            (directory / tool).touch()
    monkeypatch.setenv("PATH", f"{some}:{whole}")
    assert patroni.postgres_binaries() == whole
    monkeypatch.setenv("PATH", str(some))
    monkeypatch.setattr(patroni, "DEBIAN", tmp_path / "none")
    with pytest.raises(patroni.Unfit, match="pg_rewind"):
        patroni.postgres_binaries()
