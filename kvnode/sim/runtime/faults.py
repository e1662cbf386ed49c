"""Faults that strike a simulated cluster: a table of names, one function each.

A function gets the nemesis and a victim, does one thing and returns whether it really struck.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from kvnode.ids import NOBODY, NodeId
from kvnode.raft.messages import TransferLeadership
from kvnode.sim.disk import FsyncFailure
from kvnode.sim.inodes import SECTOR
from kvnode.sim.runtime.cluster import LOG_DIRECTORY
from kvnode.sim.runtime.operators import Operators

if TYPE_CHECKING:
    from kvnode.sim.runtime.nemesis import Nemesis

Fault = Callable[["Nemesis", NodeId], bool]


# ── processes ───────────────────────────────────────────────────────────────────────────────────────


def _end(nemesis: Nemesis, victim: NodeId) -> bool:
    nemesis.end(victim)
    return True


def _end_leader(nemesis: Nemesis, victim: NodeId) -> bool:
    leader = nemesis.cluster.leader()
    nemesis.end(leader.id if leader is not None else victim)
    return True


def _end_everybody(nemesis: Nemesis, _: NodeId) -> bool:
    for member in sorted(nemesis.cluster.members):
        nemesis.end(member)
    return True


def _end_at_the_disk(nemesis: Nemesis, victim: NodeId) -> bool:
    """Power goes at one of the next disk operations, whatever they are."""
    disk = nemesis.member(victim).disk
    disk.crash_at(disk.changes + nemesis.rng.randint(1, 30))
    return True


def _start_interrupted(nemesis: Nemesis, victim: NodeId) -> bool:
    """Its next starts may be cut short, each at some disk operation (see `restart`)."""
    nemesis.end(victim)
    return True


def _stop(nemesis: Nemesis, victim: NodeId) -> bool:
    """A clean shutdown, on its way while other things happen."""
    member = nemesis.member(victim)
    if not member.takes_part or member.own_loop is None:
        return False

    async def stop() -> None:
        assert member.own_loop is not None
        try:
            await member.own_loop.submit(member.shut_down())
        except ConnectionError:
            return  # it was killed meanwhile
        if nemesis.cluster.members.get(victim) is member and victim not in nemesis.cluster.failures:
            nemesis.cluster.kill(victim)

    nemesis.spawn(stop())
    return True


def _pause(nemesis: Nemesis, victim: NodeId) -> bool:
    """SIGSTOP of the leader, a follower, some, or all, for half an election timeout up to ten."""
    cluster, rng = nemesis.cluster, nemesis.rng
    leader = cluster.leader()
    some = [member for member in sorted(cluster.members) if rng.random() < 0.5]
    chosen = rng.choice(([victim], [leader.id if leader is not None else victim], some, sorted(cluster.members)))
    seconds = nemesis.election_timeout_s() * rng.choice((0.5, 1.0, 2.0, 10.0))
    was_suspended = rng.random() < 0.3
    paused = [cluster.members[member].own_loop for member in chosen]

    async def resume() -> None:
        await asyncio.sleep(seconds)
        for loop in paused:
            if loop is not None:
                loop.resume(was_suspended=was_suspended)

    for loop in paused:
        if loop is not None:
            loop.pause()
    nemesis.spawn(resume())
    return bool(paused)


def _transfer(nemesis: Nemesis, victim: NodeId) -> bool:
    leader = nemesis.cluster.leader()
    if leader is None:
        return False
    target = victim if victim != leader.id else NOBODY
    member = nemesis.member(leader.id)
    member.loop.call_soon(member.node.receiver.queue.put_control, TransferLeadership(target))
    return True


# ── clocks ──────────────────────────────────────────────────────────────────────────────────────────


def _wall_jump(nemesis: Nemesis, victim: NodeId) -> bool:
    year_ms = 365 * 86_400_000
    nemesis.member(victim).clock.wall_offset_ms += nemesis.rng.choice((-60_000, -50, 50, 60_000, year_ms, -year_ms))
    return True


def _drift(nemesis: Nemesis, victim: NodeId) -> bool:
    nemesis.member(victim).clock.set_rate(nemesis.rng.uniform(0.9, 1.1) if nemesis.rng.random() < 0.7 else 2.0)
    return True


def _freeze(nemesis: Nemesis, victim: NodeId) -> bool:
    clock = nemesis.member(victim).clock
    clock.set_rate(0.0)

    async def thaw() -> None:
        await asyncio.sleep(nemesis.election_timeout_s() * nemesis.rng.choice((0.5, 2.0, 5.0)))
        if clock.rate == 0:
            clock.set_rate(1.0)

    nemesis.spawn(thaw())
    return True


# ── the network ─────────────────────────────────────────────────────────────────────────────────────


def _cut(nemesis: Nemesis, victim: NodeId) -> bool:
    other = nemesis.other(victim)
    if other != NOBODY:
        nemesis.cluster.network.cut(victim, other)
    return other != NOBODY


def _isolate(nemesis: Nemesis, victim: NodeId) -> bool:
    nemesis.cluster.network.isolate(victim)
    return len(nemesis.cluster.ids) > 1


def _split(nemesis: Nemesis, _: NodeId) -> bool:
    left = [member for member in nemesis.cluster.ids if nemesis.rng.random() < 0.5]
    right = [member for member in nemesis.cluster.ids if member not in left]
    nemesis.cluster.network.separate(left, right)
    return bool(left) and bool(right)


def _bridge(nemesis: Nemesis, victim: NodeId) -> bool:
    """Two halves that see each other only through one member."""
    others = [member for member in nemesis.cluster.ids if member != victim]
    half = len(others) // 2
    nemesis.cluster.network.separate(others[:half], others[half:])
    return half > 0


def _ring(nemesis: Nemesis, _: NodeId) -> bool:
    """Everybody sees two neighbours."""
    ids = nemesis.cluster.ids
    size = len(ids)
    for one in range(size):
        for other in range(one + 2, size):
            if (one, other) != (0, size - 1):
                nemesis.cluster.network.cut(ids[one], ids[other])
    return size > 3


def _silence(nemesis: Nemesis, victim: NodeId) -> bool:
    """One direction is gone, of one link or of all of the victim's."""
    network, rng = nemesis.cluster.network, nemesis.rng
    others = [member for member in nemesis.cluster.ids if member != victim]
    if not others:
        return False
    chosen = others if rng.random() < 0.4 else [rng.choice(others)]
    outwards = rng.random() < 0.5
    for other in chosen:
        network.silence(*((victim, other) if outwards else (other, victim)))
    return True


