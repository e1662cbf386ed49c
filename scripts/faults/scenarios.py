"""Scenarios: named courses of events that need hosts, images or time, each on a stage of its own.

The quick ones that need no privileges are tests in tests/system/. A course raises `Failed` for what went wrong beyond
what the judgement of its stage finds (the clients' history, equal states, clean logs, no exit without a reason).
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
from scripts.faults.scene import LEADER_S, Failed, Scene
from scripts.faults.shapes import SHAPES, cut_links
from scripts.faults.stage import Network, Setting, Stage
from scripts.faults.undo import Undo

Course = Callable[[Scene], Awaitable[None]]


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
            try:
                await chosen.course(Scene(stage, random.Random(setting.seed), outcome.notes))
            except Failed as failure:
                outcome.problems.append(str(failure))
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
async def cluster_power_cut(scene: Scene) -> None:
    """S91, S11 (F9, F11): all nodes lose power at one instant, twenty times, under load."""
    for _ in range(20):
        await asyncio.sleep(scene.rng.uniform(0.1, 0.5))
        await scene.where.power_off(list(scene.cluster.ids))
        await scene.recover(0.2)
    scene.note(f"20 cuts, {scene.done} operations")


@scenario("images", "strace")
async def power_cut_of_a_slow_majority(scene: Scene) -> None:
    """F11, I9: two nodes of three have slow disks, all lose power, and those two come back first.

    Whatever was acknowledged must be on one of the two: an acknowledgement given before its fdatasync shows here.
    """
    for _ in range(8):
        await scene.leader()
        slow = sorted(scene.rng.sample(list(scene.cluster.ids), 2))
        for node in slow:
            await scene.where.inject(node, "fdatasync:delay_enter=40000")
        await asyncio.sleep(scene.rng.uniform(0.5, 0.8))
        await scene.where.power_off(list(scene.cluster.ids))
        await scene.where.heal(revive=False)
        scene.cluster.bury()
        for node in slow:
            scene.cluster.start(node)
        await scene.served(f"by nodes {slow}")
        await scene.recover(0.3)
    scene.note(f"8 cuts, {scene.done} operations")


@scenario("images", nodes=1)
async def single_node_power_cut(scene: Scene) -> None:
    """S74: one node alone; what it acknowledged is on its disk."""
    for _ in range(10):
        await asyncio.sleep(scene.rng.uniform(0.1, 0.4))
        await scene.where.power_off([1])
        await scene.recover(0.2)
    scene.note(f"10 cuts, {scene.done} operations")


@scenario("images")
async def hung_disk_leader(scene: Scene) -> None:
    """S71 (F26): the leader's disk stops answering; another node leads, and clients are served."""
    leader = await scene.leader()
    scene.cluster.excuse(leader, "hung disk")
    began = monotonic()
    await asyncio.to_thread(scene.where.images[leader].freeze)
    other = await scene.leader(other_than=leader)
    scene.note(f"node {other} leads {monotonic() - began:.1f} s after the disk of leader {leader} hung")
    await scene.served(f"without node {leader}")


@scenario("strace")
async def slow_disk_no_election_storm(scene: Scene) -> None:
    """S71 (F25): every fdatasync of every node takes 50 ms longer; service goes on."""
    await scene.leader()
    pulse = scene.where.pulse
    changes, term = pulse.leader_changes, pulse.term
    for node in scene.cluster.ids:
        await scene.where.inject(node, "fdatasync:delay_enter=50000")
    before = scene.done
    await asyncio.sleep(8.0)
    done = scene.done - before
    scene.note(f"{done} operations, {pulse.leader_changes - changes} leader changes, {pulse.term - term} terms in 8 s")
    if not done:
        raise Failed("a slow disk ended the service")


@scenario("images")
async def enospc_everywhere(scene: Scene) -> None:
    """S70 (F15): all disks full: definite errors, no divergence, and service again once there is room."""
    before = scene.journal.counts.copy()
    for node in scene.cluster.ids:
        scene.cluster.excuse(node, "full disk")
        await asyncio.to_thread(scene.where.images[node].fill)
    await asyncio.sleep(3.0)
    after = scene.journal.counts
    ended = [node for node in scene.cluster.ids if node not in scene.cluster.running()]
    scene.note(
        f"while full: ok {after['ok'] - before['ok']}, not applied {after['fail'] - before['fail']}, "
        f"unknown {after['info'] - before['info']}; nodes that ended: {ended}"
    )
    await scene.recover(1.0)


