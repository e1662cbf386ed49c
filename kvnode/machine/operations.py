"""Put, delete and range: what each does to the versions and what it answers.

Deterministic and total: what cannot be done is answered with a `Refusal`, never raised. Each function
appends the events of its changes to `events`; the caller owns revisions and all-or-nothing. What concerns a range
is `Work` in slices; what concerns one key is done at once.

Revisions: the first change of an entry makes `revision`, and all its changes share it. A put of the same
value is a change. A delete that finds nothing is none. `version` restarts at 1 after a delete.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from kvnode.config import LimitsSection
from kvnode.ids import Revision
from kvnode.kv.events import Event
from kvnode.kv.keys import ONE_KEY
from kvnode.kv.requests import (
    ANY_REVISION,
    MUST_EXIST,
    Delete,
    DeleteReply,
    History,
    KeyValue,
    Put,
    PutReply,
    Range,
    RangeReply,
    Refusal,
)
from kvnode.machine.leases import Leases
from kvnode.machine.mvcc import Versions
from kvnode.machine.pace import STEP_BYTES, Pace, Work
from kvnode.machine.recent import Recent
from kvnode.machine.rows import logical_bytes
from kvnode.machine.scan import Scan

KEY_BYTES_MAX = 64 << 10
"""Longest key the store's format is made for; `limits.key_bytes_max` is checked at the door and is lower."""


