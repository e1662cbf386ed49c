"""Liveness mode: faults end inside a core that could go on, and stay for ever outside it; then the core has to (I30).

The core is a random quorum. Its members are restarted, healed and left alone; everybody else is down, cut off, paused
or behind a link that keeps breaking, for good. Within a bound every pending request must have been answered, the core
must have one leader and take a write from each of its members, and all of it must be in one state. At last each member
is asked to stop and must leave nothing behind.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from kvnode.errors import KvnodeError
from kvnode.ids import NodeId
from kvnode.kv.interface import Options
from kvnode.kv.requests import Put
from kvnode.machine.keycode import META_KEY
from kvnode.sim.runtime import available_judge

if TYPE_CHECKING:
    from kvnode.sim.runtime.available_clients import AvailableClients
    from kvnode.sim.runtime.cluster import Cluster
    from kvnode.sim.runtime.nemesis import Nemesis
    from kvnode.sim.runtime.watchers import Watchers
    from kvnode.sim.runtime.workload import Workload

BOUND_S = 30.0
"""Longest requests, one more election after a crash that was already planned, and room: all in simulated time."""

LEASES_END_S = 20.0
"""The longest TTL that holders ask for, by the slowest clock, and an election."""

TRIES = 40
RESTART_S = 0.5

ALL = 1 << 60
"""Bytes: more than any store here has."""


def draw_core(cluster: Cluster, nemesis: Nemesis, rng: random.Random) -> list[NodeId]:
    """A quorum of members that can come back."""
    can = [member for member in cluster.configuration.voters if member not in nemesis.lost_for_good]
    quorum = len(cluster.configuration.voters) // 2 + 1
    assert len(can) >= quorum, ("the atlas let too many go", nemesis.lost_for_good)
    met = [member for member in can if member in cluster.bootstrapped]
    if len(met) < quorum:
        return can  # a first start waits for all members: none can be missing
    voters = [member for member in met if member != nemesis.rotten]  # in quarantine it waits for a quorum of the others
    core = rng.sample(voters, rng.randint(quorum, len(voters)))
    if nemesis.rotten in met and rng.random() < 0.7:
        core.append(nemesis.rotten)
    return sorted(core)


async def settle_members(cluster: Cluster, nemesis: Nemesis) -> None:
    """Everybody is healed until no change of members is under way: one that is decides which quorum counts."""

    def is_settled() -> bool:
        nemesis.heal()  # again and again: a clean stop may end only now, and a change wait for whom it stopped
        return cluster.has_finished_spawned and nemesis.churn.is_settled()

    await cluster.until(is_settled, within_s=2 * BOUND_S)
    await cluster.finish_spawned()
    for member in [member for member in cluster.members if member not in cluster.ids]:
        cluster.kill(member)


def break_for_good(cluster: Cluster, nemesis: Nemesis, core: list[NodeId], rng: random.Random) -> None:
    """What is left of everybody else."""
    for member in cluster.ids:
        if member in core:
            continue
        found = cluster.members.get(member)
        how = rng.choice(("down", "cut", "paused", "deaf"))
        if found is None or how == "down":
            if found is not None:
                nemesis.end(member)
        elif how == "paused" and found.own_loop is not None:
            found.own_loop.pause()
        else:
            for other in core:
                if how == "cut":
                    cluster.network.cut(member, other)
                else:
                    cluster.network.silence(other, member)


async def settle(
    cluster: Cluster,
    nemesis: Nemesis,
    workload: Workload,
    watchers: Watchers,
    core: list[NodeId],
    *,
    available: AvailableClients | None = None,
) -> None:
    """Raises: AssertionError, TimeoutError when the core does not come right within the bound."""
    async with asyncio.timeout(BOUND_S):
        await _while_restarting(workload.finish(), nemesis, core)
    async with asyncio.timeout(BOUND_S):
        await _while_restarting(watchers.finish(workload.newest), nemesis, core)
    async with asyncio.timeout(BOUND_S):
        for member in core:
            await _write(cluster, nemesis, member, core)
        await _end_leases(cluster, nemesis, core)
        await _agree(cluster, nemesis, core)
        await _compare_stores(cluster, nemesis, core)
    core = [member for member in core if member not in nemesis.lost_for_good]
    if available is not None:
        await available_judge.settle(cluster, available, core, lambda: _restart_the_fallen(nemesis, core))
    await _answer_everything(cluster, core)
    leftovers = {}
    for member in core:
        left = await cluster.members[member].stop()
        if left:
            leftovers[member] = left
    assert not leftovers, ("leaked", leftovers)


async def _while_restarting(work: Coroutine[Any, Any, None], nemesis: Nemesis, core: list[NodeId]) -> None:
    """Clients and watchers come to an end only if somebody serves them."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            _restart_the_fallen(nemesis, core)
            await asyncio.wait({task}, timeout=RESTART_S)
        task.result()
    finally:
        task.cancel()