@scenario("hosts", nodes=5, network="hosts")
async def partial_partitions(scene: Scene) -> None:
    """S27 (F36): every shape of partition in turn between five nodes; safe meanwhile, one leader again when healed."""
    assert scene.where.hub is not None
    await scene.leader()
    pulse = scene.where.pulse
    for shape in SHAPES:
        before, term = scene.done, pulse.term
        links = cut_links(shape, list(scene.cluster.ids), pulse.leader, scene.rng)
        await asyncio.to_thread(scene.where.hub.cut, links)
        await asyncio.sleep(3.0)
        scene.note(f"{shape}: {scene.done - before} operations, {pulse.term - term} terms")
        await scene.recover(0.5, shape)


@scenario("proxies", network="proxies")
async def half_open_everything(scene: Scene) -> None:
    """S94 (F40): every connection stays open and nothing arrives any more; old connections are replaced when healed."""
    assert scene.where.proxies is not None
    await kinds.half_open(scene.where, scene.rng)
    await asyncio.sleep(4.5)  # beyond peer.silence_ms_max
    during = scene.where.proxies.open_connections
    waited = await scene.recover(0.5)
    scene.note(f"{during} connections open meanwhile; served again {waited:.1f} s after healing")


@scenario("strace")
async def killed_at_each_call_under_load(scene: Scene) -> None:
    """F1 (S72): the leader, then a follower, dies at the N-th call of each kind that the log and the store make."""
    died = 0
    for call in ("fdatasync", "pwrite64", "rename", "ftruncate", "fallocate", "unlink"):
        for count in (1, 2, 3):
            leader = await scene.leader()
            node = leader if count != 2 else next(other for other in scene.cluster.ids if other != leader)
            scene.cluster.excuse(node, "kill at call")
            injection = f"{call}:signal=KILL:when={count}"
            await scene.where.inject(node, injection)
            died += await scene.where.dies(node)
            await scene.recover(0.2, f"{injection} on node {node}")
    scene.note(f"{died} of 18 calls were reached")
    if not died:
        raise Failed("no call was reached: nothing has been tried")


@scenario("images")
async def power_cut_while_starting(scene: Scene) -> None:
    """F2, F12: power lost again while nodes recover from the cut before."""
    for _ in range(8):
        await scene.where.power_off(list(scene.cluster.ids))
        await scene.where.heal()
        await asyncio.sleep(scene.rng.uniform(0.2, 1.0))
        await scene.where.power_off(scene.cluster.running())
        await scene.recover(0.3)
    scene.note("8 double cuts")


@scenario("strace")
async def killed_at_each_call_of_a_start(scene: Scene) -> None:
    """F2 (S72): a node of a cluster that serves dies at the N-th call of its start, for every N that there is."""
    tried = 0
    for call in ("fdatasync", "fsync", "pwrite64", "rename", "ftruncate"):
        for count in range(1, 13):
            if not await scene.where.dies_starting(3, f"{call}:signal=KILL:when={count}", up_s=LEADER_S):
                break  # it has come up: there are no more calls of this kind
            tried += 1
        scene.cluster.kill(3)
        await scene.recover(0.2, call)
    scene.note(f"{tried} deaths while starting")
    if not tried:
        raise Failed("no call was reached: nothing has been tried")


@scenario("processes")
async def out_of_memory(scene: Scene) -> None:
    """F4: allocations begin to fail; the node ends or goes on, and is whole again after a restart or with more room."""
    ended = 0
    for spare in (0, 0, 262_144, 4_194_304):
        node = await scene.leader() if scene.rng.random() < 0.5 else scene.rng.choice(list(scene.cluster.ids))
        scene.cluster.excuse(node, "no memory")
        scene.where.limit_memory(node, spare)
        for _ in range(3):
            await kinds.press(scene.cluster.clients[node])
        ended += node not in scene.cluster.running()
        await scene.recover(0.5)
    scene.note(f"{ended} of 4 nodes ended")