class Operations:
    """The three operations over one store. `revision` is the store's current one, before this entry."""

    def __init__(self, versions: Versions, recent: Recent, leases: Leases, limits: LimitsSection) -> None:
        self._versions = versions
        self._leases = leases
        self._recent = recent
        self._limits = limits
        self.replaced_bytes = 0
        """Logical bytes of the live versions that the present entry has put newer ones on; the caller resets it."""

    def put(self, request: Put, revision: Revision, time: int, events: list[Event]) -> PutReply | Refusal:
        key = request.key
        if not 0 < len(key) <= KEY_BYTES_MAX:
            return _bad_key(key, revision)
        before = self._versions.current(key)
        value, lease = request.value, request.lease
        if lease or request.keep_value or request.keep_lease:
            refusal = self._check_put(request, before, revision)
            if refusal is not None:
                return refusal
            if before is not None:
                value = before.value if request.keep_value else value
                lease = before.lease if request.keep_lease else lease
        if request.if_revision != ANY_REVISION:
            refusal = check_revision(request.if_revision, before, revision)
            if refusal is not None:
                return refusal
        made = revision + 1
        if before is None:
            kv = KeyValue(key, value, made, made, 1, lease, time)
        else:
            kv = KeyValue(key, value, before.create_revision, made, before.version + 1, lease, time)
            self.replaced_bytes += logical_bytes(before)
        self._recent.add(kv)
        events.append(Event(kv, before))
        previous = before if request.return_previous else None
        return PutReply(made, before is None, kv.create_revision, kv.version, time, previous)

    def check_put(self, request: Put, revision: Revision) -> Refusal | None:
        """Whether the state allows a put, but for its `if_revision`; None: it does. Takes a look-up."""
        if not 0 < len(request.key) <= KEY_BYTES_MAX:
            return _bad_key(request.key, revision)
        return self._check_put(request, self._versions.current(request.key), revision)

    def _check_put(self, request: Put, before: KeyValue | None, revision: Revision) -> Refusal | None:
        if request.keep_value or request.keep_lease:
            refusal = _check_kept(request, before, revision)
            if refusal is not None:
                return refusal
        return self._check_lease(request.lease, request.key, revision) if request.lease else None

    def _check_lease(self, lease_id: int, key: bytes, revision: Revision) -> Refusal | None:
        lease = self._leases.get(lease_id)
        if lease is None:
            return Refusal("lease_not_found", f"lease {lease_id} does not exist", revision)
        if len(lease.keys) >= self._limits.lease_keys_max and key not in lease.keys:
            return Refusal("too_large", f"a lease holds at most {self._limits.lease_keys_max} keys", revision)
        return None

    def delete_one(self, request: Delete, revision: Revision, time: int, events: list[Event]) -> DeleteReply | Refusal:
        """Delete a single key."""
        before = self._versions.current(request.start) if request.start else None
        if request.if_revision != ANY_REVISION:
            refusal = check_revision(request.if_revision, before, revision)
            if refusal is not None:
                return refusal
        if before is None:
            return DeleteReply(revision + bool(events), 0)
        self.bury(before.key, revision + 1, time, before, events, replaced=logical_bytes(before))
        return DeleteReply(revision + 1, 1, (before,) if request.return_previous else ())

    def delete_range(
        self, request: Delete, revision: Revision, time: int, events: list[Event], pace: Pace, *, already: int = 0
    ) -> Work[DeleteReply | Refusal]:
        """Delete every key of a range, up to `limits.delete_keys_max` an entry; above it nothing happens.

        `already` keys were deleted by the same entry. Tombstones carry the next revision, which nobody may read
        before the entry is finished. Previous values are held to `limits.page_bytes_max`: asked for and over it
        the request is refused; for watchers, events beyond it carry none (they can be read at the revision before).
        """
        if request.if_revision != ANY_REVISION:
            return Refusal("bad_request", "if_revision needs a single key", revision)
        limits = self._limits
        found: list[tuple[bytes, int, KeyValue | None]] = []
        previous_bytes = 0
        scan = self._versions.scan(request.start, request.end, revision + bool(events))
        while True:
            with closing(scan.slice(pace)) as slice_:
                for kv in slice_:
                    if already + len(found) >= limits.delete_keys_max:
                        return Refusal(
                            "too_large", f"one request deletes at most {limits.delete_keys_max} keys", revision
                        )
                    previous_bytes += len(kv.key) + len(kv.value)
                    fits = previous_bytes <= limits.page_bytes_max
                    if request.return_previous and not fits:
                        return Refusal("too_large", f"previous values exceed {limits.page_bytes_max} bytes", revision)
                    found.append((kv.key, logical_bytes(kv), kv if fits else None))
            if scan.done:
                break
            yield
        for key, size, before in found:
            if pace.left <= 0:
                yield
            pace.left -= 1
            self.bury(key, revision + 1, time, before, events, replaced=size)
        previous = tuple(before for _, _, before in found if before is not None) if request.return_previous else ()
        return DeleteReply(revision + bool(events), len(found), previous)

    def bury(
        self, key: bytes, made: int, time: int, before: KeyValue | None, events: list[Event], *, replaced: int
    ) -> None:
        """Delete a key that exists, at revision `made`; `before` is what its event tells of it.

        `replaced`: logical bytes of the version before, which itself may be too much for the event to carry.
        """
        tombstone = KeyValue(key, b"", 0, made, 0, 0, time)
        self.replaced_bytes += replaced
        self._recent.add(tombstone)
        events.append(Event(tombstone, before))

    def range(self, request: Range, revision: int, pace: Pace) -> Work[RangeReply]:
        """One page, or a count, at `revision`, which the caller has checked to be readable."""
        if request.end == ONE_KEY:
            return self.range_one(request, revision)
        scan = self._versions.scan(request.start, request.end, revision, descending=request.descending)
        if request.count_only:
            return RangeReply(revision, (), (yield from _counted(scan, pace)))
        page = yield from self._page(scan, request, revision, pace)
        if not (request.counted and page.more):
            return page
        if request.descending:
            rest = self._versions.scan(request.start, page.items[-1].key, revision)
        else:
            rest = self._versions.scan(page.items[-1].key + b"\x00", request.end, revision)
        return RangeReply(revision, page.items, page.count + (yield from _counted(rest, pace)), True)

    def _page(self, scan: Scan, request: Range, revision: int, pace: Pace) -> Work[RangeReply]:
        wanted = request.limit if request.limit > 0 else self._limits.page_items
        limit = min(wanted, self._limits.page_items_max)
        items: list[KeyValue] = []
        size = 0
        while True:
            with closing(scan.slice(pace)) as slice_:
                for kv in slice_:
                    shown = _without_value(kv) if request.keys_only else kv
                    size += len(shown.key) + len(shown.value)
                    if len(items) == limit or (items and size > self._limits.page_bytes_max):
                        return RangeReply(revision, tuple(items), len(items), True)
                    items.append(shown)
            if scan.done:
                return RangeReply(revision, tuple(items), len(items), False)
            yield

    def history(self, request: History, revision: int, oldest: Callable[[], int], pace: Pace) -> Work[RangeReply]:
        """The versions of a key at or below `revision`, newest first, tombstones included; one look-up each.

        `revision` is one that the caller has checked to be readable. It ends with what the `oldest` readable revision
        shows, which may move up between slices: what is older has been removed on one node and not yet on another.
        """
        wanted = request.limit if request.limit > 0 else self._limits.page_items
        limit = min(wanted, self._limits.page_items_max)
        below = min(revision, request.before - 1) if request.before else revision
        items: list[KeyValue] = []
        size = 0
        while True:
            floor = oldest()
            kv = self._versions.floor(request.key, max(below, floor))
            if kv is None or kv.mod_revision > below or (kv.mod_revision < floor and not kv.version):
                break
            size += len(kv.key) + len(kv.value)
            if len(items) == limit or (items and size > self._limits.page_bytes_max):
                return RangeReply(revision, tuple(items), len(items), True)
            items.append(kv)
            if kv.mod_revision <= floor:
                break
            below = kv.mod_revision - 1
            pace.left -= 1 + len(kv.value) // STEP_BYTES
            if pace.left <= 0:
                yield
        return RangeReply(revision, tuple(items), len(items), False)

    def range_one(self, request: Range, revision: int) -> RangeReply:
        """A single key at `revision`, which the caller has checked to be readable."""
        kv = self._versions.at(request.start, revision) if request.start else None
        if kv is None:
            return RangeReply(revision, (), 0)
        if request.count_only:
            return RangeReply(revision, (), 1)
        return RangeReply(revision, (_without_value(kv) if request.keys_only else kv,), 1)


