"""Keyspace: one member's replica of the always-writable keys. Takes every write at once, keeps concurrent ones apart.

Each write gets the next dot of this origin (member and incarnation of its store). `vector` says, per origin, up to
which dot this replica has everything; see `anti_entropy` for what that means exactly and how replicas exchange.

**A write is durable before anybody sees it**: `put` and `delete` *stage* it; `take_changes` gives the rows of all that
is new; when they are on the disk, `made_durable` shows it: to `read`, `list`, `delta` and in `vector`. A crash before
that leaves no trace that could meet the same dot given out again (trap S33). What peers brought is shown at once:
they have it, too. Should pages nevertheless know more of this origin than it does itself, the store is an old copy, and
everything is refused (`IdentityRefused`): it must start anew under another incarnation.

Writes by whom has seen nothing (no context) add a sibling. One that would make more than `siblings_max`, or a key of
more than `state_bytes_max` bytes of values, is refused unless its context covers at least one sibling: so a write with
the context that the refusal carries always passes. Merging may go beyond: every member took its own share.

At `keys_max` or `bytes_max` writes that would add are refused (NoSpace); deletions pass. Pages are refused at
`HARD_FACTOR` times that, so that replicas that all took their fill while apart can still meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice

import msgspec

from kvnode.clocks.version_vector import Dot, Origin, VersionVector
from kvnode.errors import BadContext, BadKey, Conflict, IdentityRefused, NoSpace, TooLarge
from kvnode.gossip.anti_entropy import MISSES_MAX, CatchUp, KeyspaceDelta, KeyspaceWant, make_page
from kvnode.gossip.key_state import BLIND, KEY_BYTES_MAX, ORIGINS_MAX, Context, KeyState, checked_vector
from kvnode.gossip.key_table import KeyTable, cost
from kvnode.gossip.keyspace_rows import KEY, VECTORS, Changes, key_row, read_key, read_vectors, vectors_row
from kvnode.gossip.staging import Staged, Staging
from kvnode.kv.available import SIBLINGS_MAX, VALUE_BYTES_MAX

HARD_FACTOR = 4
FORGET_KEYS_MAX = 1_000

Keys = list[bytes]
Rows = list[tuple[bytes, bytes]]
KeyStates = list[tuple[bytes, KeyState]]
"""In byte order of keys."""


class KeyspaceLimits(msgspec.Struct, frozen=True):
    """What one replica takes from its own clients."""

    keys_max: int = 100_000  # tombstones count
    bytes_max: int = 256 << 20  # of keys, values, contexts
    value_bytes_max: int = VALUE_BYTES_MAX
    siblings_max: int = SIBLINGS_MAX
    state_bytes_max: int = 256 << 10  # of the values of one key, before a write that only adds


class Written(msgspec.Struct, frozen=True):
    """A staged write."""

    dot: Dot | None  # None: a deletion that found nothing to delete, so it is no write
    state: KeyState  # the key's, once it is shown; its context covers siblings that the writer has not seen
    context: Context  # for the writer's next write: it covers this one, and what this one replaced


class Keyspace:
    """The keys of one member: `put`, `delete`, `read`, `list` here; `want`, `delta`, `merge` between members."""

    def __init__(self, origin: Origin, limits: KeyspaceLimits | None = None) -> None:
        self.origin = origin
        self.limits = limits or KeyspaceLimits()
        self.vector = VersionVector.EMPTY  # never beyond what `table` accounts for: see `anti_entropy`, I
        self.forgotten = VersionVector.EMPTY  # contexts of forgotten tombstones, joined; ≤ vector
        self._table = KeyTable()
        self._catch_up: CatchUp | None = None
        self._staging = Staging()
        self._dirty: dict[bytes, None] = {}  # keys whose row is not as the store has it, or will
        self._vectors_dirty = True
        self._mark = 0

    @classmethod
    def restore(
        cls, origin: Origin, rows: Iterable[tuple[bytes, bytes]], limits: KeyspaceLimits | None = None
    ) -> Keyspace:
        """From the rows that were written. Raises ValueError if they cannot be."""
        keyspace = cls(origin, limits)
        states: KeyStates = []
        for name, value in rows:
            if name == VECTORS:
                keyspace.vector, keyspace.forgotten, keyspace._catch_up = read_vectors(value)
                keyspace._table.raise_to(keyspace.vector)  # before the keys: what it covers need not be hashed
                keyspace._vectors_dirty = False
            elif name.startswith(KEY):
                states.append(read_key(name, value))
            else:
                raise ValueError(f"row {name!r} is neither a key nor the vector")
        if states and keyspace._vectors_dirty:
            raise ValueError("keys without a vector")
        for key, state in states:
            keyspace._check_owners([(key, state)])
            keyspace._table.set(key, state)
        return keyspace

    # -- what clients do ----------------------------------------------------------------------------------------------

    def read(self, key: bytes) -> KeyState | None:
        """The state of `key`; without siblings it was deleted, its context still serves. None: nothing is known."""
        return self._table.get(key)

    def put(self, key: bytes, value: bytes, *, context: Context | None, time: int) -> Written:
        """Stages `value` in place of what `context` covers; without context beside what is there.

        Raises: BadKey, TooLarge, BadContext, Conflict (detail `context`: a `Context`), NoSpace.
        """
        self._check_key(key)
        if len(value) > self.limits.value_bytes_max:
            raise TooLarge(f"a value of {len(value)} bytes", limit=self.limits.value_bytes_max)
        replaces = BLIND if context is None else self._checked_context(context)
        before = self._newest(key)
        after = before.with_write(self._next_dot(), value, time, replaces)
        self._check_growth(key, before, after)
        return self._stage(key, after, replaces)

    def delete(self, key: bytes, *, context: Context | None, time: int) -> Written:
        """Stages the removal of what `context` covers; without context of everything that is here.

        Passes at any limit but that of origins; no write at all if there is nothing to remove.

        Raises: BadKey, BadContext, NoSpace.
        """
        self._check_key(key)
        before = self._newest(key)
        replaces = Context(before.context) if context is None else self._checked_context(context)
        if not any(replaces.covers(sibling.dot) for sibling in before.siblings):
            return Written(None, before, replaces)
        return self._stage(key, before.with_write(self._next_dot(), None, time, replaces), replaces)

    def list(self, prefix: bytes, after: bytes | None, limit: int) -> tuple[KeyStates, bool]:
        """Up to `limit` keys with siblings that start with `prefix` and come after `after`; whether there are more."""
        found: KeyStates = []
        for item in self._table.prefixed(prefix, after):
            if len(found) >= limit:
                return found, True
            found.append(item)
        return found, False

    # -- what members exchange ----------------------------------------------------------------------------------------

    def digest(self) -> int:
        """64 bits; equal on replicas that have the same siblings for every key, and in practice on no others."""
        return self.vector.digest() ^ self._table.beyond

    def want(self) -> KeyspaceWant:
        """What to ask another member for."""
        return KeyspaceWant(self.vector.to_row(), self._catch_up.position if self._catch_up else b"")

    def delta(self, since: VersionVector, bytes_max: int, after: bytes = b"") -> KeyspaceDelta:
        """A page for whoever wants (`since`, `after`): about `bytes_max` bytes, but one key at least."""
        return make_page(self._table, self.vector, self.forgotten, (since, after), bytes_max)

    def merge(self, delta: KeyspaceDelta) -> tuple[bytes, ...]:
        """Takes a page in, all at once or not at all. Returns the keys whose state it changed.

        Raises ValueError (it is not what a replica sends), NoSpace, IdentityRefused.
        """
        since, vector, forgotten = map(checked_vector, (delta.since, delta.vector, delta.forgotten))
        states = self._checked_states(delta)
        self._check_origins(vector, states)
        if not delta.whole and not since.includes(forgotten):
            raise ValueError("a page leaves keys out without knowing that it may")
        if not self.vector.includes(since):
            return ()  # asked for in an earlier life
        moved = self._moved(delta, vector, forgotten if delta.whole else VersionVector.EMPTY)
        if moved is None:
            return ()
        reached = self.vector if delta.more else self.vector.merge(moved.target)
        self._table.raise_to(reached)
        changed = self._take_in(delta, states, moved)
        if delta.more:
            self._catch_up = moved
            self._vectors_dirty = True
        else:
            self._vectors_dirty |= reached is not self.vector
            self.vector = reached
            self.forgotten = self.forgotten.merge(moved.forgotten)
            if moved.position or (self._catch_up is not None and self.vector.includes(self._catch_up.target)):
                self._vectors_dirty |= self._catch_up is not None
                self._catch_up = None  # it is the one that has ended, or all it was for has come another way
        return tuple(changed)

    def forget(self, covered_by_all: VersionVector) -> int:
        """Drops tombstones of which every member has everything; looks at `FORGET_KEYS_MAX` of them. Returns how many.

        `covered_by_all`: the meet of the vectors of all configured members.
        """
        stable = covered_by_all.meet(self.vector)
        looked_at = tuple(islice(self._table.tombstones, FORGET_KEYS_MAX))
        gone: dict[Origin, int] = {}
        count = 0
        for key in looked_at:
            state = self._table.get(key)
            assert state is not None, key
            assert not state.siblings, key
            del self._table.tombstones[key]
            if stable.includes(state.context):
                gone.update((origin, max(n, gone.get(origin, 0))) for origin, n in state.context.entries())
                self._replace(key, None)
                count += 1
            else:
                self._table.tombstones[key] = None  # to the end of the queue
        if count:
            self.forgotten = self.forgotten.merge(VersionVector(gone))
            self._vectors_dirty = True
        return count

    # -- what the store keeps -----------------------------------------------------------------------------------------

    def take_changes(self) -> Changes:
        """The rows that changed since last taken, staged writes among them; false if there are none."""
        if not self._dirty and not self._vectors_dirty:
            return Changes((), (), self._mark)
        self._mark += 1
        self._staging.take(self._mark)
        rows: Rows = []
        removed: Keys = []
        for key in self._dirty:
            state = self._newest(key)
            if state is KeyState.EMPTY:
                removed.append(KEY + key)
            else:
                rows.append(key_row(key, state))
        minted = self._minted
        vector = self.vector.with_dot(Dot(self.origin, minted)) if minted else self.vector
        rows.append(vectors_row(vector, self.forgotten, self._catch_up))
        self._dirty.clear()
        self._vectors_dirty = False
        return Changes(tuple(rows), tuple(removed), self._mark)

    def made_durable(self, mark: int) -> tuple[bytes, ...]:
        """The batches up to `mark` are on the disk: their writes are shown. Returns the keys they wrote."""
        shown: dict[bytes, None] = {}
        for batch in self._staging.durable(mark):
            states = [(key, self._shown(key, staged)) for key, staged in batch.states.items()]
            self.vector = self.vector.with_dot(Dot(self.origin, batch.n))
            self._table.raise_to(self.vector)
            for key, state in states:
                self._table.set(key, state)
                shown[key] = None
        return tuple(shown)

    def counts(self) -> Mapping[str, int]:
        """For metrics: keys (tombstones among them), tombstones, values that stand beside another one, bytes, origins,
        writes that wait for the disk.
        """
        return {
            "keys": len(self._table),
            "siblings": self._table.siblings,
            "tombstones": len(self._table.tombstones),
            "bytes": self._table.bytes,
            "origins": len(self.vector),
            "staged": self._minted - self.vector.get(self.origin),
        }

    # -- staging ------------------------------------------------------------------------------------------------------

    @property
    def _minted(self) -> int:
        """Newest dot of this origin that was given out, staged ones included."""
        return self._staging.newest or self.vector.get(self.origin)

    def _next_dot(self) -> Dot:
        """Raises: NoSpace, if nobody would take a vector with this origin in it."""
        if not self._minted and len(self.vector) >= ORIGINS_MAX:
            raise NoSpace(f"the keyspace knows {ORIGINS_MAX} origins already", limit=ORIGINS_MAX)
        return Dot(self.origin, self._minted + 1)

    def _stage(self, key: bytes, state: KeyState, replaces: Context) -> Written:
        dot = self._next_dot()
        self._staging.put(key, Staged(state, self._table.get(key)), dot.n)
        self._dirty[key] = None
        return Written(dot, state, state.context_of_write(dot, replaces))

    def _newest(self, key: bytes) -> KeyState:
        """The state of `key` as it will be when everything is durable; `KeyState.EMPTY` if there is none."""
        staged = self._staging.get(key)
        return (self._table.get(key) or KeyState.EMPTY) if staged is None else self._shown(key, staged)

    def _shown(self, key: bytes, staged: Staged) -> KeyState:
        """Staged, and what has come in since."""
        here = self._table.get(key)
        if here is staged.before:
            return staged.state
        return (here or KeyState.EMPTY).merge(staged.state, known=self._known(key))

    # -- merging ------------------------------------------------------------------------------------------------------

    def _moved(self, delta: KeyspaceDelta, vector: VersionVector, forgotten: VersionVector) -> CatchUp | None:
        """The catch-up as this page moves it on; None: the page does not continue it and is ignored."""
        at = self._catch_up
        if delta.after == b"" and (at is None or not delta.more):
            at = CatchUp(vector)  # a page that starts one, or speaks for all keys by itself
        if at is None:
            return None
        moved = at.taking(delta.after, delta.upto, vector, forgotten)
        if moved is None and self._catch_up is not None:
            misses = self._catch_up.misses + 1
            self._catch_up = msgspec.structs.replace(self._catch_up, misses=misses) if misses < MISSES_MAX else None
            self._vectors_dirty |= self._catch_up is None
        return moved

    def _take_in(self, delta: KeyspaceDelta, states: KeyStates, moved: CatchUp) -> Keys:
        changed: Keys = []
        if delta.whole:
            carried = {key for key, _ in states}
            for key, here in tuple(self._table.after(delta.after, delta.upto)):
                if key not in carried and (left := here.without(moved.target)) is not here:
                    self._replace(key, left)
                    changed.append(key)
        for key, there in states:
            before = self._table.get(key)
            after = (before or KeyState.EMPTY).merge(there, known=self._known(key), known_there=moved.target)
            if before is None and not after.siblings and self.vector.includes(after.context):
                continue  # forgotten here
            if after != before:
                self._replace(key, after)
                changed.append(key)
        return changed

    def _known(self, key: bytes) -> VersionVector:
        """The writes of `key` that this replica accounts for, whatever its state lists."""
        if self._catch_up is not None and self._catch_up.passed(key):
            return self.vector.merge(self._catch_up.target)
        return self.vector

    def _replace(self, key: bytes, state: KeyState | None) -> None:
        self._table.set(key, state)
        self._dirty[key] = None

    # -- checks -------------------------------------------------------------------------------------------------------

    def _check_key(self, key: bytes) -> None:
        if not key:
            raise BadKey("a key has at least one byte")
        if len(key) > KEY_BYTES_MAX:
            raise TooLarge(f"a key of {len(key)} bytes", limit=KEY_BYTES_MAX)

    def _checked_context(self, context: Context) -> Context:
        if not self.vector.includes(context.vector) or not (context.dot is None or self.vector.covers(context.dot)):
            raise BadContext("the context covers writes that this node does not know")
        return context

    def _check_growth(self, key: bytes, before: KeyState, after: KeyState) -> None:
        only_adds = len(after.siblings) > len(before.siblings)
        if only_adds and (
            len(after.siblings) > self.limits.siblings_max or before.value_bytes > self.limits.state_bytes_max
        ):
            raise Conflict(
                f"{len(before.siblings)} values stand side by side; write with the context that covers them",
                context=Context(before.context),
            )
        grown = cost(key, after) - cost(key, before if before is not KeyState.EMPTY else None)
        if grown > 0 and self._table.bytes + grown > self.limits.bytes_max:
            raise NoSpace(f"the keyspace holds {self._table.bytes} bytes", limit=self.limits.bytes_max)
        if before is KeyState.EMPTY and len(self._table) + self._staging.keys >= self.limits.keys_max:
            raise NoSpace(f"the keyspace holds {len(self._table)} keys", limit=self.limits.keys_max)

    def _checked_states(self, delta: KeyspaceDelta) -> KeyStates:
        """The states of a page, every one what a replica can hold. Raises ValueError, NoSpace."""
        states: KeyStates = []
        last = delta.after
        for key, row in delta.states:
            if not last < key or len(key) > KEY_BYTES_MAX or (delta.upto is not None and key > delta.upto):
                raise ValueError("the keys of a page are not in order, or outside its interval")
            last = key
            states.append((key, KeyState.from_row(row)))
        self._check_owners(states)
        incoming = sum(cost(key, state) for key, state in states)
        if (
            self._table.bytes + incoming > HARD_FACTOR * self.limits.bytes_max
            or len(self._table) + len(states) > HARD_FACTOR * self.limits.keys_max
        ):
            raise NoSpace("the keyspace cannot hold what other members have", limit=HARD_FACTOR * self.limits.bytes_max)
        return states

    def _check_owners(self, states: KeyStates) -> None:
        owners: dict[tuple[Origin, int], bytes] = {}
        for key, state in states:
            for entry in state.context.entries():
                if self._table.owner(entry[0], entry[1], key) != key or owners.setdefault(entry, key) != key:
                    raise ValueError("one dot for two keys")

    def _check_origins(self, vector: VersionVector, states: KeyStates) -> None:
        own = max((state.context.get(self.origin) for _, state in states), default=0)
        if max(own, vector.get(self.origin)) > self.vector.get(self.origin):
            raise IdentityRefused("other members know writes of this store that it does not: it is an old copy")
        is_own_to_come = self._minted > 0 and not self.vector.get(self.origin)
        if len(self.vector.merge(vector)) + is_own_to_come > ORIGINS_MAX:
            raise NoSpace(f"more than {ORIGINS_MAX} origins", limit=ORIGINS_MAX)
