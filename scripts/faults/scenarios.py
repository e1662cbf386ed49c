"""Scenarios: named courses of events that need hosts, images or time, each on a stage of its own.

The quick ones that need no privileges are tests in tests/system/. A scenario returns what went wrong beyond what the
judgement of its stage finds (the clients' history, equal states, clean logs, no exit without a reason); it may put
figures into `notes`, which are printed and never judged: how long an election takes depends on the machine.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from scripts.faults import aftermath, kinds
from scripts.faults.capability import Reasons
from scripts.faults.shapes import SHAPES, cut_links
from scripts.faults.stage import Network, Setting, Stage
from scripts.faults.syscalls import under
from scripts.faults.undo import Undo

LEADER_S = 30.0
"""How long a new leader may take: generous, for a machine that has other work."""

Course = Callable[[Stage, list[str], random.Random], Awaitable[list[str]]]


@dataclass
class Outcome:
    """What a scenario came to. `skipped` holds the reason; then nothing has been tried."""

    name: str
    home: Path
    skipped: str = ""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        return "skipped" if self.skipped else "FAILED" if self.problems else "passed"


@dataclass(frozen=True)
class Scenario:
    needs: tuple[str, ...]  # capabilities
    nodes: int
    network: Network
    course: Course
    settings: dict[str, Any] = field(default_factory=dict)


SCENARIOS: dict[str, Scenario] = {}


def scenario(*needs: str, nodes: int = 3, network: Network = "loopback", **settings: Any) -> Callable[[Course], Course]:
    """`settings` of the nodes: two underscores stand for the dot."""

    def declare(course: Course) -> Course:
        named = {name.replace("__", "."): value for name, value in settings.items()}
        SCENARIOS[course.__name__] = Scenario(needs, nodes, network, course, named)
        return course

    return declare


async def play(name: str, seed: str, home: Path, reasons: Reasons) -> Outcome:
    """One scenario in `home`, which stays only if it failed."""
    chosen, outcome, began = SCENARIOS[name], Outcome(name, home), monotonic()
    missing = [reasons[need] for need in chosen.needs if reasons[need]]
    if missing:
        outcome.skipped = missing[0]
        return outcome
    home.mkdir(parents=True)
    undo = Undo()
    setting = Setting(
        seed=f"{seed}:{name}",
        nodes=chosen.nodes,
        network=chosen.network,
        home=home,
        images="images" in chosen.needs,
        settings=chosen.settings,
    )
    try:
        async with Stage(setting, reasons, undo) as stage:
            outcome.problems += await chosen.course(stage, outcome.notes, random.Random(setting.seed))
            outcome.problems = list(dict.fromkeys([*outcome.problems, *await stage.judge()]))
            outcome.notes += [f"{n} times: {words}" for words, n in aftermath.complaints(stage.cluster).most_common(4)]
    except TimeoutError as error:
        outcome.problems.append(f"waited in vain: {error!r}")
    finally:
        outcome.problems += [f"not undone: {problem}" for problem in undo.all()]
    outcome.seconds = monotonic() - began
    if not outcome.problems:
        shutil.rmtree(home)
    return outcome


@scenario("images")
async def cluster_power_cut(stage: Stage, notes: list[str], rng: random.Random) -> list[str]:
    """S91, S11 (F9, F11): all nodes lose power at one instant, twenty times, under load."""
    for _ in range(20):
        await asyncio.sleep(rng.uniform(0.1, 0.5))
        await stage.where.power_off(list(stage.cluster.ids))
        await stage.where.heal()
        _, problem = await stage.calm(0.2)
        if problem:
            return [problem]
    notes.append(f"20 cuts, {stage.journal.counts['ok']} operations")
    return []


@scenario("images", "strace")
async def power_cut_of_a_slow_majority(stage: Stage, notes: list[str], rng: random.Random) -> list[str]:
    """F11, I9: two nodes of three have slow disks, all lose power, and those two come back first.

    Whatever was acknowledged must be on one of the two: an acknowledgement given before its fdatasync shows here.
    """
    for _ in range(8):
        await _leader(stage)
        slow = sorted(rng.sample(list(stage.cluster.ids), 2))
        for node in slow:
            await asyncio.to_thread(stage.where.injector.attach, stage.where.pid(node), ["fdatasync:delay_enter=40000"])
        await asyncio.sleep(rng.uniform(0.5, 0.8))
        await stage.where.power_off(list(stage.cluster.ids))
        await stage.where.heal(revive=False)
        stage.cluster.bury()
        for node in slow:
            stage.cluster.start(node)
        problem = await _served(stage, f"by nodes {slow}")
        if problem:
            return [problem]
        _, problem = await stage.calm(0.3)
        if problem:
            return [problem]
    notes.append(f"8 cuts, {stage.journal.counts['ok']} operations")
    return []


@scenario("images", nodes=1)
async def single_node_power_cut(stage: Stage, notes: list[str], rng: random.Random) -> list[str]:
    """S74: one node alone; what it acknowledged is on its disk."""
    for _ in range(10):
        await asyncio.sleep(rng.uniform(0.1, 0.4))
        await stage.where.power_off([1])
        await stage.where.heal()
        _, problem = await stage.calm(0.2)
        if problem:
            return [problem]
    notes.append(f"10 cuts, {stage.journal.counts['ok']} operations")
    return []


@scenario("images", nodes=3)
async def hung_disk_leader(stage: Stage, notes: list[str], rng: random.Random) -> list[str]:
    """S71 (F26): the leader's disk stops answering; another node leads, and clients are served."""
    del rng
    leader = await _leader(stage)
    stage.cluster.excuse(leader, "hung disk")
    began = monotonic()
    await asyncio.to_thread(stage.where.images[leader].freeze)
    other = await _leader(stage, other_than=leader)
    notes.append(f"node {other} leads {monotonic() - began:.1f} s after the disk of leader {leader} hung")
    problem = await _served(stage, f"without node {leader}")
    await stage.where.heal()
    return [problem] if problem else []


