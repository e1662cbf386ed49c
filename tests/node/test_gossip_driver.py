"""Pulls, page by page, from a peer that does not do what it should."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any

import pytest

from kvnode.gossip.core import Gossip
from kvnode.gossip.messages import NO_SUMMARY, PullReply
from kvnode.gossip.output import Pull
from kvnode.gossip.settings import GossipSettings
from kvnode.ids import NodeId
from kvnode.node import gossip_driver
from kvnode.node.gossip_driver import GossipDriver
from kvnode.wire.gossip_tags import encode_answer
from tests.node.test_eventual import ORIGIN, Bench, WallClock
from tests.node.test_story_times import make_story

PEER = NodeId(2)


class Peer:
    """Answers every pull with the same."""

    def __init__(self, reply: PullReply) -> None:
        self.answer = encode_answer(reply)
        self.asked = 0

    async def exchange(self, to: NodeId, request: bytes) -> bytes:
        self.asked += 1
        return self.answer

    def send(self, to: NodeId, packet: bytes) -> None: ...

    def set_addresses(self, members: Mapping[NodeId, str]) -> None: ...


def _raise(error: BaseException) -> None:
    raise error


def make_driver(peer: Any) -> GossipDriver:
    gossip = Gossip(
        node=ORIGIN.member,
        number=1 << 20,
        incarnation=1,
        address="127.0.0.1:1",
        settings=GossipSettings(),
        rng=random.Random(1),
        now_ms=0,
    )
    return GossipDriver(
        node=ORIGIN.member,
        gossip=gossip,
        transport=peer,
        eventual=Bench().eventual,
        story=make_story(),
        clock=WallClock(),  # type: ignore[arg-type]
        loop=asyncio.get_running_loop(),
        on_fact=lambda fact: None,
        on_failed=_raise,
    )


async def test_a_pull_that_brings_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that always has one more page, and never what was asked for, is not asked without a pause."""
    monkeypatch.setattr(gossip_driver, "PAGES_MAX", 1_000)
    peer = Peer(PullReply(NO_SUMMARY, more=True))
    driver = make_driver(peer)
    driver.set_members({ORIGIN.member: "127.0.0.1:1", PEER: "127.0.0.1:2"})
    await driver._pull(Pull(PEER, want_keyspace=True, want_events=True, members=()))
    assert peer.asked == gossip_driver.REPEATED_MAX + 1
    assert driver.pulls_failed == 1
