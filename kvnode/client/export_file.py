"""Export file: the keys of a prefix as they were at one revision, as JSON lines.

=====  ===============================================================================================
first  ``{"kvnode_export": 1, "cluster_id", "revision", "time", "prefix"}``: `Header`
then   ``{"key", "value", "create_revision", "mod_revision", "version", "lease", "time"}``, one a key, in
       ascending order of the keys' bytes: `Item`, as listings have it
last   ``{"end": true, "items": N, "digest": "sha256:…"}``: `End`; the digest is of every byte before it
=====  ===============================================================================================

Keys and values are text where they are valid UTF-8, else base64 with ``key_encoding`` or ``encoding`` beside it
(``key_encoding`` also beside the prefix). A file without its last line was cut off; one whose digest differs
was damaged, or edited. Fields that are not known are ignored; what an older version could not read gets a new number.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, Literal

import msgspec
from msgspec import UNSET, UnsetType

from kvnode.clocks import hybrid
from kvnode.kv.requests import KeyValue

VERSION = 1
LINE_BYTES_MAX = 64 << 20
"""Far beyond what any limits of keys and values in use can make; what is longer is no export."""


class BadExport(Exception):
    """The file is none, of another version, cut off, damaged, or out of order. `line` counts from 1."""

    def __init__(self, message: str, line: int = 0, *, is_damaged: bool = True) -> None:
        super().__init__(f"line {line}: {message}" if line else message)
        self.line = line
        self.is_damaged = is_damaged  # False: intact for all we know, but nothing that this version reads


class Header(msgspec.Struct, kw_only=True, frozen=True):
    """What the file is an export of."""

    kvnode_export: int = VERSION
    cluster_id: str
    revision: int  # the state is that of this revision
    time: str  # when the export was begun, by the exporting machine's clock: RFC 3339
    prefix: str
    key_encoding: Literal["base64"] | UnsetType = UNSET

    def prefix_bytes(self) -> bytes:
        return _raw(self.prefix, self.key_encoding)


class Item(msgspec.Struct, kw_only=True, frozen=True, gc=False):
    """One key."""

    key: str
    key_encoding: Literal["base64"] | UnsetType = UNSET
    value: str
    encoding: Literal["base64"] | UnsetType = UNSET
    create_revision: int
    mod_revision: int
    version: int
    lease: int
    time: str

    def key_value(self) -> KeyValue:
        """Raises: ValueError."""
        return KeyValue(
            key=_raw(self.key, self.key_encoding),
            value=_raw(self.value, self.encoding),
            create_revision=self.create_revision,
            mod_revision=self.mod_revision,
            version=self.version,
            lease=self.lease,
            time=hybrid.from_text(self.time),
        )


class End(msgspec.Struct, kw_only=True, frozen=True):
    """That nothing is missing."""

    end: Literal[True] = True
    items: int
    digest: str


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A key and where the file has it."""

    line: int
    kv: KeyValue
    size: int  # bytes of the line


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def header(*, cluster_id: str, revision: int, time: str, prefix: bytes) -> Header:
    """That of an export which begins."""
    text, encoding = _text(prefix)
    return Header(cluster_id=cluster_id, revision=revision, time=time, prefix=text, key_encoding=encoding)


class Writer:
    """Writes the header at once, then items in the order of their keys, then `end`. Raises: OSError."""

    def __init__(self, file: BinaryIO, header: Header) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.items = 0
        self.size = 0  # bytes
        self._write(_encode(header) + b"\n")

    def write(self, items: Iterable[Item]) -> None:
        lines = [_encode(item) for item in items]
        self.items += len(lines)
        self._write(b"".join(line + b"\n" for line in lines))

    def end(self) -> None:
        self._write(_encode(End(items=self.items, digest=_digest_text(self._digest))) + b"\n")
        self._file.flush()

    def _write(self, data: bytes) -> None:
        self._digest.update(data)
        self._file.write(data)
        self.size += len(data)


