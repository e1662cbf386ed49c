"""Who wants a leader is told after three election timeouts without one, and not before."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from kvnode.api.etcd.leader_loss import LeaderLoss
from kvnode.ids import NodeId
from tests.client.local_node import LocalNode


class Timers:
    """In place of the loop's: they are due when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, loss: LeaderLoss) -> None:
        self.loss = loss
        self.armed = 0
        monkeypatch.setattr(loss, "_again", self._arm)

    def _arm(self) -> None:
        self.armed += 1
        self.loss._timer = asyncio.get_running_loop().call_later(3_600, lambda: None)

    async def pass_one(self) -> None:
        self.loss._look()
        await asyncio.sleep(0)


def lead(node: LocalNode, leader: int | None) -> None:
    node.configuration = msgspec.structs.replace(node.configuration, leader=None if leader is None else NodeId(leader))


async def test_three_timeouts_after_it_was_seen_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    node = LocalNode()
    loss = LeaderLoss(node, 1.0)
    timers = Timers(monkeypatch, loss)
    waiting = [asyncio.ensure_future(loss.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    lead(node, None)
    for _ in range(3):
        await timers.pass_one()
    lead(node, 2)
    await timers.pass_one()
    lead(node, None)
    for _ in range(3):
        await timers.pass_one()
    assert not any(one.done() for one in waiting)
    await timers.pass_one()
    async with asyncio.timeout(1):
        await asyncio.gather(*waiting)
    assert loss._timer is None


async def test_one_timer_for_all_and_none_when_all_have_left(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = LeaderLoss(LocalNode(), 1.0)
    timers = Timers(monkeypatch, loss)
    waiting = [asyncio.ensure_future(loss.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    assert timers.armed == 1
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert (loss._timer, loss._waiting) == (None, set())
