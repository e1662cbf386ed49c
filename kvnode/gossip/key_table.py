"""Table of keys: states in byte order, and for every dot that is the newest of its origin for some key, that key.

The second map answers "what has changed beyond this vector" in time that grows with the answer; a third one lists the
keys with a value without passing the tombstones, of which there may be many more. Entries of contexts are
dots of writes of their own key (see `key_state`), so a dot leads to one key at most.

`beyond` is a checksum over those entries that the vector given to `raise_to` does not cover: 0 if there are none.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator

from sortedcontainers import SortedDict, SortedList

from kvnode.clocks.version_vector import Origin, VersionVector
from kvnode.gossip.key_state import KeyState

_DOT = struct.Struct(">QQQ")
KEY_OVERHEAD = 64


class KeyTable:
    """States by key; owned by one `Keyspace`."""

    __slots__ = ("_beyond", "_newest", "_states", "_with_value", "beyond", "bytes", "siblings", "tombstones", "vector")

    def __init__(self) -> None:
        self._states: SortedDict = SortedDict()  # bytes → KeyState
        self._newest: dict[Origin, SortedDict] = {}  # origin → {n: key}
        self._with_value: SortedList = SortedList()  # keys with siblings
        self._beyond: dict[Origin, int] = {}  # its part of `beyond`
        self.tombstones: dict[bytes, None] = {}  # keys without siblings, by how long ago they were looked at
        self.bytes = 0  # of keys and states
        self.siblings = 0  # values that stand beside another one
        self.beyond = 0
        self.vector = VersionVector.EMPTY

    def __len__(self) -> int:
        return len(self._states)

    def get(self, key: bytes) -> KeyState | None:
        state: KeyState | None = self._states.get(key)
        return state

    def owner(self, origin: Origin, n: int, default: bytes) -> bytes:
        """The key that lists this write as the newest of its origin."""
        by_number = self._newest.get(origin)
        key: bytes = default if by_number is None else by_number.get(n, default)
        return key

    def set(self, key: bytes, state: KeyState | None) -> None:
        """Replaces the state of `key`; None: there is none any more."""
        before: KeyState | None = self._states.get(key)
        self.bytes += cost(key, state) - cost(key, before)
        self.siblings += _beside(state) - _beside(before)
        for origin, n in (before or KeyState.EMPTY).context.entries():
            if state is None or state.context.get(origin) != n:
                del self._newest[origin][n]
                self._toggle(origin, n)
        for origin, n in (state or KeyState.EMPTY).context.entries():
            if before is None or before.context.get(origin) != n:
                by_number = self._newest.get(origin)
                if by_number is None:
                    by_number = self._newest[origin] = SortedDict()
                by_number[n] = key
                self._toggle(origin, n)
        if state is None:
            self._states.pop(key, None)
        else:
            self._states[key] = state
        had_value, has_value = bool(before and before.siblings), bool(state and state.siblings)
        if has_value and not had_value:
            self._with_value.add(key)
        elif had_value and not has_value:
            self._with_value.remove(key)
        if state is None or state.siblings:
            self.tombstones.pop(key, None)
        else:
            self.tombstones[key] = None

    def raise_to(self, vector: VersionVector) -> None:
        """From now on `beyond` is what `vector` does not cover. Vectors only grow."""
        for origin, n in vector.entries():
            before = self.vector.get(origin)
            by_number = self._newest.get(origin)
            if n <= before or not by_number:
                continue
            if n >= by_number.peekitem(-1)[0]:
                self.beyond ^= self._beyond.pop(origin, 0)  # all of them, however many
            else:
                for inside in by_number.irange(before + 1, n):
                    self._flip(origin, inside)
        self.vector = vector

    def changed_since(self, since: VersionVector) -> Iterator[bytes]:
        """Keys with a write that `since` does not cover; one with several may come several times."""
        for origin in sorted(self._newest):
            by_number = self._newest[origin]
            for n in by_number.irange(since.get(origin) + 1):
                yield by_number[n]

    def after(self, key: bytes, upto: bytes | None = None) -> Iterator[tuple[bytes, KeyState]]:
        """States of the keys in (`key`, `upto`], in byte order; None: to the end."""
        for found in self._states.irange(key, upto, inclusive=(False, True)):
            yield found, self._states[found]

    def prefixed(self, prefix: bytes, after: bytes | None) -> Iterator[tuple[bytes, KeyState]]:
        """States of the keys with a value that start with `prefix` and come after `after`, in byte order."""
        skip = after is not None and after >= prefix
        for found in self._with_value.irange(after if skip else prefix, inclusive=(not skip, True)):
            if not found.startswith(prefix):
                return
            yield found, self._states[found]

    def _toggle(self, origin: Origin, n: int) -> None:
        if n > self.vector.get(origin):
            self._flip(origin, n)

    def _flip(self, origin: Origin, n: int) -> None:
        hashed = _hash(origin, n)
        self.beyond ^= hashed
        self._beyond[origin] = self._beyond.get(origin, 0) ^ hashed


def _beside(state: KeyState | None) -> int:
    return len(state.siblings) if state is not None and len(state.siblings) > 1 else 0


def cost(key: bytes, state: KeyState | None) -> int:
    """Bytes that a key takes of the limit, and about that of memory."""
    return 0 if state is None else KEY_OVERHEAD + len(key) + state.size


def _hash(origin: Origin, n: int) -> int:
    packed = _DOT.pack(origin.member, origin.incarnation, n)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8, person=b"beyond").digest(), "big")
