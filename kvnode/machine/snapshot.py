"""Snapshot: one state of the store as a header, numbered blocks of rows and an end; the same bytes wherever it is read.

The same form travels between members and lies in backup files. It depends on the applied entries only, not on the
engine, on when a node flushed, or on how it got its store. All numbers are little-endian and unsigned.

Header

    offset  size  name      meaning
         0     8  magic     "KVNODESN"
         8     4  crc       CRC-32 of everything behind it
        12     4  length    of the body
        16        body      MessagePack array, `SnapshotHeader`

Block

         0     4  crc       CRC-32 of everything behind it
         4     4  length    of the body
         8     8  number    from 0
        16     1  kind      1 rows, 2 end
        17    32  chain     blake2b-256 of the chain before it, number and kind (9 bytes, as above) and body;
                            before block 0 the chain is the blake2b-256 of the header
        49        body      rows: MessagePack array of [key, value]; end: MessagePack array, `SnapshotEnd`

Block 0 holds the meta row alone; every later one as many of the following rows as fit: keys and values together at
most `BLOCK_BYTES`, or one row. The last block is the end. Its chain names the whole snapshot.

In the meta row the configuration is filled in where the store relies on the initial one, and `installed` is the
snapshot's own position: it is what the store of a receiver begins with.

Nothing is believed before it is checked: a block by its checksum, its number and its chain, so one that is damaged,
left out, repeated or another snapshot's is refused by its number; the rows by their order; the whole by the counts in
its end, without which it is cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from hashlib import blake2b
from struct import Struct
from typing import TypeVar
from zlib import crc32

import msgspec

from kvnode.errors import SnapshotRefused, StorageFailed
from kvnode.ids import Index, Revision, Term
from kvnode.machine import keycode
from kvnode.machine.backend import KEY_BYTES_MAX, PinnedView, Row
from kvnode.machine.rows import FORMAT as STORE_FORMAT
from kvnode.machine.rows import Meta, decode_meta

MAGIC = b"KVNODESN"
FORMAT = 1

BLOCK_BYTES = 64 << 10
"""Keys and values of a block's rows together, unless it is one row. Part of the format: blocks are equal everywhere."""

BODY_BYTES_MAX = 256 << 20
"""No body is longer; a row holds one value or one answer."""

MARKS_MAX = 1_024
"""Places a reader remembers, however long the snapshot is."""

CHAIN_BYTES = 32

_HEADER_HEAD = Struct("<8sII")
_BLOCK_HEAD = Struct(f"<IIQB{CHAIN_BYTES}s")
_LENGTH = Struct("<I")
_PLACE = Struct("<QB")
_LENGTH_OFFSET = {True: 12, False: 4}  # by whether it is the header


class BlockKind(IntEnum):
    ROWS = 1
    END = 2


