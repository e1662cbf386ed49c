"""Faults that strike a simulated cluster: a table of names, one function each.

A function gets the running faults and a victim, does one thing and returns whether it really struck. What it broke is
mended by `heal`, or by itself after a while. Each is counted under its name in the run's report. What may break only a
minority for good (`lost_for_good`) asks first.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from kvnode.errors import LogCorrupted, StorageFailed
from kvnode.ids import NOBODY, NodeId
from kvnode.raft.messages import TransferLeadership
from kvnode.sim.disk import UNLIMITED, FsyncFailure
from kvnode.sim.inodes import SECTOR
from kvnode.sim.runtime.cluster import LOG_DIRECTORY, Cluster
from kvnode.sim.runtime.member import Member
from kvnode.sim.runtime.swarm import World

CRASHES = 0.6
"""Share of process ends that are power losses; the others are kills, after which the page cache is still there."""

STARTS_BROKEN = 0.3
"""Share of starts that meet with a power loss of their own, where the world knows that fault."""


class Faults:
    """Strikes and heals one cluster."""

    def __init__(self, cluster: Cluster, rng: random.Random, world: World) -> None:
        self.cluster = cluster
        self.rng = rng
        self.world = world
        self.struck: dict[str, int] = {}
        self.may_fail: dict[NodeId, str] = {}  # members given a fault that ends them, and which
        self.lost_for_good: dict[NodeId, str] = {}  # members that must not come back, and why
        self.rotten = NOBODY  # the one member whose durable bytes may go bad
        self.is_peace = False  # nothing new strikes

    def strike(self) -> str:
        """One fault of those that are on, at a random member that is up; "" if there was nobody to strike."""
        up = [member for member in sorted(self.cluster.members) if member not in self.cluster.failures]
        if not up:
            return ""
        kind = self.rng.choice(self.world.faults)
        victim = self.rng.choice(up)
        self.cluster.note(f"fault {kind} {victim}")
        if not FAULTS[kind](self, victim):
            return ""
        self.count(kind)
        return kind

    def count(self, kind: str) -> None:
        self.struck[kind] = self.struck.get(kind, 0) + 1

    # ── ends and starts ─────────────────────────────────────────────────────────────────────────────

    def end(self, victim: NodeId) -> None:
        """The process is gone, one way or the other."""
        self.may_fail.pop(victim, None)
        if self.rng.random() < CRASHES:
            self.cluster.crash(victim, silently=self.rng.random() < 0.5)
            self.count("power_loss")
        else:
            self.cluster.kill(victim)
            self.count("killed")

    def bury_the_failed(self) -> None:
        """Processes that gave up have exited; each must have had a reason."""
        cluster = self.cluster
        for member, error in list(cluster.failures.items()):
            if isinstance(error, LogCorrupted) and member == self.rotten:
                self._bury_the_rotten(member, error)
                continue
            assert isinstance(error, StorageFailed), (member, error)
            is_full = cluster.disks[member].capacity_bytes < UNLIMITED
            reason = self.may_fail.get(member, "no_space" if is_full else "")
            assert reason, ("failed without a fault", member, error)
            self.count(f"exited_after_{reason}")
            if reason.startswith("fsync"):
                cluster.observer.mark(f"exited_after_{reason}")
            self.end(member)

    def _bury_the_rotten(self, member: NodeId, error: LogCorrupted) -> None:
        """A damaged log ends its node. If it can be repaired the next start does that; else the node stays down."""
        self.cluster.kill(member)
        self.may_fail.pop(member, None)
        if error.repairable:
            self.count("rot_ended_a_process")
            return
        self.count("rot_kept_down")
        self.lost_for_good[member] = "rot"

    def restart(self, among: list[NodeId]) -> None:
        """Start who is down, unless it must not come back."""
        for member in among:
            if member in self.cluster.members or member in self.lost_for_good:
                continue
            if not self.is_peace and "start_interrupted" in self.world.faults and self.rng.random() < STARTS_BROKEN:
                disk = self.cluster.disks[member]
                disk.crash_at(disk.changes + self.rng.randint(1, 60))
                self.count("start_interrupted")
            self.cluster.begin(member)

    def heal(self, among: list[NodeId] | None = None) -> None:
        """Mend links, disks, clocks and pauses (`among` these members, or everywhere) and restart who is down."""
        cluster = self.cluster
        self.bury_the_failed()
        network = cluster.network
        network.loss = network.duplication = network.corruption = 0.0
        network.reorder = False
        network.heal(among)
        members = among if among is not None else cluster.ids
        for member in members:
            cluster.disks[member].capacity_bytes = UNLIMITED
            if self.is_peace:
                cluster.disks[member].crash_at(0)
            found = cluster.members.get(member)
            if found is not None:
                self.mend(found)
        self.bury_the_failed()
        self.restart(members)

    def mend(self, member: Member) -> None:
        if member.own_loop is not None:
            member.own_loop.resume()
        if not 0.9 <= member.clock.rate <= 1.1:
            member.clock.set_rate(1.0)
        for worker in member.workers.values():
            worker.delay_s = self.cluster.disk_delay_s
            worker.resume()

    def may_lose_another(self) -> bool:
        """The fault atlas: what is lost for good stays a minority, with one good copy of everything in each quorum."""
        if self.rotten != NOBODY or len(self.cluster.bootstrapped) < len(self.cluster.ids):
            return False
        return len(self.lost_for_good) + 1 <= (len(self.cluster.ids) - 1) // 2

    # ── for the table ───────────────────────────────────────────────────────────────────────────────

    def member(self, victim: NodeId) -> Member:
        return self.cluster.members[victim]

    def other(self, victim: NodeId) -> NodeId:
        others = [member for member in self.cluster.ids if member != victim]
        return self.rng.choice(others) if others else NOBODY

    def election_timeout_s(self) -> float:
        return self.cluster.configs[self.cluster.ids[0]].raft.election_timeout_ms / 1e3

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.cluster.spawn(work)


Fault = Callable[[Faults, NodeId], bool]


# ── processes ───────────────────────────────────────────────────────────────────────────────────────


def _end(faults: Faults, victim: NodeId) -> bool:
    faults.end(victim)
    return True


def _end_leader(faults: Faults, victim: NodeId) -> bool:
    leader = faults.cluster.leader()
    faults.end(leader.id if leader is not None else victim)
    return True


def _end_everybody(faults: Faults, _: NodeId) -> bool:
    for member in sorted(faults.cluster.members):
        faults.end(member)
    return True


def _end_at_the_disk(faults: Faults, victim: NodeId) -> bool:
    """Power goes at one of the next disk operations, whatever they are."""
    disk = faults.member(victim).disk
    disk.crash_at(disk.changes + faults.rng.randint(1, 30))
    return True


def _start_interrupted(faults: Faults, victim: NodeId) -> bool:
    """Its next starts may be cut short, each at some disk operation (see `restart`)."""
    faults.end(victim)
    return True


def _stop(faults: Faults, victim: NodeId) -> bool:
    """A clean shutdown, on its way while other things happen."""
    member = faults.member(victim)
    if not member.takes_part or member.own_loop is None:
        return False

    async def stop() -> None:
        assert member.own_loop is not None
        try:
            await member.own_loop.submit(member.node.stop())
        except ConnectionError:
            return  # it was killed meanwhile
        if faults.cluster.members.get(victim) is member and victim not in faults.cluster.failures:
            faults.cluster.kill(victim)

    faults.spawn(stop())
    return True


def _pause(faults: Faults, victim: NodeId) -> bool:
    """SIGSTOP of the leader, a follower, some, or all, for half an election timeout up to ten."""
    cluster, rng = faults.cluster, faults.rng
    leader = cluster.leader()
    some = [member for member in sorted(cluster.members) if rng.random() < 0.5]
    chosen = rng.choice(([victim], [leader.id if leader is not None else victim], some, sorted(cluster.members)))
    seconds = faults.election_timeout_s() * rng.choice((0.5, 1.0, 2.0, 10.0))
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
    faults.spawn(resume())
    return bool(paused)


def _transfer(faults: Faults, victim: NodeId) -> bool:
    leader = faults.cluster.leader()
    if leader is None:
        return False
    target = victim if victim != leader.id else NOBODY
    member = faults.member(leader.id)
    member.loop.call_soon(member.node.receiver.queue.put_control, TransferLeadership(target))
    return True


# ── clocks ──────────────────────────────────────────────────────────────────────────────────────────


def _wall_jump(faults: Faults, victim: NodeId) -> bool:
    year_ms = 365 * 86_400_000
    faults.member(victim).clock.wall_offset_ms += faults.rng.choice((-60_000, -50, 50, 60_000, year_ms, -year_ms))
    return True


def _drift(faults: Faults, victim: NodeId) -> bool:
    faults.member(victim).clock.set_rate(faults.rng.uniform(0.9, 1.1) if faults.rng.random() < 0.7 else 2.0)
    return True


def _freeze(faults: Faults, victim: NodeId) -> bool:
    clock = faults.member(victim).clock
    clock.set_rate(0.0)

    async def thaw() -> None:
        await asyncio.sleep(faults.election_timeout_s() * faults.rng.choice((0.5, 2.0, 5.0)))
        if clock.rate == 0:
            clock.set_rate(1.0)

    faults.spawn(thaw())
    return True


# ── the network ─────────────────────────────────────────────────────────────────────────────────────


def _cut(faults: Faults, victim: NodeId) -> bool:
    other = faults.other(victim)
    if other != NOBODY:
        faults.cluster.network.cut(victim, other)
    return other != NOBODY


def _isolate(faults: Faults, victim: NodeId) -> bool:
    faults.cluster.network.isolate(victim)
    return len(faults.cluster.ids) > 1


def _split(faults: Faults, _: NodeId) -> bool:
    left = [member for member in faults.cluster.ids if faults.rng.random() < 0.5]
    right = [member for member in faults.cluster.ids if member not in left]
    faults.cluster.network.separate(left, right)
    return bool(left) and bool(right)


def _bridge(faults: Faults, victim: NodeId) -> bool:
    """Two halves that see each other only through one member."""
    others = [member for member in faults.cluster.ids if member != victim]
    half = len(others) // 2
    faults.cluster.network.separate(others[:half], others[half:])
    return half > 0


def _ring(faults: Faults, _: NodeId) -> bool:
    """Everybody sees two neighbours."""
    ids = faults.cluster.ids
    size = len(ids)
    for one in range(size):
        for other in range(one + 2, size):
            if (one, other) != (0, size - 1):
                faults.cluster.network.cut(ids[one], ids[other])
    return size > 3


def _silence(faults: Faults, victim: NodeId) -> bool:
    """One direction is gone, of one link or of all of the victim's."""
    network, rng = faults.cluster.network, faults.rng
    others = [member for member in faults.cluster.ids if member != victim]
    if not others:
        return False
    chosen = others if rng.random() < 0.4 else [rng.choice(others)]
    outwards = rng.random() < 0.5
    for other in chosen:
        network.silence(*((victim, other) if outwards else (other, victim)))
    return True