def _lose(nemesis: Nemesis, _: NodeId) -> bool:
    network = nemesis.cluster.network
    network.loss, network.duplication = nemesis.rng.uniform(0, 0.3), nemesis.rng.uniform(0, 0.5)
    network.reorder = nemesis.rng.random() < 0.3
    return True


def _corrupt(nemesis: Nemesis, _: NodeId) -> bool:
    network = nemesis.cluster.network
    network.corruption = nemesis.rng.choice((0.002, 0.02, 0.1))
    network.rot = nemesis.rng.choice((0.0, 0.02, 0.5))
    return True


def _flap(nemesis: Nemesis, victim: NodeId) -> bool:
    other = nemesis.other(victim)
    if other == NOBODY:
        return False

    async def flap() -> None:
        for _ in range(nemesis.rng.randint(2, 12)):
            nemesis.cluster.network.flap(victim, other)
            await asyncio.sleep(nemesis.rng.uniform(0.01, 0.3))

    nemesis.spawn(flap())
    return True


def _swizzle_clog(nemesis: Nemesis, _: NodeId) -> bool:
    """Links clog one by one and come free in another order."""
    network, rng, ids = nemesis.cluster.network, nemesis.rng, nemesis.cluster.ids
    links = [(one, other) for one in ids for other in ids if one != other and rng.random() < 0.5]

    async def swizzle() -> None:
        for link in links:
            network.clog(*link)
            await asyncio.sleep(rng.uniform(0.0, 0.1))
        rng.shuffle(links)
        for link in links:
            await asyncio.sleep(rng.uniform(0.0, 0.3))
            network.unclog(*link)

    nemesis.spawn(swizzle())
    return bool(links)


