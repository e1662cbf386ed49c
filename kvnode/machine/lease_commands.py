"""What the logged commands about leases do. Deterministic and total, as `operations`; deletions in slices.

A command may end many leases; all their keys go in its one revision, in byte order.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from kvnode.config import LimitsSection
from kvnode.ids import Index, Revision
from kvnode.kv.events import Event
from kvnode.kv.requests import (
    LEASE_TTL_MS_MAX,
    ApplyResult,
    Campaign,
    KeyValue,
    LeaseEnded,
    LeaseGrant,
    LeaseList,
    LeaseListReply,
    LeaseRenew,
    LeaseReply,
    LeaseRevoke,
    LeaseUpkeep,
    LeaseView,
    Put,
    PutReply,
    QueueRead,
    QueueReply,
    Refusal,
)
from kvnode.machine.leases import Lease, Leases, Place, queue_key
from kvnode.machine.mvcc import Versions
from kvnode.machine.operations import Operations
from kvnode.machine.pace import Pace, Work, in_order
from kvnode.machine.rows import logical_bytes

LeaseCommand = LeaseGrant | LeaseRevoke | LeaseUpkeep | LeaseRenew | Campaign


class LeaseCommands:
    """Over one store. `revision` is the store's current one, before the entry; `events` gathers its changes."""

    def __init__(self, leases: Leases, versions: Versions, operations: Operations, limits: LimitsSection) -> None:
        self._leases = leases
        self._versions = versions
        self._operations = operations
        self._limits = limits

    def apply(
        self, request: LeaseCommand, index: Index, *, revision: Revision, time: int, events: list[Event], pace: Pace
    ) -> Work[ApplyResult]:
        match request:
            case LeaseGrant(ttl_ms=ttl_ms, id=wanted, put=put):
                if wanted and self._leases.get(wanted) is not None:
                    return Refusal("conflict", f"lease {wanted} exists", revision)
                lease_id = wanted or self._leases.free_id(index)
                return self._begin(lease_id, ttl_ms, index, put, revision=revision, time=time, events=events)
            case Campaign(name=name, ttl_ms=ttl_ms, value=value):
                lease_id = self._leases.free_id(index)
                put = Put(queue_key(name, lease_id), value, if_revision=0)
                return self._begin(lease_id, ttl_ms, index, put, revision=revision, time=time, events=events)
            case LeaseRevoke(id=lease_id):
                lease = self._leases.get(lease_id)
                if lease is None:
                    return _missing(lease_id, revision)
                return (yield from self._end([lease], revision, time, events, pace))
            case LeaseUpkeep():
                return (yield from self._keep_up(request, revision, time, events, pace))
            case LeaseRenew(id=lease_id):
                lease = self._leases.get(lease_id)
                if lease is None:
                    return _missing(lease_id, revision)
                self._leases.renew(lease)
                return LeaseReply(lease_id, lease.ttl_ms, revision)

    def _begin(
        self,
        lease_id: int,
        ttl_ms: int,
        index: Index,
        put: Put | None,
        *,
        revision: Revision,
        time: int,
        events: list[Event],
    ) -> LeaseReply | Refusal:
        if not 0 < ttl_ms <= LEASE_TTL_MS_MAX:
            return Refusal("bad_request", f"{ttl_ms} ms is no time to live", revision)
        if len(self._leases) >= self._limits.leases_max:
            return Refusal("overloaded", f"there are {self._limits.leases_max} leases, and may be no more", revision)
        if put is not None and put.keep_lease:
            return Refusal("bad_request", "a put that comes with a lease cannot keep another", revision)
        lease = self._leases.begin(lease_id, ttl_ms, index, is_own=put is not None)
        if put is None:
            return LeaseReply(lease_id, ttl_ms, revision)
        under_it = Put(put.key, put.value, lease_id, put.if_revision, put.return_previous, put.keep_value)
        reply = self._operations.put(under_it, revision, time, events)
        if isinstance(reply, Refusal):
            self._leases.end(lease.id)
            return reply
        assert isinstance(reply, PutReply)
        return LeaseReply(lease_id, ttl_ms, reply.revision, reply)

    def _keep_up(
        self, request: LeaseUpkeep, revision: Revision, time: int, events: list[Event], pace: Pace
    ) -> Work[LeaseEnded]:
        noted = 0
        for lease_id, renewals, remaining_ms in request.checkpoints:
            lease = self._leases.get(lease_id)
            if lease is not None and lease.renewals == renewals and 0 < remaining_ms <= lease.ttl_ms:
                self._leases.note_remaining(lease, remaining_ms)
                noted += 1
        found = ((self._leases.get(lease_id), renewals) for lease_id, renewals in request.expired)
        expired = [lease for lease, renewals in found if lease is not None and lease.renewals == renewals]
        ended = yield from self._end(expired, revision, time, events, pace)
        return LeaseEnded(ended.revision, ended.leases, ended.deleted, noted)

    def _end(
        self, leases: list[Lease], revision: Revision, time: int, events: list[Event], pace: Pace
    ) -> Work[LeaseEnded]:
        """Keys leave their lease one by one: between two slices it is seen with those that are left."""
        keys = [key for lease in leases for key in lease.keys]
        previous_bytes = 0
        for key in (yield from in_order(keys, pace)):
            if pace.left <= 0:
                yield
            pace.left -= 3  # to be looked up, to be deleted, to leave its lease
            before = self._versions.current(key)
            assert before is not None, ("a key on a lease exists", key)
            previous_bytes += len(before.key) + len(before.value)
            fits = previous_bytes <= self._limits.page_bytes_max  # as in a range delete
            self._operations.bury(
                key, revision + 1, time, before if fits else None, events, replaced=logical_bytes(before)
            )
            self._leases.let_go(key)
        ids = sorted({lease.id for lease in leases})
        for lease_id in ids:
            if pace.left <= 0:
                yield
            pace.left -= 1
            self._leases.end(lease_id)
        return LeaseEnded(revision + bool(events), tuple(ids), len(keys))

    # ── reads ───────────────────────────────────────────────────────────────────────────────────────

    def list(self, request: LeaseList, revision: Revision) -> LeaseListReply:
        limit = request.limit or self._limits.page_items
        views: list[LeaseView] = []
        for lease in self._leases.after(request.after):
            if len(views) == limit:
                return LeaseListReply(revision, tuple(views), True)
            views.append(LeaseView(lease.id, lease.ttl_ms, len(lease.keys)))
        return LeaseListReply(revision, tuple(views), False)

    def queue(self, request: QueueRead, revision: Revision) -> QueueReply:
        queue = self._leases.queue(request.name)
        if request.lease:
            position = self._leases.position(request.name, request.lease)
            places = queue[max(0, position - 1) : position + 1]
            return QueueReply(revision, self._shown(request.name, places, revision), False)
        if request.token:
            first = bisect_left(queue, (request.token,))
            places = [place for place in queue[first : first + 1] if place[0] == request.token]
            return QueueReply(revision, self._shown(request.name, places, revision), False)
        page = self._limits.page_items
        places = queue[: min(request.limit or page, page)]
        shown = self._shown(request.name, places, revision, bytes_max=self._limits.page_bytes_max)
        return QueueReply(revision, shown, len(queue) > len(shown))

    def _shown(
        self, name: bytes, places: Sequence[Place], revision: Revision, bytes_max: int = 1 << 62
    ) -> tuple[KeyValue, ...]:
        """Those of them that fit; the first does. What those who wait say of themselves may be long."""
        shown: list[KeyValue] = []
        size = 0
        for _, lease in places:
            kv = self._versions.at(queue_key(name, lease), revision)
            if kv is not None:
                size += len(kv.key) + len(kv.value)
                if shown and size > bytes_max:
                    break
                shown.append(kv)
        return tuple(shown)


def _missing(lease_id: int, revision: Revision) -> Refusal:
    return Refusal("lease_not_found", f"lease {lease_id} does not exist", revision)
