"""SnapshotSender: when it tries again."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from kvnode.errors import SnapshotRefused
from kvnode.ids import Index, NodeId
from kvnode.node.snapshot_sender import RETRY_MS_MAX, PinnedSnapshot, SnapshotSender
from kvnode.raft.messages import Configuration, SnapshotSent
from kvnode.raft.output import SendSnapshot
from kvnode.sim.loop import VirtualWorker, run_virtual
from kvnode.storage.memory_backend import MemoryBackend

PEER = NodeId(2)


def fail() -> None:
    raise ConnectionResetError("the peer is gone")


class Failing:
    """A leader's sender; as the core does, it is asked again at once."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.failed_s: list[float] = []
        machine: Any = SimpleNamespace(backend=SimpleNamespace(pin=fail))
        nobody: Any = None
        leader: Any = SimpleNamespace(node=NodeId(1), role="leader")
        self.sender = SnapshotSender(
            raft=leader,
            machine=machine,
            transport=nobody,
            worker=VirtualWorker(self.loop),
            loop=self.loop,
            cluster_id=1,
            initial=Configuration(voters=(NodeId(1), PEER)),
            on_sent=self._on_sent,
            on_failed=self._on_failed,
        )
        self.ask()

    def ask(self) -> None:
        self.sender.send(SendSnapshot(PEER, Index(1)))

    def _on_failed(self, error: BaseException) -> None:
        raise AssertionError from error

    def _on_sent(self, sent: SnapshotSent) -> None:
        assert (sent.peer, sent.index) == (PEER, 0)
        self.failed_s.append(self.loop.time())
        self.loop.call_soon(self.ask)


def test_the_pause_grows_and_has_a_bound() -> None:
    async def main() -> None:
        failing = Failing()
        await asyncio.sleep(300)
        failing.sender.stop()
        times = failing.failed_s
        pauses = [round(b - a, 1) for a, b in pairwise(times)]
        assert pauses[:7] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
        assert set(pauses[6:]) == {RETRY_MS_MAX / 1e3}

    run_virtual(main())


def test_a_follower_that_connects_anew_is_tried_at_once() -> None:
    async def main() -> None:
        failing = Failing()
        await asyncio.sleep(40)
        before = len(failing.failed_s)
        failing.sender.on_connected(PEER)
        await asyncio.sleep(0.01)
        assert len(failing.failed_s) == before + 1
        await asyncio.sleep(0.6)
        assert len(failing.failed_s) == before + 2, "the pauses have begun anew"
        failing.sender.stop()

    run_virtual(main())


def test_an_empty_store_is_refused_and_given_back() -> None:
    """As promised to the sender, which tries again later, and to backups, which say "not ready"."""
    backend = MemoryBackend()
    closed: list[bool] = []

    def pin() -> SimpleNamespace:
        view = backend.pin()
        return SimpleNamespace(rows=view.rows, close=lambda: closed.append(True))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        machine: Any = SimpleNamespace(backend=SimpleNamespace(pin=pin))
        with pytest.raises(SnapshotRefused, match="applied something"):
            await PinnedSnapshot.open(
                machine, VirtualWorker(loop), loop, cluster_id=1, initial=Configuration(voters=(PEER,))
            )
        assert closed

    run_virtual(main())
