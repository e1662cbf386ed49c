"""Gather the facts about one data directory. Reads only, takes no lock that a starting node could meet for longer than
a system call, and leaves to the reader's process what may hang or die.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable
from typing import Protocol, TypeVar

import msgspec

from kvnode.config import Config
from kvnode.doctor.directory_facts import (
    AvailableFacts,
    DirectoryFacts,
    DiskSpeed,
    FileFacts,
    LogFacts,
    StoreFacts,
    Unread,
    count_members,
)
from kvnode.doctor.reader import Job, MeasureDisk, ReadAvailable, ReadLog, ReadStore
from kvnode.errors import LogCorrupted
from kvnode.storage.datadir import Identity, OwnBoot, PeerBoot
from kvnode.storage.quarantine import Quarantine, read_note
from kvnode.storage.readonly_disk import ReadOnlyDisk
from kvnode.storage.segment import Stamp, parse_name
from kvnode.storage.small_file import DamagedFile, read_small
from kvnode.storage.vote_copy import NAME as VOTES
from kvnode.storage.vote_copy import VoteCopy

FILES_MAX = 10_000
"""Names looked at below the directory; there are a few dozen in a sound one."""

T = TypeVar("T")
Facts = TypeVar("Facts", bound=msgspec.Struct)


class CarryOut(Protocol):
    """How a job of the reader is carried out; see `carry_out_aside`."""

    def __call__(self, job: Job, kind: type[Facts], *, on_sign: Callable[[str], None]) -> Facts | Unread: ...


def gather(
    path: str, *, disk_test: bool | None, carry_out: CarryOut, on_sign: Callable[[str, str], None]
) -> DirectoryFacts:
    """The facts about the data directory `path`. Raises: OSError if it cannot be looked into.

    `disk_test`: measure the disk; None: only if nobody uses the directory. `on_sign` hears now and then what is read
    and how far.
    """
    disk = ReadOnlyDisk()
    path = path.rstrip("/") or path
    names = os.listdir(path)
    holder = _holder(f"{path}/LOCK")
    files = _files(path)
    denied = tuple(file.name for file in files if not _may_read(path, file))
    if denied:
        return DirectoryFacts(
            path=path, is_held=holder is not None, holder=holder or 0, files=files, user=os.geteuid(), denied=denied
        )
    identity = _small(disk, f"{path}/identity", Identity)
    facts = DirectoryFacts(
        path=path,
        is_held=holder is not None,
        holder=holder or 0,
        files=files,
        user=os.geteuid(),
        filesystem=disk.filesystem(path),
        free_bytes=disk.free_bytes(path),
        free_names=_free_names(path),
        identity=identity,
        boot=_small(disk, f"{path}/boot", OwnBoot),
        peers=_peers(disk, path),
        quarantine=_note(disk, f"{path}/wal"),
        homes=tuple(sorted(os.path.dirname(file.name) for file in files if file.name.endswith("/identity"))),
    )
    if "identity" not in names and "wal" not in names:
        return facts  # not a data directory, or a new one: nothing below can be there

    def aside(what: str, job: Job, kind: type[Facts]) -> Facts | Unread:
        return carry_out(job, kind, on_sign=lambda text: on_sign(what, text))

    store: StoreFacts | Unread | None = None
    if holder is None:
        store = aside("store", ReadStore(f"{path}/store"), StoreFacts)
        available = aside("ap", ReadAvailable(path), AvailableFacts)
        facts = msgspec.structs.replace(facts, available=available)
    facts = msgspec.structs.replace(facts, store=store)
    stamp = _stamp(identity)
    if stamp is not None:
        facts = msgspec.structs.replace(facts, votes_certain=_votes_certain(disk, f"{path}/wal", stamp))
    if any(parse_name(file.name.removeprefix("wal/")) for file in files):
        meets = holder is None and isinstance(store, StoreFacts) and not store.problems
        job = ReadLog(
            f"{path}/wal",
            stamp=stamp if meets else None,
            applied_index=store.applied_index if isinstance(store, StoreFacts) else 0,
            installed=store.installed if isinstance(store, StoreFacts) else None,
            has_peers=isinstance(identity, Identity) and count_members(identity) > 1,
        )
        facts = msgspec.structs.replace(facts, log=aside("log", job, LogFacts))
    if disk_test or (disk_test is None and holder is None):
        facts = msgspec.structs.replace(facts, disk=aside("disk", MeasureDisk(path), DiskSpeed))
    was_started = holder is None and _holder(f"{path}/LOCK") is not None
    return msgspec.structs.replace(facts, was_started=was_started)


def fits_configuration(facts: DirectoryFacts, config: Config) -> list[str]:
    """Where the directory's identity and the configuration of its node contradict each other; in words."""
    identity = facts.identity
    if not isinstance(identity, Identity):
        return []
    found = []
    if identity.member and config.node.id and identity.member != config.node.id:  # 0: given by the cluster
        found.append(f"it belongs to member {identity.member}, but node.id is {config.node.id}")
    if identity.cluster_name != config.cluster.name:
        found.append(f"it belongs to cluster {identity.cluster_name!r}, but cluster.name is {config.cluster.name!r}")
    for name, fixed in sorted(identity.applied_limits.items()):
        now = getattr(config.limits, name, fixed)
        if now != fixed:
            found.append(f"its log was written under limits.{name} = {fixed}, now it is {now}")
    return found