def _lose(faults: Faults, _: NodeId) -> bool:
    network = faults.cluster.network
    network.loss, network.duplication = faults.rng.uniform(0, 0.3), faults.rng.uniform(0, 0.5)
    network.reorder = faults.rng.random() < 0.3
    return True


def _corrupt(faults: Faults, _: NodeId) -> bool:
    faults.cluster.network.corruption = faults.rng.choice((0.002, 0.02, 0.1))
    return True


def _flap(faults: Faults, victim: NodeId) -> bool:
    other = faults.other(victim)
    if other == NOBODY:
        return False

    async def flap() -> None:
        for _ in range(faults.rng.randint(2, 12)):
            faults.cluster.network.flap(victim, other)
            await asyncio.sleep(faults.rng.uniform(0.01, 0.3))

    faults.spawn(flap())
    return True


def _swizzle_clog(faults: Faults, _: NodeId) -> bool:
    """Links clog one by one and come free in another order."""
    network, rng, ids = faults.cluster.network, faults.rng, faults.cluster.ids
    links = [(one, other) for one in ids for other in ids if one != other and rng.random() < 0.5]

    async def swizzle() -> None:
        for link in links:
            network.clog(*link)
            await asyncio.sleep(rng.uniform(0.0, 0.1))
        rng.shuffle(links)
        for link in links:
            await asyncio.sleep(rng.uniform(0.0, 0.3))
            network.unclog(*link)

    faults.spawn(swizzle())
    return bool(links)


