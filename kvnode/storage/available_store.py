"""AvailableStore: what the available plane of this node keeps, as rows in `ap/`. Its loss is survived, damage is told.

Every row carries a checksum of its key and value. All rows are read when the store is opened, never again: the plane
works in memory, and each change is one synced commit. There is no log beside it: the commit is what is durable before
anything is acknowledged or shown to anybody.

The header names the owner, and the *incarnation*: a random number made with the store. A member and an incarnation are
the origin of dots and events, which are counted from 1 and never used twice. So a store that is damaged in any way is
never repaired, and never shortened: it is moved aside as a whole (`ap.damaged-N`, the newest two are kept), and a new
one under a new incarnation begins; what it held comes back from the other members as somebody else's. The header also
counts the commits, for an engine that comes up with an older state must not pass for whole.

    key in the backend                     value
    01                                     header: MessagePack [format, member, cluster id, incarnation, commits]
    02, the row's key (≤ 510 bytes)        the row's value
    03, blake2b-256 of the row's key       length of the row's key (4 bytes), the row's key, the row's value

and behind each value crc32 of backend key and value (4 bytes); numbers are little-endian.

A store is made as `ap.new` and renamed when it is whole. At each start one commit is made before anything is served:
what was read may stand in memory only, after a kill at the wrong moment.

Source: `docs/on-disk.md`; reliability: an origin that forgot a dot would give its number to another value (S47).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple
from zlib import crc32

import msgspec

from kvnode.errors import StorageFailed
from kvnode.machine.backend import KEY_BYTES_MAX, Backend, Cursor, Row
from kvnode.storage.available_shelf import PREFIX, DamagedStore, Shelf

FORMAT = 1
NAME = PREFIX
NEW_NAME = f"{PREFIX}.new"
DAMAGED_KEPT = 2
"""Damaged stores that stay for diagnosis: the newest."""

CRC_BYTES = 4

_DAMAGED_NAME = re.compile(re.escape(PREFIX) + r"\.damaged-([0-9]{1,9})")
HEADER_KEY = b"\x01"
"""Where the rows of a backend begin that are this store's."""

_SHORT = b"\x02"
_LONG = b"\x03"
_LENGTH_BYTES = 4


class Owner(NamedTuple):
    """Whose store it is."""

    member: int
    cluster_id: int


class Header(msgspec.Struct, frozen=True, array_like=True):
    """The first row."""

    format: int
    member: int
    cluster_id: int
    incarnation: int  # not 0
    commits: int  # this one included

    @property
    def owner(self) -> Owner:
        return Owner(self.member, self.cluster_id)


class SetAside(NamedTuple):
    """A damaged store that was found and moved away."""

    name: str  # under which it stays in the data directory
    what: str  # the damage, as a clause


class _Write(NamedTuple):
    """One commit."""

    items: Sequence[Row]
    gone: Sequence[bytes]

    def rows(self) -> Sequence[Row]:
        return self.items

    def removed(self) -> Sequence[bytes]:
        return self.gone


class AvailableStore:
    """An open store. `open` is the only way to make one."""

    def __init__(self, backend: Backend, header: Header, rows: list[Row]) -> None:
        self.set_aside: SetAside | None = None  # this store is new, because of that
        self._backend = backend
        self._header = header
        self._rows = rows
        self._failed = False

    @classmethod
    def open(cls, shelf: Shelf, *, member: int, cluster_id: int, random_u64: Callable[[], int]) -> AvailableStore:
        """The store of this data directory; a new one if there is none, or it is damaged (`set_aside` says so then).

        Raises: StorageFailed, if the disk fails or a newer version of kvnode wrote it.
        """
        assert member > 0, member
        assert cluster_id > 0, cluster_id
        owner = Owner(member, cluster_id)
        set_aside = None
        try:
            names = shelf.names()
            if NAME in names:
                try:
                    return cls._load(shelf, owner)
                except DamagedStore as error:
                    set_aside = SetAside(_move_aside(shelf, names), str(error))
            if NEW_NAME in names:  # a start was interrupted before anybody had heard of it
                shelf.remove(NEW_NAME)
            _make(shelf, owner, random_u64)
            store = cls._load(shelf, owner)
        except DamagedStore as error:
            raise StorageFailed(f"the new store of the available plane is damaged already: {error}") from error
        except OSError as error:
            raise StorageFailed(f"the store of the available plane cannot be used: {error}") from error
        store.set_aside = set_aside
        return store

    @classmethod
    def _load(cls, shelf: Shelf, owner: Owner) -> AvailableStore:
        """Raises: DamagedStore, StorageFailed, OSError."""
        commits = shelf.check(NAME)
        backend = shelf.open(NAME)
        try:
            with backend.read() as cursor:
                header, rows = read_all(_rows_from(cursor), owner, commits)
            store = cls(backend, header, rows)
            store.write((), ())
        except BaseException:
            backend.close()
            raise
        return store

    @property
    def incarnation(self) -> int:
        """Not 0. With the member's id, the origin of everything this store will count."""
        return self._header.incarnation

    @property
    def bytes_used(self) -> int:
        return self._backend.bytes_used

    def rows(self) -> list[Row]:
        """All rows as they were when the store was opened, ascending. Once: they are not kept."""
        found, self._rows = self._rows, []
        return found

    def write(self, rows: Sequence[Row], removed: Sequence[bytes]) -> None:
        """One commit, durable on return; all of it or none. Keys are not empty, unique, and in one of the two only.

        One call at a time. Raises: StorageFailed; the store must not be used after that, and refuses to be.
        """
        if self._failed:
            raise StorageFailed("the store of the available plane has failed before")
        header = msgspec.structs.replace(self._header, commits=self._header.commits + 1)
        items = [_header_row(header), *sorted(_stored(key, value) for key, value in rows)]
        gone = [_stored_key(key) for key in removed]
        assert len({key for key, _ in items} | set(gone)) == 1 + len(rows) + len(removed), "a key stands twice"
        self._failed = True  # until the opposite is known
        self._backend.commit(_Write(items, gone))
        self._failed = False
        self._header = header

    def close(self) -> None:
        """Idempotent. After the last `write` has returned."""
        self._backend.close()