def _graveyard(nemesis: Nemesis, _: NodeId) -> bool:
    """From now on copies of messages are kept; some of those that were kept come back."""
    network = nemesis.cluster.network
    network.burial = 0.1
    found = sum(network.resurrect() for _ in range(nemesis.rng.randint(1, 12)))
    ways = nemesis.cluster.ways
    if ways is not None:
        found += sum(ways.resurrect() for _ in range(nemesis.rng.randint(1, 12)))
    return found > 0


# ── disks ───────────────────────────────────────────────────────────────────────────────────────────


def _hang(nemesis: Nemesis, victim: NodeId) -> bool:
    nemesis.may_fail.setdefault(victim, "hang")  # if it hangs for longer than `storage.abort_ms`
    workers = ("log", "log", "flusher", "log-reader", "snapshots", "available")
    nemesis.member(victim).workers[nemesis.rng.choice(workers)].hang()
    return True


def _slow_disk(nemesis: Nemesis, victim: NodeId) -> bool:
    nemesis.may_fail.setdefault(victim, "slow")
    nemesis.member(victim).workers["log"].delay_s = nemesis.rng.choice((0.02, 0.2, 1.2))
    return True


def _fsync_error(nemesis: Nemesis, victim: NodeId) -> bool:
    """Write-back fails, by the world's personality of file system.

    The late one is a lie: what was acknowledged is not there. No log can help its node, so it must not come back.
    """
    disk = nemesis.member(victim).disk
    personality = nemesis.world.fsync_failure
    if victim in nemesis.may_fail or victim in nemesis.lost_for_good:
        return False
    if personality is FsyncFailure.LATE:
        if not nemesis.may_lose_another():
            return False
        nemesis.lost_for_good[victim] = "late"
    disk.fsync_failure = personality
    nemesis.may_fail[victim] = f"fsync_{personality.value}"
    disk.fail_at(disk.count("fdatasync") + nemesis.rng.randint(1, 4), kind="fdatasync")
    return True


def _write_error(nemesis: Nemesis, victim: NodeId) -> bool:
    nemesis.may_fail.setdefault(victim, "write_error")
    disk = nemesis.member(victim).disk
    kind = nemesis.rng.choice(("pwrite", "pwrite", "create", "rename", "fsync_dir"))
    short = nemesis.rng.choice((0, 1, 100)) if kind == "pwrite" else 0
    disk.fail_at(disk.count(kind) + nemesis.rng.randint(1, 4), kind=kind, short_write=short)
    return True


def _read_error(nemesis: Nemesis, victim: NodeId) -> bool:
    disk = nemesis.member(victim).disk
    at = disk.count("pread") + nemesis.rng.randint(1, 3)
    if disk.is_to_fail("pread", after=disk.count("pread")):
        return False  # a read that fails, and fails again at once, is taken for damage
    nemesis.may_fail.setdefault(victim, "read_error")
    disk.fail_at(at, kind="pread")
    return True


def _no_space(nemesis: Nemesis, victim: NodeId) -> bool:
    """The disk fills up within the next kilobytes; `heal` empties it."""
    nemesis.may_fail.setdefault(victim, "no_space")
    disk = nemesis.member(victim).disk
    disk.capacity_bytes = disk.used_bytes() + nemesis.rng.choice((0, 2_000, 20_000))
    return True