@scenario("strace")
async def slow_disk_no_election_storm(stage: Stage, notes: list[str], rng: random.Random) -> list[str]:
    """S71 (F25): every fdatasync of every node takes 50 ms longer; service goes on."""
    del rng
    await _leader(stage)
    before, term = stage.where.pulse.leader_changes, stage.where.pulse.term
    for node in stage.cluster.ids:
        await asyncio.to_thread(stage.where.injector.attach, stage.where.pid(node), ["fdatasync:delay_enter=50000"])
    done = stage.journal.counts["ok"]
    await asyncio.sleep(8.0)
    done = stage.journal.counts["ok"] - done
    changes = stage.where.pulse.leader_changes - before
    notes.append(f"{done} operations, {changes} leader changes, {stage.where.pulse.term - term} terms in 8 s")
    return [] if done else ["a slow disk ended the service"]


@scenario("images")
async def enospc_everywhere(stage: Stage, notes: list[str], rng: random.Random) -> list[str]:
    """S70 (F15): all disks full: definite errors, no divergence, and service again once there is room."""
    del rng
    before = stage.journal.counts.copy()
    for node in stage.cluster.ids:
        stage.cluster.excuse(node, "full disk")
        await asyncio.to_thread(stage.where.images[node].fill)
    await asyncio.sleep(3.0)
    after = stage.journal.counts
    ended = [node for node in stage.cluster.ids if node not in stage.cluster.running()]
    notes.append(
        f"while full: ok {after['ok'] - before['ok']}, not applied {after['fail'] - before['fail']}, "
        f"unknown {after['info'] - before['info']}; nodes that ended: {ended}"
    )
    await stage.where.heal()
    _, problem = await stage.calm(1.0)
    return [problem] if problem else []


@scenario("hosts", nodes=5, network="hosts")
async def partial_partitions(stage: Stage, notes: list[str], rng: random.Random) -> list[str]:
    """S27 (F36): every shape of partition in turn between five nodes; safe meanwhile, one leader again when healed."""
    assert stage.where.hub is not None
    await _leader(stage)
    problems = []
    for shape in SHAPES:
        pulse, done = stage.where.pulse, stage.journal.counts["ok"]
        term = pulse.term
        links = cut_links(shape, list(stage.cluster.ids), pulse.leader, rng)
        await asyncio.to_thread(stage.where.hub.cut, links)
        await asyncio.sleep(3.0)
        done = stage.journal.counts["ok"] - done
        notes.append(f"{shape}: {done} operations, {pulse.term - term} terms")
        await stage.where.heal()
        _, problem = await stage.calm(0.5)
        if problem:
            problems.append(f"after {shape}: {problem}")
    return problems


@scenario("proxies", nodes=3, network="proxies")
async def half_open_everything(stage: Stage, notes: list[str], rng: random.Random) -> list[str]:
    """S94 (F40): every connection stays open and nothing arrives any more; old connections are replaced when healed."""
    assert stage.where.proxies is not None
    await kinds.half_open(stage.where, rng)
    await asyncio.sleep(4.5)  # beyond peer.silence_ms_max
    during = stage.where.proxies.open_connections
    await stage.where.heal()
    waited, problem = await stage.calm(0.5)
    notes.append(f"{during} connections open meanwhile; served again {waited:.1f} s after healing")
    return [problem] if problem else []


