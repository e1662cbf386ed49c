"""Leader and Followers: the state of one member, its roles, and which role may follow which.

One `RaftState` per node, changed only by the modules of this package. A member is a follower, a pre-candidate
(asks whether it could win), a candidate or a leader; what belongs to an office lives in `Candidacy` or
`Leadership` and disappears with it, so nothing of an old term can be used in a new one. The table at the end
of the first section is the whole of the role machine.

Source: Raft thesis, figure 3.3; pre-vote §9.6.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from kvnode.clocks.hybrid import HybridClock
from kvnode.config import RaftSection
from kvnode.ids import NOBODY, Index, NodeId, Term
from kvnode.raft.log import RaftLog
from kvnode.raft.membership import is_removed
from kvnode.raft.messages import Configuration, Entry, HardState, LogPosition, Proposed, RaftMessage
from kvnode.raft.output import Output, Send, SnapshotInstalled
from kvnode.raft.progress import Progress
from kvnode.raft.writes import Writes

_NONE = Index(0)
_NO_TERM = Term(0)
_NO_GOAL = (_NO_TERM, _NONE)


class Role(Enum):
    FOLLOWER = "follower"  # learners included
    PRE_CANDIDATE = "pre_candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


_LEGAL_ROLE_CHANGES: dict[Role, tuple[Role, ...]] = {
    Role.FOLLOWER: (Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE),  # → candidate: told to by the leader
    Role.PRE_CANDIDATE: (Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE),
    Role.CANDIDATE: (Role.FOLLOWER, Role.PRE_CANDIDATE, Role.LEADER),
    Role.LEADER: (Role.FOLLOWER,),
}


class Restored(msgspec.Struct, frozen=True):
    """What recovery found on disk; a fresh node has a zero hard state and an empty log."""

    hard_state: HardState
    configuration: Configuration  # the newest one the store has applied; the initial members, until one was changed
    base: LogPosition  # the position before the first log entry that exists
    term_runs: tuple[tuple[Index, Term], ...]  # (first index, term) of each run of equal terms over (base, last_index]
    last_index: Index
    tail: tuple[Entry, ...]  # the newest entries, contiguous up to last_index; at least all above applied_index
    applied_index: Index  # what the store has applied already
    applied_time: int  # its hybrid timestamp: of the entry at applied_index
    life: int = 0  # counts the starts of this member
    is_quarantined: bool = False  # entries that an earlier life acknowledged are lost
    configuration_index: Index = _NONE  # of its entry, at most applied_index; 0: the initial one


@dataclass(slots=True)
class Candidacy:
    """One attempt to become leader; `term` is the campaign's, which a pre-vote only asks about."""

    term: Term
    began_ms: int
    is_transfer: bool = False
    granted: dict[NodeId, bool] = field(default_factory=dict)  # voter → True; a dict, for its order
    refused: dict[NodeId, bool] = field(default_factory=dict)


@dataclass(slots=True)
class ReadRound:
    """Reads waiting for a majority to echo `number`. `reads` are (origin, number of its request)."""

    number: int
    index: Index
    reads: list[tuple[NodeId, int]]


@dataclass(slots=True)
class Leadership:
    """What only a leader has, for one term."""

    progress: dict[NodeId, Progress]  # every member but this node, in order of id
    first_index: Index  # its no-op; nothing linearizable is served before that commits
    heartbeat_deadline_ms: int
    quorum_deadline_ms: int  # no majority heard from by then: not a leader any more
    heartbeat_due: bool = False
    note_deadline_ms: int = 0  # some follower is to be told of the commit index by then; 0 = none
    note_due: bool = False
    reads_waiting: list[tuple[NodeId, int]] = field(default_factory=list)  # not in a round yet
    read_rounds: deque[ReadRound] = field(default_factory=deque)  # ascending by number
    reads_count: int = 0  # in reads_waiting and read_rounds together
    lease_index: Index = _NONE  # no lease before this is committed (`leader_lease`)
    lease_from_ms: int | None = None  # when the newest round left that a majority has echoed
    lease_rounds: deque[tuple[int, int]] = field(default_factory=deque)  # (number, sent at), not echoed yet
    transfer_to: NodeId = NOBODY
    transfer_deadline_ms: int = 0
    transfer_sent: bool = False


@dataclass(slots=True)
class ClockWatch:
    """What a member knows of its wall clock and of its leader's (`clock_drift`)."""

    offset_ms: int | None = None  # wall less monotonic clock, at the last step
    abstains_until_ms: int | None = None  # no campaign before; it is out of line, by its own or others' word
    in_line_offset_ms: int = 0  # … or until the offset is near this again
    refusing_since_ms: int | None = None  # the first stamp refused since the commit index stood at `refusing_at`
    refusing_at: Index = _NONE
    refused_term: Term = _NO_TERM  # whose leader was refused last
    refused_leader: NodeId = NOBODY
    refused_ms: int = 0  # … when
    ahead_ms: int = 0  # … and how far ahead of this clock it was
    tolerated_term: Term = _NO_TERM  # whose leader is not refused any more, for want of another
    refusals: int = 0
    jumps: int = 0