def _graveyard(faults: Faults, _: NodeId) -> bool:
    """From now on copies of messages are kept; some of those that were kept come back."""
    network = faults.cluster.network
    network.burial = 0.1
    return sum(network.resurrect() for _ in range(faults.rng.randint(1, 12))) > 0


# ── disks ───────────────────────────────────────────────────────────────────────────────────────────


def _hang(faults: Faults, victim: NodeId) -> bool:
    faults.may_fail.setdefault(victim, "hang")  # if it hangs for longer than `storage.abort_ms`
    faults.member(victim).workers[faults.rng.choice(("log", "log", "flusher", "log-reader"))].hang()
    return True


def _slow_disk(faults: Faults, victim: NodeId) -> bool:
    faults.may_fail.setdefault(victim, "slow")
    faults.member(victim).workers["log"].delay_s = faults.rng.choice((0.02, 0.2, 1.2))
    return True


def _fsync_error(faults: Faults, victim: NodeId) -> bool:
    """Write-back fails, by the world's personality of file system.

    The late one is a lie: what was acknowledged is not there. No log can help its node, so it must not come back.
    """
    disk = faults.member(victim).disk
    personality = faults.world.fsync_failure
    if victim in faults.may_fail or victim in faults.lost_for_good:
        return False
    if personality is FsyncFailure.LATE:
        if not faults.may_lose_another():
            return False
        faults.lost_for_good[victim] = "late"
    disk.fsync_failure = personality
    faults.may_fail[victim] = f"fsync_{personality.value}"
    disk.fail_at(disk.count("fdatasync") + faults.rng.randint(1, 4), kind="fdatasync")
    return True


