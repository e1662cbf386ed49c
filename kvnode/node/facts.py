"""Facts of the core → the operator's log, counters, and whoever waits for a leader."""

from __future__ import annotations

import asyncio
from typing import assert_never

from kvnode.ids import NOBODY, NodeId
from kvnode.observe.log import get_logger
from kvnode.raft.output import (
    BecameCandidate,
    BecameFollower,
    BecameLeader,
    BecamePreCandidate,
    ClockAhead,
    ClockJumped,
    ConfigurationChanged,
    Fact,
    FollowerLost,
    LeaderKnown,
    LogTruncated,
    OtherFact,
    QuarantineEnded,
    SnapshotIgnored,
    SnapshotInstalled,
    SnapshotNeeded,
    StampRefused,
    StampTolerated,
    TransferAborted,
    TransferBegan,
    VoteGranted,
)

log = get_logger("raft")


class FactLog:
    """Lives on the node's loop."""

    def __init__(self, node: NodeId) -> None:
        self._node = node
        self._waiting: dict[asyncio.Future[None], None] = {}  # thousands during a failover: none may cost a search
        self.leader_changes = 0
        self._led = False
        self._tries = 0  # pre-vote rounds since a leader was last heard of, or a vote asked for

    async def leader_changed(self, within_ms: int) -> None:
        """Return when a leader became known or a peer's link came up, or after `within_ms`."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting[future] = None
        timer = loop.call_later(within_ms / 1e3, _wake, future)
        try:
            await future
        finally:
            timer.cancel()
            self._waiting.pop(future, None)

    def wake_all(self) -> None:
        """Let everybody who waits for a leader look again."""
        waiting, self._waiting = self._waiting, {}
        for future in waiting:
            _wake(future)

    def record(self, fact: Fact) -> None:
        node = self._node
        match fact:
            case BecameLeader(term=term, took_ms=took_ms):
                self.leader_changes += 1
                self._led = True
                self._tries = 0
                log.info("election.won", node=node, term=term, took_ms=took_ms)
                self.wake_all()
            case LeaderKnown(term=term, leader=leader):
                self.leader_changes += 1
                self._tries = 0
                log.info("leader.known", node=node, term=term, leader=leader)
                self.wake_all()
            case BecameFollower(term=term, leader=leader, reason=reason):
                event = "leader.stepped_down" if self._led else "follower.became"
                self._led = False
                log.info(event, node=node, term=term, leader=leader or None, reason=reason)
                if leader != NOBODY:
                    self.wake_all()
            case BecamePreCandidate(term=term, reason=reason):
                # A node that is cut off tries several times a second, for hours: the log says so once.
                say = log.debug if self._tries else log.info
                self._tries += 1
                say("election.started", node=node, term=term, pre=True, reason=reason)
            case BecameCandidate(term=term, reason=reason):
                self._tries = 0
                log.info("election.started", node=node, term=term, pre=False, reason=reason)
            case _:
                _say(node, fact)


def _say(node: NodeId, fact: OtherFact) -> None:
    """What changes nothing here but the operator's log."""
    match fact:
        case LogTruncated(from_index=index, last_index=last):
            log.warning("log.truncated", node=node, index=index, last_index=last)
        case TransferBegan(to=to):
            log.info("transfer.began", node=node, peer=to)
        case TransferAborted(to=to, reason=reason):
            log.warning("transfer.aborted", node=node, peer=to, reason=reason)
        case SnapshotNeeded(peer=peer, next_index=index):
            log.warning("peer.needs_snapshot", node=node, peer=peer, index=index)
        case SnapshotInstalled(sender=sender, position=position):
            log.warning("snapshot.installed", node=node, peer=sender, index=position.index, term=position.term)
        case SnapshotIgnored(sender=sender, position=position, reason=reason):
            log.info("snapshot.ignored", node=node, peer=sender, index=position.index, reason=reason)
        case ConfigurationChanged(index=index, configuration=found):
            log.warning(
                "members.changed",
                node=node,
                index=index,
                voters=list(found.voters),
                learners=list(found.learners),
                feature_level=found.feature_level,
            )
        case FollowerLost(peer=peer, match_index=match, last_index=last):
            log.error("peer.lost_entries", node=node, peer=peer, acknowledged=match, last_index=last)
        case QuarantineEnded(term=term, index=index):
            log.warning("quarantine.ended", node=node, term=term, index=index)
        case VoteGranted(term=term, candidate=candidate):
            log.info("vote.granted", node=node, term=term, candidate=candidate)
        case ClockJumped(by_ms=by_ms):
            log.warning("clock.jumped", node=node, by_ms=by_ms)
        case ClockAhead(ahead_ms=ahead_ms):
            log.error("clock.ahead", node=node, ahead_ms=ahead_ms)
        case StampRefused(leader=leader, ahead_ms=ahead_ms):
            log.warning("stamp.refused", node=node, peer=leader, ahead_ms=ahead_ms)
        case StampTolerated(leader=leader, ahead_ms=ahead_ms):
            log.error("stamp.tolerated", node=node, peer=leader, ahead_ms=ahead_ms)
        case _:
            assert_never(fact)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
