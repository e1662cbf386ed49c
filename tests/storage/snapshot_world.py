"""A member that is to become what a snapshot says: its directory, its store and log, and the snapshot."""

from __future__ import annotations

import random
from dataclasses import dataclass

from kvnode.config import LimitsSection
from kvnode.ids import Index, NodeId, Term
from kvnode.kv.requests import Put
from kvnode.machine.machine import StateMachine
from kvnode.machine.snapshot import SnapshotReader
from kvnode.raft.messages import Configuration, LogPosition
from kvnode.sim.disk import FakeDisk
from kvnode.storage.disk import Disk
from kvnode.storage.environments import Environments, MemoryEnvironments
from kvnode.storage.memory_backend import MemoryBackend
from kvnode.storage.snapshots import SnapshotFiles
from kvnode.storage.store_pointer import StorePointer
from kvnode.wire.codec import encode_configuration

CLUSTER = 0xC1
STORE = "/store"
SNAP = "/snap"
TERM = 3
INITIAL = encode_configuration(Configuration((NodeId(1), NodeId(2))))


@dataclass(frozen=True)
class Sent:
    """A snapshot as a leader has it, and what a machine over it must show."""

    header: bytes
    blocks: tuple[bytes, ...]
    position: LogPosition
    time: int
    hash: str


def machine_at(index: int, *, values: int = 20, term: int = TERM, backend: MemoryBackend | None = None) -> StateMachine:
    """The state of a cluster after `index` puts, flushed."""
    backend = backend or MemoryBackend()
    machine = StateMachine(backend, LimitsSection())
    for number in range(machine.applied_index + 1, index + 1):
        machine.apply(Index(number), number << 16, Put(b"key %d" % (number % 50), b"%d" % number * values))
    cut = machine.cut(Term(term))
    assert cut is not None
    backend.commit(cut)
    machine.evict(cut)
    return machine


def snapshot_at(index: int, *, values: int = 20, term: int = TERM, cluster: int = CLUSTER) -> Sent:
    machine = machine_at(index, values=values, term=term)
    reader = SnapshotReader(machine.backend.pin(), cluster_id=cluster, initial=INITIAL)
    blocks = []
    while (block := reader.block(len(blocks))) is not None:
        blocks.append(block)
    reader.close()
    position = LogPosition(Term(term), Index(index))
    return Sent(reader.header, tuple(blocks), position, machine.applied_time, machine.hash_at())


def new_home(seed: int = 1) -> FakeDisk:
    disk = FakeDisk(random.Random(seed))
    for directory in (STORE, SNAP):
        disk.mkdir(directory)
    disk.fsync_dir("/")
    return disk


def files(
    disk: Disk, pointer: StorePointer | None, *, applied: int = 0, free_bytes_min: int = 0, snap: str = SNAP
) -> SnapshotFiles:
    return SnapshotFiles(
        disk, snap, pointer, cluster_id=CLUSTER, free_bytes_min=free_bytes_min, applied_index=Index(applied)
    )


def opened(disk: Disk, environments: Environments) -> tuple[StorePointer, StateMachine]:
    """The store as a start finds it."""
    pointer = StorePointer(disk, STORE, environments)
    return pointer, StateMachine(pointer.open(), LimitsSection())


def old_store(index: int = 7) -> tuple[FakeDisk, MemoryEnvironments]:
    """A member that has applied `index` entries of its own."""
    disk, environments = new_home(), MemoryEnvironments()
    backend = StorePointer(disk, STORE, environments).open()
    assert isinstance(backend, MemoryBackend)
    machine_at(index, backend=backend)
    return disk, environments


def receive(snapshots: SnapshotFiles, sent: Sent, *, at_once: int = 2) -> None:
    """All blocks from where it stands on."""
    first = snapshots.begin(sent.header)
    for number in range(first, len(sent.blocks), at_once):
        snapshots.append(number, sent.blocks[number : number + at_once])
