"""The sceptic's reader: checks logs on disk without sharing a line with the code that writes them.

Own parsing of headers and records, the `msgpack` package for payloads; only the format table in ``segment.py``
is common ground. `verify` checks one log: header and record checksums, the chain of records within and across
segments, consecutive record numbers and indexes, terms that never decrease, hybrid timestamps that strictly increase.
`compare` checks several: where two logs hold the same (index, term), they hold the same bytes there and everywhere
before (Log Matching); a term has one author, the leader named by its no-op.

Reads only, and works beside a running node: an unfinished last write is noted, not held against the log, unless
a record behind it shows that it had been durable. Memory: 40 bytes an entry.

Source: Raft thesis §3.6 (Log Matching), figure 3.2 (Election Safety).
"""

from __future__ import annotations

import os
import re
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import combinations
from typing import NamedTuple
from zlib import crc32

import msgpack

_NAME = re.compile(r"(\d{10})-(\d{20})\.wal")
_HEADER = struct.Struct("<8s2I8QII10Q")
_HEAD = struct.Struct("<2I2BHI4Q")
_BLOCK = 4096
_NOOP = 1
_ENTRY, _HARD_STATE, _TRUNCATE, _SNAPSHOT, _MARK, _END = range(1, 7)
_RECORDS_BETWEEN_SIGNS = 4_096


class Problem(NamedTuple):
    """One violation: where, in words, and what."""

    where: str
    what: str


def _at(path: str, offset: int, what: str) -> Problem:
    return Problem(f"{path}, offset {offset}", what)


@dataclass(slots=True)
class VerifiedLog:
    """One log as the verifier read it. The columns hold the live entries from `first_index` on."""

    path: str
    cluster_id: int = 0
    member: int = 0
    first_index: int = 1
    terms: array[int] = field(default_factory=lambda: array("Q"))
    digests: array[int] = field(default_factory=lambda: array("Q"))  # of everything an entry holds
    times: array[int] = field(default_factory=lambda: array("Q"))
    authors: dict[int, dict[str, int]] = field(default_factory=dict)  # term → no-op payload → index
    segments: int = 0
    records: int = 0
    term: int = 0
    vote: int = 0
    commit: int = 0
    unfinished_bytes: int = 0  # an unfinished or torn write at the end
    seq: int = 0  # of the last record
    crc: int = 0  # its checksum, which the next record links to
    kind: int = 0  # its type
    low_water: int = 0  # entries up to here may be gone
    problems: list[Problem] = field(default_factory=list)
    on_progress: Callable[[str, int], None] | None = None  # told now and then: path and offset reached

    @property
    def last_index(self) -> int:
        return self.first_index + len(self.terms) - 1


class _Header(NamedTuple):
    name: str
    magic: bytes
    version: int
    checksum: int
    cluster_id: int
    member: int
    incarnation: int
    sequence: int
    salt: int
    first_index: int
    first_term: int
    previous_seq: int
    previous_crc: int
    features: int
    previous_end: int
    base_index: int
    base_term: int
    term: int
    vote: int
    commit: int
    unsynced_max: int
    last_time: int
    size: int
    anew: int


class _Record(NamedTuple):
    offset: int
    end: int
    crc: int
    kind: int
    previous_crc: int
    seq: int
    term: int
    at_index: int
    durable_seq: int
    body: bytes


