"""What a node tells the cluster's timeline of itself: facts of its cores → events, a kind and a few fields.

Kinds are dotted words that never change their meaning; fields are plain values. `KINDS` lists all of them. Facts that
only an operator's log is interested in (a pre-vote that is tried again, a transfer) make no event.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from kvnode.gossip.messages import Status
from kvnode.gossip.output import (
    DatagramsBlocked,
    GossipFact,
    MemberAlive,
    MemberDead,
    MemberLeft,
    MemberSuspected,
    Refuted,
    StoodStill,
)
from kvnode.ids import NOBODY, NodeId
from kvnode.raft.output import (
    BecameCandidate,
    BecameFollower,
    BecameLeader,
    ClockAhead,
    ClockJumped,
    ConfigurationChanged,
    Fact,
    FollowerLost,
    LogTruncated,
    QuarantineEnded,
    SnapshotInstalled,
    SnapshotNeeded,
    StampRefused,
    VoteGranted,
)

OwnEvent = tuple[str, dict[str, Any]]

OnEvent = Callable[[str, dict[str, Any]], None]
"""Where parts of the node tell what no core knows: kind and fields."""


def tell_nobody(kind: str, fields: dict[str, Any]) -> None:
    """Of a node without a timeline."""


LEASES_MANY = 100
"""So many leases that end in one entry of the log are an event: somebody has lost much at once."""

STOOD_STILL_MS = 1_000
"""Less is a busy machine, and would fill the timeline."""

KINDS: dict[str, str] = {
    "user": "Somebody posted it: `POST /v1/events`, `kvnode events --post`.",
    "node.started": "The node takes part.",
    "node.stopping": "A clean stop began.",
    "election.started": "The node stands for election in `term`; `reason`.",
    "vote.granted": "It voted for `candidate` in `term`.",
    "leader.elected": "It leads from `term` on; the election took `took_ms`.",
    "leader.stepped_down": "It led and leads no more: `reason`; it follows `leader`, if one is known.",
    "follower.became": "It has found another term, or who leads: `reason`.",
    "quorum.lost": "It is connected to no majority of the voters.",
    "quorum.regained": "… and is again.",
    "member.suspect": "Probes of `member` got no answer, says `by`.",
    "member.alive": "`member` lives again after it `was` held suspect, dead or gone.",
    "member.dead": "`member` did not take the suspicion back in time.",
    "member.left": "`member` stopped on purpose.",
    "member.refuted": "The node itself was held suspect or dead (`was`) by `by`, and has said that it lives.",
    "member.datagrams_blocked": "`member` answers by HTTP only: datagrams do not get through.",
    "node.stood_still": "The node was not run for `ms`: a pause, a suspended machine, no processor.",
    "members.changed": "Another configuration is in force from entry `index` on: `voters`, `learners`.",
    "leases.expired": "The leader ended `count` leases in one entry, 100 or more.",
    "snapshot.needed": "`member` needs entries from `index` on that the leader's log does not hold.",
    "snapshot.taken": "The store as of entry `index` was pinned for `member`; without one, for a backup.",
    "snapshot.sent": "`member` has taken the snapshot up to entry `index` over.",
    "snapshot.installed": "The node's store came as a snapshot of `sender`, up to entry `index`.",
    "log.truncated": "Uncommitted entries from `from_index` on were replaced by another leader's.",
    "log.damaged": "Acknowledged entries of the node's log cannot be read: `what`. It neither votes nor stands.",
    "log.repaired": "… and its log is whole again up to `index`.",
    "log.lost": "`member` restarted without entries it had `acknowledged`: its disk lies.",
    "available.damaged": "The node's store of keys and events was damaged: `what`. It began anew.",
    "clock.jumped": "The node's wall clock jumped `by_ms`.",
    "clock.ahead": "A majority refuses the leader's stamps: its clock is `ahead_ms` ahead.",
    "stamp.refused": "Entries of `leader` are stamped `ahead_ms` in the future and are not taken.",
}
"""Every kind of event with a sentence for readers of the timeline."""


class OwnEvents:
    """Makes events of what happens to one node."""

    def __init__(self) -> None:
        self._has_led = False
        self._reached_quorum: bool | None = None  # None: not yet since the start
        self._blocked: dict[NodeId, None] = {}  # members of whom it was told that datagrams do not get through

    def of_quorum(self, reaches: bool) -> OwnEvent | None:
        """Whether a majority is connected now. A start begins without one: that is no loss."""
        before = self._reached_quorum
        if before is None and not reaches:
            return None
        self._reached_quorum = reaches
        if before is None or before == reaches:
            return None
        return ("quorum.regained" if reaches else "quorum.lost"), {}

    def removed(self, members: Collection[NodeId]) -> None:
        """Only these are members now."""
        self._blocked = {member: None for member in self._blocked if member in members}

    def of_raft(self, fact: Fact) -> OwnEvent | None:
        """The event that a fact of the consensus makes, if any."""
        match fact:
            case BecameCandidate(term=term, reason=reason):
                return "election.started", {"term": term, "reason": reason}
            case VoteGranted(term=term, candidate=candidate):
                return "vote.granted", {"term": term, "candidate": candidate}
            case BecameLeader(term=term, took_ms=took_ms):
                self._has_led = True
                return "leader.elected", {"term": term, "took_ms": took_ms}
            case BecameFollower(term=term, leader=leader, reason=reason):
                kind = "leader.stepped_down" if self._has_led else "follower.became"
                self._has_led = False
                return kind, {"term": term, "leader": leader or None, "reason": reason}
            case _:
                return _of_log(fact)

    def of_gossip(self, fact: GossipFact) -> OwnEvent | None:
        """The event that a fact of the gossip makes, if any."""
        match fact:
            case MemberSuspected():
                return "member.suspect", {"member": fact.member, "number": fact.number, "by": fact.by}
            case MemberAlive(was=Status.UNKNOWN):
                return None  # each node hears of each other once after its start
            case MemberAlive():
                was = Status(fact.was).name.lower()
                return "member.alive", {"member": fact.member, "number": fact.number, "was": was}
            case MemberDead():
                return "member.dead", {"member": fact.member, "number": fact.number}
            case MemberLeft():
                return "member.left", {"member": fact.member, "number": fact.number}
            case Refuted():
                was = Status(fact.status).name.lower()
                return "member.refuted", {"number": fact.number, "was": was, "by": fact.by}
            case DatagramsBlocked() if fact.member not in self._blocked:
                self._blocked[fact.member] = None
                return "member.datagrams_blocked", {"member": fact.member}
            case StoodStill() if fact.ms >= STOOD_STILL_MS:
                return "node.stood_still", {"ms": fact.ms}
            case _:
                return None


def _of_log(fact: Fact) -> OwnEvent | None:
    match fact:
        case LogTruncated(from_index=index, last_index=last):
            return "log.truncated", {"from_index": index, "last_index": last}
        case SnapshotNeeded(peer=peer, next_index=index):
            return "snapshot.needed", {"member": peer, "index": index}
        case SnapshotInstalled(sender=sender, position=position):
            return "snapshot.installed", {"sender": sender, "index": position.index}
        case ConfigurationChanged(index=index, configuration=found):
            members = {"voters": list(found.voters), "learners": list(found.learners)}
            return "members.changed", {"index": index, **members}
        case FollowerLost(peer=peer, match_index=match, last_index=last):
            return "log.lost", {"member": peer, "acknowledged": match, "last_index": last}
        case QuarantineEnded(index=index):
            return "log.repaired", {"index": index}
        case ClockJumped(by_ms=by_ms):
            return "clock.jumped", {"by_ms": by_ms}
        case ClockAhead(ahead_ms=ahead_ms):
            return "clock.ahead", {"ahead_ms": ahead_ms}
        case StampRefused(leader=leader, ahead_ms=ahead_ms):
            return "stamp.refused", {"leader": leader or NOBODY, "ahead_ms": ahead_ms}
        case _:
            return None


def of_damage(what: str) -> OwnEvent:
    """The node starts without entries that it had acknowledged."""
    return "log.damaged", {"what": what[:500]}


def of_leases(count: int) -> OwnEvent | None:
    """The leader ended so many leases in one entry."""
    return ("leases.expired", {"count": count}) if count >= LEASES_MANY else None
