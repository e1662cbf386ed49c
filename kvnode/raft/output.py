"""Output: what the shell has to do after a step, and in which order.

Executed once, by `kvnode.node.driver`, in this order: facts are logged; `persist` goes to the log writer;
each `Send` leaves at once if `after` is already durable, else when it is; placed, forwarded and refused
proposals and reads go to whoever waits; entries up to `apply_to` go to the state machine; `fetches` are read.

The rule "durable before it leaves" lives in `Send.after`: a message that depends on a write names its number,
every other message may overtake the disk (Raft thesis §10.2.1; etcd's asynchronous storage writes).
"""

from __future__ import annotations

import msgspec

from kvnode.ids import NO_WRITE, Index, NodeId, RequestId, Term, WriteNumber
from kvnode.raft.messages import Configuration, Entry, HardState, LogPosition, RaftMessage


class Install(msgspec.Struct, frozen=True, gc=False):
    """The snapshot that stands ready becomes this node's store, and the log goes on after `position`.

    `keeps_log`: the log holds that very entry, so it stays as it is. Otherwise all of it goes, but term and vote.
    """

    position: LogPosition
    time: int  # hybrid timestamp of the entry there
    keeps_log: bool


class Persist(msgspec.Struct, frozen=True, gc=False):
    """One write for the log: install, then cut, then append, then hard state; durable as a whole or not at all.

    The one exception is an install: a crash may leave the new store with the old log, which a start then finishes.

    Numbers are consecutive. Completion is matched by number, never by (index, term): the same (index, term)
    can be cut and appended again while an earlier write is still on its way to the disk (trap R2).
    """

    number: WriteNumber
    truncate_from: Index  # 0 = nothing; else every entry at or above it goes, before `entries` are appended
    entries: tuple[Entry, ...]
    hard_state: HardState | None  # None: unchanged but for `commit`
    commit: Index  # evidence for recovery: written with the batch, never a reason for one
    install: Install | None = None


class Send(msgspec.Struct, frozen=True, gc=False):
    """A message that may leave once write `after` is durable; 0: at once."""

    to: NodeId
    message: RaftMessage
    after: WriteNumber = NO_WRITE


class Placed(msgspec.Struct, frozen=True, gc=False):
    """A proposal of this node stands in the leader's log at (index, term). What becomes of it, applying tells."""

    id: RequestId
    index: Index
    term: Term


class Forwarded(msgspec.Struct, frozen=True, gc=False):
    """A proposal went to `leader`: until `Placed` or `Refused` comes back its outcome is unknown."""

    id: RequestId
    leader: NodeId
    term: Term


class Refused(msgspec.Struct, frozen=True, gc=False):
    """A proposal is certainly in no log: the code of the error (no_leader, overloaded; of a change any of its own)."""

    id: RequestId
    code: str
    message: str = ""  # what was wrong, in a sentence; "" where the code says it all


class ReadReady(msgspec.Struct, frozen=True, gc=False):
    """Reads under `number` may be served once `index` is applied here."""

    number: int
    index: Index


class ReadFailed(msgspec.Struct, frozen=True, gc=False):
    """The round cannot be confirmed (no leader, leader changed): ask again under a fresh number."""

    number: int


class Fetch(msgspec.Struct, frozen=True, gc=False):
    """Read entries from the log on disk, from `first`, at most `bytes_max` (one entry at least), for `peer`."""

    peer: NodeId
    first: Index
    last: Index
    bytes_max: int


class SendSnapshot(msgspec.Struct, frozen=True, gc=False):
    """`peer` needs entries from `next_index` on that the log no longer holds: a snapshot. Answered: `SnapshotSent`."""

    peer: NodeId
    next_index: Index


# ── facts: what happened, for the operator's log, metrics and golden traces ─────────────────────────


class BecameFollower(msgspec.Struct, frozen=True, gc=False):
    term: Term
    leader: NodeId  # NOBODY if not known yet
    reason: str


class BecamePreCandidate(msgspec.Struct, frozen=True, gc=False):
    term: Term
    reason: str


class BecameCandidate(msgspec.Struct, frozen=True, gc=False):
    term: Term
    reason: str


class BecameLeader(msgspec.Struct, frozen=True, gc=False):
    term: Term
    took_ms: int  # since the pre-vote began


