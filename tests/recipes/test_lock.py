"""A lock asks no more than it must: what a node knows by itself will do where nothing newer could change the answer."""

from __future__ import annotations

from typing import Any, cast

import pytest

from kvnode.errors import Fenced, LeaseNotFound, LockHeld
from kvnode.kv.interface import KV, Options
from kvnode.kv.requests import (
    Campaign,
    Command,
    KeyValue,
    LeaseEnded,
    LeaseReply,
    LeaseRevoke,
    QueueRead,
    QueueReply,
)
from kvnode.recipes import lock

CAMPAIGN = Campaign(b"name", 30_000, b"me")
MINE = KeyValue(b"name/7", b"me", 12, 12, 1, 7)
OTHER = KeyValue(b"name/3", b"other", 9, 9, 1, 3)


class Scripted:
    """Answers looks from what this node knows, `here`, or from what is so, `true`: queues of a name."""

    def __init__(self, here: tuple[KeyValue, ...], true: tuple[KeyValue, ...]) -> None:
        self.here = here
        self.true = true
        self.asked: list[str] = []

    async def execute(self, request: Any, options: Options) -> Any:
        if isinstance(request, Campaign | Command):
            self.asked.append("campaign")
            return LeaseReply(7, 30_000, 12)
        if isinstance(request, LeaseRevoke):
            self.asked.append(f"revoke {request.id}")
            if all(place.lease != request.id for place in self.true):
                raise LeaseNotFound("gone")
            return LeaseEnded(13, (request.id,), 1)
        assert isinstance(request, QueueRead)
        is_local = options.consistency == "stale"
        self.asked.append("here" if is_local else "leader")
        waiting = self.here if is_local else self.true
        if request.token:
            waiting = tuple(place for place in waiting if place.create_revision == request.token)
        if request.lease:
            at = [place.lease for place in waiting].index(request.lease) if MINE in waiting else -1
            waiting = waiting[max(0, at - 1) : at + 1]
        return QueueReply(12, waiting, False)


async def _acquire(scripted: Scripted, named: Command | None = None) -> lock.Place:
    return await lock.acquire(cast(KV, scripted), CAMPAIGN, wait_ms=0, now_ms=lambda: 0, named=named)


async def test_a_free_lock_asks_nobody_but_the_log() -> None:
    scripted = Scripted((), ())
    with pytest.raises(LeaseNotFound):  # nothing enters this queue, so the place seems lost: asked of the leader
        await _acquire(scripted)
    assert scripted.asked == ["here", "campaign", "here", "leader", "revoke 7"]


async def test_a_place_that_is_the_first_here_holds_the_lock() -> None:
    class Entering(Scripted):
        async def execute(self, request: Any, options: Options) -> Any:
            reply = await super().execute(request, options)
            if self.asked[-1] == "campaign":
                self.here = self.true = (MINE,)
            return reply

    scripted = Entering((), ())
    assert (await _acquire(scripted)).token == 12
    assert scripted.asked == ["here", "campaign", "here"]
    assert await lock.release(cast(KV, scripted), b"name", 12) == 13
    assert scripted.asked[3:] == ["here", "revoke 7"]


async def test_a_node_that_is_behind_refuses_nobody_by_itself() -> None:
    scripted = Scripted((OTHER,), (MINE,))
    with pytest.raises(LockHeld):  # by the leader's word, which is what the second look went for
        await _acquire(scripted)
    assert scripted.asked == ["here", "leader"]


async def test_a_node_that_is_behind_does_not_hold_back_a_lock() -> None:
    """The holder of before has gone, which this node has not heard of."""
    scripted = Scripted((OTHER, MINE), (MINE,))
    assert (await lock.acquire(cast(KV, scripted), CAMPAIGN, wait_ms=5_000, now_ms=lambda: 0)).token == 12
    assert scripted.asked == ["campaign", "here", "leader"]


async def test_who_asks_again_is_not_told_that_it_holds_what_it_has_lost() -> None:
    """The first asking was answered long ago; the place has been lost, which this node has not heard of."""
    scripted = Scripted((MINE,), (OTHER,))
    with pytest.raises(LeaseNotFound):
        await _acquire(scripted, named=Command(CAMPAIGN, key=b"k"))
    assert scripted.asked[:2] == ["campaign", "leader"]


async def test_a_release_that_comes_too_late_is_refused_by_what_is_so() -> None:
    scripted = Scripted((MINE,), (OTHER,))
    with pytest.raises(Fenced):
        await lock.release(cast(KV, scripted), b"name", 12)
    assert scripted.asked == ["here", "revoke 7"]
    unknown = Scripted((), (OTHER,))
    with pytest.raises(Fenced):
        await lock.release(cast(KV, unknown), b"name", 12)
    assert unknown.asked == ["here", "leader"]