@dataclass(slots=True)
class RaftState:
    """Everything one member knows. Plain data; the rules are in the modules named after them."""

    node: NodeId
    settings: RaftSection
    rng: random.Random
    clock: HybridClock
    log: RaftLog
    writes: Writes
    now_ms: int
    term: Term  # never falls
    vote: NodeId  # fixed within a term once given
    commit_index: Index  # never falls
    wall_ms: int = 0
    watch: ClockWatch = field(default_factory=ClockWatch)
    role: Role = Role.FOLLOWER
    leader: NodeId = NOBODY  # of the current term
    candidacy: Candidacy | None = None
    leadership: Leadership | None = None
    is_stalled: bool = False  # the disk hangs: no campaign, no leadership
    life: int = 0  # which start of this member this is
    is_quarantined: bool = False  # no vote, no campaign until the log is whole again (`quarantine`)
    quarantine_goal: tuple[Term, Index] = _NO_GOAL  # the leader's commit index when it had forgotten earlier lives
    quarantine_lifting: bool = False  # asked to make durable that it is over
    election_deadline_ms: int = 0
    leader_contact_ms: int | None = None  # last append of the current leader; None: stickiness does not hold
    promised_ms: int = 0  # last append of any leader, or the start: never forgotten (`leader_lease`)
    has_heard_leader: bool = False  # in this process life
    grace_given: bool = False  # one late deadline has been forgiven since the last proof of life
    read_round: int = 0  # last number used, never reused while the process lives
    forwarded_reads: dict[int, int] = field(default_factory=dict)  # number → deadline, oldest first
    proposals_waiting: list[Proposed] = field(default_factory=list)  # for the leader, sent with the next output
    contacts: dict[NodeId, int] = field(default_factory=dict)  # last message of each peer
    disconnected: dict[NodeId, bool] = field(default_factory=dict)  # peers reported down
    apply_to: Index = _NONE
    installing: SnapshotInstalled | None = None  # accepted, and not durable yet
    told_configuration: Configuration | None = None  # the one in force at the last output
    output: Output = field(default_factory=Output)

    @property
    def configuration(self) -> Configuration:
        return self.log.membership.configuration

    @property
    def is_voter(self) -> bool:
        return self.log.membership.is_voter(self.node)

    @property
    def committed_configuration(self) -> Configuration:
        """The newest one known to be committed: it will not be rolled back."""
        return self.log.membership.at(self.commit_index)[1]

    @property
    def may_stand(self) -> bool:
        """A voter may campaign; so may one whose removal is not committed: it may be the only one that can (§4.2.2)."""
        return self.is_voter or self.node in self.committed_configuration.voters

    @property
    def is_removed(self) -> bool:
        """Certainly and for ever."""
        return is_removed(self.committed_configuration, self.node)

    @property
    def uncommitted_bytes(self) -> int:
        return self.log.bytes_between(self.commit_index, self.log.last_index)

    def change_role(self, to: Role) -> None:
        assert to in _LEGAL_ROLE_CHANGES[self.role], (self.role, to)
        self.role = to

    def send(self, to: NodeId, message: RaftMessage, *, holds: Index = _NONE) -> None:
        """Queue a message. It leaves once term and vote, and our log up to `holds`, are durable."""
        self.output.sends.append(Send(to, message, self.writes.after(holds)))


def initial_state(
    node: NodeId, settings: RaftSection, rng: random.Random, restored: Restored, now_ms: int
) -> RaftState:
    """A follower that knows what its disk knows (every process starts as one)."""
    hard_state = restored.hard_state
    log = RaftLog(
        base=restored.base,
        term_runs=restored.term_runs,
        last_index=restored.last_index,
        tail=restored.tail,
        configuration=restored.configuration,
        configuration_index=restored.configuration_index,
        time_before=restored.applied_time,
    )
    assert hard_state.term >= log.last_term, (hard_state.term, log.last_term)
    assert restored.base.index <= restored.applied_index <= log.last_index, (restored.applied_index, log.last_index)
    assert log.first_in_memory <= restored.applied_index + 1, (log.first_in_memory, restored.applied_index)
    is_known = restored.configuration_index <= restored.applied_index or restored.is_quarantined  # store ahead of log
    assert is_known, (restored.configuration_index, restored)
    return RaftState(
        node=node,
        settings=settings,
        rng=rng,
        clock=HybridClock(max(log.last_time, restored.applied_time)),
        log=log,
        writes=Writes(log.last_index),
        now_ms=now_ms,
        promised_ms=now_ms,
        term=hard_state.term,
        vote=hard_state.vote,
        commit_index=restored.applied_index,
        apply_to=restored.applied_index,
        life=restored.life,
        is_quarantined=restored.is_quarantined,
        told_configuration=log.membership.configuration,
    )