def _holder(lock: str) -> int | None:
    """The process that holds the lock file, 0 if it is not known which; None: nobody.

    The kernel's list is asked first. It does not show the locks of other containers, so the lock itself is tried,
    shared and given back at once: a node that starts within these microseconds would be refused.
    """
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # no such file, or not ours to open: then nothing else can be read either, and says so
        return None
    try:
        holder = _holder_listed(os.fstat(descriptor))
        if holder is not None:
            return holder
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        return None
    finally:
        os.close(descriptor)


def _holder_listed(file: os.stat_result) -> int | None:
    """As Linux lists it: ``1: FLOCK  ADVISORY  WRITE 4711 fd:01:393217 0 EOF``."""
    try:
        with open("/proc/locks", encoding="ascii") as listing:
            lines = listing.read().splitlines()
    except OSError:  # not Linux
        return None
    wanted = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    for line in lines:
        words = line.split()
        if len(words) >= 6 and words[1] == "FLOCK" and words[5] == wanted:
            return int(words[4])
    return None


def _files(path: str) -> tuple[FileFacts, ...]:
    """Links are followed, for a log may lie on a disk of its own; one that leads nowhere is listed as it is."""
    top = os.stat(path)
    found, waiting, entered = [_file(path, "", top)], [path], {(top.st_dev, top.st_ino)}
    while waiting and len(found) < FILES_MAX:
        try:
            entries = sorted(os.scandir(waiting.pop()), key=lambda entry: entry.name)
        except (FileNotFoundError, PermissionError):  # gone meanwhile; or its own mode, already found, tells why
            continue
        for entry in entries[: FILES_MAX - len(found)]:
            try:
                seen = os.stat(entry.path) if os.path.exists(entry.path) else os.lstat(entry.path)
            except FileNotFoundError:
                continue
            found.append(_file(path, os.path.relpath(entry.path, path), seen))
            if stat.S_ISDIR(seen.st_mode) and (seen.st_dev, seen.st_ino) not in entered:
                entered.add((seen.st_dev, seen.st_ino))
                waiting.append(entry.path)
    return tuple(found)


def _may_read(path: str, file: FileFacts) -> bool:
    """True also for what is not there, or not any more: that is no matter of permissions."""
    at, needed = os.path.join(path, file.name), os.R_OK | os.X_OK if file.is_directory else os.R_OK
    return os.access(at, needed, effective_ids=True) or not os.path.exists(at)


def _file(path: str, name: str, seen: os.stat_result) -> FileFacts:
    return FileFacts(
        name=name,
        is_directory=stat.S_ISDIR(seen.st_mode),
        mode=stat.S_IMODE(seen.st_mode),
        owner=seen.st_uid,
        bytes=seen.st_blocks * 512,
    )


def _free_names(path: str) -> int:
    found = os.statvfs(path)
    return found.f_favail if found.f_files else 1


def _small(disk: ReadOnlyDisk, path: str, kind: type[T]) -> T | Unread | None:
    try:
        return read_small(disk, path, kind)
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        return Unread(str(error))
    except OSError as error:
        return Unread(f"{path} cannot be read: {error.strerror}")


def _peers(disk: ReadOnlyDisk, path: str) -> int | Unread | None:
    found = _small(disk, f"{path}/peers", dict[int, PeerBoot])
    return len(found) if isinstance(found, dict) else found


def _note(disk: ReadOnlyDisk, directory: str) -> Quarantine | Unread | None:
    try:
        return read_note(disk, directory)
    except (LogCorrupted, OSError) as error:
        return Unread(str(error))


def _votes_certain(disk: ReadOnlyDisk, directory: str, stamp: Stamp) -> bool | None:
    if not disk.exists(f"{directory}/{VOTES}"):
        return None
    try:
        return VoteCopy(disk, directory, stamp).is_certain
    except OSError:
        return False


def _stamp(identity: Identity | Unread | None) -> Stamp | None:
    if not isinstance(identity, Identity) or not identity.cluster_id:
        return None
    return Stamp(cluster_id=identity.cluster_id, member=identity.member, incarnation=identity.incarnation)