class Reader:
    """Reads the header at once; iterated it gives the entries, and fails at the line that is wrong.

    The end is checked when all entries have been given. `partial` takes what is there of a file that was cut off or
    edited: the end may be missing or wrong, and a last line that was cut is left out. Raises: BadExport, OSError.
    """

    def __init__(self, file: BinaryIO, *, partial: bool = False) -> None:
        self._file = file
        self._partial = partial
        self._digest = hashlib.sha256()
        self._line = 0
        self.items = 0
        self.is_whole = False  # the end has come and is right
        self.header = self._read_header()
        self.prefix = self.header.prefix_bytes()

    def __iter__(self) -> Iterator[Entry]:
        last_key = b""
        while line := self._next_line():
            try:
                found = _decode(line)
            except (ValueError, RecursionError) as error:
                if not line.endswith(b"\n"):
                    break
                raise BadExport(f"not JSON: {error}", self._line) from error
            if isinstance(found, dict) and "end" in found:
                self._check_end(found)
                return
            kv = self._key_value(found, last_key)
            last_key = kv.key
            self._digest.update(line)
            self.items += 1
            yield Entry(self._line, kv, len(line))
        if not self._partial:
            raise BadExport(f"cut off after {self.items} keys: the last line, which tells their number, is missing")

    def _read_header(self) -> Header:
        line = self._next_line()
        self._digest.update(line)
        try:
            found: Any = _decode(line)
            version = found["kvnode_export"]
        except (ValueError, RecursionError, TypeError, KeyError) as error:
            raise BadExport("no export of kvnode: its header is missing", 1, is_damaged=False) from error
        if version != VERSION:
            raise BadExport(f"an export of version {version!r}; this kvnode reads {VERSION}", 1, is_damaged=False)
        try:
            header = msgspec.convert(found, Header)
            header.prefix_bytes()
        except ValueError as error:
            raise BadExport(f"the header is damaged: {error}", 1) from error
        return header

    def _next_line(self) -> bytes:
        """b"" at the end of the file."""
        line = self._file.readline(LINE_BYTES_MAX)
        if line:
            self._line += 1
        if len(line) == LINE_BYTES_MAX:
            raise BadExport(f"longer than {LINE_BYTES_MAX} bytes", self._line)
        return line

    def _key_value(self, found: Any, last_key: bytes) -> KeyValue:
        try:
            kv = msgspec.convert(found, Item).key_value()
        except ValueError as error:
            raise BadExport(f"no item: {error}", self._line) from error
        if not kv.key.startswith(self.prefix) or not kv.key:
            raise BadExport(f"the key {kv.key[:128]!r} does not start with the prefix of the header", self._line)
        if kv.key <= last_key:
            raise BadExport(f"the key {kv.key[:128]!r} does not come after the one before it", self._line)
        return kv

    def _check_end(self, found: Any) -> None:
        try:
            end = msgspec.convert(found, End)
        except ValueError as error:
            raise BadExport(f"the end is damaged: {error}", self._line) from error
        if self._next_line():
            raise BadExport("something follows the end", self._line)
        self.is_whole = (end.items, end.digest) == (self.items, _digest_text(self._digest))
        if self.is_whole or self._partial:
            return
        if end.items != self.items:
            raise BadExport(f"{self.items} keys, and the end says {end.items}: lines are missing or were added")
        raise BadExport("the digest differs: the file was damaged or edited")


def _digest_text(digest: Any) -> str:
    return f"sha256:{digest.hexdigest()}"


def _raw(text: str, encoding: str | UnsetType) -> bytes:
    try:
        return base64.b64decode(text, validate=True) if encoding == "base64" else text.encode()
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error


def _text(raw: bytes) -> tuple[str, Literal["base64"] | UnsetType]:
    try:
        return raw.decode(), UNSET
    except UnicodeDecodeError:
        return base64.b64encode(raw).decode(), "base64"
