"""One seed's life of a whole cluster: clients and faults, then peace for a quorum, in which all must come right."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from kvnode.check import report
from kvnode.check.judge import judge
from kvnode.errors import LeadershipLost, NotReady
from kvnode.ids import NodeId
from kvnode.kv.events import WatchPart
from kvnode.kv.interface import Options
from kvnode.kv.requests import Watch
from kvnode.sim.runtime import available_judge, holders, liveness
from kvnode.sim.runtime.available_clients import AvailableClients
from kvnode.sim.runtime.clock import NodeClock
from kvnode.sim.runtime.cluster import Cluster
from kvnode.sim.runtime.etcd_tongue import EtcdTongue
from kvnode.sim.runtime.faults import FAULTS
from kvnode.sim.runtime.floors import Floors
from kvnode.sim.runtime.insistent import Insistent
from kvnode.sim.runtime.nemesis import Nemesis
from kvnode.sim.runtime.swarm import World, draw
from kvnode.sim.runtime.watchers import Watchers, judge_watched
from kvnode.sim.runtime.witness import Witness, judge_awaited, judge_bounded, judge_by_log, judge_given_up, judge_past
from kvnode.sim.runtime.workload import PREFIX, Workload
from kvnode.sim.trace import Trace

PEACE_CHANCE_MAX = 0.1
"""In peace progress has a bound: what loses every second append, heartbeats included, keeps none."""

ALONE = 0.3
"""Share of worlds in which a member is cut off from all others in peace, and has to answer what needs no quorum."""

REDIAL_S = 0.02
"""A client whose node is down dials again after this."""

MEMBERS_MAX = 1_000
"""No run has so many, one after another."""

LASTS_MS_MAX = 500_000
"""No run takes longer, in virtual time by the fastest clock."""


class Life:
    """`run` raises what is wrong with the seed."""

    def __init__(self, seed: int, trace: Trace | None = None) -> None:
        self.seed = seed
        self.trace = trace or Trace()
        self.world: World = draw(self.fork, list(FAULTS))
        self.cluster: Cluster
        self.nemesis: Nemesis
        self.workload: Workload
        self.insistent: Insistent
        self.watchers: Watchers
        self.available: AvailableClients | None = None
        self._rng = self.fork("life")
        self._perturb_rng = self.fork("perturbations")
        self._perturbed: dict[str, int] = {}
        self._tongues = self.fork("tongues")
        self.in_etcds_words = 0  # requests
        self._states = ""
        self.was_undecided = False

    def fork(self, label: str) -> random.Random:
        return random.Random(f"{self.seed}/{label}")

    def perturbs(self, point: str) -> bool:
        """Whether a node acts in its unusual way at this point now: see `kvnode.perturb`."""
        chance = self.world.perturbed.get(point, 0.0)
        if self.nemesis.is_peace:
            chance = min(chance, PEACE_CHANCE_MAX)
        if not chance or self._perturb_rng.random() >= chance:
            return False
        self._perturbed[point] = self._perturbed.get(point, 0) + 1
        return True

    async def run(self) -> None:
        world = self.world
        loop = asyncio.get_running_loop()
        self.cluster = cluster = Cluster(
            self.seed,
            world.size,
            world.settings,
            has_processes=True,
            has_plane=world.plane is not None,
            trace=self.trace,
        )
        loop.set_exception_handler(lambda _, context: cluster.errors.append(context))
        cluster.draw_clock = self._draw_clock
        cluster.network.delay_s = world.delay_s
        cluster.disk_delay_s = world.disk_delay_s
        levels = self.fork("levels")
        for member in [member for member in cluster.ids if levels.random() < world.old_level]:
            cluster.configs[member] = cluster.reconfigured(member, {"cluster.feature_level_max": 1})
        self.nemesis = Nemesis(cluster, self.fork("faults"), world)
        self.workload = Workload(self._ask, cluster.ids, world.mix, self.fork, self._served_by)
        window_ms = cluster.configs[cluster.ids[0]].limits.idempotency_ms
        self.insistent = Insistent(self.workload, cluster.ids, self.fork, repeats_keys=window_ms > LASTS_MS_MAX)
        self.watchers = Watchers(
            self._watch, cluster.ids, self.fork, count=world.mix.watchers, prefix=PREFIX, keys=world.mix.keys
        )
        if world.plane is not None:
            assert cluster.ways is not None
            cluster.ways.is_mute, cluster.plane_damages = world.plane.is_mute, world.plane.damages
            astray = self.nemesis.operators.has_strayed
            self.available = AvailableClients(cluster, self.workload, world.plane, self.fork, astray)
        try:
            await cluster.start_all()
            self.workload.start()
            if self.available is not None:
                self.available.start()
            self.insistent.start()
            self.watchers.start()
            await self._suffer()
            await self._recover()
            self._check()
            self._note_the_end()
        finally:
            self._states = cluster.describe()
            cluster.end_all()
        self._judge()

    def _judge(self) -> None:
        """By two judges: one has the log that was applied, the other only what clients were told, as in real life."""
        operations = self.workload.operations
        witness = Witness(self.cluster.applied.changes(), but=holders.PREFIX)
        judge_by_log(operations, witness)
        floors = Floors(self.cluster.applied.floors())
        judge_past(self.workload.looked_back, witness, floors)
        judge_given_up(self.workload.given_up, witness, floors)
        judge_awaited(self.workload.awaited, witness, floors)
        self.insistent.judge(witness)
        judge_watched(self.watchers.streams, self.cluster.applied.changes())
        if not {"freeze", "drift"} & set(self.world.faults):  # a bound is as good as the clock it is measured by
            judge_bounded(self.workload.bounded, operations, 1 / (1 - self.world.drift))
        drift = 0.5 if "drift" in self.world.faults else self.world.drift
        holders.judge(self.workload.leases, self.cluster.applied, drift=drift)
        final = {key: item for key, item in witness.final().items() if key.startswith(PREFIX)}
        verdict = judge(operations, final=final, sole_writer=False)
        assert verdict.result != "failed", report.text(operations, verdict)
        self.was_undecided = verdict.result == "unknown"  # the search gave up; the log has judged all the same

    def _served_by(self, member: NodeId) -> int:
        return self.cluster.lives.get(member, 0) * MEMBERS_MAX + member

    def _draw_clock(self, member: NodeId) -> NodeClock:
        rng, world = self.fork(f"clock-{member}"), self.world
        return NodeClock(
            asyncio.get_running_loop().time,
            start_s=rng.uniform(0, world.skew_s),
            rate=1.0 + rng.uniform(-world.drift, world.drift),
        )

    async def _suffer(self) -> None:
        """Safety mode: faults, with some calm between them."""
        rng, world, loop = self._rng, self.world, self.cluster.loop
        until_s = loop.time() + world.lasts_s
        while loop.time() < until_s:
            await asyncio.sleep(rng.uniform(*world.calm_s))
            self._check()
            self.nemesis.bury_the_failed()
            if not self.cluster.members:
                self.nemesis.restart(self.cluster.ids)
            self.nemesis.strike()
            if rng.random() < world.heals:
                await asyncio.sleep(rng.uniform(0.0, world.calm_s[1]))
                self._check()
                self.nemesis.heal()

    def _check(self) -> None:
        assert not self.cluster.errors, self.cluster.errors
        self.nemesis.operators.check()

    async def _recover(self) -> None:
        """Liveness mode."""
        cluster, nemesis = self.cluster, self.nemesis
        rng = self.fork("liveness")
        for member in [m for m in nemesis.may_fail if m in cluster.members and m not in cluster.failures]:
            nemesis.end(member)  # a fault may still be waiting in its disk
        if self.world.has_churn:
            nemesis.is_peace = True
            await liveness.settle_members(cluster, nemesis)
        core = liveness.draw_core(cluster, nemesis, rng)
        nemesis.is_peace = True
        await cluster.finish_spawned()
        nemesis.heal(core)
        liveness.break_for_good(cluster, nemesis, core, rng)
        self._check()
        if self.available is not None and rng.random() < ALONE:
            await available_judge.answer_alone(cluster, nemesis, self.available, core, self.fork("alone"))
        await liveness.settle(cluster, nemesis, self.workload, self.watchers, core, available=self.available)

    def _note_the_end(self) -> None:
        """The trace ends with what everybody agrees on, so that another order of a set shows in it."""
        steps = self.cluster.applied.steps
        self.cluster.note("end", len(steps), steps[-1].digest.hex() if steps else "")

    # ── what the report says ────────────────────────────────────────────────────────────────────────

    @property
    def virtual_ms(self) -> int:
        return int(self.cluster.loop.time() * 1e3)

    @property
    def steps(self) -> int:
        return self.cluster.observer.steps

    def counts(self) -> dict[str, int]:
        """What happened in it."""
        found: dict[str, int] = {}
        for operation in self.workload.operations:
            name = f"operations_{operation.status}"
            found[name] = found.get(name, 0) + 1
        found["reads_of_the_past"] = len(self.workload.looked_back)
        found["reads_given_up"] = len(self.workload.given_up)
        found["revisions_swept"] = self.cluster.applied.swept
        found["histories_undecided"] = int(self.was_undecided)
        found["long_polls"] = len(self.workload.awaited)
        found["locks_held"] = len(self.workload.leases.held)
        found["lease_renewals"] = sum(e.kind == "keepalive" and e.status == "ok" for e in self.workload.leases.events)
        found["named_sendings"] = len(self.insistent.attempts)
        found["lease_reads"] = self.cluster.observer.lease_reads
        found["bounded_reads"] = len(self.workload.bounded)
        found["watch_streams"] = len(self.watchers.streams)
        found["watch_lines"] = sum(len(stream.messages) for stream in self.watchers.streams)
        cluster = self.cluster
        found["starts"] = cluster.starts
        found["asked_in_etcds_words"] = self.in_etcds_words
        found["leader_changes"] = cluster.observer.leader_changes
        found["segment_rolls"] = cluster.observer.segment_rolls
        found["truncations"] = cluster.observer.truncations
        found["messages"] = cluster.network.delivered
        if self.available is not None:
            found["ap_writes"] = cluster.dots.acknowledged_count
            found["ap_reads_judged"] = cluster.dots.reads
            found |= {f"ap_{what}": count for what, count in sorted(self.available.counts.items())}
        found |= {f"network_{what}": count for what, count in sorted(cluster.network.counts.items())}
        return found | {f"fault_{kind}": count for kind, count in sorted(self.nemesis.struck.items())}

    def marks(self) -> dict[str, int]:
        """Situations that tests must have met, how often each came about."""
        unknown = sum(operation.note == LeadershipLost.code for operation in self.workload.operations)
        found = self.cluster.observer.marks | ({"forwarded_unknown": unknown} if unknown else {})
        if self.insistent.given_again:
            found["answer_given_again"] = self.insistent.given_again
        found |= {f"perturbed_{point}": count for point, count in self._perturbed.items()}
        return dict(sorted(found.items()))

    def describe(self) -> str:
        """A line of state for each member, as it stood at the end."""
        return self._states

    async def _ask(self, member: NodeId, request: Any, options: Options, on_sent: Callable[[], None]) -> Any:
        """As a client does: a node that is down is dialled again, until the run is over."""
        while member not in self.cluster.members or member in self.cluster.failures:
            if self.workload.is_over:
                raise NotReady(f"member {member} is down")
            await asyncio.sleep(REDIAL_S)
            if member in self.cluster.removed:
                raise NotReady(f"member {member} is gone")
        on_sent()
        in_etcds_words = self._tongues.random() < self.world.in_etcds_words and EtcdTongue.knows(request, options)
        self.in_etcds_words += in_etcds_words
        return await self.cluster.members[member].ask(request, options, in_etcds_words=in_etcds_words)

    def _watch(
        self, member: NodeId, request: Watch, options: Options, on_part: Callable[[WatchPart], bool]
    ) -> asyncio.Future[None] | None:
        if member not in self.cluster.members or member in self.cluster.failures:
            return None
        return self.cluster.members[member].watch(request, options, on_part)