class SnapshotHeader(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a snapshot is of. Append fields with defaults, never reorder; another `format` is refused."""

    format: int
    store_format: int  # of the rows
    cluster_id: int
    index: Index  # of the last entry in it
    term: Term
    time: int  # hybrid timestamp of that entry
    revision: Revision
    compact_revision: int
    configuration: bytes  # in force at that entry: `kvnode.wire.codec` decodes it
    configuration_index: Index  # 0: the initial one
    digest: bytes  # rolling digest at that entry
    logical_bytes: int  # about what it takes: versions as the quota counts them


class SnapshotEnd(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Everything that was to come."""

    rows: int
    bytes: int  # of keys and values


_Body = TypeVar("_Body")
_encode = msgspec.msgpack.Encoder().encode
_header_decoder = msgspec.msgpack.Decoder(SnapshotHeader)
_end_decoder = msgspec.msgpack.Decoder(SnapshotEnd)
_rows_decoder = msgspec.msgpack.Decoder(list[tuple[bytes, bytes]])


# ── making ──────────────────────────────────────────────────────────────────────────────────────────


class _Mark(msgspec.Struct, frozen=True, gc=False):
    """All that is needed to go on making blocks from `number` on."""

    number: int
    after: bytes  # the last row's key before it
    chain: bytes
    rows: int
    bytes: int


class SnapshotReader:
    """Makes the blocks of one pinned view, in order or any of them again. For one thread, that of the view.

    It remembers where every block begins, or in a long snapshot every second, fourth …; to make an earlier block again
    it reads on from the nearest. `close` closes the view.
    """

    def __init__(self, view: PinnedView, *, cluster_id: int, initial: bytes = b"") -> None:
        """`initial`: the configuration the cluster began with, where the store has none.

        Raises: SnapshotRefused when the store is empty, StorageFailed. The view stays the caller's then.
        """
        self._view = view
        rows = view.rows(b"", 1)
        if not rows or rows[0][0] != keycode.META_KEY:
            raise SnapshotRefused("a snapshot needs a store that has applied something")
        meta = decode_meta(rows[0][1])
        meta = msgspec.structs.replace(
            meta, configuration=meta.configuration or initial, installed=(meta.applied_index, meta.applied_term)
        )
        self.description = _described(meta, cluster_id)
        self.header = encode_header(self.description)
        self._meta_row: Row = (keycode.META_KEY, _encode(meta))
        self._next = _Mark(0, b"", blake2b(self.header, digest_size=CHAIN_BYTES).digest(), 0, 0)
        self._marks = [self._next]
        self._stride = 1  # blocks from mark to mark
        self._end: int | None = None  # number of the end block, once it is known

    def block(self, number: int) -> bytes | None:
        """Block `number`, from 0; None after the last one. Raises: StorageFailed."""
        assert number >= 0, number
        if self._end is not None and number > self._end:
            return None
        if number < self._next.number:
            self._next = self._marks[number // self._stride]
        block: bytes | None = None
        while self._next.number <= number:
            if self._end is not None and self._next.number > self._end:
                return None
            block = self._make()
        return block

    def close(self) -> None:
        """Idempotent."""
        self._view.close()

    def _make(self) -> bytes:
        """The next block; remembers where the one after it begins."""
        at = self._next
        rows = self._view.rows(at.after, BLOCK_BYTES) if at.number else [self._meta_row]
        if rows:
            size = sum(len(key) + len(value) for key, value in rows)
            block, chain = _block(at.number, BlockKind.ROWS, _encode(rows), at.chain)
            self._next = _Mark(at.number + 1, rows[-1][0], chain, at.rows + len(rows), at.bytes + size)
            self._remember(self._next)
        else:
            block, chain = _block(at.number, BlockKind.END, _encode(SnapshotEnd(at.rows, at.bytes)), at.chain)
            self._next = _Mark(at.number + 1, at.after, chain, at.rows, at.bytes)
            self._end = at.number
        return block

    def _remember(self, mark: _Mark) -> None:
        if mark.number == len(self._marks) * self._stride:
            self._marks.append(mark)
            if len(self._marks) > MARKS_MAX:
                del self._marks[1::2]
                self._stride *= 2


def _described(meta: Meta, cluster_id: int) -> SnapshotHeader:
    return SnapshotHeader(
        format=FORMAT,
        store_format=meta.format,
        cluster_id=cluster_id,
        index=meta.applied_index,
        term=meta.applied_term,
        time=meta.applied_time,
        revision=meta.revision,
        compact_revision=meta.compact_revision,
        configuration=meta.configuration,
        configuration_index=meta.configuration_index,
        digest=meta.digest,
        logical_bytes=meta.logical_bytes,
    )


def encode_header(header: SnapshotHeader) -> bytes:
    body = _encode(header)
    behind = _LENGTH.pack(len(body)) + body
    return MAGIC + _LENGTH.pack(crc32(behind)) + behind


def _block(number: int, kind: BlockKind, body: bytes, before: bytes) -> tuple[bytes, bytes]:
    """A block, and the chain up to it."""
    assert len(body) <= BODY_BYTES_MAX, len(body)
    chain = _chain(before, number, kind, body)
    behind = _BLOCK_HEAD.pack(0, len(body), number, kind, chain)[4:] + body
    return _LENGTH.pack(crc32(behind)) + behind, chain


def _chain(before: bytes, number: int, kind: int, body: bytes) -> bytes:
    hashed = blake2b(before, digest_size=CHAIN_BYTES)
    hashed.update(_PLACE.pack(number, kind))
    hashed.update(body)
    return hashed.digest()


# ── checking ────────────────────────────────────────────────────────────────────────────────────────


def describe(header: bytes) -> SnapshotHeader:
    """What a header says, checked by itself. Raises: SnapshotRefused."""
    where = "the snapshot's header"
    if len(header) < _HEADER_HEAD.size:
        raise SnapshotRefused(f"{where} is cut off: {len(header)} bytes")
    magic, crc, length = _HEADER_HEAD.unpack_from(header)
    if magic != MAGIC:
        raise SnapshotRefused(f"this is no snapshot: it begins with {magic!r}")
    if length != len(header) - _HEADER_HEAD.size or crc != crc32(header[12:]):
        raise SnapshotRefused(f"{where} is damaged: its checksum is wrong")
    try:
        format_, store_format, *_ = msgspec.msgpack.decode(header[_HEADER_HEAD.size :], type=list)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise SnapshotRefused(f"{where} is not as this version writes it: {error}") from error
    if (format_, store_format) != (FORMAT, STORE_FORMAT):
        raise SnapshotRefused(
            f"the snapshot has format {format_} with rows of format {store_format}; "
            f"this program reads format {FORMAT} with rows of format {STORE_FORMAT}"
        )
    found = _decoded(_header_decoder, header[_HEADER_HEAD.size :], where)
    if not (found.index > 0 and found.term > 0 and found.time >= 0 and 0 <= found.compact_revision <= found.revision):
        raise SnapshotRefused(f"{where} makes no sense: {found}")
    return found


class SnapshotVerifier:
    """Takes a header and then block after block, and gives their rows once they are proven.

    The rows are those of a receiver's store, the meta row first, all ascending.
    """

    def __init__(self, header: bytes, *, cluster_id: int | None = None) -> None:
        """`cluster_id`: whose it must be; None: anyone's. Raises: SnapshotRefused."""
        self.description = found = describe(header)
        if cluster_id is not None and found.cluster_id != cluster_id:
            raise SnapshotRefused(
                f"the snapshot is of cluster {found.cluster_id:016x}, this node belongs to {cluster_id:016x}"
            )
        self.next = 0
        """Number of the block that must come now: how many are proven."""
        self.end: SnapshotEnd | None = None
        self.chain = blake2b(header, digest_size=CHAIN_BYTES).digest()
        """Of everything proven so far; after the end it names the snapshot."""
        self._last_key = b""
        self._rows = self._bytes = 0

    def add(self, block: bytes) -> list[Row]:
        """The rows of the next block; none of the end. Raises: SnapshotRefused, after which no block may be added."""
        where = f"block {self.next} of the snapshot"
        if self.end is not None:
            raise SnapshotRefused(f"something follows the snapshot's end, block {self.next - 1}")
        kind, chain, body = self._opened(block, where)
        match kind:
            case BlockKind.ROWS:
                rows = _decoded(_rows_decoder, body, where)
                self._check_rows(rows, where)
            case BlockKind.END:
                rows = []
                self.end = _decoded(_end_decoder, body, where)
                if self.end != SnapshotEnd(self._rows, self._bytes) or not self._rows:
                    raise SnapshotRefused(f"{where}, its end, counts {self.end}: {self._rows} rows came")
            case _:
                raise SnapshotRefused(f"{where} is of unknown kind {kind}")
        self.chain = chain
        self.next += 1
        return rows

    def finish(self) -> SnapshotEnd:
        """Everything has come. Raises: SnapshotRefused if the end has not."""
        if self.end is None:
            raise SnapshotRefused(f"the snapshot is cut off before its block {self.next}")
        return self.end

    def _opened(self, block: bytes, where: str) -> tuple[int, bytes, bytes]:
        """Kind, chain and body."""
        if len(block) < _BLOCK_HEAD.size:
            raise SnapshotRefused(f"{where} is cut off: {len(block)} bytes")
        crc, length, number, kind, chain = _BLOCK_HEAD.unpack_from(block)
        body = block[_BLOCK_HEAD.size :]
        if length != len(body) or crc != crc32(block[4:]):
            raise SnapshotRefused(f"{where} is damaged: its checksum is wrong")
        if number != self.next:
            raise SnapshotRefused(f"block {number} of a snapshot stands where {where} must")
        if chain != _chain(self.chain, number, kind, body):
            raise SnapshotRefused(f"{where} does not follow from what came before: it is another snapshot's")
        return kind, chain, body

    def _check_rows(self, rows: Sequence[Row], where: str) -> None:
        if not rows:
            raise SnapshotRefused(f"{where} is empty")
        for key, value in rows:
            if not self._last_key < key or len(key) > KEY_BYTES_MAX:
                raise SnapshotRefused(f"a row of {where} is out of order, or its key is too long: {key!r}")
            self._last_key = key
            self._bytes += len(key) + len(value)
        self._rows += len(rows)
        if self.next == 0:
            self._check_meta(rows, where)

    def _check_meta(self, rows: Sequence[Row], where: str) -> None:
        """What the rows say they are must be what the header says they are."""
        try:
            ((key, value),) = rows
            meta = decode_meta(value)
        except (ValueError, RecursionError, StorageFailed) as error:
            raise SnapshotRefused(f"{where} is no meta row: {error}") from error
        description = self.description
        is_described = _described(meta, description.cluster_id) == description
        if key != keycode.META_KEY or not is_described or meta.installed != (description.index, description.term):
            raise SnapshotRefused(f"{where}, the meta row, is not what the header describes")


def _decoded(decoder: msgspec.msgpack.Decoder[_Body], body: bytes, where: str) -> _Body:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SnapshotRefused(f"{where} is not as this version writes it: {error}") from error


# ── files ───────────────────────────────────────────────────────────────────────────────────────────


def pieces(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """The header and then each block of a file that `read` reads on from; every piece is still to be checked.

    `read` gives as many bytes as asked for, fewer at the end. Raises: SnapshotRefused for what is cut off.
    """
    number = -1  # the header
    while True:
        is_header = number < 0
        where = "the snapshot's header" if is_header else f"block {number} of the snapshot"
        head = read(_HEADER_HEAD.size if is_header else _BLOCK_HEAD.size)
        if not head and not is_header:
            return
        if len(head) < (_HEADER_HEAD.size if is_header else _BLOCK_HEAD.size):
            raise SnapshotRefused(f"{where} is cut off: {len(head)} bytes")
        if is_header and not head.startswith(MAGIC):
            raise SnapshotRefused(f"this is no snapshot: it begins with {head[: len(MAGIC)]!r}")
        (length,) = _LENGTH.unpack_from(head, _LENGTH_OFFSET[is_header])
        if length > BODY_BYTES_MAX:
            raise SnapshotRefused(f"{where} is damaged: it claims a length of {length} bytes")
        body = read(length)
        if len(body) < length:
            raise SnapshotRefused(f"{where} is cut off, or damaged: {len(body)} of {length} bytes are there")
        yield head + body
        number += 1


def verified_rows(read: Callable[[int], bytes]) -> Iterator[Row]:
    """The rows of a file, each once its block is proven. Nothing may come of them before the iterator has ended.

    Raises: SnapshotRefused, at the latest where the end should be.
    """
    source = pieces(read)
    verifier = SnapshotVerifier(next(source))
    for block in source:
        yield from verifier.add(block)
    verifier.finish()
