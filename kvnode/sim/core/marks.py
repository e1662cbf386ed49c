"""Coverage marks: situations that the faults must bring about again and again, seen from outside the cores.

A harness that never reaches the hard places proves nothing, however many seeds it runs. `MARKS` names them; the runner
fails if one was not met by a large number of seeds, or one of `RARE_MARKS` by a very large number. Besides, `look`
counts how many different abstract states of the whole cluster a run has been in: role, distance to the newest term, log
compared with the leader's, links and disk.
"""

from __future__ import annotations

from collections import Counter
from zlib import crc32

from kvnode.ids import NOBODY, Index, NodeId, Term, WriteNumber
from kvnode.raft.messages import AppendEntries, AppendReply, Entry, Input, TimeoutNow, VoteReply, VoteRequest
from kvnode.raft.output import (
    BecameCandidate,
    BecameFollower,
    BecameLeader,
    ClockAhead,
    ClockJumped,
    ConfigurationChanged,
    Fact,
    LogTruncated,
    Output,
    Persist,
    QuarantineEnded,
    SnapshotIgnored,
    SnapshotInstalled,
    SnapshotNeeded,
    StampRefused,
    StampTolerated,
    TransferAborted,
    TransferBegan,
)
from kvnode.raft.quorum import majority_value
from kvnode.raft.state import Leadership, RaftState
from kvnode.sim.core.machine import Machine, Process
from kvnode.sim.core.world import World

MARKS: dict[str, str] = {
    "leader_killed_by_newer_term": "a leader hears of a newer term",
    "leader_without_quorum": "a leader steps down because no majority answers",
    "leader_with_stuck_disk": "a leader steps down because its disk hangs",
    "two_leaders_at_once": "a leader is elected while one of an older term still believes it leads",
    "two_candidates_in_a_term": "two nodes ask for votes in the same term",
    "candidate_concedes": "a candidate hears of the leader of its term",
    "election_lost": "a majority refuses a candidate",
    "vote_refused_by_log": "a vote is refused because the candidate's log is older",
    "vote_refused_by_stickiness": "a vote is not given because a leader is heard",
    "vote_refused_already_given": "a vote is refused because another candidate has it",
    "prevote_refused_by_log": "a pre-vote is refused because the candidate's log is older",
    "prevote_refused_by_stickiness": "a pre-vote is not given because a leader is heard",
    "transfer_overrides_stickiness": "a vote is asked for by a transfer while the leader is heard",
    "transfer_done": "a transfer's target becomes the next leader",
    "leader_change_during_transfer": "somebody else than the transfer's target becomes the next leader",
    "transfer_timed_out": "a transfer does not work in time, and the leader resumes",
    "late_timeout_now": "an order to campaign arrives when it is void",
    "conflict_truncation": "a follower cuts off entries that conflict with its leader's",
    "truncation_of_durable_entries": "what is cut off was on the disk already",
    "truncation_before_durable": "what is cut off had not all reached the disk",
    "appended_again_in_flight": "an entry is cut off and appended again while its first write is still under way",
    "own_term_commit_over_old_suffix": "a leader's own entry commits older terms' entries before it",
    "old_term_majority_uncommitted": "an entry of an older term is on a majority, and rightly not committed (Figure 8)",
    "read_waits_for_own_term": "a read arrives at a leader that has committed nothing in its term",
    "read_lost_to_leader_change": "a leader with reads in a round loses office",
    "message_of_a_dead_term": "a message of an older term arrives",
    "old_entries_read_back": "a follower needs entries that its leader must read from disk",
    "late_deadline_forgiven": "an election timer that fires much too late is forgiven once",
    "refused_overloaded": "a command is refused because too much is uncommitted",
    "refused_no_leader": "a command is refused because nobody leads",
    "crash_lost_writes": "a crash loses writes that were under way",
    "quarantine_entered": "a start finds that entries are lost which the node may have acknowledged",
    "quarantine_brought_back_cut_entries": "… and that entries are back which it had cut off",
    "quarantine_of_a_leader": "… after it had led",
    "quarantine_left": "the node has everything again, and votes",
    "vote_asked_in_quarantine": "a node in quarantine is asked for its vote",
    "stamp_refused": "a follower does not take what is stamped too far ahead of its clock",
    "clock_ahead_step_down": "a leader is left without a majority by that, and goes",
    "stamp_tolerated": "… is taken after all, as nothing has been committed without that leader",
    "clock_jumped": "a node sees its wall clock jump",
    "everybody_down": "no process is alive",
    "configuration_changed": "another configuration comes into force somewhere",
    "configuration_rolled_back": "… and goes out of force again, with its entry",
    "leader_change_during_configuration_change": "a leader is elected while a change of members is uncommitted",
    "leader_removed": "a leader's own removal is committed, and it leaves",
    "refused_not_ready": "a change is refused because the leader has committed nothing in its term",
    "refused_conflict": "a change is refused because of another one, or for the quorum's sake",
    "snapshot_needed": "a follower needs what its leader's log does not hold any more",
    "snapshot_installed": "a snapshot is durable, and apply goes on from it",
    "snapshot_keeps_log": "a snapshot arrives at a log that holds its last entry",
    "snapshot_ignored": "a snapshot arrives that is not used",
    "install_lost_in_crash": "a crash loses an install that was under way",
}

