"""Rounds: each system in turn, on a fresh cluster that has the machine to itself, several times over.

Alternating whole clusters, rather than running both at once, keeps either from paying for the other's heartbeats;
repeating the alternation spreads the machine's moods over both.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kvnode.bench import available, load
from kvnode.bench.cluster import Cluster, EtcdCluster, KvnodeCluster
from kvnode.bench.etcd_fronts import ETCD_GRPC, ETCD_JSON, KVNODE_AS_ETCD
from kvnode.bench.failover import measure_gap
from kvnode.bench.fanout import FanOut
from kvnode.bench.fronts import Front, Watching
from kvnode.bench.kvnode_front import KVNODE_HTTP
from kvnode.bench.load import Address, Measured
from kvnode.bench.workloads import (
    AVAILABLE,
    KEYS,
    PUT1,
    RANGE_KEYS,
    WATCHES,
    WORKLOADS,
    Scene,
    WatchWorkload,
    Workload,
    key,
    value,
)

_PRELOAD_LIMIT_S = 120.0
_SETTLE_S = 1.0


@dataclass(frozen=True)
class Plan:
    """How long and how often. `rows`: names of what to measure; `preload`: keys that gets choose from."""

    rows: tuple[str, ...]
    rounds: int = 3
    warm_up_s: float = 0.5
    measure_s: float = 4.0
    idle_s: float = 10.0
    kills: int = 2
    preload: int = 20_000
    spread: bool = False
    seed: int = 1

    def quick(self) -> Plan:
        """One short round."""
        return replace(self, rounds=1, measure_s=1.5, idle_s=3.0, kills=1, preload=2_000)


FAILOVER = {"failover1": 1, "failover8": 8}  # row → writers
ARRIVALS = ("converge", "converge_read", "converge_put")  # measured together, by the first one's name
GOSSIP = ("gossip3", "gossip100", "gossip100_cpu")  # the last two together
ROWS = (
    *(row.name for row in (*WORKLOADS, *WATCHES, *AVAILABLE)),
    *(ARRIVALS[0], *GOSSIP[:2]),
    *(*FAILOVER, "idle", "memory"),
)


@dataclass(frozen=True)
class System:
    name: str
    version: str
    make: Callable[[Path], Cluster]
    fronts: tuple[Front, ...]  # the first one carries the preload and the failover writers


@dataclass
class Series:
    """All measurements of one row through one front. `values`: requests/s, ms, per cent or MiB, one per measurement."""

    row: str
    system: str
    front: str
    values: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    generator_cpu: list[float] = field(default_factory=list)
    server_cpu: list[float] = field(default_factory=list)
    failures: int = 0


class Results:
    """Series by row, system and front; `progress` is told of each measurement as it is made."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self.series: dict[tuple[str, str, str], Series] = {}
        self.progress = progress

    def add(self, row: str, system: str, front: str, number: float, text: str) -> Series:
        found = self.series.setdefault((row, system, front), Series(row, system, front))
        found.values.append(number)
        self.progress(f"  {system:7} {front:5} {row:10} {text}")
        return found


def systems(kvnode_version: str) -> list[System]:
    """kvnode, and etcd if it is on the PATH."""
    found = [System("kvnode", kvnode_version, KvnodeCluster, (KVNODE_HTTP, KVNODE_AS_ETCD))]
    etcd = EtcdCluster.version()
    if etcd:
        found.append(System("etcd", etcd, EtcdCluster, (ETCD_GRPC, ETCD_JSON)))
    return found


async def run(plan: Plan, competitors: list[System], home: Path, progress: Callable[[str], None]) -> Results:
    """Raises: ClusterFailed, TimeoutError. Whatever happens, the processes end and the data goes."""
    results = Results(progress)
    for number in range(1, plan.rounds + 1):
        progress(f"round {number} of {plan.rounds}")
        order = competitors if number % 2 else competitors[::-1]
        for system in order:
            with fresh(system, home / f"{system.name}-{number}") as cluster:
                cluster.start_all()
                rng = random.Random(plan.seed * 1000 + number)
                await _Round(plan, system, cluster, rng, results).run()
    return results


