"""What enters the Raft core: log entries, peer messages and local inputs.

Peer messages travel between nodes as MessagePack arrays (append fields with defaults, never reorder, never
reuse a tag). Each carries the sender's term and id; the transport has proven the id before the core sees it.
Local inputs are causes on this node: proposals, reads, finished disk writes, connections, time.

`lane()` says which of a pair's two connections a message takes: control never waits behind bulk.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Literal

import msgspec

from kvnode.ids import NO_WRITE, NOBODY, Index, NodeId, RequestId, Term, WriteNumber


class EntryKind(IntEnum):
    """What an entry's payload is. An unknown kind is refused, never skipped."""

    NOOP = 1  # a new leader's first entry; payload: its member id as text, for people reading the log
    COMMAND = 2  # payload: a client's write request, encoded by `kvnode.wire.codec`
    CONFIGURATION = 3  # payload: an encoded `Configuration`


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One entry of the replicated log. Equal (index, term) means equal entry and equal prefix (Log Matching)."""

    term: Term
    index: Index
    time: int  # hybrid timestamp given by the leader; strictly increases along the log
    kind: int  # EntryKind
    payload: bytes
    session: int = 0  # client session and sequence; 0 = none
    sequence: int = 0


ENTRY_OVERHEAD_BYTES = 64
"""What an entry costs beside its payload, for windows and caches."""


def entry_bytes(entry: Entry) -> int:
    """Size of an entry as windows, caches and the uncommitted budget count it."""
    return len(entry.payload) + ENTRY_OVERHEAD_BYTES


class Member(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One member as the configuration knows it."""

    id: NodeId
    incarnation: int  # of its data directory; 0: not known yet
    address: str  # host:port of its peer listener
    name: str = ""
    wants_vote: bool = False  # a learner that is to be promoted once it has caught up
    replaces: NodeId = NOBODY  # … and this member is to be removed then