async def _answer_everything(cluster: Cluster, core: list[NodeId]) -> None:
    """I30. A client may have given up already: deadlines are kept by the node's clock, which stood still in a pause."""

    def open_requests() -> dict[NodeId, int]:
        loops = {member: cluster.members[member].own_loop for member in core}
        return {member: loop.open_requests for member, loop in loops.items() if loop is not None and loop.open_requests}

    try:
        await cluster.until(lambda: not open_requests(), within_s=BOUND_S)
    except AssertionError:
        raise AssertionError(("I30: requests were never answered", open_requests())) from None


async def _write(cluster: Cluster, nemesis: Nemesis, member: NodeId, core: list[NodeId]) -> None:
    """A write through this member; refusals and lost leaders are tried again, as a client would."""
    for number in range(TRIES):
        _restart_the_fallen(nemesis, core)
        if member in nemesis.lost_for_good:
            return
        try:
            await cluster.members[member].ask(Put(b"settled", b"%d.%d" % (member, number)), Options(timeout_ms=5_000))
        except KvnodeError:
            await asyncio.sleep(0.1)
        else:
            return
    raise AssertionError(("I30: no write goes through this member", member))


async def _end_leases(cluster: Cluster, nemesis: Nemesis, core: list[NodeId]) -> None:
    """I25: nobody renews any more, so all leases end, and with them every place in a queue."""

    def have_ended() -> bool:
        _restart_the_fallen(nemesis, core)
        members = [cluster.members[member] for member in core if member not in nemesis.lost_for_good]
        return all(member.takes_part and not member.node.lease_count for member in members)

    await cluster.until(have_ended, within_s=LEASES_END_S)


async def _agree(cluster: Cluster, nemesis: Nemesis, core: list[NodeId]) -> None:
    def is_equal() -> bool:
        _restart_the_fallen(nemesis, core)
        members = [cluster.members[member] for member in core if member not in nemesis.lost_for_good]
        if not all(member.takes_part for member in members):
            return False
        states = [member.node.status() for member in members]
        return len({(s.commit_index, s.applied_index, s.state_hash) for s in states}) == 1

    await cluster.until(is_equal, within_s=BOUND_S)


async def _compare_stores(cluster: Cluster, nemesis: Nemesis, core: list[NodeId]) -> None:
    """Row by row: the digest tells what was applied, not what a snapshot may have left out."""
    found: list[dict[bytes, bytes]] = []

    def are_level() -> bool:
        _restart_the_fallen(nemesis, core)
        members = [cluster.members[member] for member in core if member not in nemesis.lost_for_good]
        if not all(member.takes_part for member in members):
            return False
        machines = [member.node._machine for member in members]
        for member, machine in zip(members, machines, strict=True):
            if not machine.is_flushed:
                member.loop.call_soon(member.node._applier.flush)
        if not all(machine.is_flushed for machine in machines) or len({each.applied_index for each in machines}) > 1:
            return False
        found[:] = [dict(machine.backend.pin().rows(b"", ALL)) for machine in machines]
        return True

    await cluster.until(are_level, within_s=BOUND_S)
    for rows in found:
        rows.pop(META_KEY, None)
        assert rows == found[0], ("I21: other rows", sorted(rows.items() ^ found[0].items())[:10])


def _restart_the_fallen(nemesis: Nemesis, core: list[NodeId]) -> None:
    """A process may still end in peace: old damage is found only now, or a start was to be interrupted just before."""
    failures = nemesis.cluster.failures
    if nemesis.rotten in failures or any(nemesis.may_fail.get(member) == "no_space" for member in failures):
        nemesis.bury_the_failed()
    nemesis.restart(core)
