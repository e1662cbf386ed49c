"""Pulls: whoever sees by a summary that another holds something else asks it for what it lacks, at a bounded rate.

One pull is under way to a member, a few in all. After one that brought everything, the member's digests of then are
`covered`: seen again, they mean that it lacks something of ours, not we of its. A failure is retried with doubling,
jittered waits, and by the next best meanwhile.

Tables are exchanged (push-pull) over the same slots, once in a long while, with one member at random.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from kvnode.gossip.messages import NO_SUMMARY, Summary
from kvnode.gossip.settings import GossipSettings
from kvnode.ids import NodeId


@dataclass(slots=True)
class _Peer:
    summary: Summary = NO_SUMMARY
    is_heard: bool = False
    covered_keyspace: int | None = None
    covered_events: int | None = None
    wants_table: bool = False
    wants_events: bool = False  # whatever the digests say
    not_before_ms: int = 0
    failures: int = 0
    began_ms: int | None = None  # of the pull under way
    asked: tuple[bool, bool, bool] = (False, False, False)  # by it: keyspace, events, table


class Pulls:
    """From whom to pull, what, and when."""

    def __init__(self, settings: GossipSettings, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng
        self._peers: dict[NodeId, _Peer] = {}
        self._wanted: dict[NodeId, None] = {}  # those that may have something for us, the longest waiting first
        self._under_way: dict[NodeId, None] = {}

    def on_summary(self, member: NodeId, summary: Summary, own: Summary) -> bool:
        """What `member` holds → whether it certainly lacks something that this node has."""
        peer = self._peers.setdefault(member, _Peer())
        peer.summary, peer.is_heard = summary, True
        keyspace, events = _lacking(peer, own)
        if keyspace or events:
            self._wanted.setdefault(member)
            return False
        return (summary.keyspace, summary.events) != (own.keyspace, own.events)

    def want_table(self, member: NodeId) -> None:
        self._peers.setdefault(member, _Peer()).wants_table = True
        self._wanted.setdefault(member)

    def want_events(self, member: NodeId) -> None:
        """Its events are asked for, whatever its digest says, until a pull has brought them."""
        peer = self._peers.setdefault(member, _Peer())
        if not peer.wants_events:
            peer.wants_events = True
            self._wanted.setdefault(member)

    def knows_all(self, member: NodeId, own: Summary) -> bool:
        """It showed the same digests as ours, so it need not hear of a change."""
        peer = self._peers.get(member)
        return (
            peer is not None
            and peer.is_heard
            and (peer.summary.keyspace, peer.summary.events) == (own.keyspace, own.events)
        )

    def take_due(self, own: Summary, now_ms: int) -> list[tuple[NodeId, bool, bool, bool]]:
        """Pulls that begin now: (member, keyspace, events, table)."""
        for member in [m for m in self._under_way if now_ms >= self._stalls_ms(m)]:
            self.pulled(member, False, now_ms)
        due: list[tuple[NodeId, bool, bool, bool]] = []
        for member in list(self._wanted):
            peer = self._peers[member]
            keyspace, events = _lacking(peer, own)
            if not (keyspace or events or peer.wants_table):  # another pull has brought it
                del self._wanted[member]
                continue
            if len(self._under_way) >= self._settings.pulls_max:
                break
            if member in self._under_way or now_ms < peer.not_before_ms:
                continue
            peer.began_ms, peer.asked = now_ms, (keyspace, events, peer.wants_table)
            self._under_way[member] = None
            del self._wanted[member]
            due.append((member, *peer.asked))
        return due

    def pulled(
        self, member: NodeId, ok: bool, now_ms: int, *, summary: Summary | None = None, more: bool = False
    ) -> tuple[bool, int]:
        """The pull is over: all of a page was merged, or nothing → (whether tables were exchanged, failures so far).

        `summary` of the page; without one nothing is known to be covered but what the member showed before.
        """
        peer = self._peers.get(member)
        if peer is None or peer.began_ms is None:
            return False, 0
        peer.began_ms = None
        self._under_way.pop(member, None)
        keyspace, events, table = peer.asked
        if not ok:
            peer.failures += 1
            wait_ms = min(self._settings.pull_retry_ms << min(peer.failures - 1, 20), self._settings.pull_retry_ms_max)
            peer.not_before_ms = now_ms + wait_ms // 2 + self._rng.randint(0, wait_ms // 2)
            peer.wants_table = False  # another member will do as well; what it lacks besides is wanted still
            self._wanted.setdefault(member)
            return table, peer.failures
        peer.failures = 0
        peer.not_before_ms = now_ms if more else now_ms + self._settings.pull_gap_ms
        peer.wants_table = peer.wants_table and not table
        peer.wants_events = peer.wants_events and not (events and not more)
        if summary is not None:
            peer.summary = summary
        if not more:
            peer.covered_keyspace = peer.summary.keyspace if keyspace else peer.covered_keyspace
            peer.covered_events = peer.summary.events if events else peer.covered_events
        self._wanted.setdefault(member)
        return table, 0

    def forget(self, member: NodeId) -> None:
        self._peers.pop(member, None)
        self._wanted.pop(member, None)
        self._under_way.pop(member, None)

    def deadline_ms(self) -> int | None:
        """When a pull may begin or has stalled; None: there is none to wait for."""
        times = [self._stalls_ms(member) for member in self._under_way]
        if len(self._under_way) < self._settings.pulls_max:
            times += [self._peers[member].not_before_ms for member in self._wanted if member not in self._under_way]
        return min(times, default=None)

    def _stalls_ms(self, member: NodeId) -> int:
        began_ms = self._peers[member].began_ms
        assert began_ms is not None
        return began_ms + self._settings.pull_stall_ms


def _lacking(peer: _Peer, own: Summary) -> tuple[bool, bool]:
    """Whether the peer may hold something of (keyspace, events) that we do not."""
    theirs = peer.summary
    return (
        peer.is_heard and theirs.keyspace not in (own.keyspace, peer.covered_keyspace),
        peer.wants_events or (peer.is_heard and theirs.events not in (own.events, peer.covered_events)),
    )
