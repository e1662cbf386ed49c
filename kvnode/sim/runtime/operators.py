"""What operators do wrong: a process that comes up on what is not its member's own, or beside the member, from a copy.

At most one member is astray at a time. What was its own is kept, and given back when things are healed (`put_back`), or
never. As long as it is astray its peers have to refuse it, whatever else happens, so that it matters to nobody (faults
F60–F63, F66 of the reliability notes; I27). What it does by itself, on a disk that is not its own, is nobody's log.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from kvnode.config import Config
from kvnode.ids import NodeId
from kvnode.server import make_roster
from kvnode.sim.disk import UNLIMITED, FakeDisk
from kvnode.sim.runtime.member import DATA_DIR
from kvnode.sim.runtime.transport import VirtualTransport
from kvnode.storage.datadir import DataDir
from kvnode.storage.environments import MemoryEnvironments

if TYPE_CHECKING:
    from kvnode.sim.runtime.cluster import Cluster

OTHER_SETTING: dict[str, object] = {"limits.key_bytes_max": 100}
STARTS_MAX = 6
"""A process that is refused is started again by hand. Its boot counter may so pass what its peers have seen."""

EXPECTED: dict[str, set[str]] = {
    "wiped": {"wrong_incarnation"},
    "foreign": {"wrong_cluster"},
    "other_limits": {"setting_differs"},
    "old_backup": {"stale_boot", "cloned"},
}
"""How peers refuse each kind of stray. `wrong_direction` and the like can come beside it."""


@dataclass(frozen=True)
class Stray:
    """A member whose process runs on what is not its own, and what was its own."""

    member: NodeId
    what: str
    disk: FakeDisk
    store: MemoryEnvironments | None
    config: Config


@dataclass(frozen=True)
class Backup:
    """A copy of a member's data directory, taken while its process had this boot counter."""

    disk: FakeDisk
    store: MemoryEnvironments
    boot: int