def read_all(rows: Iterable[Row], owner: Owner | None, commits: int | None) -> tuple[Header, list[Row]]:
    """Header and rows, ascending, from all rows of a backend; each is checked.

    `owner` None: anybody's. `commits` that its pages know of; None: they do not count.

    Raises: DamagedStore; StorageFailed if a newer version of kvnode wrote it.
    """
    stored = {key: _opened(key, value) for key, value in rows}
    value = stored.pop(HEADER_KEY, None)
    if value is None:
        raise DamagedStore("it has no header")
    header = _read_header(value)
    if owner is not None and header.owner != owner:
        raise DamagedStore(
            f"it belongs to member {header.member} of cluster {header.cluster_id:016x}, not to member {owner.member} "
            f"of cluster {owner.cluster_id:016x}"
        )
    if commits is not None and commits != header.commits:
        raise DamagedStore(f"its header is of commit {header.commits}, its pages are of commit {commits}")
    return header, sorted(_row(key, value) for key, value in stored.items())


def _rows_from(cursor: Cursor) -> Iterator[Row]:
    row = cursor.seek(HEADER_KEY)
    while row is not None:
        yield row
        row = cursor.next()


def _opened(key: bytes, value: bytes) -> bytes:
    """The content, without its checksum. Raises: DamagedStore."""
    content = value[:-CRC_BYTES]
    if value[-CRC_BYTES:] != _crc(key, content):
        raise DamagedStore(f"the checksum of row {key[:32].hex()} is wrong")
    return content


def _read_header(value: bytes) -> Header:
    """The format first: what a newer version wrote is whole, and not ours to set aside."""
    try:
        fields = msgspec.msgpack.decode(value, type=list)
        version = fields[0] if fields else None
        if type(version) is int and version > FORMAT:
            raise StorageFailed(
                f"{NAME}/ was written by a newer version of kvnode: it has format {version}, this version knows format "
                f"{FORMAT}. Start that version again, or move {NAME}/ away: what it alone holds is lost to this member"
            )
        header = msgspec.convert(fields, Header)
    except msgspec.MsgspecError as error:
        raise DamagedStore(f"its header cannot be decoded: {error}") from error
    if header.format != FORMAT or not header.incarnation:
        raise DamagedStore(f"its header is none: {header}")
    return header


def _make(shelf: Shelf, owner: Owner, random_u64: Callable[[], int]) -> None:
    """A new, empty store; whole and durable under its name on return. Raises: DamagedStore, StorageFailed, OSError."""
    incarnation = 0
    while not incarnation:
        incarnation = random_u64()
    backend = shelf.open(NEW_NAME)
    try:
        backend.commit(_Write([_header_row(Header(FORMAT, owner.member, owner.cluster_id, incarnation, 1))], ()))
    finally:
        backend.close()
    shelf.rename(NEW_NAME, NAME)


def _move_aside(shelf: Shelf, names: Sequence[str]) -> str:
    """The damaged store gets out of the way, durably; older ones that are too many go. Raises: OSError."""
    numbers = sorted(int(found[1]) for found in map(_DAMAGED_NAME.fullmatch, names) if found)
    number = max(numbers, default=0) + 1
    name = f"{NAME}.damaged-{number}"
    shelf.rename(NAME, name)
    for old in [*numbers, number][:-DAMAGED_KEPT]:
        shelf.remove(f"{NAME}.damaged-{old}")
    return name


def _header_row(header: Header) -> Row:
    return _sealed(HEADER_KEY, msgspec.msgpack.encode(header))


def _sealed(key: bytes, content: bytes) -> Row:
    return key, content + _crc(key, content)


def _crc(key: bytes, content: bytes) -> bytes:
    return crc32(content, crc32(key)).to_bytes(CRC_BYTES, "little")


def _is_short(key: bytes) -> bool:
    return len(key) < KEY_BYTES_MAX


def _stored_key(key: bytes) -> bytes:
    assert key
    return _SHORT + key if _is_short(key) else _LONG + blake2b(key, digest_size=32).digest()


def _stored(key: bytes, value: bytes) -> Row:
    content = value if _is_short(key) else len(key).to_bytes(_LENGTH_BYTES, "little") + key + value
    return _sealed(_stored_key(key), content)


def _row(stored_key: bytes, content: bytes) -> Row:
    """Back to what was written. Raises: DamagedStore for what `_stored` never makes."""
    kind, short = stored_key[:1], stored_key[1:]
    if kind == _SHORT and short:
        return short, content
    end = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    key = content[_LENGTH_BYTES:end]
    if kind != _LONG or len(content) < end or _is_short(key) or _stored_key(key) != stored_key:
        raise DamagedStore(f"row {stored_key[:32].hex()} is of no kind that this version writes")
    return key, content[end:]
