"""What no single node can know: an observer of all nodes of a random run, kept incrementally.

It remembers every entry ever handed to a disk (by a running hash of the log up to it), every commit, vote, leader and
claim made to a client, and asserts the invariants that span nodes. Names I1 … I31 are those of docs/testing.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from zlib import crc32

import msgspec

from kvnode.clocks import hybrid
from kvnode.ids import NOBODY, Index, NodeId, RequestId, Term
from kvnode.raft.core import Raft
from kvnode.raft.messages import (
    AppendEntries,
    AppendReply,
    Configuration,
    Entry,
    EntryKind,
    LogPosition,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from kvnode.raft.output import Output, Persist, Placed, Send
from kvnode.raft.quorum import has_majority
from kvnode.sim.core.disk import CoreDisk

_decode_configuration = msgspec.msgpack.Decoder(Configuration).decode
_encode = msgspec.msgpack.Encoder().encode


@dataclass
class Committed:
    """A committed entry's term, and the term of the leader that committed it first."""

    term: Term
    by_term: Term


@dataclass
class Loss:
    """What a node in quarantine may have acknowledged and lost."""

    term: Term  # the last in which it can have acknowledged it
    had: dict[tuple[Index, Term], bool]


@dataclass
class Ghost:
    """See the module docstring."""

    disks: dict[NodeId, CoreDisk]
    initial: Configuration = field(default_factory=lambda: Configuration(()))
    leaders: dict[Term, NodeId] = field(default_factory=dict)
    votes: dict[tuple[NodeId, Term], NodeId] = field(default_factory=dict)
    entries: dict[tuple[Index, Term], tuple[Entry, int]] = field(default_factory=dict)  # with the log's hash up to it
    chains: dict[NodeId, list[int]] = field(default_factory=dict)  # running hashes of what was handed to each disk
    committed: list[Committed] = field(default_factory=list)  # of index i at i - 1
    configuration: Configuration = field(default_factory=lambda: Configuration(()))  # of the last commit
    payloads: dict[bytes, int] = field(default_factory=dict)  # how often it was appended by a leader
    proposed: dict[RequestId, bytes] = field(default_factory=dict)
    vanished: dict[tuple[Index, Term], bool] = field(default_factory=dict)  # placed, but on nobody's way to a disk
    refused: dict[bytes, bool] = field(default_factory=dict)
    reads: dict[int, Index] = field(default_factory=dict)  # unanswered: what was committed when the read was invoked
    reads_answered: int = 0
    held: dict[tuple[Index, Term], dict[NodeId, bool]] = field(default_factory=dict)  # on whose disks it ever was
    lost: dict[NodeId, Loss] = field(default_factory=dict)  # who is in quarantine, and what it had before
    whole: list[tuple[NodeId, Term, Index]] = field(default_factory=list)  # left it: that term, and its last entry then

    changes: dict[RequestId, bool] = field(default_factory=dict)  # changes of members proposed
    configurations: list[tuple[Index, Configuration]] = field(default_factory=list)  # committed ones, by index
    own_terms: dict[Term, bool] = field(default_factory=dict)  # in which something of their own is committed
    joined: list[NodeId] = field(default_factory=list)  # members of them not seen before, not taken yet

    # ── members and snapshots ───────────────────────────────────────────────────────────────────────

    def configuration_at(self, index: int) -> tuple[Index, Configuration]:
        """The configuration in force at a committed index, and of which entry."""
        for made_at, configuration in reversed(self.configurations):
            if made_at <= index:
                return made_at, configuration
        return Index(0), self.initial

    def committed_entry(self, index: int) -> Entry:
        return self.entries[Index(index), self.committed[index - 1].term][0]

    def take_joined(self) -> list[NodeId]:
        joined, self.joined = self.joined, []
        return joined

    def on_disks(self) -> list[Configuration]:
        """What is in force by each disk, writes under way included."""
        found = []
        for disk in self.disks.values():
            entries = [*disk.entries, *(entry for write in disk.queue for entry in write.entries)]
            made = next((entry for entry in reversed(entries) if entry.kind == EntryKind.CONFIGURATION), None)
            if made is not None:
                found.append(_decode_configuration(made.payload))
        return found

    def on_installed(self, node: NodeId, position: LogPosition) -> None:
        """I17: what came as a snapshot is committed, and on this disk."""
        assert self.committed[position.index - 1].term == position.term, ("I17", node, position)
        disk = self.disks[node]
        assert disk.last_index >= position.index, ("I17: installed before it is durable", node, position)
        assert self._has(disk, position.index, position.term), ("I17: installed another", node, position)

    def _has(self, disk: CoreDisk, index: int, term: Term) -> bool:
        """Whether that entry, or a store that contains it, is on the disk."""
        if index <= disk.base.index:
            return index <= len(self.committed) and self.committed[index - 1].term == term
        entry = disk.entry(index)
        return entry is not None and entry.term == term

    def _on_configuration(self, raft: Raft, entry: Entry) -> None:
        """I15: a new configuration, appended by the leader of its term."""
        before_index, before = raft.state.log.membership.at(Index(entry.index - 1))
        after = _decode_configuration(entry.payload)
        assert len(set(before.voters) ^ set(after.voters)) <= 1, ("I15: more than one voter", before, after)
        assert before_index <= len(self.committed), ("I15: two changes at once", raft.node, before_index, entry.index)
        assert entry.term in self.own_terms, ("I15: before its own term has committed", raft.node, entry.index)
        assert after.last_id >= max((*after.voters, *after.learners, before.last_id)), ("I15: an id comes again", after)

    # ── one node ────────────────────────────────────────────────────────────────────────────────────

    def on_started(self, node: NodeId) -> None:
        """The node's log is what its disk holds, and that is a log we know."""
        entries = self.disks[node].entries
        self.chains[node] = [
            *self._committed_chain(self.disks[node].base.index),
            *(self.entries[entry.index, entry.term][1] for entry in entries),
        ]
        assert [self.entries[entry.index, entry.term][0] for entry in entries] == entries, ("I26", node)

    def _committed_chain(self, index: int) -> list[int]:
        return [self.entries[Index(at), self.committed[at - 1].term][1] for at in range(1, index + 1)]

    def on_lost(self, node: NodeId, before: Sequence[Entry]) -> None:
        """Entries are gone that this node may have acknowledged; its disk held `before`. Its next start finds out."""
        known = self.lost[node].had if node in self.lost else {}
        had = known | {(entry.index, entry.term): True for entry in before}
        self.lost[node] = Loss(self.disks[node].hard_state.term, had)

    def on_whole(self, node: NodeId) -> None:
        """It is durable that a quarantine is over.

        I12: then the node has all that was committed in terms before the last in which it may have acknowledged what it
        lost. Of that last term its leader has told what counts, and commits nothing more by the lost ones (ADR 0007).
        """
        term, disk = self.lost.pop(node).term, self.disks[node]
        for index, committed in enumerate(self.committed, 1):
            if not self._has(disk, index, committed.term):
                assert committed.term >= term, ("I12: left quarantine without", node, index, committed, disk.last_index)
                holders = self._holders(Index(index), committed.term)
                assert has_majority(self.configuration, holders), (
                    "I12: left quarantine too early",
                    node,
                    index,
                    holders,
                )
        self.whole.append((node, term, disk.last_index))

    def on_step(self, raft: Raft) -> None:
        """After every cause: a new leader has everything, a new commit is durable on a majority."""
        state = raft.state
        if state.leadership is not None and self.leaders.get(state.term) != state.node:
            self._on_leader(raft)
        commit = state.commit_index
        if commit > len(self.committed):
            self._on_committed(raft, commit)
        if commit:
            term = state.log.term_at(commit)
            assert term == self.committed[commit - 1].term, ("I7", state.node, commit, term)
            self._assert_configuration(raft)

    def _assert_configuration(self, raft: Raft) -> None:
        """I15: whoever knows that much to be committed goes by its configuration, however it came by it.

        Only a member in quarantine may know a later one, of the store that is ahead of its log.
        """
        made_at, configuration = raft.committed_configuration
        expected_at, expected = self.configuration_at(raft.commit_index)
        if made_at > raft.commit_index and raft.is_quarantined:
            return
        is_right = made_at == expected_at and (made_at == 0 or configuration == expected)
        assert is_right, ("I15: another configuration", raft.node, raft.commit_index, made_at, expected_at)

    @staticmethod
    def is_void_order(raft: Raft, order: TimeoutNow) -> bool:
        """Before an order to campaign is taken in: whether it is not the present leader's, or its log has moved on."""
        if raft.state.candidacy is not None and raft.state.candidacy.is_transfer:
            return False  # it follows an order already
        is_current = order.term == raft.term and order.sender == raft.leader
        return not is_current or order.last_index not in (0, raft.last_index)

    @staticmethod
    def on_void_order(raft: Raft) -> None:
        """S16: a late order to campaign is followed by nobody."""
        candidacy = raft.state.candidacy
        assert candidacy is None or not candidacy.is_transfer, ("I31: campaigns on a void order", raft.node, raft.term)

    @staticmethod
    def is_behind(raft: Raft, request: VoteRequest) -> bool:
        """Before a request is taken in: whether its log is older than the voter's, which has not voted for it yet."""
        log = raft.state.log
        has_voted = raft.term == request.term and raft.state.vote == request.sender
        return (
            not request.pre
            and not has_voted
            and (request.last_term, request.last_index)
            < (
                log.last_term,
                log.last_index,
            )
        )

    @staticmethod
    def on_behind(raft: Raft, request: VoteRequest) -> None:
        """I6 begins here: such a candidate gets no vote, also not by the way when its term is adopted."""
        is_given = raft.term == request.term and raft.state.vote == request.sender
        assert not is_given, ("I6: a vote for an older log", raft.node, request)

    def beyond(self, raft: Raft, wall_ms: int, append: AppendEntries) -> list[Entry]:
        """Before an append is taken in: uncommitted entries in it that are stamped too far ahead of the node's clock.

        Not those that it holds already, nor those that have the very next stamp after the entry before.
        """
        log, bound = raft.state.log, hybrid.latest_at(wall_ms + raft.state.settings.clock_drift_ms)
        if not append.entries or append.entries[-1].time <= bound:
            return []
        before = self.entries.get((append.prev_index, append.prev_term))
        times = [before[0].time if before is not None else 0, *(entry.time for entry in append.entries)]
        return [
            entry
            for entry, time in zip(append.entries, times, strict=False)
            if entry.time > bound
            and entry.time != time + 1
            and entry.index > append.commit_index
            and log.term_at(entry.index) != entry.term
        ]

    @staticmethod
    def on_beyond(raft: Raft, entries: Sequence[Entry]) -> None:
        """HC3: nobody takes them, unless it has tried in vain to do without their leader."""
        state = raft.state
        for entry in entries:
            is_taken = state.log.term_at(entry.index) == entry.term
            assert not is_taken or state.watch.tolerated_term == state.term, ("HC3: beyond the limit", raft.node, entry)

    def on_matches(self, raft: Raft, before: Mapping[NodeId, Index], after: Mapping[NodeId, Index]) -> None:
        """What a leader believes a follower holds has been on that follower's disk (I18).

        Unless the follower is in a newer term on disk: it may have taken entries, been told by the next leader to drop
        them, and written both as one; its answer to the first leader leaves afterwards, and is true of that term.
        """
        for peer, match in after.items():
            if match > before.get(peer, 0) and self.disks[peer].hard_state.term <= raft.term:
                term = raft.state.log.term_at(match)
                is_held = term is None or peer in self.held.get((match, term), {})
                is_held = is_held or match <= self.disks[peer].base.index  # as part of a snapshot
                assert is_held, ("I18: never held", raft.node, peer, match, term)

    def _on_leader(self, raft: Raft) -> None:
        assert raft.term not in self.leaders, ("I1", raft.term, self.leaders[raft.term], raft.node)
        self.leaders[raft.term] = raft.node
        self._assert_elected(raft)
        for index in range(len(self.committed), raft.state.log.base.index, -1):
            if self.committed[index - 1].by_term < raft.term:
                term = raft.state.log.term_at(Index(index))
                assert term == self.committed[index - 1].term, ("I6", raft.node, raft.term, index, term)
                return

    def _assert_elected(self, raft: Raft) -> None:
        """I16: by a majority of the voters of its configuration, and of nobody else."""
        voters, term, node = raft.configuration.voters, raft.term, raft.node
        given = [voter for voter in voters if self.votes.get((voter, term)) == node]
        if node in voters and node not in given and self.disks[node].hard_state.vote == node:
            given.append(node)  # the only voter asks nobody
        assert has_majority(raft.configuration, given), ("I16: elected without a majority of voters", node, term, given)

    def _on_committed(self, raft: Raft, commit: Index) -> None:
        assert raft.role == "leader", ("I8: heard of a commit that no leader has made", raft.node, commit)
        term = raft.state.log.term_at(commit)
        assert term == raft.term, ("I8", raft.node, commit, term)
        self.configuration = raft.configuration
        holders = self._holders(commit, term)
        assert has_majority(raft.configuration, holders), ("I8: committed without a majority of disks", commit, holders)
        for index in range(len(self.committed) + 1, commit + 1):
            at = raft.state.log.term_at(Index(index))
            assert at is not None
            for node, lost_in, last in self.whole:
                assert at >= lost_in or index <= last, ("I12: committed behind who left quarantine", node, index, at)
            self.committed.append(Committed(at, raft.term))
            self.own_terms[raft.term] = True
            entry = self.entries[Index(index), at][0]
            if entry.kind == EntryKind.CONFIGURATION:
                configuration = _decode_configuration(entry.payload)
                known = self.configuration_at(index)[1]
                self.configurations.append((Index(index), configuration))
                for id_ in configuration.learners:
                    if id_ not in self.disks and id_ not in known.learners:
                        self.joined.append(id_)

    def on_output(self, raft: Raft, output: Output) -> None:
        """What one output writes and claims."""
        if output.persist is not None:
            for entry in output.persist.entries:
                if entry.kind == EntryKind.CONFIGURATION and (entry.index, entry.term) not in self.entries:
                    self._on_configuration(raft, entry)
            self._on_persist(raft.node, output.persist)
        for send in output.sends:
            if isinstance(send.message, VoteReply) and send.message.granted:
                assert not raft.is_removed, ("I16: a removed member votes", raft.node, send)
        for placed in output.placed:
            self._on_placed(raft, placed)
        for refused in output.refused:
            if refused.id in self.changes:
                continue
            payload = self.proposed[refused.id]
            assert payload not in self.payloads, ("I29: refused but appended", refused, payload)
            self.refused[payload] = True
        for ready in output.reads_ready:
            invoked = self.reads.pop(ready.number)
            self.reads_answered += 1
            assert ready.index >= invoked, ("I13: stale read", raft.node, ready, invoked)
        for failed in output.reads_failed:
            self.reads.pop(failed.number)

    def _on_placed(self, raft: Raft, placed: Placed) -> None:
        """The entry is there, or a newer leader cut it off before it reached a write: then it never will be."""
        known = self.entries.get((placed.index, placed.term))
        if known is None:
            assert raft.role != "leader" or raft.term != placed.term, ("I29: placed in no log", placed)
            self.vanished[placed.index, placed.term] = True
        else:
            is_made_by_leader = known[0].kind == EntryKind.CONFIGURATION  # what was proposed is the change
            is_right = is_made_by_leader or known[0].payload == self.proposed[placed.id]
            assert is_right, ("I29: placed where it is not", placed, known)

    def _on_persist(self, node: NodeId, persist: Persist) -> None:
        """Log matching: (index, term) names one entry and one prefix for ever, whoever holds it."""
        chain = self.chains[node]
        if persist.install is not None and not persist.install.keeps_log:
            chain[:] = self._committed_chain(persist.install.position.index)
        if persist.truncate_from:
            assert persist.truncate_from <= len(chain), (node, persist.truncate_from, len(chain))
            del chain[persist.truncate_from - 1 :]
        time = 0
        for entry in persist.entries:
            assert entry.index == len(chain) + 1, ("I11: a hole", node, entry.index, len(chain))
            assert entry.time > time, ("time", node, entry, time)
            time = entry.time
            before = chain[-1] if chain else 0
            link = crc32(_encode(entry), before)
            known = self.entries.get((entry.index, entry.term))
            if known is None:
                self._on_appended(node, entry, link)
            else:
                assert known == (entry, link), ("I5", node, entry, known)
            chain.append(link)

    def _on_appended(self, node: NodeId, entry: Entry, link: int) -> None:
        """An entry nobody has seen before: only its term's leader may have made it."""
        assert self.leaders.get(entry.term) == node, ("I4: an entry from nowhere", node, entry)
        assert (entry.index, entry.term) not in self.vanished, ("I29: written after it was cut off", entry)
        assert entry.payload not in self.refused, ("I29: refused and appended later", entry)
        self.entries[entry.index, entry.term] = (entry, link)
        if entry.kind == 2:
            self.payloads[entry.payload] = self.payloads.get(entry.payload, 0) + 1
            assert self.payloads[entry.payload] == 1, ("I20: sent once, appended twice", entry)

    def committed_entries(self, last: Index) -> list[Entry]:
        """What a snapshot that ends with `last` stands for."""
        assert last <= len(self.committed), ("a snapshot of what nobody has committed", last, len(self.committed))
        terms = (committed.term for committed in self.committed[:last])
        return [self.entries[Index(index), term][0] for index, term in enumerate(terms, 1)]

    def on_times(self, node: NodeId) -> None:
        """Hybrid timestamps strictly increase along a log."""
        entries = self.disks[node].entries
        assert all(a.time < b.time for a, b in pairwise(entries)), ("time", node)

    def on_durable(self, node: NodeId, write: Persist) -> None:
        """Called as a write becomes durable, before the disk shows it.

        I12: what is committed stays on a majority of disks. A member outside of it may cut such an entry on the late
        word of an older leader; it has acknowledged nothing to the leader that committed.
        """
        if write.install is not None:
            position = write.install.position
            self.held.setdefault((position.index, position.term), {})[node] = True
        first = write.truncate_from
        if write.install is not None and not write.install.keeps_log:
            first = Index(write.install.position.index + 1)
        if first and first <= min(len(self.committed), self.disks[node].last_index):
            self._on_cut(node, Index(first), self.committed[first - 1].term)
        for entry in write.entries:
            self.held.setdefault((entry.index, entry.term), {})[node] = True

    def _on_cut(self, node: NodeId, index: Index, term: Term) -> None:
        if self._has(self.disks[node], index, term):
            keepers = self._holders(index, term) - {node}
            assert has_majority(self.configuration, keepers), ("I12: a committed entry is cut", node, index, keepers)

    def _holders(self, index: Index, term: Term) -> set[NodeId]:
        """Whose disks hold that entry, and who lost it but will be restored before it votes again."""
        disks = self.disks.items()
        holders = {n for n, disk in disks if self._has(disk, index, term)}
        if self.lost:
            holders |= {node for node, loss in self.lost.items() if (index, term) in loss.had}
        return holders

    def on_left(self, node: NodeId, send: Send) -> None:
        """I2 and I9: what a message claims is on its sender's disk when it leaves."""
        disk, message = self.disks[node], send.message
        if isinstance(message, VoteRequest) or (isinstance(message, VoteReply) and message.granted):
            assert node not in self.lost, ("I16: a vote from quarantine", node, message)
        if isinstance(message, VoteRequest | VoteReply) and message.pre:
            return
        assert disk.hard_state.term >= message.term, ("I9", node, message, disk.hard_state)
        match message:
            case AppendReply(accepted=True) if disk.hard_state.term == message.term:
                assert disk.last_index >= message.index, ("I9", node, message, disk.last_index)
            case VoteReply(granted=True):
                self._on_vote(node, message.term, send.to)
            case VoteRequest():
                self._on_vote(node, message.term, node)
            case _:
                pass

    def _on_vote(self, voter: NodeId, term: Term, candidate: NodeId) -> None:
        hard_state = self.disks[voter].hard_state
        assert hard_state.term > term or hard_state.vote == candidate, ("I9", voter, term, candidate, hard_state)
        given = self.votes.setdefault((voter, term), candidate)
        assert given == candidate != NOBODY, ("I2", voter, term, given, candidate)

    # ── clients ─────────────────────────────────────────────────────────────────────────────────────

    def on_lease_read(self, raft: Raft) -> None:
        """I14: no round, and yet nothing is committed that this leader does not know of."""
        assert raft.commit_index >= len(self.committed), ("I14: stale", raft.node, raft.commit_index)

    def on_read_invoked(self, number: int) -> None:
        self.reads[number] = Index(len(self.committed))