class LeaderKnown(msgspec.Struct, frozen=True, gc=False):
    term: Term
    leader: NodeId


class LogTruncated(msgspec.Struct, frozen=True, gc=False):
    from_index: Index
    last_index: Index  # before the cut


class TransferBegan(msgspec.Struct, frozen=True, gc=False):
    to: NodeId


class TransferAborted(msgspec.Struct, frozen=True, gc=False):
    to: NodeId
    reason: str


class VoteGranted(msgspec.Struct, frozen=True, gc=False):
    term: Term
    candidate: NodeId


class SnapshotNeeded(msgspec.Struct, frozen=True, gc=False):
    """A follower needs entries from `next_index` on, which the leader's log no longer holds."""

    peer: NodeId
    next_index: Index


class SnapshotInstalled(msgspec.Struct, frozen=True, gc=False):
    """The log goes on after `position`; everything up to it came as a snapshot of `sender`."""

    sender: NodeId
    position: LogPosition


class SnapshotIgnored(msgspec.Struct, frozen=True, gc=False):
    """A snapshot that came is not used: `reason`."""

    sender: NodeId
    position: LogPosition
    reason: str


class ConfigurationChanged(msgspec.Struct, frozen=True, gc=False):
    """Another configuration is in force: appended, rolled back by a truncation, or restored with a snapshot."""

    index: Index  # of its entry; 0: the initial one
    configuration: Configuration


class FollowerLost(msgspec.Struct, frozen=True, gc=False):
    """A follower restarted without entries it had acknowledged, and does not know it: its disk lied about an fsync."""

    peer: NodeId
    match_index: Index  # what it had acknowledged
    last_index: Index  # where its log ends now


class QuarantineEnded(msgspec.Struct, frozen=True, gc=False):
    """The log is whole again up to `index`, as a leader of `term` knows it: this node counts as before."""

    term: Term
    index: Index


class ClockJumped(msgspec.Struct, frozen=True, gc=False):
    """This node's wall clock has jumped, as its monotonic clock tells."""

    by_ms: int


class ClockAhead(msgspec.Struct, frozen=True, gc=False):
    """This leader's stamps are refused by so many that no majority is left: its wall clock is ahead."""

    ahead_ms: int


class StampRefused(msgspec.Struct, frozen=True, gc=False):
    """An uncommitted entry of `leader` is stamped too far in the future and is not taken; told once a term."""

    leader: NodeId
    ahead_ms: int


class StampTolerated(msgspec.Struct, frozen=True, gc=False):
    """`leader` is refused no longer, as nothing has been committed without it; until its term ends."""

    leader: NodeId
    ahead_ms: int


OfficeFact = BecameFollower | BecamePreCandidate | BecameCandidate | BecameLeader | LeaderKnown
"""Who leads, and who tries to."""

OtherFact = (
    LogTruncated
    | TransferBegan
    | TransferAborted
    | VoteGranted
    | SnapshotNeeded
    | SnapshotInstalled
    | SnapshotIgnored
    | ConfigurationChanged
    | QuarantineEnded
    | FollowerLost
    | ClockJumped
    | ClockAhead
    | StampRefused
    | StampTolerated
)

Fact = OfficeFact | OtherFact


class Output(msgspec.Struct):
    """Everything one or more steps decided. `Raft.take_output` returns it and starts an empty one."""

    persist: Persist | None = None
    sends: list[Send] = msgspec.field(default_factory=list)
    placed: list[Placed] = msgspec.field(default_factory=list)
    forwarded: list[Forwarded] = msgspec.field(default_factory=list)
    refused: list[Refused] = msgspec.field(default_factory=list)
    reads_ready: list[ReadReady] = msgspec.field(default_factory=list)
    reads_failed: list[ReadFailed] = msgspec.field(default_factory=list)
    fetches: list[Fetch] = msgspec.field(default_factory=list)
    snapshots: list[SendSnapshot] = msgspec.field(default_factory=list)
    facts: list[Fact] = msgspec.field(default_factory=list)
    installed: LogPosition | None = None  # the snapshot is durable: apply goes on from it, before `apply_to`
    lift_quarantine: bool = False  # make durable that the quarantine is over, then step `QuarantineLifted`
    apply_to: Index = Index(0)  # entries up to here are committed and durable here; never goes back
