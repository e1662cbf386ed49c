"""Walk: follow every page of an LMDB 0.9 data file from its newest meta page, before LMDB maps it.

LMDB trusts its pages: a length or a page number that has rotted is followed out of the map, which ends the process with
SIGSEGV or SIGBUS, at every start again. This reader uses `pread`, believes nothing, and says what is wrong. What it
lets through LMDB can read and write to; whether rows hold what was written is their owner's business (a checksum).

Numbers are little-endian; P is the page size. A page begins with number (8), pad (2), flags (2), lower (2), upper (2).

    meta      pages 0 and 1, transaction n in page n mod 2: magic, version, address, map size, the trees of free pages
              and of rows, last page, transaction. A tree: pad, flags, depth, pages of each kind, entries, root
    branch    offsets of nodes, ascending by key: child (6), key length (2), key; the first key does not count
    leaf      offsets of nodes: value length (4), flags (2), key length (2), key, value or the number of an
              overflow page
    overflow  in place of lower and upper, how many pages; the value
    free      rows of the first tree: transaction → count, then page numbers, descending

Nodes stand packed between `upper` and P. Each page is used once; none that is used is free. The two meta pages are one
transaction apart: an older one that passes for the newest would bring back a state from before the last commit.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from kvnode.storage.disk import DiskFile

DATA_FILE = "data.mdb"

_HEAD = struct.Struct("<QHHHH")
_TREE = "IHHQQQQQ"
_META = struct.Struct(f"<IIQQ{_TREE}{_TREE}QQ")
_NODE = struct.Struct("<HHHH")
_WORD = struct.Struct("<Q")
_OVERFLOW = struct.Struct("<QHHI")

_MAGIC = 0xBEEFC0DE
_VERSION = 1
_PAGE_BYTES_MIN, _PAGE_BYTES_MAX = 512, 65_536
_NO_PAGE = (1 << 64) - 1
_BRANCH, _LEAF, _OVERFLOWS, _METAPAGE = 1, 2, 4, 8
_INTEGER_KEYS = 8
_BIG = 1
_DEPTH_MAX = 32


class DamagedPages(ValueError):
    """The file is not what LMDB wrote. The text is a clause: "page 7 is …"."""


class Walked(NamedTuple):
    transaction: int  # number of the newest one
    entries: int  # rows


class _Tree(NamedTuple):
    pad: int
    flags: int
    depth: int
    branches: int
    leaves: int
    overflows: int
    entries: int
    root: int


class _Meta(NamedTuple):
    page_bytes: int
    free: _Tree
    rows: _Tree
    last_page: int
    transaction: int


class _Node(NamedTuple):
    key: bytes
    low: int  # the first four bytes of the node: length of the value, or the child's number but for its top
    flags: int
    value_at: int  # in the page


def walk(file: DiskFile) -> Walked:
    """Raises: DamagedPages; OSError where the disk cannot read it."""
    first = _meta(file, 0, 0)
    second = _meta(file, 1, first.page_bytes)
    _check(second.page_bytes == first.page_bytes, "its two meta pages do not agree on the size of a page")
    newest, older = (second, first) if second.transaction > first.transaction else (first, second)
    _check(newest.transaction == older.transaction + 1, "its two meta pages are not one transaction apart")
    return _Walk(file, newest).run()


def _meta(file: DiskFile, number: int, at: int) -> _Meta:
    where = f"meta page {number}"
    data = file.pread(at, _HEAD.size + _META.size)
    _check(len(data) == _HEAD.size + _META.size, f"{where} is cut off")
    page, _, flags, _, _ = _HEAD.unpack_from(data)
    magic, version, address, map_bytes, *words = _META.unpack_from(data, _HEAD.size)
    free, rows, last_page, transaction = _Tree(*words[:8]), _Tree(*words[8:16]), words[16], words[17]
    _check((page, flags, magic) == (number, _METAPAGE, _MAGIC), f"{where} is none of LMDB's")
    _check(version == _VERSION, f"{where} has format {version}, not {_VERSION}")
    size = free.pad
    _check(
        size & (size - 1) == 0 and _PAGE_BYTES_MIN <= size <= _PAGE_BYTES_MAX,
        f"{where} says that pages have {size} bytes",
    )
    _check((address, free.flags, rows.flags) == (0, _INTEGER_KEYS, 0), f"{where} has flags that this program never set")
    _check(1 <= last_page < map_bytes // size, f"{where} says that {last_page} is the last page")
    _check(transaction % 2 == number, f"{where} is of transaction {transaction}, which has the other one")
    return _Meta(size, free, rows, last_page, transaction)


class _Walk:
    """One pass over both trees."""

    def __init__(self, file: DiskFile, meta: _Meta) -> None:
        self._file = file
        self._meta = meta
        self._used: set[int] = {0, 1}
        self._branches = self._leaves = self._overflows = self._entries = 0  # of the tree that is walked

    def run(self) -> Walked:
        for _ in self._tree(self._meta.rows, is_free=False):
            pass
        entries = self._entries
        lists = list(self._tree(self._meta.free, is_free=True))
        free: set[int] = set()
        for value in lists:
            self._free_list(value, free)
        return Walked(self._meta.transaction, entries)

    def _free_list(self, value: bytes, free: set[int]) -> None:
        _check(len(value) >= 8 and len(value) % 8 == 0, "a list of free pages has an odd length")
        count, *rest = (word for (word,) in _WORD.iter_unpack(value))
        _check(count <= len(rest), "a list of free pages is cut off")
        before = self._meta.last_page + 1
        for number in rest[:count]:
            _check(1 < number < before, f"page {number} stands in a list of free pages out of its order")
            _check(number not in self._used and number not in free, f"page {number} is free twice, or free and used")
            free.add(number)
            before = number

    def _tree(self, tree: _Tree, *, is_free: bool) -> Iterator[bytes]:
        """The values, of the tree of free pages only. The counts are checked at the end."""
        self._branches = self._leaves = self._overflows = self._entries = 0
        if tree.root == _NO_PAGE:
            _check(tree.depth == 0, "an empty tree has a depth")
        else:
            _check(1 <= tree.depth <= _DEPTH_MAX, f"a tree has depth {tree.depth}")
            yield from self._page(tree.root, tree.depth, None, None, is_free=is_free)
        counted = (self._branches, self._leaves, self._overflows, self._entries)
        promised = (tree.branches, tree.leaves, tree.overflows, tree.entries)
        _check(counted == promised, f"a tree has pages and entries {counted}, its meta page counts {promised}")

    def _page(
        self, number: int, depth: int, low: bytes | None, high: bytes | None, *, is_free: bool
    ) -> Iterator[bytes]:
        """Keys lie in [low, high); of free pages, whose keys are numbers, they are compared most significant first."""
        page = self._read(number, 1)
        nodes = self._nodes(number, page, _LEAF if depth == 1 else _BRANCH)
        keys = [node.key[::-1] if is_free else node.key for node in nodes]
        if depth > 1:
            keys[0] = low if low is not None else b""
        before = None
        for key in keys:
            _check(before is None or before < key, f"the keys of page {number} do not ascend")
            _check((low is None or low <= key) and (high is None or key < high), f"page {number} has a key of another")
            before = key
        if depth > 1:
            self._branches += 1
            for position, node in enumerate(nodes):
                child = node.low | node.flags << 32
                below = low if position == 0 else keys[position]
                above = keys[position + 1] if position + 1 < len(keys) else high
                yield from self._page(child, depth - 1, below, above, is_free=is_free)
            return
        self._leaves += 1
        self._entries += len(nodes)
        for node in nodes:
            _check(node.flags in {0, _BIG}, f"page {number} has a value of a kind that this program never wrote")
            _check(len(node.key) == 8 or not is_free, f"page {number} has a key that is no transaction")
            if node.flags & _BIG:
                value = self._big(_WORD.unpack_from(page, node.value_at)[0], node.low, wanted=is_free)
            else:
                value = page[node.value_at : node.value_at + node.low]
            if is_free:
                yield value

    def _big(self, number: int, length: int, *, wanted: bool) -> bytes:
        head = self._file.pread(number * self._meta.page_bytes, _HEAD.size) if number <= self._meta.last_page else b""
        _check(len(head) == _HEAD.size, f"page {number} lies outside the file")
        found, _, flags, pages = _OVERFLOW.unpack(head)
        needed = -(-(_HEAD.size + length) // self._meta.page_bytes)
        _check((found, flags) == (number, _OVERFLOWS), f"page {number} is not the one it should be")
        _check(pages >= needed, f"page {number} should begin {needed} pages and begins {pages}")
        _check(number + pages - 1 <= self._meta.last_page, f"page {number} begins more pages than there are")
        self._overflows += pages
        for one in range(number, number + pages):
            _check(one not in self._used, f"page {one} is used twice")
            self._used.add(one)
        data = self._file.pread(number * self._meta.page_bytes, _HEAD.size + length)  # also: the disk can read it
        _check(len(data) == _HEAD.size + length, f"page {number} is cut off")
        return data[_HEAD.size :] if wanted else b""

    def _read(self, number: int, pages: int) -> bytes:
        _check(1 < number <= self._meta.last_page, f"page {number} lies outside the file")
        _check(number not in self._used, f"page {number} is used twice")
        self._used.add(number)
        size = self._meta.page_bytes * pages
        page = self._file.pread(number * self._meta.page_bytes, size)
        _check(len(page) == size, f"page {number} is cut off")
        return page

    def _nodes(self, number: int, page: bytes, kind: int) -> list[_Node]:
        """Each lies inside, and together they fill the page from `upper` on."""
        found, _, flags, lower, upper = _HEAD.unpack_from(page)
        _check((found, flags) == (number, kind), f"page {number} is not the one it should be")
        _check(_HEAD.size + 2 <= lower <= upper <= len(page) and lower % 2 == 0, f"page {number} has impossible bounds")
        nodes = []
        filled = 0
        for (at,) in struct.iter_unpack("<H", page[_HEAD.size : lower]):
            _check(upper <= at <= len(page) - _NODE.size, f"a node of page {number} lies outside it")
            low, high, node_flags, key_bytes = _NODE.unpack_from(page, at)
            low |= high << 16
            value_bytes = 0 if kind == _BRANCH else 8 if node_flags & _BIG else low
            value_at = at + _NODE.size + key_bytes
            _check(value_at + value_bytes <= len(page), f"a node of page {number} does not end inside it")
            filled += (_NODE.size + key_bytes + value_bytes + 1) & ~1
            nodes.append(_Node(page[at + _NODE.size : value_at], low, node_flags, value_at))
        _check(filled == len(page) - upper, f"the nodes of page {number} do not fill it as they should")
        return nodes


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise DamagedPages(otherwise)
