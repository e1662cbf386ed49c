"""A random life of a simulated cluster under every fault it knows, and the judge of what its clients were told.

The store's revision is the place of a write in the one history all nodes share, so no search is needed to judge
linearizability: every answer names the revision it was given at, and these must agree with real time, with each
other, and with the history that is in the store at the end.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvnode.errors import CompareFailed, KvnodeError, StorageFailed
from kvnode.ids import NOBODY, NodeId
from kvnode.kv.interface import Options
from kvnode.kv.requests import ANY_REVISION, Put, Range
from kvnode.raft.messages import TransferLeadership
from kvnode.sim.runtime.cluster import Cluster

KEYS = tuple(b"k%d" % number for number in range(5))
LASTS_S = 6.0
CLIENTS_PER_NODE = 3


@dataclass(slots=True)
class Write:
    key: bytes
    value: bytes
    expected: int  # the mod revision it asked for, or ANY_REVISION
    began_s: float
    ended_s: float = 0.0
    outcome: str = ""  # ok | unknown | not-applied
    revision: int = 0


@dataclass(slots=True)
class Read:
    key: bytes
    began_s: float
    ended_s: float
    revision: int
    value: bytes | None
    mod_revision: int


class Soak:
    """One seed's life. `run` raises what is wrong with it."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._rng = random.Random(f"{seed}/soak")
        self._number = 0
        self._is_over = False
        self._writes: list[Write] = []
        self._reads: list[Read] = []
        self._errors: list[dict[str, Any]] = []
        self._may_fail: dict[NodeId, bool] = {}  # members given a fault that ends them
        self._cluster: Cluster

    async def run(self) -> None:
        rng = self._rng
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self._errors.append(context))
        self._cluster = cluster = Cluster(
            self._seed,
            rng.choice((3, 3, 3, 5)),
            {
                "storage.segment_bytes": rng.choice((8 << 10, 64 << 10)),
                "storage.flush_versions": rng.choice((1, 20, 10_000)),
                "raft.log_cache_bytes": 64 << 10,
                "storage.abort_ms": 3_000,
            },
        )
        cluster.network.delay_s = rng.choice(((0.0002, 0.001), (0.0002, 0.01), (0.001, 0.04)))
        cluster.disk_delay_s = rng.choice((0.0005, 0.004))
        await cluster.start_all()
        clients = [asyncio.create_task(self._client(member)) for member in cluster.ids * CLIENTS_PER_NODE]
        until_s = loop.time() + LASTS_S
        while loop.time() < until_s:
            await asyncio.sleep(rng.uniform(0.02, 0.5))
            await self._fault()
            await self._bury_the_failed()
        self._is_over = True
        for member in [m for m in self._may_fail if m in cluster.members]:
            self._end(member)  # a fault may still be waiting in its disk
        await self._heal()
        await asyncio.gather(*clients)
        await cluster.elect()
        await cluster.kv(cluster.ids[0]).put("last", "x")
        await cluster.settle()
        assert not self._errors, self._errors
        await self._judge()

    # ── clients ─────────────────────────────────────────────────────────────────────────────────────

    async def _client(self, member: NodeId) -> None:
        rng = random.Random(f"{self._seed}/client-{self._next_number()}")
        known: dict[bytes, int] = {}
        while not self._is_over:
            await asyncio.sleep(rng.expovariate(40))
            if member not in self._cluster.members:
                continue
            key = rng.choice(KEYS)
            if rng.random() < 0.5:
                await self._read(member, key, known, rng)
            else:
                await self._write(member, key, known.get(key, 0) if rng.random() < 0.4 else ANY_REVISION, rng)

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    async def _read(self, member: NodeId, key: bytes, known: dict[bytes, int], rng: random.Random) -> None:
        loop = self._cluster.loop
        began_s = loop.time()
        try:
            reply = await self._cluster.kv(member).execute(Range(key), Options(timeout_ms=rng.choice((50, 1_000))))
        except KvnodeError:
            return
        item = reply.items[0] if reply.items else None
        known[key] = item.mod_revision if item is not None else 0
        value = item.value if item is not None else None
        self._reads.append(Read(key, began_s, loop.time(), reply.revision, value, known[key]))

    async def _write(self, member: NodeId, key: bytes, expected: int, rng: random.Random) -> None:
        loop = self._cluster.loop
        value = b"%d" % self._next_number() + b"." * rng.choice((0, 0, 0, 2_000))
        write = Write(key, value, expected, loop.time())
        self._writes.append(write)
        put = Put(key, value, if_revision=expected)
        try:
            reply = await self._cluster.kv(member).execute(put, Options(timeout_ms=rng.choice((30, 300, 2_000))))
        except CompareFailed as error:
            write.outcome = "not-applied" if expected not in {ANY_REVISION, error.detail["revision"]} else "lied to"
        except KvnodeError as error:
            write.outcome = "unknown" if error.may_have_applied else "not-applied"
        else:
            write.outcome, write.revision = "ok", reply.revision
        write.ended_s = loop.time()

    # ── faults ──────────────────────────────────────────────────────────────────────────────────────

    async def _fault(self) -> None:
        cluster, rng = self._cluster, self._rng
        up = sorted(cluster.members)
        if not up:
            await self._restart_all()
            return
        victim = rng.choice(up)
        fault: Callable[[NodeId], None] = rng.choice(
            (
                self._end,
                self._end,
                self._end_leader,
                self._end_everybody,
                self._cut,
                self._isolate,
                self._silence,
                self._lose,
                self._hang,
                self._slow_disk,
                self._break_disk,
                self._transfer,
                self._turn_clock,
            )
        )
        fault(victim)
        if rng.random() < 0.15 and victim in cluster.members:
            await cluster.members[victim].node.stop()
            self._end(victim)
        if rng.random() < 0.5:
            await asyncio.sleep(rng.uniform(0.0, 0.3))
            await self._heal()

    def _end(self, victim: NodeId) -> None:
        self._may_fail.pop(victim, None)
        self._cluster.failures.pop(victim, None)
        (self._cluster.crash if self._rng.random() < 0.6 else self._cluster.kill)(victim)

    def _end_leader(self, victim: NodeId) -> None:
        leader = self._cluster.leader()
        self._end(leader.id if leader is not None else victim)

    def _end_everybody(self, _: NodeId) -> None:
        for member in sorted(self._cluster.members):
            self._end(member)

    def _cut(self, victim: NodeId) -> None:
        self._cluster.network.cut(victim, self._rng.choice([m for m in self._cluster.ids if m != victim]))

    def _isolate(self, victim: NodeId) -> None:
        self._cluster.network.isolate(victim)

    def _silence(self, victim: NodeId) -> None:
        other = self._rng.choice([m for m in self._cluster.ids if m != victim])
        self._cluster.network.silence(*self._rng.sample((victim, other), 2))

    def _lose(self, _: NodeId) -> None:
        network = self._cluster.network
        network.loss, network.duplication = self._rng.uniform(0, 0.3), self._rng.uniform(0, 0.3)
        network.reorder = self._rng.random() < 0.3

    def _hang(self, victim: NodeId) -> None:
        self._may_fail[victim] = True  # if it hangs for longer than `storage.abort_ms`
        self._cluster.members[victim].workers[self._rng.choice(("log", "log", "flusher", "log-reader"))].hang()

    def _slow_disk(self, victim: NodeId) -> None:
        self._cluster.members[victim].workers["log"].delay_s = self._rng.choice((0.02, 0.2, 1.2))

    def _break_disk(self, victim: NodeId) -> None:
        self._may_fail[victim] = True
        disk = self._cluster.members[victim].disk
        kind = self._rng.choice(("fdatasync", "pwrite"))
        disk.fail_at(disk.count(kind) + self._rng.randint(1, 3), kind=kind, short_write=self._rng.choice((0, 100)))

    def _transfer(self, victim: NodeId) -> None:
        leader = self._cluster.leader()
        if leader is not None:
            target = victim if victim != leader.id else NOBODY
            self._cluster.members[leader.id].node.receiver.queue.put_control(TransferLeadership(target))

    def _turn_clock(self, victim: NodeId) -> None:
        self._cluster.members[victim].clock.wall_offset_ms += self._rng.choice((-60_000, -50, 50, 60_000))

    async def _heal(self) -> None:
        cluster = self._cluster
        network = cluster.network
        network.loss, network.duplication, network.reorder = 0.0, 0.0, False
        network.heal()
        for member in list(cluster.members.values()):
            for worker in member.workers.values():
                worker.resume()
                worker.delay_s = cluster.disk_delay_s
        await self._bury_the_failed()
        await self._restart_all()

    async def _bury_the_failed(self) -> None:
        for member, error in list(self._cluster.failures.items()):
            assert isinstance(error, StorageFailed), error
            assert member in self._may_fail, (member, error)
            self._end(member)

    async def _restart_all(self) -> None:
        for member in self._cluster.ids:
            if member not in self._cluster.members:
                await self._cluster.start(member)

    # ── the judge ───────────────────────────────────────────────────────────────────────────────────

    async def _judge(self) -> None:
        history = await self._history()
        place = {value: revision for revision, (_, value) in history.items()}
        assert len(place) == len(history), "a write has taken effect twice"
        for write in self._writes:
            revision = place.get(write.value, 0)
            assert write.outcome != "lied to", write
            assert write.outcome != "ok" or revision == write.revision, (write, revision)
            assert write.outcome != "not-applied" or not revision, (write, revision)
            if revision and write.expected != ANY_REVISION:
                before = [r for r, (key, _) in history.items() if key == write.key and r < revision]
                assert max(before, default=0) == write.expected, (write, revision)
        self._judge_reads(history)
        self._judge_time(place)

    async def _history(self) -> dict[int, tuple[bytes, bytes]]:
        """revision → (key, value) of every write that took effect."""
        node = self._cluster.kv(self._cluster.ids[0])
        newest = (await node.execute(Range(KEYS[0]))).revision
        found: dict[int, tuple[bytes, bytes]] = {}
        for key in KEYS:
            at = newest
            while at > 0:
                items = (await node.execute(Range(key, revision=at))).items
                if not items:
                    break
                found[items[0].mod_revision] = (key, items[0].value)
                at = items[0].mod_revision - 1
        return found

    def _judge_reads(self, history: dict[int, tuple[bytes, bytes]]) -> None:
        for read in self._reads:
            newest = max((r for r, (key, _) in history.items() if key == read.key and r <= read.revision), default=0)
            value = history[newest][1] if newest else None
            assert (read.mod_revision, read.value) == (newest, value), read

    def _judge_time(self, place: dict[bytes, int]) -> None:
        """What was answered before a request began stands before it; what began after its answer stands behind it."""
        ended = [(w.ended_s, w.revision) for w in self._writes if w.outcome == "ok"]
        ended += [(r.ended_s, r.revision) for r in self._reads]
        ended.sort()
        begun: list[tuple[float, int, Write | Read]] = [(r.began_s, r.revision, r) for r in self._reads]
        begun += [(w.began_s, place[w.value] - 1, w) for w in self._writes if w.value in place]
        begun.sort(key=lambda each: each[:2])
        least = at = 0
        for began_s, revision, request in begun:
            while at < len(ended) and ended[at][0] < began_s:
                least = max(least, ended[at][1])
                at += 1
            assert revision >= least, (request, "is older than what was answered before it began", least)
