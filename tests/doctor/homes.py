"""A real data directory to look into: identity, log and store as a node leaves them, without running one."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from kvnode.config import LimitsSection
from kvnode.doctor.directory_facts import Unread
from kvnode.doctor.reader import Job, carry_out
from kvnode.errors import KvnodeError
from kvnode.ids import Index, Term
from kvnode.kv.requests import Put
from kvnode.machine.backend import Backend
from kvnode.machine.machine import StateMachine
from kvnode.storage.datadir import DataDir, MemberIdentity
from kvnode.storage.environments import LmdbEnvironments
from kvnode.storage.log_place import LogPlace
from kvnode.storage.realdisk import RealDisk
from kvnode.storage.store_pointer import StorePointer
from kvnode.storage.wal import Stamp, Wal
from tests.storage.wal_world import entry, persist

CLUSTER_ID = 0xC1
SEGMENT_BYTES = 8_192
ENTRIES = 60
APPLIED = 20
MAP_BYTES = 16 << 20
ENVIRONMENT = "env-0000000001"


def make_home(path: Path, *, member: int = 1, members: int = 3, applied: int = APPLIED, close: bool = True) -> Path:
    """A member's directory with `ENTRIES` entries in several segments, the store at `applied`."""
    random_u64 = partial(random.Random(member).getrandbits, 64)
    data = DataDir.open(
        RealDisk(),
        str(path),
        member=member,
        cluster_name="local",
        random_u64=random_u64,
        allow_unsafe_filesystem=True,
    )
    identity = data.identity
    met = {id_: MemberIdentity(id_, f"127.0.0.1:750{id_}") for id_ in range(1, members + 1)}
    data.save_identity(msgspec.structs.replace(identity, cluster_id=CLUSTER_ID, members=met, has_log=True))
    place = LogPlace(
        RealDisk(),
        data.wal_dir,
        Stamp(cluster_id=CLUSTER_ID, member=member, incarnation=identity.incarnation),
        SEGMENT_BYTES,
        4_096,
        random_u64,
    )
    wal, _ = Wal.open(place, applied_index=Index(0), create=True)
    wal.write([persist(1, entry(1), state=(1, 1))])
    wal.write([persist(2, state=(2, 1))])  # twice: the copy of the vote has both its slots then
    for index in range(2, ENTRIES + 1):
        wal.write([persist(index + 1, entry(index, 2, b"x" * 400), commit=index - 1)])
    if close:
        wal.close()
    fill_store(Path(data.store_dir), applied)
    data.close()
    return path


def fill_store(directory: Path, applied: int) -> None:
    """Apply puts up to `applied` to the store below `directory`, which is made if there is none."""
    directory.mkdir(mode=0o700, exist_ok=True)
    backend = open_store(directory)
    machine = StateMachine(backend, LimitsSection())
    for index in range(machine.applied_index + 1, applied + 1):
        machine.apply(Index(index), index, Put(b"key %d" % (index % 7), b"value" * 100))
    cut = machine.cut(Term(1))
    assert cut is not None
    backend.commit(cut)
    backend.close()


def open_store(directory: Path) -> Backend:
    return StorePointer(RealDisk(), str(directory), LmdbEnvironments(str(directory), map_bytes=MAP_BYTES)).open()


def carry_out_here(job: Job, kind: type[Any], *, on_sign: Callable[[str], None]) -> Any:
    """As `carry_out_aside`, without a process: quick, and helpless against what hangs or kills."""
    try:
        found = carry_out(job, on_sign)
    except (OSError, KvnodeError) as error:
        return Unread(str(error))
    assert type(found) is kind
    return found


def segments(home: Path) -> list[Path]:
    return sorted((home / "wal").glob("*.wal"))


def flip(file: Path, offset: int) -> None:
    data = bytearray(file.read_bytes())
    data[offset] ^= 0xFF
    file.write_bytes(data)


def content(home: Path) -> dict[str, tuple[bytes, int, int]]:
    """Everything below `home`: content, mode and time of change; a directory has b""."""
    found = {}
    for file in [home, *home.rglob("*")]:
        seen = file.stat()
        found[str(file)] = (b"" if file.is_dir() else file.read_bytes(), seen.st_mode, seen.st_mtime_ns)
    return found