def verify(path: str, on_progress: Callable[[str, int], None] | None = None) -> VerifiedLog:
    """Read and check the log in `path`, a data directory or its ``wal``. Raises: FileNotFoundError, OSError."""
    directory = _directory(path)
    log = VerifiedLog(path, on_progress=on_progress)
    headers = _headers(directory, log)
    if not headers:
        return log
    start = headers[0]
    log.cluster_id, log.member = start.cluster_id, start.member
    log.first_index, log.segments, log.low_water = start.first_index, len(headers), start.base_index
    log.term, log.vote, log.commit = start.term, start.vote, start.commit
    log.seq, log.crc = start.previous_seq, start.previous_crc
    for at, header in enumerate(headers):
        where = os.path.join(directory, header.name)
        if (header.previous_seq, header.previous_crc) != (log.seq, log.crc):
            log.problems.append(_at(where, 0, f"does not continue record {log.seq}"))
        elif header.first_index != log.last_index + 1:
            log.problems.append(_at(where, 0, f"does not continue entry {log.last_index}"))
        elif _check_segment(where, header, headers[at + 1 :], log):
            continue
        break
    if log.problems:
        return log
    if log.first_index - 1 > log.low_water:
        log.problems.append(
            Problem(directory, f"begins behind index {log.first_index - 1}, only those to {log.low_water} may be gone")
        )
    if log.commit > log.last_index:
        log.problems.append(
            Problem(directory, f"index {log.commit} is committed, but the log ends at {log.last_index}")
        )
    return log


def compare(logs: Sequence[VerifiedLog]) -> list[Problem]:
    """What two or more logs say against each other."""
    problems = [problem for one, other in combinations(logs, 2) for problem in _match(one, other)]
    authors: dict[int, dict[str, tuple[str, int]]] = {}
    for log in logs:
        for term, named in log.authors.items():
            for author, index in named.items():
                authors.setdefault(term, {}).setdefault(author, (log.path, index))
    for term, named_in in sorted(authors.items()):
        if len(named_in) > 1:
            told = ", ".join(f"{author} at {index} in {path}" for author, (path, index) in named_in.items())
            problems.append(Problem(f"term {term}", f"more than one author: {told}"))
    if len({log.cluster_id for log in logs}) > 1:
        problems.append(Problem("all logs", "they belong to different clusters"))
    return problems


def _match(one: VerifiedLog, other: VerifiedLog) -> Iterator[Problem]:
    """Log Matching: below the last (index, term) both hold, everything is equal."""
    low = max(one.first_index, other.first_index)
    high = min(one.last_index, other.last_index)
    agreed = high
    while agreed >= low and one.terms[agreed - one.first_index] != other.terms[agreed - other.first_index]:
        agreed -= 1
    for index in range(low, agreed + 1):
        here, there = index - one.first_index, index - other.first_index
        if one.terms[here] != other.terms[there]:
            what = f"terms {one.terms[here]} and {other.terms[there]}, yet both agree on the term at {agreed}"
        elif one.digests[here] != other.digests[there]:
            what = f"different entries of one term {one.terms[here]}"
        else:
            continue
        yield Problem(f"{one.path} and {other.path}, index {index}", what)
        return


def _directory(path: str) -> str:
    for directory in (path, os.path.join(path, "wal")):
        if os.path.isdir(directory) and any(_NAME.fullmatch(name) for name in os.listdir(directory)):
            return directory
    raise FileNotFoundError(f"{path} holds no log")


def _names(directory: str) -> list[str]:
    """Segments, oldest first, without those that are void: what stands before one that begins anew."""
    names = sorted(filter(_NAME.fullmatch, os.listdir(directory)))
    for at in range(len(names) - 1, 0, -1):
        block = _block(os.path.join(directory, names[at]))
        is_intact = len(block) == _BLOCK and crc32(block[:-4]) == int.from_bytes(block[-4:], "little")
        if is_intact and _HEADER.unpack_from(block)[-1]:
            return names[at:]
    return names


