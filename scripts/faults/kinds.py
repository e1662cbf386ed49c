"""The kinds of faults by name: what each needs, how often it is drawn, and what striking means.

A strike chooses its victims by its own random numbers and by who leads at that moment, and says what it did; "" means
that it could do nothing. Healing is one act for all of them (`Field.heal`), so no strike has to be paired by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from kvnode.bench.load import Address
from scripts.faults.field import Field
from scripts.faults.proxy import Treatment
from scripts.faults.recorders import NotSent, ask
from scripts.faults.shapes import SHAPES, cut_links

LOG_CALLS = ("fdatasync", "pwrite64", "fdatasync", "pwrite64", "rename", "ftruncate", "fsync")
_PRESSURE_BYTES = 512 * 1024
_PRESSURE_REQUESTS = 12
_UNDER_LOAD = (4, 5, 1, 1)  # victims of what happens at the N-th call

Strike = Callable[[Field, random.Random], Awaitable[str]]

NodeStrike = Callable[[Field, random.Random, list[int]], Awaitable[str | None]]
"""A strike at nodes that have been chosen → what there is to say beyond their names."""


@dataclass(frozen=True)
class Kind:
    needs: str  # a capability
    weight: int
    strike: Strike


KINDS: dict[str, Kind] = {}


def kind(name: str, needs: str, weight: int) -> Callable[[Strike], Strike]:
    def declare(strike: Strike) -> Strike:
        KINDS[name] = Kind(needs, weight, strike)
        return strike

    return declare


def node_kind(
    name: str, needs: str, weight: int, victims: tuple[int, int, int, int]
) -> Callable[[NodeStrike], NodeStrike]:
    """A kind that strikes at nodes without another fault. `victims`: the weights of `Field.choose`."""

    def declare(strike: NodeStrike) -> NodeStrike:
        @kind(name, needs, weight)
        async def at_chosen(where: Field, rng: random.Random) -> str:
            nodes = where.choose(rng, victims)
            return _told(nodes, await strike(where, rng, nodes)) if nodes else ""

        return strike

    return declare


# ── processes ───────────────────────────────────────────────────────────────────────────────────────


@node_kind("kill", "processes", 10, (4, 4, 2, 2))
async def kill(where: Field, rng: random.Random, nodes: list[int]) -> None:
    for node in nodes:
        where.cluster.kill(node)


@node_kind("pause", "processes", 8, (3, 5, 2, 1))
async def pause(where: Field, rng: random.Random, nodes: list[int]) -> None:
    for node in nodes:
        where.cluster.signal(node, signal.SIGSTOP)


@node_kind("terminate", "processes", 4, (3, 4, 1, 1))
async def terminate(where: Field, rng: random.Random, nodes: list[int]) -> None:
    """SIGTERM; half of the time SIGKILL while it says good-bye."""
    for node in nodes:
        where.cluster.excuse(node, "terminate")
        where.cluster.signal(node, signal.SIGTERM)
    if rng.random() < 0.5:
        await asyncio.sleep(rng.uniform(0.0, 0.2))
        for node in nodes:
            where.cluster.kill(node)


@node_kind("crash loop", "processes", 3, (4, 2, 1, 1))
async def crash_loop(where: Field, rng: random.Random, nodes: list[int]) -> None:
    """Killed again and again while it starts."""
    for _ in range(3):
        for node in nodes:
            where.cluster.kill(node)
            where.cluster.bury()
            where.cluster.start(node)
        await asyncio.sleep(rng.uniform(0.1, 1.0))
    for node in nodes:
        where.cluster.kill(node)


@node_kind("no memory", "processes", 2, (3, 3, 0, 0))
async def no_memory(where: Field, rng: random.Random, nodes: list[int]) -> None:
    """The address space may grow by a little only, and large requests want more: allocations fail."""
    for node in nodes:
        where.cluster.excuse(node, "no memory")
        where.limit_memory(node, rng.choice((0, 65_536, 1_048_576)))
        await press(where.cluster.clients[node])


async def press(address: Address) -> None:
    """Large puts, all at once, under a condition that never holds: they cost memory and change nothing, ever."""
    path = f"/v1/kv/c/pressure?if_rev={2**62}&timeout=1s"

    async def one() -> None:
        with contextlib.suppress(NotSent, OSError, TimeoutError, ValueError):
            await ask(address, "PUT", path, bytes(_PRESSURE_BYTES), limit_s=1.5)

    await asyncio.gather(*(one() for _ in range(_PRESSURE_REQUESTS)))


@kind("bit rot", "processes", 4)
async def bit_rot(where: Field, rng: random.Random) -> str:
    """A bit of a sealed segment flips while the node does not run: its scrubber finds it, its peers restore the log."""
    if where.rotten or len(where.cluster.ids) < 3:
        return ""
    nodes = where.choose(rng, (4, 3, 0, 0))
    if not nodes:
        return ""
    where.cluster.kill(nodes[0])
    place = await asyncio.to_thread(where.rot, nodes[0], rng)
    return _told(nodes, place) if place else ""


# ── system calls ────────────────────────────────────────────────────────────────────────────────────


@node_kind("kill at call", "strace", 8, _UNDER_LOAD)
async def kill_at_call(where: Field, rng: random.Random, nodes: list[int]) -> str:
    return await _inject(where, rng, nodes, "signal=KILL")


@node_kind("io error", "strace", 5, _UNDER_LOAD)
async def io_error(where: Field, rng: random.Random, nodes: list[int]) -> str:
    return await _inject(where, rng, nodes, "error=EIO")


@node_kind("no space at call", "strace", 3, _UNDER_LOAD)
async def no_space_at_call(where: Field, rng: random.Random, nodes: list[int]) -> str:
    return await _inject(where, rng, nodes, "error=ENOSPC", calls=("pwrite64", "ftruncate", "fallocate"), onwards=True)


@node_kind("slow calls", "strace", 4, (2, 4, 1, 2))
async def slow_calls(where: Field, rng: random.Random, nodes: list[int]) -> str:
    delay_us = rng.choice((5_000, 20_000, 100_000))
    for node in nodes:
        await where.inject(node, f"fdatasync:delay_enter={delay_us}")
    return f"{delay_us // 1000} ms"


@node_kind("kill at start", "strace", 4, (4, 2, 0, 0))
async def kill_at_start(where: Field, rng: random.Random, nodes: list[int]) -> str:
    """Killed, and killed again at the N-th call of its start; tried a few times in a row."""
    done = []
    for node in nodes:
        for _ in range(2):
            call, count = rng.choice(LOG_CALLS), rng.randrange(1, 8)
            await where.dies_starting(node, f"{call}:signal=KILL:when={count}")
            done.append(f"{call} {count}")
        where.cluster.kill(node)
    return ", ".join(done)


async def _inject(
    where: Field,
    rng: random.Random,
    nodes: list[int],
    what: str,
    calls: tuple[str, ...] = LOG_CALLS,
    onwards: bool = False,
) -> str:
    done = []
    for node in nodes:
        call, count = rng.choice(calls), rng.choice((1, 1, 2, 3, 5, 8, 13, 30))
        where.cluster.excuse(node, what)
        await where.inject(node, f"{call}:{what}:when={count}{'+' if onwards else ''}")
        done.append(f"{call} {count}")
    return ", ".join(done)


# ── disks ───────────────────────────────────────────────────────────────────────────────────────────


@node_kind("power cut", "images", 8, (3, 3, 2, 4))
async def power_cut(where: Field, rng: random.Random, nodes: list[int]) -> None:
    await where.power_off(nodes)


@node_kind("hung disk", "images", 5, (2, 6, 0, 0))
async def hung_disk(where: Field, rng: random.Random, nodes: list[int]) -> None:
    for node in nodes:
        where.cluster.excuse(node, "hung disk")  # after storage.abort_ms it gives up
        await asyncio.to_thread(where.images[node].freeze)


@node_kind("full disk", "images", 4, (3, 3, 1, 1))
async def full_disk(where: Field, rng: random.Random, nodes: list[int]) -> None:
    for node in nodes:
        where.cluster.excuse(node, "full disk")
        await asyncio.to_thread(where.images[node].fill)


@node_kind("slow disk", "throttle", 4, (2, 4, 0, 2))
async def slow_disk(where: Field, rng: random.Random, nodes: list[int]) -> str:
    assert where.throttle is not None
    rate = rng.choice((20, 60, 150))
    for node in nodes:
        where.throttle.slow(where.pid(node), where.images[node].device, rate)
    return f"{rate} writes/s"


# ── network ─────────────────────────────────────────────────────────────────────────────────────────


@kind("partition", "network", 16)
async def partition(where: Field, rng: random.Random) -> str:
    """Packets are lost (hosts), or bytes are held back as if they were (proxies)."""
    shape = rng.choice(SHAPES)
    links = cut_links(shape, list(where.cluster.ids), where.pulse.leader, rng)
    if where.hub is not None:
        await asyncio.to_thread(where.hub.cut, links)
    elif where.proxies is not None:
        for link in links:
            where.proxies.treat(link, Treatment(hold=True))
    return shape


@kind("loss", "loss", 5)
async def loss(where: Field, rng: random.Random) -> str:
    assert where.hub is not None
    percent = rng.choice((5, 10, 20, 30))
    await asyncio.to_thread(where.hub.lose, percent)
    return f"{percent} %"


@kind("slow link", "slow link", 3)
async def slow_link(where: Field, rng: random.Random) -> str:
    assert where.hub is not None
    node, rate = rng.choice(list(where.cluster.ids)), rng.choice((64, 256, 1024))
    await asyncio.to_thread(where.hub.slow, node, rate)
    return f"{node}, {rate} kbit/s"


@kind("resets", "resets", 4)
async def resets(where: Field, rng: random.Random) -> str:
    assert where.hub is not None
    killed = 0
    nodes = [node for node in where.cluster.ids if rng.random() < 0.6]
    for _ in range(rng.randrange(1, 4)):
        for node in nodes:
            killed += await asyncio.to_thread(where.hub.reset, node)
        await asyncio.sleep(rng.uniform(0.0, 0.3))
    return _told(nodes, f"{killed} connections") if killed else ""


@kind("proxy resets", "proxies", 4)
async def proxy_resets(where: Field, rng: random.Random) -> str:
    assert where.proxies is not None
    cut = 0
    for _ in range(rng.randrange(1, 4)):
        cut += where.proxies.reset(lambda _: rng.random() < 0.6)
        await asyncio.sleep(rng.uniform(0.0, 0.3))
    return f"{cut} connections" if cut else ""


@kind("delay", "proxies", 5)
async def delay(where: Field, rng: random.Random) -> str:
    high = rng.choice((0.01, 0.05, 0.2))
    return _treat_some(where, rng, Treatment(delay_s=(0.0, high)), f"up to {high * 1000:.0f} ms")


@kind("corrupt", "proxies", 4)
async def corrupt(where: Field, rng: random.Random) -> str:
    return _treat_some(where, rng, Treatment(corrupt=rng.choice((0.01, 0.1))), "bits flipped")


@kind("repeat", "proxies", 3)
async def repeat(where: Field, rng: random.Random) -> str:
    return _treat_some(where, rng, Treatment(repeat=rng.choice((0.01, 0.1))), "bytes repeated")


@kind("truncate", "proxies", 3)
async def truncate(where: Field, rng: random.Random) -> str:
    return _treat_some(where, rng, Treatment(truncate=rng.choice((0.01, 0.1))), "bytes cut off")


@kind("swallow", "proxies", 4)
async def swallow(where: Field, rng: random.Random) -> str:
    return _treat_some(where, rng, Treatment(swallow=True), "bytes swallowed")


@kind("half-open", "proxies", 3)
async def half_open(where: Field, rng: random.Random) -> str:
    """Every connection of every node stays open, and nothing arrives on any."""
    del rng
    assert where.proxies is not None
    for a in where.cluster.ids:
        for b in where.cluster.ids:
            where.proxies.treat((a, b), Treatment(hold=True))
    return "everything"


def _treat_some(where: Field, rng: random.Random, treatment: Treatment, words: str) -> str:
    """All links of one node, or all of the cluster, or single ones."""
    assert where.proxies is not None
    nodes = list(where.cluster.ids)
    links = [(a, b) for a in nodes for b in nodes if a != b]
    how = rng.choice(("node", "all", "some"))
    if how == "node":
        one = rng.choice(nodes)
        links = [link for link in links if one in link]
    elif how == "some":
        links = rng.sample(links, rng.randrange(1, len(links)))
    for link in links:
        where.proxies.treat(link, treatment)
    return f"{words} on {len(links)} links"


def _told(nodes: list[int], more: str | None) -> str:
    names = "node " + ",".join(map(str, nodes))
    return f"{names} ({more})" if more else names


NETWORK = frozenset(
    name for name, kind in KINDS.items() if kind.needs in {"network", "loss", "slow link", "resets", "proxies"}
)
"""One fault of the network at a time; the others take nodes, and each node at most one."""
