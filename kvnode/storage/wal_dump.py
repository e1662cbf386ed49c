"""The log as text: one plain dictionary a record, for ``kvnode wal dump``.

Reads only, locks nothing, and works beside a running node: what the node has written by now is shown, a record
it is just writing ends the log; a damaged one that others follow is an error. Entries that a later truncation cut
are left out unless everything is asked for, and segments that came back after they were dropped always.
"""

from __future__ import annotations

import os
from base64 import b64encode
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, assert_never

from kvnode.clocks.hybrid import to_text
from kvnode.errors import LogCorrupted
from kvnode.kv.keys import ONE_KEY
from kvnode.kv.requests import (
    Campaign,
    Command,
    Compact,
    Delete,
    LeaseGrant,
    LeaseRenew,
    LeaseRevoke,
    LeaseUpkeep,
    Put,
    SessionEnd,
    SessionOpen,
    StateCheck,
    Sweep,
    Txn,
    WriteRequest,
)
from kvnode.raft.messages import Entry, EntryKind
from kvnode.storage import segment
from kvnode.storage.segment import VOTE, FormatError, Record, SegmentHeader, parse_name
from kvnode.storage.segment_reader import SegmentReader, entry_of, read_header
from kvnode.wire.codec import CodecError, decode_configuration, decode_request

Line = dict[str, Any]

_NAMES = {
    segment.HARD_STATE: "hard_state",
    segment.TRUNCATE: "truncate",
    segment.SNAPSHOT_MARKER: "snapshot_marker",
    segment.MARK: "mark",
    segment.SEGMENT_END: "segment_end",
}