def _bad_key(key: bytes, revision: Revision) -> Refusal:
    return Refusal("bad_key", f"a key has 1 to {KEY_BYTES_MAX} bytes, not {len(key)}", revision)


def _check_kept(request: Put, before: KeyValue | None, revision: Revision) -> Refusal | None:
    """Whether a put can keep what it says of the version `before`; None: it can."""
    if request.keep_value and request.value:
        return Refusal("bad_request", "a put that keeps the value gives none", revision)
    if request.keep_lease and request.lease:
        return Refusal("bad_request", "a put that keeps the lease gives none", revision)
    if before is None:
        return Refusal("key_not_found", "the key whose value or lease is to be kept does not exist", revision)
    return None


def check_revision(wanted: int, before: KeyValue | None, revision: Revision) -> Refusal | None:
    """Whether an `if_revision` condition holds for a key as it is now; None: it does."""
    found = before.mod_revision if before is not None else 0
    if wanted == MUST_EXIST:
        if found:
            return None
        return Refusal("compare_failed", "the key does not exist", revision)
    if wanted < 0:
        return Refusal("bad_request", f"{wanted} is not a revision", revision)
    if wanted == found:
        return None
    if not found:
        words = f"the key does not exist, so it is not at revision {wanted}"
    else:
        words = f"the key is at revision {found}, not {wanted}" if wanted else f"the key exists, at revision {found}"
    return Refusal("compare_failed", words, revision, found)


def _counted(scan: Scan, pace: Pace) -> Work[int]:
    """How many keys there are."""
    count = 0
    while True:
        count += sum(1 for _ in scan.slice(pace))
        if scan.done:
            return count
        yield


def _without_value(kv: KeyValue) -> KeyValue:
    return KeyValue(kv.key, b"", kv.create_revision, kv.mod_revision, kv.version, kv.lease, kv.time)
