"""Reader: the process that reads a log, a store or a disk for the doctor, so that what they do to it stays there.

A damaged store can kill whoever maps it (SIGBUS), and a disk that hangs keeps whoever waits for it for ever. So each is
read by a process of its own: the job comes as one line of JSON, signs of life and then the result go back as lines. It
opens everything for reading only; the one file it ever makes is unlinked before it is used, and measures the disk.

The store is read without LMDB's lock, so that not even a reader's slot is written. That is safe as long as nobody
writes, which is why it is not read while a node runs, and not believed when one has started meanwhile.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

import lmdb
import msgspec

from kvnode.doctor.directory_facts import AvailableFacts, DiskSpeed, LogFacts, NextStart, StoreFacts, TornEnd, Unread
from kvnode.errors import KvnodeError, LogCorrupted, StorageFailed
from kvnode.ids import Index, Term
from kvnode.machine import keycode, rows
from kvnode.raft.messages import LogPosition
from kvnode.storage.available_shelf import DamagedStore, LmdbShelf
from kvnode.storage.available_store import HEADER_KEY, NAME, read_all
from kvnode.storage.environments import LmdbEnvironments
from kvnode.storage.lmdb_backend import ENGINE, ENGINE_KEY
from kvnode.storage.log_place import LogPlace
from kvnode.storage.readonly_disk import ReadOnlyDisk
from kvnode.storage.segment import Stamp
from kvnode.storage.small_file import DamagedFile
from kvnode.storage.store_pointer import read_pointer
from kvnode.storage.vote_copy import VoteCopy
from kvnode.storage.wal import examine
from kvnode.storage.wal_recovery import is_superseded
from kvnode.storage.wal_verify import VerifiedLog, verify

ROWS_BETWEEN_SIGNS = 50_000
VERIFY_TRIES = 3

DISK_WRITES = 48
DISK_WRITE_BYTES = 4_096
DISK_TEST_S = 5.0
DISK_TEST_PREFIX = "doctor-"

Sign = Callable[[str], None]


class ReadLog(msgspec.Struct, frozen=True, tag=True):
    """Verify the log in `directory`; with `stamp` also say what the next start would make of it."""

    directory: str
    stamp: Stamp | None
    applied_index: int
    installed: tuple[int, int] | None  # where the store began, if it came as a snapshot
    has_peers: bool  # so that a damaged log can be salvaged


class ReadStore(msgspec.Struct, frozen=True, tag=True):
    directory: str


class ReadAvailable(msgspec.Struct, frozen=True, tag=True):
    """Read the available plane's store in data directory `directory`."""

    directory: str


class MeasureDisk(msgspec.Struct, frozen=True, tag=True):
    """Write to a file in `directory` that has no name any more."""

    directory: str


Job = ReadLog | ReadStore | ReadAvailable | MeasureDisk
Result = LogFacts | StoreFacts | AvailableFacts | DiskSpeed | Unread


class Line(msgspec.Struct, frozen=True):
    """What the reader says: where it is, or the result in the form of the facts of its job."""

    kind: Literal["sign", "result", "unread"]
    text: str = ""
    result: msgspec.Raw = msgspec.Raw(b"null")


def carry_out(job: Job, sign: Sign) -> Result:
    """Raises: OSError, KvnodeError when it cannot be read at all."""
    match job:
        case ReadLog():
            return read_log(job, sign)
        case ReadStore(directory=directory):
            return read_store(directory, sign)
        case ReadAvailable(directory=directory):
            return read_available(directory)
        case MeasureDisk(directory=directory):
            return measure_disk(directory)


# ── the log ─────────────────────────────────────────────────────────────────────────────────────────


def read_log(job: ReadLog, sign: Sign) -> LogFacts:
    log = _verify(job.directory, sign)
    return LogFacts(
        member=log.member,
        cluster_id=log.cluster_id,
        first_index=log.first_index,
        last_index=log.last_index,
        segments=log.segments,
        records=log.records,
        term=log.term,
        vote=log.vote,
        commit=log.commit,
        unfinished_bytes=log.unfinished_bytes,
        problems=tuple((problem.where, problem.what) for problem in log.problems),
        start=_next_start(job, job.stamp) if job.stamp is not None else None,
    )


