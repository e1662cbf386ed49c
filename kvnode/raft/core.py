"""The Raft core: inputs and the time go in, an `Output` comes out. Dispatch only; the rules are in their modules.

    raft.step(now_ms, wall_ms, cause)     # any number of times
    output = raft.take_output()           # one write, one burst of appends, however many steps there were
    raft.next_deadline_ms()               # when to step a Tick at the latest

Pure: no clock, no I/O, no randomness but the generator given. Equal inputs give equal outputs.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal, assert_never

from kvnode.config import RaftSection
from kvnode.ids import Index, NodeId, Term
from kvnode.raft import (
    clock_drift,
    election,
    forwarding,
    generation,
    leader_lease,
    quarantine,
    read_index,
    reconfiguration,
    replication,
    snapshots,
    timers,
    transfer,
)
from kvnode.raft.messages import (
    AppendEntries,
    AppendReply,
    Configuration,
    DiskRecovered,
    DiskStalled,
    Entry,
    Fetched,
    ForwardProposals,
    ForwardReply,
    Input,
    LeaderProposals,
    LogPosition,
    LogTrimmed,
    PeerConnected,
    PeerDisconnected,
    PeerRefused,
    Persisted,
    Proposals,
    QuarantineLifted,
    RaftMessage,
    ReadIndexReply,
    ReadIndexRequest,
    ReadRequest,
    SnapshotReceived,
    SnapshotSent,
    Tick,
    TimeoutNow,
    TransferLeadership,
    TurnedAway,
    VoteReply,
    VoteRequest,
)
from kvnode.raft.output import ConfigurationChanged, Output
from kvnode.raft.progress import Progress
from kvnode.raft.state import Restored, Role, initial_state

RoleName = Literal["follower", "candidate", "leader", "learner"]

_PEER_MESSAGES: Final = (
    AppendReply,
    AppendEntries,
    ForwardProposals,
    ForwardReply,
    ReadIndexRequest,
    ReadIndexReply,
    VoteRequest,
    VoteReply,
    TimeoutNow,
)

_NO_PROGRESS: Final[Mapping[NodeId, Progress]] = MappingProxyType({})


class Raft:
    """One member of the consensus group."""

    def __init__(
        self, *, node: NodeId, settings: RaftSection, rng: random.Random, restored: Restored, now_ms: int
    ) -> None:
        self.state = initial_state(node, settings, rng, restored, now_ms)
        timers.reset_election(self.state)

    # ── in ──────────────────────────────────────────────────────────────────────────────────────────

    def step(self, now_ms: int, wall_ms: int, cause: Input) -> None:  # noqa: PLR0915 (one case for each input)
        """Take in one message or local cause. Its effects wait for `take_output`."""
        state = self.state
        self._tell_time(now_ms, wall_ms)
        if isinstance(cause, _PEER_MESSAGES) and not self._admit(cause):
            return
        match cause:
            case AppendReply():
                replication.on_append_reply(state, cause)
            case AppendEntries():
                replication.on_append_entries(state, cause)
            case Proposals():
                forwarding.on_proposals(state, cause.batch)
            case LeaderProposals():
                forwarding.on_leader_proposals(state, cause)
            case Persisted():
                election.on_persisted(state, cause.number)
            case ReadRequest():
                read_index.on_read_request(state, cause.number)
            case ForwardProposals():
                forwarding.on_forward_proposals(state, cause)
            case TurnedAway():
                forwarding.on_turned_away(state, cause)
            case ForwardReply():
                forwarding.on_forward_reply(state, cause)
            case ReadIndexRequest():
                read_index.on_read_index_request(state, cause)
            case ReadIndexReply():
                read_index.on_read_index_reply(state, cause)
            case Tick():
                self._on_tick()
            case VoteRequest():
                election.on_vote_request(state, cause)
            case VoteReply():
                election.on_vote_reply(state, cause)
            case TimeoutNow():
                transfer.on_timeout_now(state, cause)
            case Fetched():
                replication.on_fetched(state, cause)
            case PeerConnected() | PeerDisconnected():
                self._on_connection_changed(cause.peer, is_up=isinstance(cause, PeerConnected))
            case PeerRefused():
                self._on_peer_refused(cause.peer)
            case TransferLeadership():
                transfer.on_transfer_requested(state, cause.to)
            case DiskStalled() | DiskRecovered():
                election.on_disk_changed(state, is_stalled=isinstance(cause, DiskStalled))
            case QuarantineLifted():
                quarantine.on_lifted(state)
            case LogTrimmed():
                snapshots.on_log_trimmed(state, cause)
            case SnapshotReceived():
                snapshots.on_snapshot_received(state, cause)
            case SnapshotSent():
                snapshots.on_snapshot_sent(state, cause)
            case _:
                assert_never(cause)

    def _tell_time(self, now_ms: int, wall_ms: int) -> None:
        state = self.state
        gap_ms = now_ms - state.now_ms
        state.now_ms = max(now_ms, state.now_ms)
        state.wall_ms = wall_ms
        clock_drift.look(state)
        if gap_ms > state.settings.election_timeout_ms and state.leadership is not None:
            election.check_quorum(state, state.leadership)  # after a pause, before anything is done as a leader

    def _admit(self, message: RaftMessage) -> bool:
        """The rule of terms. The sender is proven to be of this cluster, if not by a configuration known here yet."""
        state = self.state
        sender = message.sender
        if sender == state.node:
            return False
        state.contacts[sender] = state.now_ms
        return generation.admit(state, message)

    def _on_tick(self) -> None:
        state = self.state
        if timers.is_election_due(state):
            election.campaign(state, "election timeout")
        if state.leadership is not None and state.now_ms >= state.leadership.quorum_deadline_ms:
            election.check_quorum(state, state.leadership)
        leadership = state.leadership
        if leadership is not None:
            if state.now_ms >= leadership.heartbeat_deadline_ms:
                replication.on_heartbeat_due(state, leadership)
            if 0 < leadership.note_deadline_ms <= state.now_ms:
                replication.on_note_due(leadership)
            if leadership.transfer_to and state.now_ms >= leadership.transfer_deadline_ms:
                transfer.on_transfer_timeout(state, leadership)
        read_index.expire_forwarded(state)

    def _on_connection_changed(self, peer: NodeId, *, is_up: bool) -> None:
        """What was in flight on the old connection is lost, in either direction."""
        state = self.state
        if is_up:
            state.disconnected.pop(peer, None)
        else:
            state.disconnected[peer] = True
        if state.leadership is not None and peer in state.leadership.progress:
            progress = state.leadership.progress[peer]
            if progress.state != "snapshot":  # that goes its own way, and ends with `SnapshotSent`
                progress.become_probe()
        if peer == state.leader:
            read_index.fail_forwarded(state)

    def _on_peer_refused(self, peer: NodeId) -> None:
        if peer == self.state.leader and peer != self.state.node and not self.state.settings.leader_lease_reads:
            timers.on_leader_gone(self.state)

    # ── out ─────────────────────────────────────────────────────────────────────────────────────────

    def take_output(self) -> Output:
        """Everything decided since the last call. Appends and the write are built here, once for all steps."""
        state = self.state
        forwarding.flush(state)
        leadership = state.leadership
        if leadership is not None:
            is_leaving = reconfiguration.is_leaving(state)
            leadership.note_due = leadership.note_due or is_leaving
            read_index.open_round(state, leadership)
            replication.send_appends(state, leadership)
            transfer.push(state, leadership)
            if is_leaving:
                reconfiguration.leave(state, leadership)
        self._tell_configuration()
        output, state.output = state.output, Output()
        output.persist = state.writes.take(state.log, generation.hard_state(state))
        output.apply_to = state.apply_to = snapshots.apply_to(state)
        return output

    def _tell_configuration(self) -> None:
        """Of another one in force, however it came to be, and once for each output."""
        state = self.state
        before, now = state.told_configuration, state.configuration
        if now is before:
            return
        state.told_configuration = now
        state.output.facts.append(ConfigurationChanged(state.log.membership.index, now))
        if before is not None:
            for gone in {*before.voters, *before.learners} - set(state.log.membership.members):
                state.contacts.pop(gone, None)
                state.disconnected.pop(gone, None)

    def next_deadline_ms(self) -> int:
        """When the core wants a Tick at the latest."""
        return timers.next_deadline_ms(self.state)

    # ── views ───────────────────────────────────────────────────────────────────────────────────────

    @property
    def node(self) -> NodeId:
        return self.state.node

    @property
    def term(self) -> Term:
        return self.state.term

    @property
    def role(self) -> RoleName:
        match self.state.role:
            case Role.LEADER:
                return "leader"
            case Role.CANDIDATE | Role.PRE_CANDIDATE:
                return "candidate"
            case Role.FOLLOWER:
                return "follower" if self.state.is_voter else "learner"

    @property
    def leads_from(self) -> Index:
        """The first entry of the term that this node leads; 0 if it does not lead."""
        return self.state.leadership.first_index if self.state.leadership is not None else Index(0)

    @property
    def leader(self) -> NodeId:
        """The current term's leader; NOBODY if unknown."""
        return self.state.leader

    @property
    def is_quarantined(self) -> bool:
        """Neither votes nor stands: entries it acknowledged are lost and not all of them are back yet."""
        return self.state.is_quarantined

    @property
    def commit_index(self) -> Index:
        return self.state.commit_index

    @property
    def durable_index(self) -> Index:
        return self.state.writes.durable_index

    @property
    def last_index(self) -> Index:
        return self.state.log.last_index

    @property
    def configuration(self) -> Configuration:
        return self.state.configuration

    @property
    def configuration_index(self) -> Index:
        """Of the entry that made the configuration in force; 0: it is the initial one."""
        return self.state.log.membership.index

    @property
    def committed_configuration(self) -> tuple[Index, Configuration]:
        """The newest configuration known to be committed, and of which entry."""
        return self.state.log.membership.at(self.state.commit_index)

    @property
    def is_member(self) -> bool:
        """Whether this node stands in the configuration in force, voting or not."""
        return self.state.node in self.state.log.membership.members

    @property
    def is_removed(self) -> bool:
        """Whether it is committed that this node is a member no more."""
        return self.state.is_removed

    @property
    def base(self) -> LogPosition:
        """The position before the first log entry that exists."""
        return self.state.log.base

    def is_caught_up(self, peer: NodeId) -> bool:
        """Whether this leader would give a vote to that learner."""
        leadership = self.state.leadership
        return leadership is not None and reconfiguration.is_caught_up(self.state, leadership, peer)

    @property
    def progress(self) -> Mapping[NodeId, Progress]:
        """How far each follower is; empty unless this node leads. To be read only."""
        return self.state.leadership.progress if self.state.leadership is not None else _NO_PROGRESS

    @property
    def stamps_refused(self) -> int:
        return self.state.watch.refusals

    @property
    def clock_jumps(self) -> int:
        return self.state.watch.jumps

    @property
    def clock_alarm(self) -> str:
        """Whose clock is wrong, in words; "" if this node knows of none."""
        return clock_drift.alarm(self.state)

    @property
    def uncommitted_bytes(self) -> int:
        return self.state.uncommitted_bytes

    def has_lease(self, now_ms: int) -> bool:
        """Whether nobody else can lead at `now_ms` of this node's clock; ask after the view is taken."""
        return leader_lease.holds(self.state, now_ms)

    def last_contact_ms(self, peer: NodeId, now_ms: int) -> int:
        """Milliseconds since the last message of `peer`; -1 if there never was one."""
        return timers.since_contact_ms(self.state, peer, now_ms)

    # ── the entries in memory ───────────────────────────────────────────────────────────────────────

    def entries(self, first: Index, last: Index, bytes_max: int) -> tuple[Entry, ...] | None:
        """Entries from `first` to at most `last`, at least one if it exists; None: not in memory, read the disk."""
        return self.state.log.slice(first, last, bytes_max)

    def forget(self, applied_index: Index) -> None:
        """Entries up to `applied_index` are applied: those that are durable too may leave memory beyond its budget.

        A state machine that falls behind is not waited for without end: committed entries go at four times that.
        """
        state = self.state
        budget = state.settings.log_cache_bytes
        log, durable = state.log, state.writes.durable_index
        if log.bytes_in_memory > budget + budget // 8:  # in steps of an eighth: evicting moves the rest
            log.evict(min(applied_index, durable), budget)
            log.evict(min(state.commit_index, durable), 4 * budget)