def _write_error(faults: Faults, victim: NodeId) -> bool:
    faults.may_fail.setdefault(victim, "write_error")
    disk = faults.member(victim).disk
    kind = faults.rng.choice(("pwrite", "pwrite", "create", "rename", "fsync_dir"))
    short = faults.rng.choice((0, 1, 100)) if kind == "pwrite" else 0
    disk.fail_at(disk.count(kind) + faults.rng.randint(1, 4), kind=kind, short_write=short)
    return True


def _read_error(faults: Faults, victim: NodeId) -> bool:
    faults.may_fail.setdefault(victim, "read_error")
    disk = faults.member(victim).disk
    disk.fail_at(disk.count("pread") + faults.rng.randint(1, 3), kind="pread")
    return True


def _no_space(faults: Faults, victim: NodeId) -> bool:
    """The disk fills up within the next kilobytes; `heal` empties it."""
    faults.may_fail.setdefault(victim, "no_space")
    disk = faults.member(victim).disk
    disk.capacity_bytes = disk.used_bytes() + faults.rng.choice((0, 2_000, 20_000))
    return True


def _bit_rot(faults: Faults, victim: NodeId) -> bool:
    """Durable bytes of one member's log go bad while it is down; nobody else's do in this run (the fault atlas).

    So of each record a majority keeps good copies. Nodes that cannot prove their term and vote stay down.
    """
    cluster, rng = faults.cluster, faults.rng
    if len(cluster.ids) < 3 or not all(member in cluster.bootstrapped for member in cluster.ids):
        return False
    if faults.rotten not in {NOBODY, victim} or faults.lost_for_good or not faults.member(victim).takes_part:
        return False
    # Of the newest two segments the last write may rot as well, and looks then like a torn one: no log can tell.
    paths = [path for path in faults.member(victim).disk.files() if path.startswith(f"{LOG_DIRECTORY}/0")][:-2]
    if not paths:
        return False
    cluster.kill(victim)
    faults.may_fail.pop(victim, None)
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
    faults.rotten = victim
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
}