class Operators:
    """See the module docstring."""

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        self.stray: Stray | None = None
        self._cluster = cluster
        self._rng = rng
        self._backups: dict[NodeId, Backup] = {}
        self._copy: _Copy | None = None  # the newest that was started beside its member

    def may_err(self) -> bool:
        """Whether a member could be led astray now. A first start must be over: until then nobody knows who is who."""
        cluster = self._cluster
        have_met = all(member in cluster.bootstrapped for member in cluster.ids)
        return self.stray is None and len(cluster.ids) > 1 and have_met

    def has_strayed(self, member: NodeId) -> bool:
        return self.stray is not None and self.stray.member == member

    # ── mistakes; each wants the member down, and starts it ─────────────────────────────────────────

    def wipe(self, member: NodeId) -> None:
        """Its directory is empty."""
        self._lead_astray(member, "wiped", disk=self._new_disk())

    def move_in_from_elsewhere(self, member: NodeId) -> None:
        """Its directory says another cluster id, and so does everything else fit: only that can tell."""
        own = self._open(member, _copy_of(self._cluster.disks[member])).identity
        disk = self._new_disk()
        data = self._open(member, disk, incarnation=own.incarnation)
        data.save_identity(msgspec.structs.replace(data.identity, cluster_id=own.cluster_id ^ 1, members=own.members))
        data.close()
        self._lead_astray(member, "foreign", disk=disk)

    def configure_otherwise(self, member: NodeId) -> None:
        """A setting that must be equal everywhere is not."""
        self._lead_astray(member, "other_limits", config=self._cluster.reconfigured(member, OTHER_SETTING))

    def restore_backup(self, member: NodeId) -> None:
        """Its directory is an old copy. Needs `may_use_backup`."""
        store = _copy_of_store(self._backups[member].store)
        self._lead_astray(member, "old_backup", disk=self._restored(member), store=store)

    # ── backups ─────────────────────────────────────────────────────────────────────────────────────

    def back_up(self, member: NodeId) -> None:
        """Copy its directory as it is now, if it takes part and has no backup yet."""
        found = self._cluster.members[member]
        if found.takes_part and member not in self._backups:
            store = _copy_of_store(self._cluster.environments_of(member))
            self._backups[member] = Backup(found.disk.kill(), store, found.data.boot.counter)

    def may_use_backup(self, member: NodeId) -> bool:
        """Whether all peers have met a later start of this member than its backup is of.

        A copy restored before anybody has seen a later start cannot be told from the original.
        """
        found, backup = self._cluster.members[member], self._backups.get(member)
        if backup is None or not found.takes_part or backup.boot >= found.data.boot.counter:
            return False
        self._cluster.met_boots[member] = found.data.boot.counter
        return found.connections == [other for other in self._cluster.ids if other != member]

    def run_twice(self, member: NodeId) -> bool:
        """A copy of its directory is started on another machine, beside the member. Needs `may_use_backup`.

        It dials those whom the member dials, higher ids; from the others' side only the member is at its address.
        """
        cluster = self._cluster
        disk = self._restored(member)
        data = self._open(member, disk)
        roster = make_roster(cluster.configs[member], data, f"http://copy-of-{member}")
        self._copy = _Copy(cluster.network, member, roster=roster, loop=cluster.loop, on_failed=self._fail)
        higher = [other for other in cluster.ids if other > member]
        for other in higher:
            cluster.network.knock(self._copy, other)
        return bool(higher)

    # ── amends ──────────────────────────────────────────────────────────────────────────────────────

    def check(self) -> None:
        """Nobody has let the stray in. Raises: AssertionError."""
        if self._copy is not None and self._copy.refusals:
            self._cluster.observer.mark("refused_copy")
            self._copy = None
        if self.stray is None or self.stray.member not in self._cluster.members:
            return
        found = self._cluster.members[self.stray.member]
        assert not found.connections, ("I27: let in", self.stray.what, found.id, found.connections)
        assert not (found.takes_part and self.stray.what == "wiped"), ("I27: takes part", found.id)
        expected = EXPECTED[self.stray.what]
        assert not found.refusals or expected & set(found.refusals), ("I27: refused", self.stray.what, found.refusals)
        if found.refusals:
            self._cluster.observer.mark(f"refused_{self.stray.what}")

    def put_back(self) -> None:
        """The process ends, and finds what is its own when it starts next."""
        self.check()
        stray, cluster = self.stray, self._cluster
        if stray is None:
            return
        if stray.member in cluster.members:
            cluster.kill(stray.member)
        self.stray = None
        cluster.strays.discard(stray.member)
        cluster.configs[stray.member] = stray.config
        if stray.what == "other_limits":
            return
        cluster.disks[stray.member] = stray.disk
        cluster.stores.pop(stray.member, None)
        if stray.store is not None:
            cluster.stores[stray.member] = stray.store

    def _lead_astray(
        self,
        member: NodeId,
        what: str,
        *,
        disk: FakeDisk | None = None,
        store: MemoryEnvironments | None = None,
        config: Config | None = None,
    ) -> None:
        cluster = self._cluster
        self.stray = Stray(member, what, cluster.disks[member], cluster.stores.get(member), cluster.configs[member])
        if disk is not None:
            cluster.strays.add(member)
            cluster.disks[member] = disk
            cluster.stores.pop(member, None)
        if store is not None:
            cluster.stores[member] = store
        if config is not None:
            cluster.configs[member] = config
        cluster.begin(member)

    def _new_disk(self) -> FakeDisk:
        return FakeDisk(random.Random(self._rng.getrandbits(64)))

    def _restored(self, member: NodeId) -> FakeDisk:
        """A backup's disk, as it is after some starts."""
        disk = _copy_of(self._backups[member].disk)
        for _ in range(self._rng.randrange(STARTS_MAX)):
            self._open(member, disk).close()
        return disk

    def _open(self, member: NodeId, disk: FakeDisk, *, incarnation: int = 0) -> DataDir:
        numbers = iter([incarnation] if incarnation else [])
        return DataDir.open(
            disk,
            DATA_DIR,
            member=member,
            cluster_name=self._cluster.configs[member].cluster.name,
            random_u64=lambda: next(numbers, 0) or self._rng.getrandbits(64),
            allow_unsafe_filesystem=False,
        )

    def _fail(self, error: BaseException) -> None:
        self._cluster.errors.append({"message": "a copy of a member failed", "exception": error})


def _copy_of(disk: FakeDisk) -> FakeDisk:
    """What is on it, on another disk: what is wrong with the one is not with the other."""
    copy = disk.kill()
    copy.capacity_bytes = UNLIMITED
    return copy


def _copy_of_store(store: MemoryEnvironments) -> MemoryEnvironments:
    copy = MemoryEnvironments()
    for number, backend in store.backends.items():
        copy.build(number, [backend.pin().rows(b"", 1 << 60)])
    return copy


class _Copy(VirtualTransport):
    """The network end of a member's copy on another machine. It only dials: nobody has its address."""

    def come_up(self, peer: NodeId, feature_level: int) -> None:
        self.on_failed(AssertionError(f"I27: member {peer} let a copy of member {self.node} in"))