@contextlib.contextmanager
def fresh(system: System, home: Path) -> Iterator[Cluster]:
    """A cluster that is not started yet; stopped in the end, and its data removed."""
    shutil.rmtree(home, ignore_errors=True)
    cluster = system.make(home)
    try:
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(home, ignore_errors=True)


@dataclass(frozen=True)
class _Round:
    """One system's turn, on a cluster that has just been started."""

    plan: Plan
    system: System
    cluster: Cluster
    rng: random.Random
    results: Results
    client_numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    async def run(self) -> None:
        await self.cluster.wait_ready()
        if "idle" in self.plan.rows:
            await self._idle()
        if self._has_available:
            await self._gossip()
        past = await self._preload()
        for workload in (*WORKLOADS, *AVAILABLE):
            for front in self.system.fronts:
                if workload.name in self.plan.rows and front.has(workload.kind):
                    await self._load(front, workload, past)
        for watch in WATCHES:
            for front in self.system.fronts:
                if watch.name in self.plan.rows and front.watching is not None:
                    await self._watch(front, front.watching, watch)
        if self._has_available and ARRIVALS[0] in self.plan.rows:
            await self._converge(self.system.fronts[0])
        if "memory" in self.plan.rows:
            for node in self.cluster.running():
                mebibytes = self.cluster.processes[node].resident_bytes() / (1 << 20)
                self._add("memory", "node", mebibytes, f"{mebibytes:.0f} MiB resident on node {node}")
        for _ in range(self.plan.kills):
            for row, writers in FAILOVER.items():
                if row in self.plan.rows:
                    await self._failover(row, writers)

    def _add(self, row: str, front: str, number: float, text: str) -> Series:
        return self.results.add(row, self.system.name, front, number, text)

    async def _idle(self) -> None:
        await asyncio.sleep(_SETTLE_S)
        processes = self.cluster.processes
        before = {node: processes[node].cpu_seconds() for node in self.cluster.running()}
        await asyncio.sleep(self.plan.idle_s)
        for node, used in before.items():
            percent = (processes[node].cpu_seconds() - used) / self.plan.idle_s * 100
            self._add("idle", "node", percent, f"{percent:.1f} % of a core on node {node}")

    @property
    def _has_available(self) -> bool:
        """Whether it serves anything without a quorum."""
        return self.system.fronts[0].has("ap_put")

    async def _gossip(self) -> None:
        real, simulated, simulated_cpu = GOSSIP
        if real in self.plan.rows:
            before = await available.gossip_bytes(self.cluster)
            await asyncio.sleep(self.plan.idle_s)
            for node, sent in (await available.gossip_bytes(self.cluster)).items():
                rate = (sent - before[node]) / self.plan.idle_s
                self._add(real, "node", rate, f"{rate:,.0f} bytes/s of gossip sent by node {node}")
        if simulated in self.plan.rows:
            found = available.simulated(self.plan.seed)
            self._add(simulated, "core", found.bytes_per_s, f"{found.bytes_per_s:,.0f} bytes/s by each")
            self._add(simulated_cpu, "core", found.cpu_percent, f"{found.cpu_percent:.3f} % of a core for each")

    async def _converge(self, front: Front) -> None:
        """From the leader to a follower: the linearizable put beside it pays for no forwarding."""
        leader = await self.cluster.wait_ready()
        other = max(node for node in self.cluster.running() if node != leader)
        clients, rounds = self.cluster.clients, int(3 * self.plan.measure_s / available.PAUSE_S)
        found = await available.converge(clients[leader], clients[other], value(self.rng), rounds)
        for row, times in zip(ARRIVALS, (found.arrived, found.read, found.put), strict=True):
            p50, p99 = load.quantile_ms(times, 0.5), load.quantile_ms(times, 0.99)
            series = self._add(row, front.name, p50, f"p50 {p50:.2f} ms  p99 {p99:.2f} ms")
            series.p50_ms.append(p50)
            series.p99_ms.append(p99)

    @property
    def _keys(self) -> int:
        """How many keys there are."""
        return max(self.plan.preload, RANGE_KEYS if "range10k" in self.plan.rows else 0)

    async def _preload(self) -> str:
        """→ a point in time when all keys existed; where it is asked about, every key has changed since."""
        address = self.cluster.clients[await self.cluster.wait_ready()]
        front = self.system.fronts[0]
        await self._put_all(front, address)
        past = await front.now(address)
        if "past64" in self.plan.rows:
            await self._put_all(front, address)
        return past

    async def _put_all(self, front: Front, address: Address) -> None:
        put = front.calls["put"]
        connections, slots_each = front.connections(128)
        failed = await load.send_all(
            put.connect,
            [put.write(address, key(number), value(self.rng)) for number in range(self._keys)],
            address,
            connections=connections,
            slots_each=slots_each,
            limit_s=_PRELOAD_LIMIT_S,
        )
        if failed:
            raise OSError(f"{failed} of {self._keys} puts of the preload failed")

    async def _load(self, front: Front, workload: Workload, past: str) -> None:
        leader = await self.cluster.wait_ready()
        clients = self.cluster.clients
        addresses = list(clients.values()) if self.plan.spread else [clients[leader]]
        scene = Scene(front, addresses[0], self._keys, past, self.client_numbers, self.rng)
        together = [workload, *([workload.beside] if workload.beside else [])]
        under_way = [self._measure(each, scene, addresses, leader) for each in together]
        async with self._compacting(leader, workload.compact_every_s):
            found = await asyncio.gather(*under_way)
        for each, measured in zip(together, found, strict=True):
            self._add_measured(each.name, front, measured)

    def _measure(
        self, workload: Workload, scene: Scene, addresses: list[Address], leader: int
    ) -> Coroutine[Any, Any, Measured]:
        """Requests are prepared at once: with several workloads before any of them starts."""
        connections, slots_each = workload.connections(scene.front)
        return load.measure(
            workload.load(scene),
            workload.connect(scene.front),
            addresses,
            connections=connections,
            slots_each=slots_each,
            warm_up_s=self.plan.warm_up_s,
            measure_s=self.plan.measure_s,
            server_cpu_s=self.cluster.processes[leader].cpu_seconds,
        )

    async def _watch(self, front: Front, watching: Watching, watch: WatchWorkload) -> None:
        leader = await self.cluster.wait_ready()
        fanout = FanOut(self.cluster.clients[leader], watching, front.calls["put"], b"%b/" % watch.name.encode())
        measured = await fanout.measure(
            iter(lambda: value(self.rng), b""),
            watchers=watch.watchers,
            puts_per_s=watch.puts_per_s,
            warm_up_s=self.plan.warm_up_s,
            measure_s=self.plan.measure_s,
            server_cpu_s=self.cluster.processes[leader].cpu_seconds,
        )
        self._add_measured(watch.name, front, measured)

    def _add_measured(self, row: str, front: Front, measured: Measured) -> None:
        p50, p99 = measured.quantile_ms(0.5), measured.quantile_ms(0.99)
        text = f"{measured.per_second:,.0f}/s  p50 {p50:.2f} ms  p99 {p99:.2f} ms  "
        text += f"leader {measured.server_cpu:.0%}  failed {measured.failures}"
        series = self._add(row, front.name, measured.per_second, text)
        series.p50_ms.append(p50)
        series.p99_ms.append(p99)
        series.generator_cpu.append(measured.generator_cpu)
        series.server_cpu.append(measured.server_cpu)
        series.failures += measured.failures

    @contextlib.asynccontextmanager
    async def _compacting(self, node: int, every_s: float) -> AsyncIterator[None]:
        """Meanwhile all history is given up again and again, if at all."""

        async def compact() -> None:
            while every_s:
                await self.cluster.compact(node)
                await asyncio.sleep(every_s)

        async with asyncio.TaskGroup() as group:
            compacting = group.create_task(compact())
            try:
                yield
            finally:
                compacting.cancel()

    async def _failover(self, row: str, writers: int) -> None:
        leader = await self.cluster.wait_ready()
        front = self.system.fronts[0]
        scene = Scene(front, self.cluster.clients[leader], KEYS, "", self.client_numbers, self.rng)
        requests = PUT1.requests(scene)
        gap = await measure_gap(self.cluster, front, requests, writers)
        self._add(row, front.name, gap * 1000, f"gap {gap * 1000:.0f} ms")
        for node in self.cluster.ids:
            if node not in self.cluster.running():
                self.cluster.start(node)
        await self.cluster.wait_ready()