class ReadOnlyFile:
    """A file opened for reading only; what a `SegmentReader` needs."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def pread(self, offset: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, offset)

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def close(self) -> None:
        os.close(self._descriptor)


def log_directory(path: str) -> str:
    """The directory of the segments, given it or the data directory around it. Raises: FileNotFoundError."""
    for directory in (path, os.path.join(path, "wal")):
        if os.path.isdir(directory) and any(parse_name(name) for name in os.listdir(directory)):
            return directory
    raise FileNotFoundError(f"{path} holds no log")


def dump(path: str, *, first_index: int = 1, everything: bool = False) -> Iterator[Line]:
    """The records of the log in order. Raises: LogCorrupted, FileNotFoundError, OSError."""
    directory = log_directory(path)
    cuts = _cuts(directory)
    if everything:
        yield from _beginning(directory)
    for name, record in _records(directory):
        if record.type == segment.ENTRY:
            cut = cuts.lowest_after(record.seq) <= record.index
            if record.index < first_index or (cut and not everything):
                continue
            line = _entry_line(record, name)
            if cut:
                line["truncated"] = True
            yield line
        elif everything:
            yield _other_line(record, name)


class _Cuts:
    """All truncations of the log, by seq, each with the lowest index that it or a later one cuts from."""

    def __init__(self, found: list[tuple[int, int]]) -> None:
        self._seqs = [seq for seq, _ in found]
        self._lowest = [index for _, index in found]
        for at in range(len(found) - 2, -1, -1):
            self._lowest[at] = min(self._lowest[at], self._lowest[at + 1])

    def lowest_after(self, seq: int) -> float:
        at = bisect_left(self._seqs, seq)
        return self._lowest[at] if at < len(self._lowest) else float("inf")


def _cuts(directory: str) -> _Cuts:
    return _Cuts([(record.seq, record.index) for _, record in _records(directory) if record.type == segment.TRUNCATE])


def _segments(directory: str) -> tuple[list[str], list[str], list[SegmentHeader]]:
    """The segments that do not count any more; those of the log, oldest first, and their headers."""
    names = sorted(name for name in os.listdir(directory) if parse_name(name))
    headers: list[SegmentHeader] = []  # newest first
    for name in reversed(names):
        header = _header(directory, name)
        if headers and header.sequence != headers[-1].sequence - 1:
            break
        headers.append(header)
        if header.begins_anew:
            break
    at = len(names) - len(headers)
    return names[:at], names[at:], headers[::-1]


def _beginning(directory: str) -> Iterator[Line]:
    """Where the log begins behind a snapshot."""
    void, names, headers = _segments(directory)
    if headers[0].begins_anew:
        base = headers[0].base
        yield {"record": "begins_anew", "index": base.index, "term": base.term, "segment": names[0], "void": void}


def _records(directory: str) -> Iterator[tuple[str, Record]]:
    _, names, headers = _segments(directory)
    seq, crc = headers[0].previous_seq, headers[0].previous_crc
    for at, (name, header) in enumerate(zip(names, headers, strict=True)):
        until = headers[at + 1].previous_seq if at + 1 < len(headers) else None
        file = ReadOnlyFile(os.path.join(directory, name))
        try:
            reader = SegmentReader(file, header.crc_start)
            offset = segment.HEADER_BYTES
            while until is None or seq < until:
                record = reader.record_at(offset)
                if record is None or (record.seq, record.previous_crc) != (seq + 1, crc):
                    if seq + 1 == until and at + 2 == len(headers):
                        break  # the seal of a segment just being left
                    if until is None:
                        behind = reader.last_nonzero(offset)
                        if reader.unreadable is None and reader.find_later(offset, behind, seq + 1) is None:
                            break  # the end of the log
                        reader = SegmentReader(file, header.crc_start)  # the node has gone on meanwhile, or damage
                        record = reader.record_at(offset)
                if record is None or (record.seq, record.previous_crc) != (seq + 1, crc):
                    raise LogCorrupted(
                        f"{os.path.join(directory, name)}, offset {offset}: no valid record {seq + 1} here",
                        file=os.path.join(directory, name),
                        offset=offset,
                    )
                yield name, record
                seq, crc, offset = record.seq, record.crc, record.end
        finally:
            file.close()


def _header(directory: str, name: str) -> SegmentHeader:
    path = os.path.join(directory, name)
    file = ReadOnlyFile(path)
    try:
        return read_header(file)
    except FormatError as error:
        raise LogCorrupted(f"{path}, offset 0: {error}", file=path, offset=0) from error
    finally:
        file.close()


def _entry_line(record: Record, name: str) -> Line:
    entry = entry_of(record)
    kind = EntryKind(entry.kind).name.lower() if entry.kind in set(EntryKind) else entry.kind
    return {
        "index": entry.index,
        "term": entry.term,
        "time": to_text(entry.time),
        "kind": kind,
        **_payload_fields(entry),
        "session": entry.session,
        "sequence": entry.sequence,
        "bytes": len(entry.payload),
        "segment": name,
        "offset": record.offset,
    }


def _payload_fields(entry: Entry) -> Line:
    try:
        match entry.kind:
            case EntryKind.NOOP:
                return {"leader": entry.payload.decode(errors="replace")}
            case EntryKind.CONFIGURATION:
                configuration = decode_configuration(entry.payload)
                return {"voters": list(configuration.voters), "learners": list(configuration.learners)}
            case EntryKind.COMMAND:
                return _request_fields(decode_request(entry.payload))
            case _:
                return {}
    except CodecError as error:
        return {"undecodable": str(error)}


def _request_fields(request: WriteRequest) -> Line:
    match request:
        case Command():
            key = _key("idempotency_key", request.key) if request.key else {}
            return {**_request_fields(request.request), **key}
        case SessionOpen():
            return {"op": "session_open", "ttl_ms": request.ttl_ms}
        case SessionEnd():
            ended = [session for session, _ in request.sessions]
            return {"op": "session_end", "sessions": ended, "keys_through": request.keys_through}
        case Put():
            return {"op": "put", **_key("key", request.key)}
        case Delete() if request.end == ONE_KEY:
            return {"op": "delete", **_key("key", request.start)}
        case Delete():
            return {"op": "delete_range", **_key("key", request.start), **_key("end", request.end)}
        case Txn():
            touched = [
                operation.key if isinstance(operation, Put) else operation.start
                for operation in (*request.success, *request.failure)
                if isinstance(operation, Put | Delete)
            ]
            return {"op": "txn", "keys": [_key("key", key) for key in touched]}
        case Compact():
            return {"op": "compact", "revision": request.revision}
        case Sweep():
            return {"op": "sweep", "before": request.before, "changes_max": request.changes_max}
        case StateCheck():
            return {"op": "state_check"}
        case LeaseGrant(put=put):
            return {"op": "lease_grant", "ttl_ms": request.ttl_ms, **(_key("key", put.key) if put is not None else {})}
        case LeaseRevoke():
            return {"op": "lease_revoke", "lease": request.id}
        case LeaseRenew():
            return {"op": "lease_renew", "lease": request.id}
        case LeaseUpkeep():
            expired = [lease for lease, _ in request.expired]
            return {"op": "lease_upkeep", "expired": expired, "checkpoints": len(request.checkpoints)}
        case Campaign():
            return {"op": "campaign", "ttl_ms": request.ttl_ms, **_key("name", request.name)}
        case _:
            assert_never(request)


def _key(name: str, key: bytes) -> Line:
    """Text where it is text, else base64 and a word that says so, as in HTTP answers."""
    try:
        return {name: key.decode()}
    except UnicodeDecodeError:
        return {name: b64encode(key).decode(), f"{name}_encoding": "base64"}


def _other_line(record: Record, name: str) -> Line:
    line: Line = {"record": _NAMES.get(record.type, f"type {record.type}")}
    match record.type:
        case segment.HARD_STATE:
            (vote,) = VOTE.unpack(record.payload)
            line |= {"term": record.term, "vote": vote, "commit": record.index}
        case segment.TRUNCATE:
            line |= {"from": record.index, "head_term": record.term}
        case segment.SNAPSHOT_MARKER:
            line |= {"index": record.index, "term": record.term}
        case segment.SEGMENT_END:
            line |= {"last_index": record.index, "last_term": record.term}
        case _:
            pass
    return {**line, "seq": record.seq, "durable_seq": record.durable_seq, "segment": name, "offset": record.offset}
