"""What a node has on its disk, opened: the store, then the log after the store's applied index, then snapshots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from kvnode.config import Config
from kvnode.errors import ConfigInvalid
from kvnode.ids import Index
from kvnode.machine.backend import Backend
from kvnode.machine.machine import StateMachine
from kvnode.node.roster import base_configuration
from kvnode.observe.log import get_logger
from kvnode.raft.messages import LogPosition
from kvnode.storage.datadir import DataDir
from kvnode.storage.disk import Disk
from kvnode.storage.environments import LmdbEnvironments
from kvnode.storage.log_place import LogPlace, system_random
from kvnode.storage.memory_backend import MemoryBackend
from kvnode.storage.realdisk import RealDisk
from kvnode.storage.snapshots import SnapshotFiles
from kvnode.storage.store_pointer import NAME as POINTER
from kvnode.storage.store_pointer import StorePointer
from kvnode.storage.wal import Recovered, Stamp, Wal
from kvnode.storage.wal_salvage import Salvaged, open_log

APPLIED_LIMITS = (
    "answers_bytes_max",
    "delete_keys_max",
    "idempotency_keys_max",
    "lease_keys_max",
    "leases_max",
    "page_bytes_max",
    "page_items",
    "page_items_max",
    "session_answers_max",
    "sessions_max",
    "txn_operations_max",
)
"""Limits that the state machine itself goes by."""

log = get_logger("server")


def check_applied_limits(config: Config, data: DataDir) -> dict[str, int]:
    """The limits that decide what a logged entry does. Raises: ConfigInvalid if they are not those it was logged under.

    Entries are applied again at a start, and on every node at a time of its own: under another limit an acknowledged
    delete would be refused here and not there.
    """
    limits: dict[str, int] = {name: getattr(config.limits, name) for name in APPLIED_LIMITS}
    for name, fixed in data.identity.applied_limits.items():
        if limits.get(name, fixed) != fixed:
            raise ConfigInvalid(
                f"limits.{name} is {limits[name]}, but the log in {data.path} was written under {fixed}, and what its "
                "entries do depends on it: set it back"
            )
    return limits


def open_log_of(
    config: Config, data: DataDir, disk: Disk, machine: StateMachine, *, random_u64: Callable[[], int] = system_random
) -> tuple[Wal, Recovered, Salvaged | None]:
    """The log of this directory, begun at the first start. Raises: Fatal."""
    limits, identity = check_applied_limits(config, data), data.identity
    if config.storage.backend == "memory" and disk.exists(f"{data.store_dir}/{POINTER}"):
        # The log would look damaged, begin too late for an empty store, and be set aside.
        raise ConfigInvalid(
            f"storage.backend is memory, but {data.path} has a store, and its log need not go back to the beginning: "
            "set it back to lmdb, or add the member anew with an empty directory"
        )
    known = identity.configuration or base_configuration(identity)
    place = LogPlace(
        disk=disk,
        directory=data.wal_dir,
        stamp=Stamp(cluster_id=identity.cluster_id, member=identity.member, incarnation=identity.incarnation),
        segment_bytes=config.storage.segment_bytes,
        batch_bytes_max=config.storage.batch_bytes_max,
        random_u64=random_u64,
    )
    found = open_log(
        place,
        applied_index=Index(machine.applied_index),
        create=not identity.has_log,
        may_salvage=len(known.members) > 1,
        installed=_unfinished_install(machine),
        installed_time=machine.applied_time,
    )
    if not identity.has_log or identity.applied_limits.keys() != limits.keys():
        # Before the node takes part in anything: from here on a missing log is a loss.
        data.save_identity(msgspec.structs.replace(identity, has_log=True, applied_limits=limits))
    return found


def _unfinished_install(machine: StateMachine) -> LogPosition | None:
    """Where the snapshot ended that the store came as, if nothing was applied since: the log may not follow it yet."""
    if machine.installed is None or machine.installed[0] != machine.applied_index:
        return None
    index, term = machine.installed
    return LogPosition(term, index)


@dataclass
class Storage:
    """What a node keeps on its disk, opened."""

    machine: StateMachine
    log_store: Wal
    snapshots: SnapshotFiles
    recovered: Recovered

    def close(self) -> None:
        """If no node was made of it; a node closes all of it itself."""
        self.snapshots.close()
        self.log_store.close()
        self.machine.backend.close()


def open_snapshots(
    config: Config, data: DataDir, disk: Disk, pointer: StorePointer | None, machine: StateMachine
) -> SnapshotFiles:
    """Where snapshots come in, and become the store that `pointer` names."""
    return SnapshotFiles(
        disk,
        data.snap_dir,
        pointer,
        cluster_id=data.identity.cluster_id,
        free_bytes_min=config.storage.free_bytes_min,
        applied_index=machine.applied_index,
    )


def open_storage(config: Config, data: DataDir, disk: RealDisk) -> Storage:
    """Store first, then the log after the store's applied index."""
    pointer: StorePointer | None = None
    backend: Backend = MemoryBackend()
    if config.storage.backend == "lmdb":
        environments = LmdbEnvironments(data.store_dir, map_bytes=config.storage.map_bytes)
        pointer = StorePointer(disk, data.store_dir, environments)
        backend = pointer.open()
    try:
        machine = StateMachine(backend, config.limits)
        log_store, recovered, salvaged = open_log_of(config, data, disk, machine)
        snapshots = open_snapshots(config, data, disk, pointer, machine)
    except BaseException:
        backend.close()
        raise
    member = data.identity.member
    if salvaged is not None:
        damage = salvaged.damage
        log.error("wal.damaged", node=member, what=damage.what, **damage.detail)
    if recovered.quarantine is not None:
        log.warning(
            "quarantine.began",
            node=member,
            last_index=recovered.last_index,
            applied_index=machine.applied_index,
            set_aside=list(salvaged.set_aside) if salvaged else [],
        )
    report = recovered.report
    if report.torn is not None:
        log.warning("wal.torn_tail_cut", node=member, **msgspec.structs.asdict(report.torn))
    log.info(
        "wal.recovered",
        node=member,
        last_index=recovered.last_index,
        term=recovered.hard_state.term,
        segments=report.segments,
        segments_scanned=report.segments_scanned,
    )
    return Storage(machine, log_store, snapshots, recovered)