def _verify(directory: str, sign: Sign) -> VerifiedLog:
    """A running node may drop its oldest segments while they are read: then from the top."""
    for _ in range(VERIFY_TRIES - 1):
        with suppress(FileNotFoundError):
            return verify(directory, lambda path, offset: sign(f"{os.path.basename(path)}, offset {offset}"))
    return verify(directory)


def _next_start(job: ReadLog, stamp: Stamp) -> NextStart:
    """Ask the start's own code, on a disk that cannot be written to."""
    installed = LogPosition(Term(job.installed[1]), Index(job.installed[0])) if job.installed else None
    if installed is not None and installed.index != job.applied_index:  # what it has applied since proves the rest
        installed = None
    disk = ReadOnlyDisk()
    place = LogPlace(disk, job.directory, stamp, segment_bytes=0, batch_bytes_max=0)
    votes = VoteCopy(disk, job.directory, stamp)
    try:
        found, _, _ = examine(place, Index(job.applied_index), votes, installed)
    except LogCorrupted as damage:
        salvaged = job.has_peers and damage.repairable and votes.is_certain
        return NextStart("salvaged" if salvaged else "refused", damage.what)
    except KvnodeError as refusal:
        return NextStart("refused", refusal.message)
    if installed is not None and is_superseded(found.state.index, installed):
        return NextStart("installing", last_index=installed.index)
    last = found.state.index.last_index
    if found.torn is not None:
        torn = TornEnd(found.torn.file, found.torn.offset, found.torn.bytes_cut)
        return NextStart("torn", torn=torn, last_index=last)
    return NextStart("whole", last_index=last)


# ── the store ───────────────────────────────────────────────────────────────────────────────────────


def read_store(directory: str, sign: Sign) -> StoreFacts:
    """Every row in order: LMDB follows each page to it, and each is checked for what its table promises.

    `directory` is that of all environments; the one that `CURRENT` names is read.
    """
    environments = LmdbEnvironments(directory, map_bytes=0)
    try:
        number = read_pointer(ReadOnlyDisk(), directory, environments.numbers())
    except FileNotFoundError:  # not even a directory
        return StoreFacts(is_there=False)
    except (StorageFailed, DamagedFile) as error:
        return StoreFacts(is_there=True, problems=(str(error),))
    if number is None or number not in environments.numbers():
        return StoreFacts(is_there=False)
    return msgspec.structs.replace(_read_environment(environments.place(number), sign), environment=number)


def _read_environment(directory: str, sign: Sign) -> StoreFacts:
    try:
        env = _open_to_read(directory)
    except lmdb.Error as error:
        return StoreFacts(is_there=True, problems=(f"LMDB does not open it: {error}",))
    try:
        with env.begin() as view:
            return _walk(view, int(env.stat()["entries"]), sign)
    except lmdb.Error as error:
        return StoreFacts(is_there=True, problems=(f"LMDB cannot read it: {error}",))
    finally:
        env.close()


def _open_to_read(directory: str) -> Any:
    """Raises: lmdb.Error."""
    return lmdb.open(directory, readonly=True, lock=False, create=False, readahead=True, lib_version=0)


