"""SnapshotSender: when it tries again, and what it sends then."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from kvnode.errors import SnapshotRefused
from kvnode.ids import Index, NodeId
from kvnode.node.snapshot_sender import (
    KEEP_MS,
    REFUSALS_MAX,
    RETRY_MS_MAX,
    VIEW_AGE_MS_MAX,
    PinnedSnapshot,
    SnapshotSender,
)
from kvnode.raft.messages import Configuration, SnapshotSent
from kvnode.raft.output import SendSnapshot
from kvnode.sim.loop import VirtualWorker, run_virtual

PEER = NodeId(2)


def fail() -> None:
    raise ConnectionResetError("the peer is gone")


class Failing:
    """A leader's sender; as the core does, it is asked again at once."""

    def __init__(self, *, ask: bool = True) -> None:
        self.loop = asyncio.get_running_loop()
        self.asks_again = True
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
        if ask:
            self.ask()

    def ask(self) -> None:
        self.sender.send(SendSnapshot(PEER, Index(1)))

    def _on_failed(self, error: BaseException) -> None:
        raise AssertionError from error

    def _on_sent(self, sent: SnapshotSent) -> None:
        assert (sent.peer, sent.index) == (PEER, 0)
        self.failed_s.append(self.loop.time())
        if self.asks_again:
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


class View:
    """A pinned store."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.pinned_s = asyncio.get_running_loop().time()
        self.refusals = 0
        self.is_closed = False

    def close(self) -> None:
        assert not self.is_closed
        self.is_closed = True


class Broken:
    """A leader whose connections all break; `error` is how."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failing = Failing(ask=False)
        self.views: list[View] = []
        self.sent: list[View] = []
        self.error: Exception = ConnectionResetError("cut")

        async def pin(*_: Any, **__: Any) -> View:
            self.views.append(View(len(self.views) + 1))
            return self.views[-1]

        monkeypatch.setattr(PinnedSnapshot, "open", pin)
        self.failing.sender._transport = self  # type: ignore[assignment]

    async def send_snapshot(self, peer: NodeId, source: Any) -> None:
        assert self.failing.sender.pinned_index == source.index
        self.sent.append(source)
        raise self.error


def test_after_a_broken_connection_the_same_snapshot_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        broken = Broken(monkeypatch)
        broken.failing.ask()
        await asyncio.sleep(VIEW_AGE_MS_MAX / 1e3)
        assert set(broken.sent) == {broken.views[0]}
        assert len(broken.sent) > 10
        await asyncio.sleep(2 * KEEP_MS / 1e3)
        assert len(broken.views) == 2, "a view does not grow old without bound"
        assert [view.is_closed for view in broken.views] == [True, False]
        broken.failing.sender.stop()
        assert broken.views[1].is_closed
        assert broken.failing.sender.pinned_index is None

    run_virtual(main())


def test_what_nobody_comes_back_for_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        broken = Broken(monkeypatch)
        broken.failing.asks_again = False
        broken.failing.ask()
        await asyncio.sleep(KEEP_MS / 1e3 - 1)
        assert (broken.views[0].is_closed, broken.failing.sender.pinned_index) == (False, 1)
        await asyncio.sleep(2)
        assert (broken.views[0].is_closed, broken.failing.sender.pinned_index) == (True, None)

    run_virtual(main())


def test_a_snapshot_that_is_refused_again_and_again_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        broken = Broken(monkeypatch)
        broken.error = SnapshotRefused("this node does not follow you")
        broken.failing.ask()
        await asyncio.sleep(2)
        assert [view.index for view in broken.sent] == [1] * REFUSALS_MAX
        assert broken.views[0].is_closed
        assert broken.failing.sender.pinned_index is None
        await asyncio.sleep(4)
        assert broken.sent[-1].index == 2
        broken.failing.sender.stop()

    run_virtual(main())
