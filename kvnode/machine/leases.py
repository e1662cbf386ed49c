"""Leases: which there are, which keys hang on them, and who stands in which queue. In memory, written as side rows.

A lease lives until it is revoked or a logged command says that it has expired; no clock is read here. The leader times
leases (`kvnode.node.leases`) and logs what its successors need: *checkpoints*, the time a lease had left, and the
renewals that take one back. `renewals` counts the logged ones, from the index of the entry that began the lease: a
decision of the leader names the count it was made at and is void at any other, also at one of an earlier or later lease
of the same id.

A key hangs on at most one lease: its newest version names it. A put without a lease takes the key off.

A *queue* are the keys ``name/<lease in hex>`` that hang on just that lease, ordered by create revision; the first holds
the name. Other keys below ``name/`` do not count, and of keys of that form only those that were created on their lease,
and no two of one revision: a create revision is the token of one holder, who does not come back once it has gone.

Source: Gray and Cheriton, "Leases" (SOSP 1989); key layout of queues as in etcd's concurrency recipes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sortedcontainers import SortedDict, SortedList

from kvnode.kv.events import Event
from kvnode.kv.requests import KeyValue
from kvnode.machine import keycode
from kvnode.machine.backend import Backend
from kvnode.machine.rows import LeaseKeyRow, LeaseRow, decode_lease, decode_lease_key
from kvnode.machine.side_rows import SideRows, rows_of

Place = tuple[int, int]
"""In a queue: (create revision, lease)."""


class Lease:
    """One lease. To be read only; `Leases` changes it."""

    __slots__ = ("id", "is_own", "keys", "remaining_ms", "renewals", "ttl_ms")

    def __init__(self, lease_id: int, row: LeaseRow) -> None:
        self.id = lease_id
        self.ttl_ms = row.ttl_ms
        self.renewals = row.renewals
        self.remaining_ms = row.remaining_ms
        self.is_own = row.is_own
        self.keys: dict[bytes, int] = {}  # → create revision

    def row(self) -> LeaseRow:
        return LeaseRow(self.ttl_ms, self.renewals, self.remaining_ms, self.is_own)


class Leases:
    """All leases of the applied state."""

    def __init__(self, backend: Backend, side: SideRows) -> None:
        self._side = side
        self._by_id: SortedDict = SortedDict(_place_of)
        self._of_key: dict[bytes, Lease] = {}
        self._queues: dict[bytes, SortedList] = {}
        self._changed: dict[int, bool] | None = None  # since the last call of `take_changed`; None: nobody follows
        self._outside: dict[bytes, bool] = {}  # keys that look like places of a queue and are none
        self._emptied: list[Lease] = []  # by the entry that is being tracked: own leases that have lost their last key
        for lease_id, row in map(decode_lease, rows_of(backend, keycode.LEASES)):
            self._by_id[lease_id] = Lease(lease_id, row)
        for lease_id, key_row in map(decode_lease_key, rows_of(backend, keycode.LEASE_KEYS)):
            lease = self._by_id[lease_id]
            self._attach(key_row.key, lease, key_row.create_revision, is_outside=key_row.is_outside)

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, lease_id: int) -> Lease | None:
        found: Lease | None = self._by_id.get(lease_id)
        return found

    def ids(self) -> list[int]:
        """In their order (`kvnode.kv.requests.LEASE_IDS`)."""
        return list(self._by_id)

    def after(self, lease_id: int) -> Iterator[Lease]:
        """Leases whose ids come after that one, in their order."""
        return (self._by_id[each] for each in self._by_id.irange(lease_id, inclusive=(False, True)))

    def free_id(self, wanted: int) -> int:
        """`wanted`, or the next number that no lease has."""
        while wanted in self._by_id:
            wanted += 1
        return wanted

    def follow(self, *, wanted: bool) -> None:
        """Whether somebody calls `take_changed` from now on."""
        self._changed = {} if wanted else None

    def take_changed(self) -> Sequence[int]:
        """Leases that began, were renewed or ended by a logged command since the last call."""
        changed = self._changed
        if not changed:
            return ()
        self._changed = {}
        return list(changed)

    # ── changes ─────────────────────────────────────────────────────────────────────────────────────

    def begin(self, lease_id: int, ttl_ms: int, index: int, *, is_own: bool) -> Lease:
        """By entry `index`."""
        assert lease_id not in self._by_id, lease_id
        lease = Lease(lease_id, LeaseRow(ttl_ms, index, 0, is_own))
        self._by_id[lease_id] = lease
        self._write(lease)
        self._note(lease_id)
        return lease

    def renew(self, lease: Lease) -> None:
        lease.remaining_ms = 0
        lease.renewals += 1
        self._write(lease)
        self._note(lease.id)

    def note_remaining(self, lease: Lease, remaining_ms: int) -> None:
        lease.remaining_ms = remaining_ms
        self._write(lease)

    def end(self, lease_id: int) -> None:
        """Its keys must be gone, or go by the events of the same entry. Idempotent."""
        lease = self.get(lease_id)
        if lease is None:
            return
        for key in list(lease.keys):
            self._detach(key, lease)
        del self._by_id[lease_id]
        self._note(lease_id)
        self._side.remove(keycode.lease_row_key(lease_id))

    def track(self, events: Iterable[Event]) -> None:
        """These changes are made: keys are on the leases that their newest versions name.

        A big entry's come piece by piece; after the last `end_emptied` is due. Not before: a lease that loses its last
        key may get another one by the same entry.
        """
        for event in events:
            kv = event.kv
            before = self._of_key.get(kv.key)
            if before is None and not kv.lease:
                continue
            if before is not None and (before.id != kv.lease or before.keys[kv.key] != kv.create_revision):
                self._detach(kv.key, before)
            if kv.lease and kv.key not in self._of_key:
                is_outside = self._is_outside(kv)
                self._attach(kv.key, self._by_id[kv.lease], kv.create_revision, is_outside=is_outside)
                row = LeaseKeyRow(kv.key, kv.create_revision, is_outside)
                self._side.put(keycode.lease_key_row_key(kv.lease, kv.key), row)
            if before is not None and before.is_own and not before.keys:
                self._emptied.append(before)

    def end_emptied(self, most: int) -> bool:
        """End, of the own leases without a key, at most so many; whether that were all."""
        for lease in self._emptied[-most:]:
            if not lease.keys:
                self.end(lease.id)
        del self._emptied[-most:]
        return not self._emptied

    def let_go(self, key: bytes) -> None:
        """A key that is on a lease goes, with its lease, by the entry that is being applied."""
        self._detach(key, self._of_key[key])

    def _note(self, lease_id: int) -> None:
        if self._changed is not None:
            self._changed[lease_id] = True

    def _write(self, lease: Lease) -> None:
        self._side.put(keycode.lease_row_key(lease.id), lease.row())

    def _is_outside(self, kv: KeyValue) -> bool:
        """Whether a key that comes to a lease has no place in a queue, though it may look like one."""
        name = queue_of(kv.key, kv.lease)
        if name is None:
            return False
        queue = self.queue(name)
        return kv.version != 1 or (bool(queue) and queue[-1][0] == kv.create_revision)

    def _attach(self, key: bytes, lease: Lease, create_revision: int, *, is_outside: bool) -> None:
        lease.keys[key] = create_revision
        self._of_key[key] = lease
        if is_outside:
            self._outside[key] = True
        elif (name := queue_of(key, lease.id)) is not None:
            self._queues.setdefault(name, SortedList()).add((create_revision, lease.id))

    def _detach(self, key: bytes, lease: Lease) -> None:
        create_revision = lease.keys.pop(key)
        del self._of_key[key]
        self._side.remove(keycode.lease_key_row_key(lease.id, key))
        if self._outside.pop(key, False):
            return
        if (name := queue_of(key, lease.id)) is not None:
            queue = self._queues[name]
            queue.remove((create_revision, lease.id))
            if not queue:
                del self._queues[name]

    # ── queues ──────────────────────────────────────────────────────────────────────────────────────

    def queue(self, name: bytes) -> Sequence[Place]:
        """Who holds `name`, and who waits, in their order."""
        found: Sequence[Place] = self._queues.get(name, ())
        return found

    def holder(self, name: bytes) -> Place | None:
        queue = self.queue(name)
        return queue[0] if queue else None

    def position(self, name: bytes, lease: int) -> int:
        """In the queue of `name`, from 0; -1: it does not stand there."""
        held, key = self.get(lease), queue_key(name, lease)
        create_revision = held.keys.get(key) if held is not None else None
        if create_revision is None or key in self._outside:
            return -1
        position: int = self._queues[name].index((create_revision, lease))
        return position


def _place_of(lease: int) -> int:
    return lease & (1 << 64) - 1


def queue_key(name: bytes, lease: int) -> bytes:
    return b"%b/%x" % (name, lease)


def queue_of(key: bytes, lease: int) -> bytes | None:
    """The name in whose queue a key on this lease stands; None: in no queue."""
    tail = b"/%x" % lease
    return key[: -len(tail)] if key.endswith(tail) else None
