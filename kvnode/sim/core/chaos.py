"""One seed's whole life of a cluster: clients and faults at random, then peace in which everything must come right.

A run draws which kinds of fault it knows (a swarm: with few kinds it goes deeper into each).
"""

from __future__ import annotations

from functools import partial

from kvnode.ids import NOBODY, NodeId, RequestId
from kvnode.raft.messages import (
    DiskRecovered,
    DiskStalled,
    ForwardProposals,
    PeerConnected,
    PeerDisconnected,
    PeerRefused,
    Proposals,
    Proposed,
    ReadRequest,
    TransferLeadership,
)
from kvnode.raft.output import BecameLeader, Output
from kvnode.sim.core.network import Network, Process
from kvnode.sim.trace import LAST_EVENTS, Trace

CHAOS = (
    "cut_one_way", "isolate", "split", "bridge", "heal", "crash", "restart", "pause", "slow_disk", "stall",
    "refused", "flap", "transfer", "resurrect", "wall_jump", "usurp",
)  # fmt: skip


class Chaos(Network):
    """`run()` lives it."""

    def __init__(self, seed: int, trace: Trace | None = None) -> None:
        super().__init__(seed, trace)
        rng = self.rng
        self.is_peace = False
        self.ambush = rng.choice([0.0, 0.0, 0.3, 0.8])
        self.chaos = [kind for kind in CHAOS if rng.random() < 0.6] or ["crash", "restart"]
        self.chaos_every_ms = rng.choice([self.timeout // 8, self.timeout // 2, self.timeout])
        self.client_every_ms = rng.choice([10, self.timeout // 4, self.timeout])
        self.last_number = 0

    def run(self) -> None:
        self.at(self.chaos_every_ms, self._chaos)
        self.at(self.client_every_ms, self._client)
        self.run_for(self.timeout * self.rng.choice([8, 16, 30]))
        self._make_peace()
        self._assert_recovers()

    def counts(self) -> dict[str, int]:
        ghost = self.ghost
        return {"commits": len(ghost.committed), "reads": ghost.reads_answered, "leaders": len(ghost.leaders)}

    def is_useless(self) -> bool:
        return not self.ghost.committed

    def describe(self) -> str:
        """A line for each node that lives, then the newest events."""
        lines = [f"node {id_}: {position}" for id_, position in self._positions().items()]
        return "\n".join([*lines, *self.trace.lines(LAST_EVENTS)])

    # ── clients ─────────────────────────────────────────────────────────────────────────────────────

    def _client(self) -> None:
        """A few proposals or a read somewhere, whether that node lives or not."""
        if self.is_peace:
            return
        leading = [id_ for id_, m in self.machines.items() if m.process is not None and m.process.raft.role == "leader"]
        id_ = self.rng.choice(leading if leading and self.rng.random() < 0.5 else self.ids)
        if self.rng.random() < 0.5:
            self.propose(id_, self.rng.randint(1, 4))
        else:
            self.read(id_)
        self.at(self.rng.randint(1, self.client_every_ms), self._client)

    def propose(self, id_: NodeId, count: int = 1) -> None:
        if self.machines[id_].process is None:
            return
        batch = []
        for _ in range(count):
            self.last_number += 1
            payload = b"%d." % self.last_number + b"x" * self.rng.choice([0, 0, 10, 300])
            batch.append(Proposed(RequestId(self.last_number), payload))
            self.ghost.proposed[batch[-1].id] = payload
        self.put(id_, Proposals(tuple(batch)))

    def read(self, id_: NodeId) -> None:
        if self.machines[id_].process is not None:
            self.last_number += 1
            self.ghost.on_read_invoked(self.last_number)
            self.put(id_, ReadRequest(self.last_number))

    # ── faults ──────────────────────────────────────────────────────────────────────────────────────

    def _chaos(self) -> None:
        if self.is_peace:
            return
        getattr(self, f"_do_{self.rng.choice(self.chaos)}")(self.rng.choice(self.ids))
        self.at(self.rng.randint(1, 2 * self.chaos_every_ms), self._chaos)

    def _do_cut_one_way(self, id_: NodeId) -> None:
        self._cut_links((id_, self.rng.choice(self.ids)))

    def _do_isolate(self, id_: NodeId) -> None:
        self._cut([id_], [other for other in self.ids if other != id_])

    def _do_split(self, _: NodeId) -> None:
        some = [id_ for id_ in self.ids if self.rng.random() < 0.5]
        self._cut(some, [id_ for id_ in self.ids if id_ not in some])

    def _do_bridge(self, id_: NodeId) -> None:
        """Two halves that see each other only through one node."""
        others = [other for other in self.ids if other != id_]
        half = len(others) // 2
        self._cut(others[:half], others[half:])

    def _cut(self, left: list[NodeId], right: list[NodeId]) -> None:
        self._cut_links(*[link for a in left for b in right for link in ((a, b), (b, a))])

    def _cut_links(self, *links: tuple[NodeId, NodeId]) -> None:
        """Every cut ends some time, or there would soon be nothing left to go wrong."""
        for link in links:
            self.cut_links[link] = True
        self.at(self.rng.randint(1, 5 * self.timeout), partial(self._mend, links))

    def _mend(self, links: tuple[tuple[NodeId, NodeId], ...]) -> None:
        for link in links:
            self.cut_links.pop(link, None)

    def _do_heal(self, _: NodeId) -> None:
        self.cut_links.clear()

    def _do_crash(self, id_: NodeId) -> None:
        self.crash(id_)
        self.at(self.rng.randint(0, 4 * self.timeout), lambda: self._do_restart(id_))

    def _do_restart(self, _: NodeId) -> None:
        for id_, machine in self.machines.items():
            if machine.process is None:
                self.start(id_)

    def _do_pause(self, id_: NodeId) -> None:
        process = self.machines[id_].process
        if process is not None:
            process.is_paused = True
            self.at(self.rng.randint(1, 5 * self.timeout), lambda: self._resume(process))

    def _resume(self, process: Process) -> None:
        process.is_paused = False
        if process.is_alive:
            self._schedule(process)

    def _do_slow_disk(self, id_: NodeId) -> None:
        self.machines[id_].disk_slow_until = self.now_ms + self.rng.randint(1, 3 * self.timeout)

    def _do_stall(self, id_: NodeId) -> None:
        process = self.machines[id_].process
        self.put(id_, DiskStalled())
        self.at(self.rng.randint(0, 2 * self.timeout), lambda: self._recover(process))

    def _recover(self, process: Process | None) -> None:
        if process is not None and process.is_alive:
            self.put(process.node, DiskRecovered())

    def _do_refused(self, id_: NodeId) -> None:
        """A lie as often as not: `peer`'s process need not be gone."""
        peer = self.rng.choice(self.ids)
        process = self.machines[id_].process
        if process is not None and self.rng.random() < 0.7:
            peer = process.raft.leader
        if peer not in (NOBODY, id_):
            self.put(id_, PeerRefused(peer))

    def _do_usurp(self, _: NodeId) -> None:
        """Two leaders for a while."""
        for id_, machine in self.machines.items():
            if machine.process is not None and machine.process.raft.role == "leader":
                self._usurp(id_)

    def _usurp(self, leader: NodeId) -> None:
        """All others lose the leader and are told that it is gone, while it goes on with what its clients ask."""
        others = [other for other in self.ids if other != leader]
        self._cut([leader], others)
        for other in others:
            self.put(other, PeerRefused(leader))
        self.propose(leader, self.rng.randint(0, 3))
        self.read(leader)
        self.at(self.timeout // 2, partial(self.read, leader))
        if self.rng.random() < 0.5:
            self.at(self.rng.randint(self.timeout // 4, 2 * self.timeout), self.cut_links.clear)

    def _execute(self, process: Process, output: Output) -> None:
        """Some runs ambush new leaders: their first entries stand on one disk or few, as in the paper's Figure 8."""
        super()._execute(process, output)
        is_new = any(isinstance(fact, BecameLeader) for fact in output.facts)
        if is_new and not self.is_peace and self.rng.random() < self.ambush:
            if self.rng.random() < 0.7:
                self._usurp(process.node)
            else:
                self.at(self.rng.randint(0, self.fsync_ms), partial(self._do_crash, process.node))

    def _do_flap(self, id_: NodeId) -> None:
        peer = self.rng.choice(self.ids)
        if peer != id_:
            process = self.machines[id_].process
            self.put(id_, PeerDisconnected(peer))
            self.at(self.rng.randint(0, 2 * self.timeout), lambda: self._reconnect(process, peer))

    def _reconnect(self, process: Process | None, peer: NodeId) -> None:
        if process is not None and process.is_alive:
            self.put(process.node, PeerConnected(peer))

    def _do_transfer(self, _: NodeId) -> None:
        for id_, machine in self.machines.items():
            if machine.process is not None and machine.process.raft.role == "leader":
                self.put(id_, TransferLeadership(self.rng.choice([NOBODY, *self.ids])))

    def _do_resurrect(self, _: NodeId) -> None:
        for _turn in range(min(len(self.graves), 4)):
            position = self.rng.randrange(len(self.graves))
            _, to, message = self.graves[position]
            if isinstance(message, ForwardProposals) or self.rng.random() < 0.5:
                self.graves.pop(position)
            self.put(to, message)

    def _do_wall_jump(self, id_: NodeId) -> None:
        self.machines[id_].wall_skew_ms = self.rng.randint(-10_000, 10_000)

    # ── peace ───────────────────────────────────────────────────────────────────────────────────────

    def _make_peace(self) -> None:
        """No more faults; what is under way still arrives, as late as it may."""
        self.is_peace = True
        self.drop = self.duplicate = self.bury = self.straggle = 0.0
        self.delay_ms = min(self.delay_ms, 3)
        self.fsync_ms = min(self.fsync_ms, 5)
        self.cut_links.clear()
        for id_, machine in self.machines.items():
            machine.disk_slow_until = 0
            if machine.process is None:
                self.start(id_)
        self.run_for(5 * self.timeout)  # pauses, stalls and stragglers end

    def _assert_recovers(self) -> None:
        """Liveness (I30): one leader, a new command of every node is committed, all logs and stores are level."""
        wanted = {id_: self._propose_until_placed(id_) for id_ in self.ids}
        longest = max(last for _, _, last, _ in self._positions().values())
        round_trip = 2 * (2 * self.delay_ms + 2 * self.fsync_ms + 1)
        read_back = self.timeout // 4  # what `Network` takes at most to read entries from a disk
        until = self.now_ms + 20 * self.timeout + longest * (round_trip + read_back)
        while not self._is_level():  # at worst one entry a message, one message in flight, each read back from disk
            self.run_for(self.timeout)
            assert self.now_ms < until, ("I30: not level in peace", self._positions())
        assert all(self.ghost.payloads.get(payload) == 1 for payload in wanted.values()), "I30: a command is missing"
        leaders_before = len(self.ghost.leaders)
        for id_ in self.ids:
            self.ghost.on_times(id_)
            self.read(id_)
        answered = self.ghost.reads_answered
        self.run_for(3 * self.timeout)
        assert self.ghost.reads_answered >= answered + len(self.ids), "I30: a read in peace was not answered"
        assert len(self.ghost.leaders) == leaders_before, "I31: an election in peace"

    def _propose_until_placed(self, id_: NodeId) -> bytes:
        for _ in range(20):
            self.propose(id_)
            payload = self.ghost.proposed[RequestId(self.last_number)]
            self.run_for(self.timeout)
            if payload in self.ghost.payloads:
                return payload
        raise AssertionError(("I30: no command gets through in peace", id_, self._positions()))

    def _positions(self) -> dict[NodeId, tuple[str, int, int, int]]:
        rafts = [machine.process.raft for machine in self.machines.values() if machine.process is not None]
        return {raft.node: (raft.role, raft.term, raft.last_index, raft.commit_index) for raft in rafts}

    def _is_level(self) -> bool:
        logs = [machine.disk.entries for machine in self.machines.values()]
        positions = self._positions().values()
        is_committed = all(last == commit == len(logs[0]) for _, _, last, commit in positions)
        return is_committed and all(log == logs[0] for log in logs[1:])