def _block(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(_BLOCK)


def _headers(directory: str, log: VerifiedLog) -> list[_Header]:
    """The headers of all segments, oldest first; up to the first one that is wrong."""
    found: list[_Header] = []
    for name in _names(directory):
        where = os.path.join(directory, name)
        block = _block(where)
        if len(block) < _BLOCK or crc32(block[:-4]) != int.from_bytes(block[-4:], "little"):
            log.problems.append(_at(where, 0, "the header's checksum is wrong"))
            return found
        fields = _HEADER.unpack_from(block)
        header = _Header(name, *fields[: len(_Header._fields) - 1])
        parts = _NAME.fullmatch(name)
        assert parts is not None
        if (header.magic, header.version, header.checksum, header.features) != (
            b"KVNODEWL",
            1,
            1,
            0,
        ) or header.anew > 1:
            log.problems.append(_at(where, 0, "another format"))
        elif (header.sequence, header.first_index) != (int(parts[1]), int(parts[2])):
            log.problems.append(_at(where, 0, "the name and the header differ"))
        elif found and header.sequence == found[-1].sequence:
            log.problems.append(_at(where, 0, f"two segments carry number {header.sequence}"))
        elif found and header[4:7] != found[0][4:7]:
            log.problems.append(_at(where, 0, "written by another node than the first segment"))
        else:
            if found and header.sequence != found[-1].sequence + 1:
                found.clear()  # older ones that came back after they were dropped; the low-water mark judges the gap
            found.append(header)
            continue
        return found
    return found


def _check_segment(where: str, header: _Header, successors: Sequence[_Header], log: VerifiedLog) -> bool:
    """Check the records of one segment; False if the log ends here, or cannot be followed any further."""
    start = crc32(header.salt.to_bytes(8, "little"))
    log.kind = 0
    data = _read(where)
    until = successors[0].previous_seq if successors else None
    offset = _follow(where, data, _BLOCK, start, log, until)
    if offset is None:
        return False
    if until is None:
        return _check_last(where, header, data, offset, start, log)
    if log.seq == until:
        return True
    if log.seq + 1 == until and offset == successors[0].previous_end and len(successors) == 1:
        successor = os.path.join(os.path.dirname(where), successors[0].name)
        if not _read(successor)[_BLOCK:].strip(b"\0"):  # begun, not used: the seal is written in between
            log.segments -= 1
            _check_last(where, header, data, offset, start, log)
            return False
        _follow(where, _read(where), offset, start, log, until)  # a running node may have sealed it just now
        if log.seq == until:
            return True
    log.problems.append(_at(where, offset, f"no valid record {log.seq + 1}, but a later segment follows"))
    return False


def _follow(  # noqa: PLR0917
    where: str, data: bytes, offset: int, start: int, log: VerifiedLog, until: int | None
) -> int | None:
    """Take records from `offset` until one is not valid; returns where that is. None: one contradicts the log."""
    while until is None or log.seq < until:
        record = _parse(data, offset, start)
        if record is None or (record.seq, record.previous_crc) != (log.seq + 1, log.crc):
            break
        problem = _take(record, log)
        if problem:
            log.problems.append(_at(where, offset, problem))
            return None
        log.records += 1
        if log.on_progress is not None and log.records % _RECORDS_BETWEEN_SIGNS == 1:
            log.on_progress(where, offset)
        log.seq, log.crc, log.kind, offset = record.seq, record.crc, record.kind, record.end
    return offset


def _check_last(  # noqa: PLR0917
    where: str, header: _Header, data: bytes, offset: int, start: int, log: VerifiedLog
) -> bool:
    """The end of the newest segment. A node may be writing to it: what looks wrong is read once more."""
    if len(data) < header.size:
        log.problems.append(_at(where, len(data), f"the file was made {header.size} bytes long and has lost its end"))
    if log.kind == _END and not _has_segment(os.path.dirname(where), header.sequence + 1):
        log.problems.append(_at(where, offset, "the segment is sealed, but the one after it is missing"))
        return False
    problem = _check_end(header, data, offset, start, log)
    while problem:
        fresh = _read(where)
        if fresh == data:
            log.problems.append(_at(where, offset, problem))
            return False
        data = fresh
        followed = _follow(where, data, offset, start, log, None)
        if followed is None:
            return False
        offset = followed
        problem = _check_end(header, data, offset, start, log)
    return True


def _has_segment(directory: str, sequence: int) -> bool:
    """Whether there is one of that number now: a running node may have begun it since the directory was listed."""
    return any((found := _NAME.fullmatch(name)) and int(found[1]) == sequence for name in os.listdir(directory))


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _check_end(header: _Header, data: bytes, offset: int, start: int, log: VerifiedLog) -> str:
    """What stands behind the last record: nothing, an unfinished write, or proof that something was lost."""
    rest = data[offset:].rstrip(b"\0")
    if len(rest) > header.unsynced_max:
        return f"no valid record {log.seq + 1}, and {len(rest)} bytes follow, more than one write may leave"
    for at in range(offset, offset + len(rest), 8):
        record = _parse(data, at, start)
        if record is not None and log.seq < record.durable_seq < record.seq:
            return f"no valid record {log.seq + 1}, but the one at {at} shows that it was durable"
    log.unfinished_bytes = len(rest)
    return ""


def _parse(data: bytes, offset: int, start: int) -> _Record | None:
    if offset + _HEAD.size > len(data):
        return None
    crc, length, kind, flags, reserved, previous_crc, seq, term, index, durable_seq = _HEAD.unpack_from(data, offset)
    body = offset + _HEAD.size
    end = (body + length + 7) // 8 * 8
    if not _ENTRY <= kind <= _END or flags or reserved or end > len(data) or data[body + length : end].strip(b"\0"):
        return None
    if crc32(memoryview(data)[offset + 4 : end], start) != crc:
        return None
    return _Record(
        offset, end, crc, kind, previous_crc, seq, term, index, durable_seq, bytes(data[body : body + length])
    )


def _take(record: _Record, log: VerifiedLog) -> str:
    """Fold a record into `log`; returns what is wrong with it, "" if nothing."""
    if record.kind == _ENTRY:
        return _take_entry(record, log)
    if record.kind == _HARD_STATE:
        if record.term < log.term:
            return f"term {record.term} follows term {log.term}"
        (vote,) = struct.unpack("<Q", record.body)
        if record.term == log.term and log.vote and vote != log.vote:
            return f"the vote of term {log.term} changed from {log.vote} to {vote}"
        log.term, log.vote, log.commit = record.term, vote, record.at_index
    elif record.kind == _SNAPSHOT:
        log.low_water = record.at_index
    elif record.kind == _TRUNCATE:
        if record.at_index <= log.commit:
            return f"entries from {record.at_index} are cut, but {log.commit} is committed"
        log.first_index = min(log.first_index, record.at_index)  # what it cuts may have stood in a segment now gone
        keep = record.at_index - log.first_index
        for column in (log.terms, log.digests, log.times):
            del column[keep:]
    return ""


def _take_entry(record: _Record, log: VerifiedLog) -> str:
    if record.at_index != log.last_index + 1:
        return f"entry {record.at_index} follows entry {log.last_index}"
    if record.term > log.term:
        return f"entry {record.at_index} has term {record.term}, the hard state term {log.term}"
    if log.terms and record.term < log.terms[-1]:
        return f"entry {record.at_index} has term {record.term}, below {log.terms[-1]}"
    try:
        time, kind, _session, _sequence, payload = msgpack.unpackb(record.body, raw=False)
    except (ValueError, msgpack.UnpackException) as error:
        return f"entry {record.at_index} cannot be decoded: {error}"
    if log.times and time <= log.times[-1]:
        return f"the time of entry {record.at_index} is not after that of the entry before"
    if kind == _NOOP:
        log.authors.setdefault(record.term, {}).setdefault(payload.decode(errors="replace"), record.at_index)
    log.terms.append(record.term)
    log.times.append(time)
    log.digests.append(int.from_bytes(blake2b(record.body, digest_size=8).digest(), "little"))
    return ""
