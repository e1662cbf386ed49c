"""A whole cluster of cores in one thread: virtual time, a wire one can cut, disks that crash. No randomness of its own.

    cluster = Cluster(3)                      # voters 1, 2, 3; every disk write completes at once
    cluster.elect(1)                          # node 1 leads, its no-op is committed everywhere
    cluster.propose(2, b"x"); cluster.settle()

`step` feeds one cause to one core, `feed` several with one output. What the core sends goes onto `wire`, oldest
first; `deliver` takes messages off it, `settle` until nothing moves, `advance` lets time pass as well. Disks of nodes
in `slow_disks` keep writes until `complete_write`. After every step the invariants of the node and those that span
nodes are checked: one leader a term, durable before sent, log matching, leader completeness, equal applied entries.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from kvnode.config import RaftSection
from kvnode.ids import NO_WRITE, NOBODY, Index, NodeId, RequestId, Term
from kvnode.kv.members import MemberChange
from kvnode.raft import invariants
from kvnode.raft.core import Raft
from kvnode.raft.messages import (
    AppendReply,
    Configuration,
    Entry,
    EntryKind,
    Fetched,
    HardState,
    Input,
    LogPosition,
    LogTrimmed,
    PeerMessage,
    Persisted,
    Proposals,
    Proposed,
    QuarantineLifted,
    ReadRequest,
    SnapshotReceived,
    SnapshotSent,
    Tick,
    VoteReply,
    VoteRequest,
)
from kvnode.raft.output import (
    Fact,
    Fetch,
    Forwarded,
    Output,
    Persist,
    Placed,
    ReadFailed,
    ReadReady,
    Refused,
    Send,
    SendSnapshot,
)
from kvnode.raft.reconfiguration import encode_change
from kvnode.sim.core.disk import WALL_START_MS, CoreDisk


@dataclass
class Envelope:
    sender: NodeId
    to: NodeId
    message: PeerMessage


@dataclass
class Member:
    """One node: its core while it runs, its disk, and what its clients were told."""

    id: NodeId
    disk: CoreDisk = field(default_factory=CoreDisk)
    raft: Raft | None = None
    held: list[Send] = field(default_factory=list)  # waiting for the disk
    is_draining: bool = False
    applied: list[Entry] = field(default_factory=list)
    observed: invariants.Observed | None = None
    placed: list[Placed] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    forwarded: list[Forwarded] = field(default_factory=list)
    reads_ready: list[ReadReady] = field(default_factory=list)
    reads_failed: list[ReadFailed] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    snapshots: list[SendSnapshot] = field(default_factory=list)  # asked for, and not answered yet
    stored: list[Entry] = field(default_factory=list)  # what its store holds durably; the log goes on from there
    life: int = -1  # 0 in the first life, whose answers tests make by hand
    is_quarantined: bool = False  # durable, beside the disk

    @property
    def payloads(self) -> list[bytes]:
        """Applied commands."""
        return [entry.payload for entry in self.applied if entry.kind == 2]


class Cluster:
    """See the module docstring."""

    def __init__(
        self,
        voters: int | Iterable[int] = 3,
        *,
        learners: Iterable[int] = (),
        seed: int = 1,
        settings: RaftSection | None = None,
        logs: dict[int, list[int]] | None = None,
        slow_disks: Iterable[int] = (),
    ) -> None:
        """`logs`: entries' terms by node, e.g. {1: [1, 1, 2]}; a node's term is then its last entry's."""
        ids = range(1, voters + 1) if isinstance(voters, int) else voters
        self.configuration = Configuration(tuple(map(NodeId, ids)), tuple(map(NodeId, learners)))
        self.settings = settings or RaftSection(commit_note_ms=0)  # notes at once: scripts stay free of timers
        self.seed = seed
        self.now_ms = 1_000
        self.wall_skew_ms: dict[int, int] = {}  # by node: its wall clock less the true time
        self.wire: list[Envelope] = []
        self.cut_links: dict[tuple[int, int], bool] = {}
        self.slow_disks = dict.fromkeys(slow_disks, True)
        self.leaders: dict[Term, NodeId] = {}
        self.committed: dict[Index, Entry] = {}
        self.entries_seen: dict[tuple[Index, Term], tuple[Entry, Term]] = {}
        self.last_id = 0
        self.last_read = 0
        self.starts = 0
        self.observers: list[Callable[[Cluster, NodeId, Output], None]] = []
        self.members: dict[NodeId, Member] = {}
        for id_ in sorted(self.configuration.voters + self.configuration.learners):
            self.members[id_] = Member(id_)
            terms = (logs or {}).get(id_, [])
            self.members[id_].disk.entries = [made_entry(term, index) for index, term in enumerate(terms, 1)]
            self.members[id_].disk.hard_state = HardState(Term(terms[-1] if terms else 0))
            self.start(id_)

    # ── one node ────────────────────────────────────────────────────────────────────────────────────

    def __getitem__(self, id_: int) -> Raft:
        raft = self.members[NodeId(id_)].raft
        assert raft is not None, f"node {id_} is down"
        return raft

    def member(self, id_: int) -> Member:
        return self.members[NodeId(id_)]

    def start(self, id_: int) -> None:
        """Start a node from its disk; its state machine is empty and replays the log."""
        member = self.member(id_)
        self.starts += 1
        member.life += 1
        member.applied = list(member.stored)
        member.held = []
        member.observed = None
        member.disk.durable = NO_WRITE
        member.raft = Raft(
            node=member.id,
            settings=self.settings,
            rng=random.Random(f"{self.seed}.{id_}.{self.starts}"),
            restored=msgspec.structs.replace(
                member.disk.restored(*self._stored_configuration(member)),
                applied_index=Index(len(member.stored)),
                applied_time=member.stored[-1].time if member.stored else 0,
                life=member.life,
                is_quarantined=member.is_quarantined,
            ),
            now_ms=self.now_ms,
        )
        self._check(member)

    def crash(self, id_: int) -> None:
        """The process dies; writes that were not durable are gone, and so is what waited for them."""
        member = self.member(id_)
        member.raft = None
        member.disk.queue.clear()
        member.held.clear()

    def restart(self, id_: int) -> None:
        self.crash(id_)
        self.start(id_)

    def damage(self, id_: int, first: int) -> None:
        """Restart a node that finds its log unreadable from `first` on; term and vote are intact."""
        self.crash(id_)
        member = self.member(id_)
        del member.disk.entries[first - 1 :]
        member.is_quarantined = True
        self.start(id_)

    def step(self, id_: int, cause: Input) -> Output:
        return self.feed(id_, cause)

    def feed(self, id_: int, *causes: Input) -> Output:
        """Several causes, one output, as the driver does it."""
        member, raft = self.member(id_), self[id_]
        for cause in causes:
            raft.step(self.now_ms, self.wall_ms(id_), cause)
            self._check(member)
        output = raft.take_output()
        self._check(member)
        self._execute(member, output)
        return output

    def wall_ms(self, id_: int) -> int:
        return WALL_START_MS + self.now_ms + self.wall_skew_ms.get(id_, 0)

    def _check(self, member: Member) -> None:
        assert member.raft is not None
        state = member.raft.state
        invariants.check(state)
        observed = invariants.observe(state)
        if member.observed is not None:
            invariants.check_step(member.observed, observed)
        member.observed = observed
        if member.raft.role == "leader" and self.leaders.get(state.term) != member.id:
            assert state.term not in self.leaders, ("I1", state.term, self.leaders[state.term], member.id)
            self.leaders[state.term] = member.id
            for index, entry in self.committed.items():
                is_there = index <= state.log.base.index or state.log.term_at(index) == entry.term
                assert is_there, ("I6", member.id, index, entry.term)

    def _execute(self, member: Member, output: Output) -> None:
        member.outputs.append(output)
        for observer in self.observers:
            observer(self, member.id, output)
        member.facts += output.facts
        if output.persist is not None:
            self._note_entries(member, output.persist)
            member.disk.queue.append(output.persist)
        for send in output.sends:
            member.held.append(send)
        self._release(member)
        member.placed += output.placed
        member.forwarded += output.forwarded
        member.refused += output.refused
        member.reads_ready += output.reads_ready
        member.reads_failed += output.reads_failed
        member.snapshots += output.snapshots
        if output.installed is not None:
            member.applied = list(member.stored)
            assert len(member.applied) == output.installed.index, ("I17", member.id, output.installed)
        self._apply(member, output.apply_to)
        for fetch in output.fetches:
            self.on_fetch(member, fetch)
        if output.lift_quarantine:
            member.is_quarantined = False
            self.feed(member.id, QuarantineLifted())
        if member.id not in self.slow_disks and not member.is_draining:
            self.complete_writes(member.id)

    def _note_entries(self, member: Member, persist: Persist) -> None:
        """Log matching, incrementally: (index, term) names one entry and one predecessor for ever."""
        assert member.raft is not None
        if not persist.entries:
            return
        before = member.raft.state.log.term_at(Index(persist.entries[0].index - 1))
        assert before is not None
        for entry in persist.entries:
            known = self.entries_seen.setdefault((entry.index, entry.term), (entry, before))
            assert known == (entry, before), ("I5", member.id, entry, known)
            before = entry.term

    def complete_write(self, id_: int) -> None:
        """One write of a slow disk finishes: messages that waited leave, the core hears of it."""
        member = self.member(id_)
        install = member.disk.queue[0].install
        number = member.disk.complete()
        if install is not None:
            member.stored = [self.committed[Index(index)] for index in range(1, install.position.index + 1)]
        self._release(member)
        self.step(id_, Persisted(number))

    def complete_writes(self, id_: int) -> None:
        """Every queued write finishes, one after the other, and those that this gives rise to."""
        member = self.member(id_)
        member.is_draining = True  # the steps below must not drain the queue themselves, each within the last
        while member.disk.queue:
            self.complete_write(id_)
        member.is_draining = False

    def _release(self, member: Member) -> None:
        still_held: list[Send] = []
        for send in member.held:
            if send.after > member.disk.durable:
                still_held.append(send)
                continue
            self._check_durable(member, send)
            if (member.id, send.to) not in self.cut_links and send.to in self.members:
                self.wire.append(Envelope(member.id, send.to, send.message))
        member.held = still_held

    def _check_durable(self, member: Member, send: Send) -> None:
        """I9: what the message claims is on the disk."""
        hard_state, message = member.disk.hard_state, send.message
        if isinstance(message, VoteRequest | VoteReply) and message.pre:
            return
        assert hard_state.term >= message.term, ("I9", message, hard_state)
        if hard_state.term > message.term:
            return
        match message:
            case AppendReply(accepted=True):
                assert member.disk.last_index >= message.index, ("I9", message, member.disk.last_index)
            case VoteReply(granted=True):
                assert hard_state.vote == send.to, ("I2", message, hard_state)
            case VoteRequest():
                assert hard_state.vote == member.id, ("I2", message, hard_state)
            case _:
                pass

    def _apply(self, member: Member, apply_to: Index) -> None:
        while len(member.applied) < apply_to:
            entry = member.disk.entry(len(member.applied) + 1)  # I11: only what is durable is applied
            assert entry is not None, ("I19", member.id, len(member.applied) + 1, apply_to)
            known = self.committed.setdefault(entry.index, entry)
            assert known == entry, ("I7", member.id, entry, known)
            member.applied.append(entry)

    def on_fetch(self, member: Member, fetch: Fetch) -> None:
        """Read entries back from the disk and hand them to the core."""
        found = [member.disk.entry(index) for index in range(fetch.first, min(fetch.last, fetch.first + 15) + 1)]
        entries = tuple(entry for entry in found if entry is not None)
        self.step(member.id, Fetched(fetch.peer, entries))

    # ── snapshots and members ───────────────────────────────────────────────────────────────────────

    def add(self, id_: int) -> None:
        """A node that has never been started: an empty log, and a configuration it does not stand in."""
        self.members[NodeId(id_)] = Member(NodeId(id_))
        self.start(id_)

    def trim(self, id_: int, index: int | None = None) -> None:
        """The store of a node holds durably what it has applied, and its log begins after `index` (default: there)."""
        member = self.member(id_)
        member.stored = list(member.applied)
        at = len(member.stored) if index is None else index
        position = LogPosition(member.stored[at - 1].term, Index(at))
        member.disk.trim(position)
        self.step(id_, LogTrimmed(position))

    def snapshot_of(self, id_: int) -> SnapshotReceived:
        """What a node has applied, as another one would get it."""
        member, raft = self.member(id_), self[id_]
        last = member.applied[-1]
        configuration, index = self._stored_configuration(member, member.applied)
        return SnapshotReceived(
            member.id, raft.term, LogPosition(last.term, last.index), last.time, configuration, index
        )

    def send_snapshots(self, id_: int) -> None:
        """Whoever was asked for gets a snapshot of what the node has applied now."""
        member = self.member(id_)
        asked, member.snapshots = member.snapshots, []
        for each in asked:
            snapshot = self.snapshot_of(id_)
            self.step(each.peer, snapshot)
            self.step(id_, SnapshotSent(each.peer, snapshot.position.index))

    def _stored_configuration(self, member: Member, entries: list[Entry] | None = None) -> tuple[Configuration, Index]:
        for entry in reversed(member.stored if entries is None else entries):
            if entry.kind == EntryKind.CONFIGURATION:
                return msgspec.msgpack.decode(entry.payload, type=Configuration), entry.index
        return self.configuration, Index(0)

    def change(self, id_: int, *changes: MemberChange) -> list[RequestId]:
        """Changes of members proposed at node `id_`, in one batch; their request ids."""
        batch = []
        for change in changes:
            self.last_id += 1
            payload = encode_change(change)
            batch.append(Proposed(RequestId(self.last_id), payload, kind=EntryKind.CONFIGURATION.value))
        self.step(id_, Proposals(tuple(batch)))
        return [proposed.id for proposed in batch]

    def refusal(self, id_: int, request: RequestId) -> tuple[str, str] | None:
        """Code and sentence of what node `id_` was told of its proposal; None: it was not refused."""
        answers = [(each.code, each.message) for each in self.member(id_).refused if each.id == request]
        return answers[0] if answers else None

    # ── the wire and the time ───────────────────────────────────────────────────────────────────────

    def cut(
        self, left: Iterable[int] | int, right: Iterable[int] | int | None = None, *, one_way: bool = False
    ) -> None:
        """Drop messages between two groups from now on (and what is under way); `right` omitted: all others."""
        lefts = [left] if isinstance(left, int) else list(left)
        rights = [right] if isinstance(right, int) else list(right if right is not None else self.members)
        for a in lefts:
            for b in rights:
                if b not in lefts or right is not None:
                    self.cut_links[a, b] = True
                    if not one_way:
                        self.cut_links[b, a] = True
        self.wire = [e for e in self.wire if (e.sender, e.to) not in self.cut_links]

    def heal(self) -> None:
        self.cut_links.clear()

    def take(self, chosen: Callable[[Envelope], bool]) -> list[Envelope]:
        """Take messages off the wire without delivering them: to drop, keep, or deliver later or twice."""
        taken = [envelope for envelope in self.wire if chosen(envelope)]
        self.wire = [envelope for envelope in self.wire if not chosen(envelope)]
        return taken

    def hand(self, *envelopes: Envelope) -> None:
        """Deliver exactly these, whether they are on the wire or not."""
        for envelope in envelopes:
            if self.members[envelope.to].raft is not None:
                self.step(envelope.to, envelope.message)

    def deliver(self, chosen: Callable[[Envelope], bool] = lambda _: True) -> int:
        """Deliver what is on the wire now (not what that gives rise to); how many."""
        envelopes = self.take(chosen)
        self.hand(*envelopes)
        return len(envelopes)

    def settle(self, rounds: int = 1_000) -> None:
        """Deliver until the wire is empty. Time stands still."""
        for _ in range(rounds):
            if not self.deliver():
                return
        raise AssertionError(f"the wire is never quiet: {self.wire[:4]}")

    def tick(self, id_: int) -> Output:
        return self.step(id_, Tick())

    def advance(self, ms: int, *, deliver: bool = True) -> None:
        """Let time pass; every node ticks at its deadlines, messages arrive at once."""
        end = self.now_ms + ms
        while True:
            running = [member for member in self.members.values() if member.raft is not None]
            due = min((m.raft.next_deadline_ms() for m in running if m.raft is not None), default=end + 1)
            self.now_ms = min(max(due, self.now_ms), end)
            if due > end:
                return
            for member in running:
                if member.raft is not None and member.raft.next_deadline_ms() <= self.now_ms:
                    self.tick(member.id)
            if deliver:
                self.settle()

    def run_until(self, done: Callable[[], bool], limit_ms: int = 20_000) -> None:
        """Let time pass until `done`, in steps of 10 ms."""
        for _ in range(limit_ms // 10):
            if done():
                return
            self.advance(10)
        raise AssertionError(f"not reached within {limit_ms} ms")

    # ── clients ─────────────────────────────────────────────────────────────────────────────────────

    def propose(self, id_: int, *payloads: bytes) -> list[RequestId]:
        """Commands of one batch at node `id_`; their request ids."""
        batch = []
        for payload in payloads:
            self.last_id += 1
            batch.append(Proposed(RequestId(self.last_id), payload))
        self.step(id_, Proposals(tuple(batch)))
        return [proposed.id for proposed in batch]

    def read(self, id_: int) -> int:
        """Ask for a read index; the number it is answered under."""
        self.last_read += 1
        self.step(id_, ReadRequest(self.last_read))
        return self.last_read

    def ready_at(self, id_: int, number: int) -> Index | None:
        """The index a read may be served at, None if it was not answered (yet)."""
        return next((r.index for r in self.member(id_).reads_ready if r.number == number), None)

    def commit_of(self, id_: int) -> Index:
        return self[id_].commit_index

    def has_failed(self, id_: int, number: int) -> bool:
        return any(r.number == number for r in self.member(id_).reads_failed)

    # ── situations ──────────────────────────────────────────────────────────────────────────────────

    @property
    def leader(self) -> NodeId:
        """The running leader of the highest term, NOBODY if there is none."""
        leading = [m.raft for m in self.members.values() if m.raft is not None and m.raft.role == "leader"]
        return max(leading, key=lambda raft: raft.term).node if leading else NOBODY

    def elect(self, id_: int, *, settle: bool = True) -> None:
        """Let node `id_`'s election timer fire when no voter hears a leader any more, and deliver everything."""
        timeout = self.settings.election_timeout_ms
        deadline = self[id_].next_deadline_ms()
        self.now_ms = max(self.now_ms + timeout, deadline)
        self.tick(id_)
        if self[id_].role == "follower":  # a deadline missed by much is forgiven once
            self.now_ms = self[id_].next_deadline_ms()
            self.tick(id_)
        if settle:
            self.settle()
            assert self[id_].role == "leader", (id_, self[id_].role)

    def assert_level(self, *ids: int) -> None:
        """These nodes (default: all running) have equal logs, fully committed and applied."""
        chosen = [self.member(i) for i in ids] if ids else [m for m in self.members.values() if m.raft is not None]
        first = chosen[0]
        for member in chosen:
            base = max(member.disk.base.index, first.disk.base.index)
            assert member.disk.after(base) == first.disk.after(base), (member.id, first.id)
            assert member.applied == first.applied, (member.id, len(member.applied), len(first.applied))
            assert len(member.applied) == member.disk.last_index, (member.id, len(member.applied))

    def facts_of(self, id_: int, kind: type[Fact]) -> list[Fact]:
        return [fact for fact in self.member(id_).facts if isinstance(fact, kind)]


def made_entry(term: int, index: int, payload: bytes | None = None) -> Entry:
    """An entry as some past leader might have written it: equal (term, index) give equal entries."""
    text = payload if payload is not None else b"%d.%d" % (term, index)
    return Entry(Term(term), Index(index), (index << 16) + 1, 2, text)
