"""Stage: a cluster on its network and its disks, with recording clients at it, from the first start to the verdict."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Literal, Self

from kvnode.bench.process import free_ports
from scripts.faults import aftermath, hub
from scripts.faults.capability import Reasons
from scripts.faults.field import Field
from scripts.faults.images import Image
from scripts.faults.nodes import ChaosCluster
from scripts.faults.proxy import Proxies
from scripts.faults.pulse import Pulse
from scripts.faults.recorders import Journal, Recorder
from scripts.faults.throttle import Throttle
from scripts.faults.undo import Undo

Network = Literal["hosts", "proxies", "loopback"]

RECORDERS = 8
OPERATIONS_MAX = 400_000
CALM_OPERATIONS = 15
"""Successful requests that must come through in every calm."""

CALM_S_MAX = 60.0
LEVEL_AFTER_DEATH_S = 15.0
"""How long a cluster may take to be level that has failed already: only its evidence is wanted."""

_IMAGE_BYTES = 192 * 1024 * 1024


@dataclass(frozen=True)
class Setting:
    """What a stage is made of."""

    seed: str
    nodes: int
    network: Network
    home: Path
    rate: float = 120.0  # operations a second, all recorders together
    images: bool = True  # data on images, where they can be had
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the nodes


class Stage:
    """`async with` starts everything and ends it, whatever happens; `judge` once in between, at the end."""

    def __init__(self, setting: Setting, reasons: Reasons, undo: Undo) -> None:
        self.setting = setting
        self._reasons = reasons
        self._undo = undo
        self._tasks: list[asyncio.Task[None]] = []
        self._recorders: list[asyncio.Task[None]] = []
        self.where: Field
        self.journal: Journal

    @property
    def cluster(self) -> ChaosCluster:
        return self.where.cluster

    async def __aenter__(self) -> Self:
        self.where = await self._build()
        self.journal = Journal(self.setting.home / "history.jsonl")
        try:
            self.cluster.configure()
            self.cluster.start_all()
            self._tasks.append(asyncio.create_task(self.where.pulse.run()))
            if self.where.proxies is not None:
                self._tasks.append(asyncio.create_task(_follow(self.where)))
            await self.cluster.wait_level(aftermath.LEVEL_S)
            self._record()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await _end([*self._recorders, *self._tasks])
        self.journal.close()
        if self.where.proxies is not None:
            await self.where.proxies.close()

    async def calm(self, seconds: float, *, stop: asyncio.Event | None = None) -> tuple[float, str]:
        """Peace, until it has lasted, damage is restored and clients got something done.

        Returns how long that took, and what went wrong or "". Whoever still dies of what came before is started again.
        """
        for recorder in self._recorders:
            if recorder.done():
                recorder.result()  # raises what broke the harness
        began, before = monotonic(), self.journal.counts["ok"]
        while True:
            done, waited = self.journal.counts["ok"] - before, monotonic() - began
            is_whole = self.where.restored()
            if is_whole and waited >= seconds and done >= CALM_OPERATIONS:
                return waited, ""
            if is_whole and stop is not None and stop.is_set() and done:
                return waited, ""
            if self.cluster.unexpected:  # it would go on dying
                return waited, self.cluster.unexpected[0]
            if waited > CALM_S_MAX:
                if not is_whole:
                    return waited, f"nodes {list(self.where.rotten)}: damage not restored in {waited:.0f} s of calm"
                return waited, f"no service: {done} requests succeeded in {waited:.0f} s of calm"
            self.cluster.revive()
            await asyncio.sleep(0.05)

    async def judge(self) -> list[str]:
        """Heal, end the clients, and find out whether all went well → problems. The nodes have ended afterwards."""
        where, cluster = self.where, self.cluster
        await where.heal()
        await _end(self._recorders)
        problems = await aftermath.level(cluster, LEVEL_AFTER_DEATH_S if cluster.unexpected else aftermath.LEVEL_S)
        final, unread = await aftermath.everything(cluster)
        problems += unread
        if not unread:
            problems += await asyncio.to_thread(aftermath.judge, self.journal.operations, final, cluster.home)
        problems += await aftermath.stop(cluster)
        cluster.bury()
        problems += await asyncio.to_thread(aftermath.look_at_disks, cluster)
        problems += [*cluster.unexpected, *where.pulse.two_leaders]
        if problems:
            _keep(where)
        return problems

    # ── what there is ───────────────────────────────────────────────────────────────────────────────

    async def _build(self) -> Field:
        setting, reasons, undo = self.setting, self._reasons, self._undo
        cluster = ChaosCluster(setting.home, setting.nodes, setting.settings)
        undo.register("nodes", cluster.stop)
        where = Field(cluster, Pulse(cluster), undo)
        if setting.images and not reasons["images"]:
            where.images = {node: Image(setting.home, f"disk{node}", _IMAGE_BYTES, undo) for node in cluster.ids}
            cluster.homes = {node: image.path for node, image in where.images.items()}
            if not reasons["throttle"]:
                where.throttle = Throttle(setting.home.name, undo)
        if setting.network == "hosts":
            where.hub = network = hub.Hub(cluster.ids, undo)
            network.build()
            cluster.clients = {node: (hub.address(node), hub.CLIENT_PORT) for node in cluster.ids}
            cluster.peers = {node: (hub.address(node), hub.PEER_PORT) for node in cluster.ids}
            cluster.listen_at = dict(cluster.peers)
            cluster.prefixes = {node: network.prefix(node) for node in cluster.ids}
            cluster.settings |= {"client.insecure": True, "peer.insecure": True}
        elif setting.network == "proxies":
            where.proxies = Proxies(lambda node: _pid(cluster, node), random.Random(f"{setting.seed}:bytes"))
            ports = free_ports(setting.nodes)
            cluster.listen_at = {node: ("127.0.0.1", ports[node - 1]) for node in cluster.ids}
            for node in cluster.ids:
                await where.proxies.listen(node, cluster.peers[node], cluster.listen_at[node])
        return where

    def _record(self) -> None:
        setting, cluster = self.setting, self.cluster
        for number in range(RECORDERS):
            rng = random.Random(f"{setting.seed}:recorder:{number}")
            work = Recorder(self.journal, lambda: cluster.clients, rng).run(
                pause_s=RECORDERS / setting.rate, count_max=OPERATIONS_MAX // RECORDERS
            )
            self._recorders.append(asyncio.create_task(work))


def _pid(cluster: ChaosCluster, node: int) -> int:
    return cluster.processes[node].pid if node in cluster.running() else 0


async def _follow(where: Field) -> None:
    """A proxy refuses connections while its node does not run, as the node's own port does."""
    assert where.proxies is not None
    while True:
        for node in where.cluster.ids:
            if node in where.cluster.running():
                await where.proxies.open(node)
            else:
                where.proxies.shut(node)
        await asyncio.sleep(0.01)


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _keep(where: Field) -> None:
    """Copy the data directories off their images: those vanish with the sandbox."""
    for node in where.images:
        source = where.cluster.data_dir(node)
        if source.exists():
            shutil.copytree(source, where.cluster.home / f"n{node}", dirs_exist_ok=True)