RARE_MARKS = ("appended_again_in_flight", "install_lost_in_crash")


class Observer:
    """Counts marks and states of one world. Changes nothing in it."""

    def __init__(self, world: World) -> None:
        self.marks: Counter[str] = Counter()
        self.states: dict[int, bool] = {}
        self._world = world
        self._commits: dict[NodeId, Index] = {}
        self._leading: dict[NodeId, bool] = {}
        self._candidates: dict[Term, NodeId] = {}
        self._configurations: dict[NodeId, Index] = {}
        self._transfers: dict[NodeId, tuple[Term, NodeId]] = {}
        self._cut_in_flight: dict[tuple[NodeId, Index, Term], WriteNumber] = {}

    # ── what comes in ───────────────────────────────────────────────────────────────────────────────

    def before_step(self, process: Process, cause: Input) -> None:
        match cause:
            case AppendReply() | AppendEntries() | VoteReply():
                if cause.term < process.raft.state.term:
                    self.marks["message_of_a_dead_term"] += 1
            case VoteRequest():
                self._on_vote_request(process, cause)
            case TimeoutNow():
                state = process.raft.state
                if cause.term < state.term or cause.last_index != state.log.last_index:
                    self.marks["late_timeout_now"] += 1
            case _:
                pass

    def _on_vote_request(self, process: Process, request: VoteRequest) -> None:
        state = process.raft.state
        if not state.is_voter:
            return
        if state.is_quarantined:
            self.marks["vote_asked_in_quarantine"] += 1
            return
        kind = "prevote" if request.pre else "vote"
        contact, now = state.leader_contact_ms, process.machine.local_ms(self._world.now_ms)
        hears = contact is not None and now - contact < self._world.timeout
        if state.leadership is not None or hears:
            self.marks["transfer_overrides_stickiness" if request.transfer else f"{kind}_refused_by_stickiness"] += 1
        elif (request.last_term, request.last_index) < (state.log.last_term, state.log.last_index):
            self.marks[f"{kind}_refused_by_log"] += 1
        elif not request.pre and request.term == state.term and state.vote not in (NOBODY, request.sender):
            self.marks["vote_refused_already_given"] += 1

    # ── what comes out ──────────────────────────────────────────────────────────────────────────────

    def after_output(self, process: Process, output: Output) -> None:
        state, node, marks = process.raft.state, process.node, self.marks
        if state.leadership is not None:
            self._on_leader(state, state.leadership)
        if output.facts:
            for fact in output.facts:
                self._on_fact(process, fact)
            if output.reads_failed and self._leading.get(node) and state.leadership is None:
                marks["read_lost_to_leader_change"] += 1
            self._leading[node] = state.leadership is not None
        if output.persist is not None:
            self._on_persist(process, output.persist)
        if output.fetches:
            marks["old_entries_read_back"] += 1
        for refused in output.refused:
            if f"refused_{refused.code}" in MARKS:
                marks[f"refused_{refused.code}"] += 1
        if state.grace_given:
            marks["late_deadline_forgiven"] += 1
        self._commits[node] = state.commit_index

    def _on_leader(self, state: RaftState, leadership: Leadership) -> None:
        before = self._commits.get(state.node, 0)
        if state.commit_index > before and state.log.term_at(Index(before + 1)) != state.term:
            self.marks["own_term_commit_over_old_suffix"] += 1
        if state.commit_index < leadership.first_index:
            if leadership.reads_waiting:
                self.marks["read_waits_for_own_term"] += 1

            def held(voter: NodeId) -> int:
                return state.writes.durable_index if voter == state.node else leadership.progress[voter].match_index

            if majority_value(state.configuration, held) > state.commit_index:
                self.marks["old_term_majority_uncommitted"] += 1

    def _on_fact(self, process: Process, fact: Fact) -> None:
        node, marks = process.node, self.marks
        match fact:
            case BecameLeader(term=term):
                state = process.raft.state
                marks["leader_change_during_configuration_change"] += state.log.membership.index > state.commit_index
                if any(other.node != node for other in self._world.leaders()):
                    marks["two_leaders_at_once"] += 1
                for began_at, (began_in, to) in list(self._transfers.items()):
                    if began_in < term:
                        marks["transfer_done" if to == node else "leader_change_during_transfer"] += 1
                        del self._transfers[began_at]
            case BecameCandidate(term=term):
                if self._candidates.setdefault(term, node) != node:
                    marks["two_candidates_in_a_term"] += 1
            case BecameFollower(reason=reason):
                self._on_follower(node, reason)
            case LogTruncated(from_index=first, last_index=last):
                marks["conflict_truncation"] += 1
                on_disk = process.machine.disk.last_index
                marks["truncation_of_durable_entries"] += first <= on_disk
                marks["truncation_before_durable"] += last > on_disk
            case ConfigurationChanged(index=index):
                marks["configuration_changed"] += 1
                marks["configuration_rolled_back"] += index < self._configurations.get(node, 0)
                self._configurations[node] = index
            case SnapshotNeeded():
                marks["snapshot_needed"] += 1
            case SnapshotInstalled():
                marks["snapshot_installed"] += 1
            case SnapshotIgnored():
                marks["snapshot_ignored"] += 1
            case QuarantineEnded():
                marks["quarantine_left"] += 1
            case StampRefused():
                marks["stamp_refused"] += 1
            case StampTolerated():
                marks["stamp_tolerated"] += 1
            case ClockAhead():
                marks["clock_ahead_step_down"] += 1
            case ClockJumped():
                marks["clock_jumped"] += 1
            case TransferBegan(to=to):
                self._transfers[node] = (process.raft.term, to)
            case TransferAborted(reason="timeout"):
                marks["transfer_timed_out"] += 1
                self._transfers.pop(node, None)
            case _:
                pass

    def _on_follower(self, node: NodeId, reason: str) -> None:
        marks = self.marks
        if reason in ("leader found", "election lost"):
            marks["candidate_concedes" if reason == "leader found" else "election_lost"] += 1
        elif self._leading.get(node):
            name = {
                "newer term": "leader_killed_by_newer_term",
                "no quorum contact": "leader_without_quorum",
                "disk stalled": "leader_with_stuck_disk",
                "removed": "leader_removed",
            }.get(reason)
            if name is not None:
                marks[name] += 1

    def _on_persist(self, process: Process, persist: Persist) -> None:
        node, disk, cut = process.node, process.machine.disk, self._cut_in_flight
        self.marks["snapshot_keeps_log"] += persist.install is not None and persist.install.keeps_log
        if persist.truncate_from:
            for write in list(disk.queue)[:-1]:
                for entry in write.entries:
                    if entry.index >= persist.truncate_from:
                        cut[node, entry.index, entry.term] = write.number
        if cut:
            for entry in persist.entries:
                if cut.get((node, entry.index, entry.term), 0) > disk.durable:
                    self.marks["appended_again_in_flight"] += 1

    def rotted(self, machine: Machine, before: list[Entry]) -> None:
        entries = machine.disk.entries
        led = self._world.ghost.leaders.get(machine.disk.hard_state.term) == machine.node
        self.marks["quarantine_entered"] += 1
        self.marks["quarantine_of_a_leader"] += led
        self.marks["quarantine_brought_back_cut_entries"] += before[: len(entries)] != entries

    def crashed(self, node: NodeId, lost_writes: int) -> None:
        self.marks["crash_lost_writes"] += lost_writes > 0
        queue = self._world.machines[node].disk.queue
        self.marks["install_lost_in_crash"] += any(write.install is not None for write in queue)
        self.marks["everybody_down"] += not self._world.processes()
        self._leading[node] = False
        self._commits.pop(node, None)
        self._transfers.pop(node, None)
        self._cut_in_flight = {key: number for key, number in self._cut_in_flight.items() if key[0] != node}

    # ── abstract states ─────────────────────────────────────────────────────────────────────────────

    def look(self) -> None:
        """Note the state the whole cluster is in now; who is who does not matter."""
        world = self._world
        rafts = [process.raft for process in world.processes()]
        newest = max((raft.term for raft in rafts), default=Term(0))
        leaders = [raft for raft in rafts if raft.state.leadership is not None]
        leader = max(leaders, key=lambda raft: raft.term, default=None)
        seen = []
        for machine in world.machines.values():
            process = machine.process
            if process is None:
                seen.append("down")
                continue
            state = process.raft.state
            relation = "none"
            if leader is not None:
                last = state.log.last_position
                common = leader.state.log.term_at(last.index)
                relation = "beyond" if common is None else "prefix" if common == last.term else "conflict"
                if last == leader.state.log.last_position:
                    relation = "level"
            disk = "stuck" if process.is_stalled else "busy" if process.disk_busy else "idle"
            distance = min(newest - state.term, 3)
            seen.append(f"{state.role.value} {process.is_paused} {distance} {relation} {disk}")
        links = min(len(world.links.cuts), 4) + 10 * min(len(world.links.clogs), 2)
        self.states[crc32(f"{sorted(seen)} {links}".encode())] = True
