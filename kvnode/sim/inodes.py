"""Inodes: what a file system holds in memory and on the platter, and which mixtures a power loss may leave.

A file has `durable` bytes, `cache` bytes (what every reader sees) and, in between, the ordered changes that no
fsync has covered. A directory likewise has durable and visible entries and pending ones. `after_crash` draws one
of the states that may be found after the power came back:

- of each pending write any subset of its 512-byte sectors, a sector possibly torn (front or back is new);
- a longer size with or without the data behind it: zeros, or bytes that were never written here (garbage);
- each pending entry change (a rename is two: the new name, and the removal of the old one) on its own;
- everything synced.

Left out on purpose: damage outside the range of a write (see `FakeDisk.damage`), and metadata of directories
other than names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from kvnode.sim.choices import Choices

SECTOR = 512


@dataclass(slots=True)
class Change:
    """One change of a file's content: a write of `data` at `offset`, or (data None) a new size, `offset`."""

    offset: int
    data: bytes | None
    never_synced: bool = False  # its write-back failed and the page was marked clean: no later fsync writes it


@dataclass(slots=True)
class CrashModel:
    """How `after_crash` draws. `cuts`: places at which a torn sector may be cut, 0 = sectors are atomic."""

    choices: Choices
    cuts: int
    garbage: bytes  # one sector of bytes that a lost block may show


def sectors(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The range cut at sector boundaries."""
    while start < stop:
        end = min(stop, (start // SECTOR + 1) * SECTOR)
        yield start, end
        start = end


def _resize(content: bytearray, size: int) -> None:
    if size <= len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


def _put(content: bytearray, offset: int, data: bytes) -> None:
    if offset > len(content):
        _resize(content, offset)
    content[offset : offset + len(data)] = data


@dataclass(slots=True)
class FileNode:
    """One file's content, reached by any number of names and open handles."""

    number: int
    durable: bytearray = field(default_factory=bytearray)
    cache: bytearray = field(default_factory=bytearray)
    pending: list[Change] = field(default_factory=list)
    former: dict[int, bytes] = field(default_factory=dict)  # sector number → what it held before its last sync
    unreadable: list[int] = field(default_factory=list)  # sector numbers that answer EIO

    def write(self, offset: int, data: bytes) -> None:
        _put(self.cache, offset, data)
        self.pending.append(Change(offset, data))

    def resize(self, size: int) -> None:
        _resize(self.cache, size)
        self.pending.append(Change(size, None))

    def sync(self) -> None:
        """Everything pending becomes durable, except what an earlier failed write-back gave up."""
        for change in self.pending:
            if change.never_synced:
                continue
            if change.data is None:
                _resize(self.durable, change.offset)
                continue
            end = min(len(self.durable), change.offset + len(change.data))
            for start, _ in sectors(change.offset, end):
                first = start // SECTOR * SECTOR
                self.former[first // SECTOR] = bytes(self.durable[first : first + SECTOR])
            _put(self.durable, change.offset, change.data)
        self.pending.clear()

    def give_up_pending(self) -> None:
        """A failed write-back: memory keeps the new bytes, the pages count as clean, the disk keeps the old."""
        for change in self.pending:
            change.never_synced = True

    def revert_pending(self) -> None:
        """A failed write-back after which memory shows the old bytes again."""
        self.pending.clear()
        self.cache = bytearray(self.durable)

    def after_crash(self, model: CrashModel) -> FileNode:
        content = bytearray(self.durable)
        for change in self.pending:
            if change.data is None:
                _crash_resize(content, change.offset, model)
            else:
                _crash_write(content, change.offset, change.data, model)
        return FileNode(self.number, content, bytearray(content), [], dict(self.former), list(self.unreadable))


def _crash_resize(content: bytearray, size: int, model: CrashModel) -> None:
    if size == len(content):
        return
    if size < len(content):
        if model.choices.pick(2):
            del content[size:]
        return
    how = model.choices.pick(3)  # the size did not grow, it grew over zeros, it grew over garbage
    if how:
        _grow(content, size, model.garbage if how == 2 else None)


def _grow(content: bytearray, size: int, garbage: bytes | None) -> None:
    before = len(content)
    _resize(content, size)
    if garbage is not None:
        for start, stop in sectors(before, size):
            content[start:stop] = garbage[start % SECTOR : start % SECTOR + stop - start]


def _crash_write(content: bytearray, offset: int, data: bytes, model: CrashModel) -> None:
    end, before = offset + len(data), len(content)
    size_lost, size_of_landed, _size_over_zeros, size_over_garbage = range(4)
    size = size_lost if end <= before else model.choices.pick(4)
    if size != size_lost:
        _grow(content, end, model.garbage if size == size_over_garbage else None)
    visible = list(sectors(offset, min(end, len(content))))
    nothing, everything, mixed = range(3)
    how = mixed if len(visible) == 1 else model.choices.pick(3) if visible else nothing
    landed = before
    for start, stop in visible:
        if how == nothing:
            break
        first, last = (start, stop) if how == everything else _torn(start, stop, model)
        content[first:last] = data[first - offset : last - offset]
        if last > first:
            landed = max(landed, last)
    if size == size_of_landed:
        del content[landed:]


def _torn(start: int, stop: int, model: CrashModel) -> tuple[int, int]:
    """Which part of one written sector reached the disk."""
    cuts = min(model.cuts, stop - start - 1)
    lost, whole = 0, 1
    how = model.choices.pick(3 if cuts else 2)
    if how == lost:
        return start, start
    if how == whole:
        return start, stop
    number = model.choices.pick(2 * cuts)
    cut = start + (stop - start) * (number // 2 + 1) // (cuts + 1)
    return (start, cut) if number % 2 == 0 else (cut, stop)


@dataclass(slots=True)
class DirectoryNode:
    """Names. `pending` holds (name, node) for a name that appeared or moved, (name, None) for one that went."""

    durable: dict[str, FileNode | DirectoryNode] = field(default_factory=dict)
    entries: dict[str, FileNode | DirectoryNode] = field(default_factory=dict)
    pending: list[tuple[str, FileNode | DirectoryNode | None]] = field(default_factory=list)

    def link(self, name: str, node: FileNode | DirectoryNode) -> None:
        self.entries[name] = node
        self.pending.append((name, node))

    def unlink(self, name: str) -> None:
        del self.entries[name]
        self.pending.append((name, None))

    def sync(self) -> None:
        self.durable = dict(self.entries)
        self.pending.clear()

    def after_crash(self, model: CrashModel, seen: dict[int, FileNode]) -> DirectoryNode:
        """`seen`: files already drawn, by number: two names of one file show one content."""
        found = dict(self.durable)
        for name, node in self.pending:
            if not model.choices.pick(2):
                continue
            if node is None:
                found.pop(name, None)
            else:
                found[name] = node
        entries: dict[str, FileNode | DirectoryNode] = {}
        for name in sorted(found):
            node = found[name]
            if isinstance(node, DirectoryNode):
                entries[name] = node.after_crash(model, seen)
            else:
                if node.number not in seen:
                    seen[node.number] = node.after_crash(model)
                entries[name] = seen[node.number]
        return DirectoryNode(entries, dict(entries))