@scenario("strace")
async def killed_at_each_call_under_load(stage: Stage, notes: list[str], rng: random.Random) -> list[str]:
    """F1 (S72): the leader, then a follower, dies at the N-th call of each kind that the log and the store make."""
    del rng
    died = 0
    for call in ("fdatasync", "pwrite64", "rename", "ftruncate", "fallocate", "unlink"):
        for count in (1, 2, 3):
            leader = await _leader(stage)
            node = leader if count != 2 else next(other for other in stage.cluster.ids if other != leader)
            stage.cluster.excuse(node, "kill at call")
            injection = f"{call}:signal=KILL:when={count}"
            await asyncio.to_thread(stage.where.injector.attach, stage.where.pid(node), [injection])
            await kinds.until_dead(stage.cluster, node)
            died += node not in stage.cluster.running()
            await stage.where.heal()
            _, problem = await stage.calm(0.2)
            if problem:
                return [f"{injection} on node {node}: {problem}"]
    notes.append(f"{died} of 18 calls were reached")
    return [] if died else ["no call was reached: nothing has been tried"]


@scenario("images")
async def power_cut_while_starting(stage: Stage, notes: list[str], rng: random.Random) -> list[str]:
    """F2, F12: power lost again while nodes recover from the cut before."""
    for _ in range(8):
        await stage.where.power_off(list(stage.cluster.ids))
        await stage.where.heal()
        await asyncio.sleep(rng.uniform(0.2, 1.0))
        await stage.where.power_off(stage.cluster.running())
        await stage.where.heal()
        _, problem = await stage.calm(0.3)
        if problem:
            return [problem]
    notes.append("8 double cuts")
    return []


@scenario("strace")
async def killed_at_each_call_of_a_start(stage: Stage, notes: list[str], rng: random.Random) -> list[str]:
    """F2 (S72): a node of a cluster that serves dies at the N-th call of its start, for every N that there is."""
    del rng
    tried = 0
    for call in ("fdatasync", "fsync", "pwrite64", "rename", "ftruncate"):
        for count in range(1, 13):
            stage.cluster.kill(3)
            stage.cluster.bury()
            stage.cluster.start(3, under=under([f"{call}:signal=KILL:when={count}"]))
            stage.cluster.excuse(3, "kill at start")
            await kinds.until_dead(stage.cluster, 3)
            if 3 in stage.cluster.running():
                break  # it has come up: there are no more calls of this kind
            tried += 1
        stage.cluster.kill(3)
        await stage.where.heal()
        _, problem = await stage.calm(0.2)
        if problem:
            return [f"{call}: {problem}"]
    notes.append(f"{tried} deaths while starting")
    return [] if tried else ["no call was reached: nothing has been tried"]


@scenario("processes")
async def out_of_memory(stage: Stage, notes: list[str], rng: random.Random) -> list[str]:
    """F4: allocations begin to fail; the node ends or goes on, and is whole again after a restart or with more room."""
    ended = 0
    for spare in (0, 0, 262_144, 4_194_304):
        node = await _leader(stage) if rng.random() < 0.5 else rng.choice(list(stage.cluster.ids))
        stage.cluster.excuse(node, "no memory")
        stage.where.limit_memory(node, spare)
        for _ in range(3):
            await kinds.press(stage.cluster.clients[node])
        ended += node not in stage.cluster.running()
        await stage.where.heal()
        _, problem = await stage.calm(0.5)
        if problem:
            return [problem]
    notes.append(f"{ended} of 4 nodes ended")
    return []


async def _leader(stage: Stage, other_than: int = 0) -> int:
    """Who leads, as its own status says now. Raises: TimeoutError."""
    async with asyncio.timeout(LEADER_S):
        while True:
            for node, status in sorted(stage.where.pulse.statuses.items()):
                if node != other_than and status["role"] == "leader" and status["leader"] == node:
                    return node
            await asyncio.sleep(0.05)


async def _served(stage: Stage, how: str) -> str:
    """ "" once the clients have got writes through; else what happened instead."""
    before = stage.journal.kinds["put"]
    began = monotonic()
    while stage.journal.kinds["put"] < before + 10:
        if monotonic() - began > LEADER_S:
            return f"no service {how} in {LEADER_S:.0f} s"
        await asyncio.sleep(0.05)
    return ""