def _bit_rot(nemesis: Nemesis, victim: NodeId) -> bool:
    """Durable bytes of one member's log go bad while it is down; nobody else's do in this run (the fault atlas).

    So of each record a majority keeps good copies. Nodes that cannot prove their term and vote stay down.
    """
    cluster, rng = nemesis.cluster, nemesis.rng
    if len(cluster.ids) < 3 or not all(member in cluster.bootstrapped for member in cluster.ids):
        return False
    if nemesis.rotten not in {NOBODY, victim} or nemesis.lost_for_good or not nemesis.member(victim).takes_part:
        return False
    # Of the newest two segments the last write may rot as well, and looks then like a torn one: no log can tell.
    paths = [path for path in nemesis.member(victim).disk.files() if path.startswith(f"{LOG_DIRECTORY}/0")][:-2]
    if not paths:
        return False
    cluster.kill(victim)
    nemesis.may_fail.pop(victim, None)
    disk = cluster.disk_of(victim)
    disk.sync_everything()
    path = rng.choice(paths)
    size = len(disk.durable_content(path))
    how = rng.choice(("flip", "flip", "zero", "stale"))
    sector = rng.randrange(max(1, size // SECTOR))
    if how == "flip":
        disk.flip_bit(path, rng.randrange(size), rng.randrange(8))
    elif how == "zero":
        disk.zero_sector(path, sector)
    elif not disk.stale_sector(path, sector):
        return False
    nemesis.rotten = victim
    return True


# ── operators ───────────────────────────────────────────────────────────────────────────────────────


def _mistake(make: Callable[[Operators, NodeId], None]) -> Fault:
    """The process ends, and comes up on what is not its own, until somebody sees to it."""

    def strike(nemesis: Nemesis, victim: NodeId) -> bool:
        operators = nemesis.operators
        if not operators.may_err() or victim in nemesis.lost_for_good or victim == nemesis.rotten:
            return False
        nemesis.end(victim)
        make(operators, victim)
        return True

    return strike


def _old_backup(nemesis: Nemesis, victim: NodeId) -> bool:
    """A copy of the directory is put back, after its member has been started anew and met everybody."""
    return nemesis.operators.may_use_backup(victim) and _mistake(Operators.restore_backup)(nemesis, victim)


def _cloned(nemesis: Nemesis, victim: NodeId) -> bool:
    """Such a copy is started beside its member."""
    operators = nemesis.operators
    return operators.may_err() and operators.may_use_backup(victim) and operators.run_twice(victim)


# ── members ─────────────────────────────────────────────────────────────────────────────────────────


def _remove_leader(nemesis: Nemesis, _: NodeId) -> bool:
    leader = nemesis.cluster.leader()
    return leader is not None and leader.id in nemesis.cluster.ids and nemesis.churn.remove(leader.id)


def _upgrade(nemesis: Nemesis, victim: NodeId) -> bool:
    """It starts with the newer version, which knows the newest feature level."""
    cluster = nemesis.cluster
    if not cluster.configs[victim].cluster.feature_level_max:
        return False
    nemesis.end(victim)
    cluster.configs[victim] = cluster.reconfigured(victim, {})
    return True


FAULTS: dict[str, Fault] = {
    "end": _end,
    "end_leader": _end_leader,
    "end_everybody": _end_everybody,
    "end_at_the_disk": _end_at_the_disk,
    "start_interrupted": _start_interrupted,
    "stop": _stop,
    "pause": _pause,
    "transfer": _transfer,
    "wall_jump": _wall_jump,
    "drift": _drift,
    "freeze": _freeze,
    "cut": _cut,
    "isolate": _isolate,
    "split": _split,
    "bridge": _bridge,
    "ring": _ring,
    "silence": _silence,
    "lose": _lose,
    "corrupt": _corrupt,
    "flap": _flap,
    "swizzle_clog": _swizzle_clog,
    "graveyard": _graveyard,
    "hang": _hang,
    "slow_disk": _slow_disk,
    "fsync_error": _fsync_error,
    "write_error": _write_error,
    "read_error": _read_error,
    "no_space": _no_space,
    "bit_rot": _bit_rot,
    "wiped": _mistake(Operators.wipe),
    "foreign": _mistake(Operators.move_in_from_elsewhere),
    "other_limits": _mistake(Operators.configure_otherwise),
    "old_backup": _old_backup,
    "cloned": _cloned,
    "add_member": lambda nemesis, _: nemesis.churn.add(),
    "remove_member": lambda nemesis, victim: nemesis.churn.remove(victim),
    "remove_leader": _remove_leader,
    "replace_member": lambda nemesis, victim: nemesis.churn.replace(victim),
    "move_member": lambda nemesis, victim: nemesis.churn.move(victim),
    "restart_removed": lambda nemesis, _: nemesis.churn.restart_removed(),
    "upgrade": _upgrade,
}