class Configuration(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Who votes and who only listens. Ids are sorted; no id stands in both.

    The initial configuration is the log's base at index 0; every later one is the payload of an entry.
    """

    voters: tuple[NodeId, ...]
    learners: tuple[NodeId, ...] = ()
    members: tuple[Member, ...] = ()  # one for each of them, by id; none where only the core is tested
    last_id: NodeId = NOBODY  # the highest id ever given: one up to it that is no member's was removed, for ever
    feature_level: int = 1  # what all members know and may therefore use
    removed: tuple[int, ...] = ()  # incarnations of members that were removed, the latest last; bounded


class HardState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Must be durable before any message that depends on it. `commit` is evidence for recovery, written lazily."""

    term: Term
    vote: NodeId = NOBODY
    commit: Index = Index(0)


class LogPosition(msgspec.Struct, frozen=True, array_like=True, order=True, gc=False):
    """(term, index) of an entry; ordered as votes compare logs: last term first, then length (thesis §3.6.1)."""

    term: Term
    index: Index


# ── peer messages ───────────────────────────────────────────────────────────────────────────────────


class AppendEntries(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Leader → follower: extend your log after (prev_index, prev_term), or tell me where we part.

    No entries means a heartbeat or a probe. Source: Raft thesis, figure 3.1.
    """

    term: Term
    sender: NodeId
    prev_index: Index
    prev_term: Term
    entries: tuple[Entry, ...]  # consecutive from prev_index + 1; at most append_bytes_max, or one entry
    commit_index: Index  # the leader's high-water mark; may lie beyond `entries`
    read_round: int = 0  # echoed in the reply; a majority of echoes confirms leadership for reads
    quiet: bool = False  # only tells the commit index: answer if the logs do not meet, else say nothing
    life: int = 0  # to a follower in quarantine: its life; what earlier lives acknowledged counts no more


class AppendReply(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """Follower → leader. Accepted: everything up to `index` equals the leader's log *and is durable here*.

    Rejected: `index` is the prev_index that did not match; (hint_term, hint_index) is where to look next: the
    term of the follower's entry there and the first index it holds of that term, or term 0 and its last index.
    A reply to a message of an older term is a rejection that only carries the newer term.
    `ahead_ms` > 0: accepted up to `index`, but what followed is not taken, for its stamp is so far in the future.
    """

    term: Term
    sender: NodeId
    accepted: bool
    index: Index
    hint_term: Term = Term(0)
    hint_index: Index = Index(0)
    last_index: Index = Index(0)  # the follower's last index, for fast back-up
    read_round: int = 0
    life: int = 0  # which start of the follower this is; answers of an earlier one are void
    quarantined: bool = False  # an earlier life acknowledged entries that are lost
    ahead_ms: int = 0  # the first stamp refused, less the follower's wall clock


class VoteRequest(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """Candidate → voter. `pre`: would you vote for me in `term`? changes nothing on either side (thesis §9.6)."""

    term: Term  # for a pre-vote: the term the sender *would* campaign in
    sender: NodeId
    last_term: Term
    last_index: Index
    pre: bool = False
    transfer: bool = False  # sent on a leader's TimeoutNow: overrides vote stickiness (thesis §4.2.3)


class VoteReply(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """Voter → candidate. A granted pre-vote carries the *request's* term, a refused one the voter's own."""

    term: Term
    sender: NodeId
    granted: bool
    pre: bool = False


class TimeoutNow(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """Leader → follower: campaign at once, you are up to date (leadership transfer, thesis §3.10)."""

    term: Term
    sender: NodeId
    last_index: Index = Index(0)  # the log's end it was sent for; once the leader has appended more it is void


class Proposed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One command on its way to the leader. `id` is the origin's and comes back with the answer.

    Of kind CONFIGURATION the payload is a `kvnode.kv.members.MemberChange`, for the leader to judge.
    """

    id: RequestId
    payload: bytes
    session: int = 0
    sequence: int = 0
    kind: int = EntryKind.COMMAND.value


class ForwardProposals(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    """Follower → leader, once, never passed on: append these for me."""

    term: Term
    sender: NodeId
    batch: tuple[Proposed, ...]


class ForwardReply(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    """Leader → origin: where the commands stand (index 0: refused, certainly never appended).

    Accepted commands stand at (index, `term`); the origin's own applier tells what became of them.
    """

    term: Term
    sender: NodeId
    placed: tuple[tuple[RequestId, Index], ...] = ()
    refused: tuple[tuple[RequestId, str, str], ...] = ()  # (id, error code, why where that does not tell)


class ReadIndexRequest(msgspec.Struct, frozen=True, array_like=True, tag=8, gc=False):
    """Follower → leader: an index that reads asked for now may be served at. `number` is never reused by the sender."""

    term: Term
    sender: NodeId
    number: int


class ReadIndexReply(msgspec.Struct, frozen=True, array_like=True, tag=9, gc=False):
    """Leader → follower: reads of `number` may be served once `index` is applied; index 0: refused, ask again."""

    term: Term
    sender: NodeId
    number: int
    index: Index


class KeepAlive(msgspec.Struct, frozen=True, array_like=True, tag=10, gc=False):
    """Any member → leader: let this lease live from now on (`renew`), or only tell what it has left."""

    term: Term  # the sender's; for information
    sender: NodeId
    number: int  # comes back with the answer; never used again by that sender
    lease: int
    renew: bool


class KeepAliveReply(msgspec.Struct, frozen=True, array_like=True, tag=11, gc=False):
    """Leader → member: what became of it. `code` of the error, "" if none."""

    term: Term
    sender: NodeId
    number: int
    remaining_ms: int
    ttl_ms: int
    code: str = ""


class StateHash(msgspec.Struct, frozen=True, array_like=True, tag=12, gc=False):
    """Member → every other: my rolling digest before the state check at `index`, which I have applied."""

    term: Term  # the sender's; for information
    sender: NodeId
    index: Index
    digest: bytes


RaftMessage = (
    AppendEntries
    | AppendReply
    | VoteRequest
    | VoteReply
    | TimeoutNow
    | ForwardProposals
    | ForwardReply
    | ReadIndexRequest
    | ReadIndexReply
)
"""What the core takes from its peers."""

PeerMessage = RaftMessage | KeepAlive | KeepAliveReply | StateHash
"""What goes over the links between members; leases and state checks are the business of the node around the core."""

Lane = Literal["control", "data", "snapshot"]
"""What a connection is for. The first two make a pair, which messages share; a snapshot has one of its own."""


def lane(message: PeerMessage) -> Literal["control", "data"]:
    """The connection a message takes: bulk on `data`, everything an election or a read waits for on `control`."""
    match message:
        case AppendEntries(entries=entries):
            return "data" if entries else "control"
        case ForwardProposals() | ForwardReply() | KeepAlive() | KeepAliveReply() | StateHash():
            return "data"
        case _:
            return "control"


# ── local inputs ────────────────────────────────────────────────────────────────────────────────────


class Tick(msgspec.Struct, frozen=True, gc=False):
    """Time has passed; look at the deadlines."""


class Proposals(msgspec.Struct, frozen=True, gc=False):
    """Commands of this node's clients, in order of arrival. Appended here or forwarded to the leader."""

    batch: tuple[Proposed, ...]


class LeaderProposals(msgspec.Struct, frozen=True, gc=False):
    """Commands that only the leader of `term` may append (it decided them by its own clock); never forwarded."""

    term: Term
    batch: tuple[Proposed, ...]


class TurnedAway(msgspec.Struct, frozen=True, gc=False):
    """Proposals that `peer` forwarded found no room here, in the update queue or on the disk: they are refused."""

    peer: NodeId
    ids: tuple[RequestId, ...]
    code: str = "overloaded"
    message: str = ""  # a sentence, if the code is not enough


class ReadRequest(msgspec.Struct, frozen=True, gc=False):
    """Reads that arrived since the last request, under one fresh number; answered by `ReadReady` or `ReadFailed`."""

    number: int


class Persisted(msgspec.Struct, frozen=True, gc=False):
    """Write `number`, and every earlier one, is durable."""

    number: WriteNumber = NO_WRITE


class PeerConnected(msgspec.Struct, frozen=True, gc=False):
    """Connections to `peer` are up (again): what was in flight on the old ones is lost."""

    peer: NodeId


class PeerDisconnected(msgspec.Struct, frozen=True, gc=False):
    """Connections to `peer` are down; says nothing about whether it lives."""

    peer: NodeId


class PeerRefused(msgspec.Struct, frozen=True, gc=False):
    """Connections to `peer` are down *and* its port refuses new ones: its process is gone."""

    peer: NodeId


class TransferLeadership(msgspec.Struct, frozen=True, gc=False):
    """Hand leadership to `to`; NOBODY picks the most caught-up voter."""

    to: NodeId = NOBODY


class DiskStalled(msgspec.Struct, frozen=True, gc=False):
    """An fsync has been in flight for longer than `storage.stall_ms`: a leader steps down, nobody campaigns."""


class DiskRecovered(msgspec.Struct, frozen=True, gc=False):
    """The stalled write finished."""


class QuarantineLifted(msgspec.Struct, frozen=True, gc=False):
    """It is durable that this node has everything again that it ever acknowledged (answers `lift_quarantine`)."""


class LogTrimmed(msgspec.Struct, frozen=True, gc=False):
    """The log on disk begins after `position` now: older entries can neither be read nor sent any more."""

    position: LogPosition


class SnapshotReceived(msgspec.Struct, frozen=True, gc=False):
    """A leader's snapshot has come whole, was verified and stands ready aside; `Output.persist` may install it.

    Answered in the same output: by `Persist.install`, or by `SnapshotIgnored` among the facts.
    """

    sender: NodeId
    term: Term  # of its leadership
    position: LogPosition  # of the last entry it contains
    time: int  # hybrid timestamp of that entry
    configuration: Configuration  # in force there
    configuration_index: Index = Index(0)  # of the entry it came with; 0: the initial one


class SnapshotSent(msgspec.Struct, frozen=True, gc=False):
    """What became of an attempt to send `peer` a snapshot (answers `SendSnapshot`). `index` 0: it failed.

    Every attempt ends with one. One that is under way when the same is asked again goes on, and answers both.
    """

    peer: NodeId
    index: Index


class Fetched(msgspec.Struct, frozen=True, gc=False):
    """Entries read back from the log on disk for a follower that is behind the cache (answers a `Fetch`)."""

    peer: NodeId
    entries: tuple[Entry, ...]


LocalInput = (
    Tick
    | Proposals
    | LeaderProposals
    | TurnedAway
    | ReadRequest
    | Persisted
    | PeerConnected
    | PeerDisconnected
    | PeerRefused
    | TransferLeadership
    | DiskStalled
    | DiskRecovered
    | QuarantineLifted
    | LogTrimmed
    | SnapshotReceived
    | SnapshotSent
    | Fetched
)

Input = RaftMessage | LocalInput