def _walk(view: Any, promised: int, sign: Sign) -> StoreFacts:
    engine = view.get(ENGINE_KEY)
    meta_row = view.get(keycode.META_KEY)
    if engine is not None and engine != ENGINE:
        what = f"it was written by {engine.decode(errors='replace')!r}; this program reads {ENGINE.decode()}"
        return StoreFacts(is_there=True, engine=engine.decode(errors="replace"), problems=(what,))
    meta = rows.decode_meta(meta_row) if meta_row is not None else rows.Meta()
    problems: list[str] = []
    count, logical_bytes, last_revision, last_key = 0, 0, 0, b""
    for key, value in view.cursor():
        if count % ROWS_BETWEEN_SIGNS == 0:
            sign(f"{count} of {promised} rows")
        count += 1
        if key <= last_key:
            problems.append(f"row {key.hex()} stands behind row {last_key.hex()}")
        last_key = key
        try:
            if keycode.VERSIONS <= key < keycode.VERSIONS_END:
                logical_bytes += rows.logical_bytes(rows.decode_version((key, value)))
            elif key >= keycode.REVISIONS:
                last_revision, _, _ = rows.decode_revision((key, value))
        except (msgspec.MsgspecError, ValueError, IndexError, AssertionError) as error:
            problems.append(f"row {key.hex()} cannot be decoded: {error}")
        if len(problems) >= 10:
            problems.append("and perhaps more: the rest was not read")
            break
    else:
        if count != promised:
            problems.append(f"{count} rows can be reached, LMDB counts {promised}")
        if logical_bytes != meta.logical_bytes:
            problems.append(f"its versions have {logical_bytes} bytes, its meta row counts {meta.logical_bytes}")
        if last_revision > meta.revision:
            problems.append(f"it holds a change of revision {last_revision}, its meta row ends at {meta.revision}")
    return StoreFacts(
        is_there=True,
        engine=engine.decode() if engine is not None else "",
        applied_index=meta.applied_index,
        installed=meta.installed,
        revision=meta.revision,
        rows=count,
        problems=tuple(problems),
    )


# ── the store of the available plane ────────────────────────────────────────────────────────────────


def read_available(directory: str) -> AvailableFacts:
    """As a start reads it: its pages, then every row."""
    shelf = LmdbShelf(ReadOnlyDisk(), directory)
    if NAME not in shelf.names():
        return AvailableFacts(is_there=False)
    try:
        commits = shelf.check(NAME)
        env = _open_to_read(f"{directory}/{NAME}")
        try:
            with env.begin() as view:
                found = [(key, value) for key, value in view.cursor() if key >= HEADER_KEY]
                engine = view.get(ENGINE_KEY)
        finally:
            env.close()
        if engine != ENGINE:
            raise DamagedStore(f"it was written by {engine!r}; this program reads {ENGINE.decode()}")
        header, rows_read = read_all(found, None, commits)
    except StorageFailed as error:
        return AvailableFacts(is_there=True, problem=error.message, is_newer=True)
    except (DamagedStore, lmdb.Error) as error:
        return AvailableFacts(is_there=True, problem=str(error))
    return AvailableFacts(True, header.member, header.cluster_id, header.incarnation, len(rows_read))


# ── the disk ────────────────────────────────────────────────────────────────────────────────────────


def measure_disk(directory: str) -> DiskSpeed:
    """Small writes as the log makes them: in place, in a file of known size, each with its fdatasync."""
    path = os.path.join(directory, f"{DISK_TEST_PREFIX}{os.getpid()}.tmp")
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.unlink(path)  # at once: whatever happens to this process, nothing stays
        block = bytes(DISK_WRITE_BYTES)
        for at in range(DISK_WRITES):
            os.pwrite(file, block, at * DISK_WRITE_BYTES)
        os.fsync(file)
        took: list[float] = []
        until = time.monotonic() + DISK_TEST_S
        while len(took) < DISK_WRITES and time.monotonic() < until:
            began = time.perf_counter()
            os.pwrite(file, os.urandom(DISK_WRITE_BYTES), len(took) * DISK_WRITE_BYTES)
            _fdatasync(file)
            took.append((time.perf_counter() - began) * 1e3)
    finally:
        os.close(file)
    took.sort()
    rank = -(-len(took) * 99 // 100) - 1
    return DiskSpeed(len(took), p50_ms=took[len(took) // 2], p99_ms=took[rank], max_ms=took[-1])


_fdatasync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)  # macOS has none


def main() -> None:
    """The process: one job on standard input, lines on standard output."""
    job: Job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)

    def say(line: Line) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
        sys.stdout.buffer.flush()

    try:
        result = carry_out(job, lambda text: say(Line("sign", text)))
    except (OSError, KvnodeError) as error:
        say(Line("unread", str(error)))
    else:
        say(Line("result", result=msgspec.Raw(msgspec.json.encode(result))))


if __name__ == "__main__":
    main()
