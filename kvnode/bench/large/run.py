"""The order of the parts: each system in turn on a fresh cluster, then kvnode's small store beside its large one."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from kvnode.bench.cluster import Cluster, KvnodeCluster
from kvnode.bench.fronts import Front
from kvnode.bench.kvnode_front import KVNODE_HTTP
from kvnode.bench.large import bulk, footprint, growth, learner, restart
from kvnode.bench.large.figures import Figures
from kvnode.bench.large.growth import Store
from kvnode.bench.rounds import System, fresh

PARTS = ("load", "memory", "learner", "restart", "txns", "growth")


@dataclass(frozen=True)
class Plan:
    """How much and how long. `parts`: names of what to measure; loading happens anyway."""

    parts: tuple[str, ...] = PARTS
    keys: int = 1_000_000
    few_keys: int = 10_000
    many_keys: int = 10_000_000
    growth_nodes: int = 1  # of the clusters with few and many keys
    seconds: float = 10.0
    rounds: int = 1  # of each system's cluster
    growth_rounds: int = 3
    restarts: int = 3
    settle_s: float = 5.0
    load_limit_s: float = 3_600.0
    seed: int = 1


async def run(plan: Plan, competitors: list[System], home: Path, progress: Callable[[str], None]) -> Figures:
    """Raises: ClusterFailed, TimeoutError, OSError. Whatever happens, the processes end and the data goes."""
    figures = Figures(progress)
    if plan.parts != ("growth",):
        for number in range(1, plan.rounds + 1):
            progress(f"round {number} of {plan.rounds}: {plan.keys:,} keys")
            for system in competitors if number % 2 else competitors[::-1]:
                with fresh(system, home / f"{system.name}-{number}") as cluster:
                    if "learner" in plan.parts:
                        learner.prepare(cluster, plan.keys)
                    cluster.start_all()
                    await _one_system(plan, system, cluster, random.Random(plan.seed * 1000 + number), figures)
    if "growth" in plan.parts and any(system.name == "kvnode" for system in competitors):
        await _growth(plan, home, figures)
    return figures


async def _one_system(plan: Plan, system: System, cluster: Cluster, rng: random.Random, figures: Figures) -> None:
    front, http = system.fronts[0], system.fronts[-1]
    load = functools.partial(_load, plan, cluster, rng=rng, name=system.name, figures=figures)
    await load((front, bulk.PUTS[front.name]), (0, plan.keys), row="load")
    if "memory" in plan.parts:
        await footprint.measure(cluster, system.name, figures, settle_s=plan.settle_s)
    if "learner" in plan.parts:
        await learner.measure(cluster, front, system.name, figures, keys=plan.keys, rng=rng, seconds=plan.seconds)
    if "restart" in plan.parts:
        await restart.measure(cluster, http, bulk.key(plan.keys // 2), system.name, figures, times=plan.restarts)
    if "txns" in plan.parts:
        await load((front, bulk.TXNS[front.name]), (plan.keys, max(1, plan.keys // 10)), row="txns")


async def _load(
    plan: Plan,
    cluster: Cluster,
    way: tuple[Front, bulk.Way],
    stretch: tuple[int, int],  # (number of the first key, how many)
    *,
    rng: random.Random,
    row: str,
    name: str,
    figures: Figures,
) -> None:
    leader, keys = await cluster.wait_ready(), stretch[1]
    before = {node: cluster.processes[node].cpu_seconds() for node in cluster.running()}
    loaded = await bulk.load(cluster, *way, bulk.scattered(*stretch), rng=rng, limit_s=plan.load_limit_s)
    if loaded.failed:
        raise OSError(f"{loaded.failed} calls of the load failed")
    figures.add(f"{row}_rate", name, keys / loaded.seconds)
    figures.add(f"{row}_repeated", name, loaded.repeated)
    for node, used in before.items():
        share = (cluster.processes[node].cpu_seconds() - used) / keys * 1e6
        figures.add(f"{row}_cpu_leader" if node == leader else f"{row}_cpu_follower", name, share)


async def _growth(plan: Plan, home: Path, figures: Figures) -> None:
    """Of kvnode alone: what is asked is how it compares with itself."""
    rng = random.Random(plan.seed)
    front: Front = KVNODE_HTTP
    with ExitStack() as stack:
        stores: list[Store] = []
        for size, keys in (("few", plan.few_keys), ("many", plan.many_keys)):
            figures.progress(f"{keys:,} keys in {plan.growth_nodes} node{'s' if plan.growth_nodes > 1 else ''}")
            system = System("kvnode", "", lambda path: KvnodeCluster(path, plan.growth_nodes), (front,))
            cluster = stack.enter_context(fresh(system, home / size))
            cluster.start_all()
            way = (front, bulk.PUTS[front.name])
            await _load(plan, cluster, way, (0, keys), rng=rng, row="load", name=size, figures=figures)
            stores.append(Store(size, cluster, keys))
        await footprint.measure(stores[-1].cluster, "many", figures, settle_s=plan.settle_s)
        await growth.measure(stores, front, figures, rng, seconds=plan.seconds, rounds=plan.growth_rounds)
