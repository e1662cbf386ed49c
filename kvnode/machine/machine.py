"""StateMachine: committed entries in, answers and events out; the same on every node.

`apply` is a pure function of the state and the entry: no clock, no chance, no setting of this node alone, no
exception for what a client asked (such answers are `Refusal`s). The rolling digest proves it (I7, I21).

State lives in two places read as one (`mvcc`): the recent table, which `apply` changes, and the backend,
which a flush brings up to date: `cut` freezes what is recent at the end of an entry, another thread commits it
together with the applied index it belongs to, and `evict` drops it from memory once that is durable. The log
keeps every entry after the backend's applied index, so a restart is: open the backend, apply the rest.

Not thread-safe: all calls come from the node's loop. Only `Cut.rows` may run elsewhere.

Big range deletes are applied in one go, bounded by `limits.delete_keys_max`.
"""

from __future__ import annotations

import msgspec

from kvnode.config import LimitsSection
from kvnode.errors import BadRequest, Compacted, FutureRevision
from kvnode.ids import Index, Revision
from kvnode.kv.events import Event
from kvnode.kv.requests import ApplyResult, Delete, KeyValue, Put, Range, RangeReply, Txn, WriteRequest
from kvnode.machine import digest, keycode
from kvnode.machine.backend import Backend
from kvnode.machine.mvcc import Versions
from kvnode.machine.operations import Operations
from kvnode.machine.recent import Recent
from kvnode.machine.rows import Cut, Meta, decode_meta
from kvnode.machine.txn import Transactions, check_readable

__all__ = ["Applied", "Cut", "StateMachine", "logical_bytes"]

VERSION_OVERHEAD_BYTES = 64
"""What a version is counted as beside its key and value, for the quota. Equal on all nodes, for ever."""


class Applied(msgspec.Struct, frozen=True):
    """What became of one entry: the answer for whoever asked, the events for whoever watches."""

    result: ApplyResult
    events: tuple[Event, ...]


class StateMachine:
    """The multi-version store at one applied index."""

    def __init__(self, backend: Backend, limits: LimitsSection) -> None:
        """Starts where the backend was cut. Raises: StorageFailed if that store cannot be read."""
        row = backend.seek(keycode.META_KEY)
        meta = decode_meta(row[1]) if row is not None and row[0] == keycode.META_KEY else Meta()
        self.applied_index = meta.applied_index
        self.applied_time = meta.applied_time  # never decreases along the log
        self.revision = meta.revision
        self.compact_revision = meta.compact_revision
        self.digest = meta.digest
        self.logical_bytes = meta.logical_bytes
        self.backend = backend
        self._cut_index = meta.applied_index  # of the newest cut
        self._recent = Recent()
        versions = Versions(backend, self._recent)
        self._operations = Operations(versions, self._recent, limits)
        self._transactions = Transactions(versions, self._recent, self._operations, limits)

    @property
    def recent_bytes(self) -> int:
        return self._recent.size_bytes

    @property
    def recent_versions(self) -> int:
        return self._recent.versions

    # ── entries ─────────────────────────────────────────────────────────────────────────────────────

    def apply(self, index: Index, time: int, request: WriteRequest) -> Applied:
        """Carry out one command. `index` follows the applied index; `time` is the entry's."""
        self._expect(index, time)
        events: list[Event] = []
        result: ApplyResult
        if isinstance(request, Put):
            result = self._operations.put(request, self.revision, time, events)
        elif isinstance(request, Delete):
            result = self._operations.delete(request, self.revision, time, events)
        else:
            assert isinstance(request, Txn), request
            result = self._transactions.apply(request, self.revision, self.compact_revision, time, events)
        changes = [event.kv for event in events]
        if changes:
            self.revision = Revision(self.revision + 1)
            for kv in changes:
                assert kv.mod_revision == self.revision, (kv.mod_revision, self.revision)
                self.logical_bytes += logical_bytes(kv)
        self._advance(index, time, changes, result)
        return Applied(result, tuple(events))

    def skip(self, index: Index, time: int) -> None:
        """Pass an entry that is not a command (a leader's no-op, a configuration)."""
        self._expect(index, time)
        self._advance(index, time, [], None)

    def _expect(self, index: Index, time: int) -> None:
        assert index == self.applied_index + 1, (index, self.applied_index)
        assert time >= self.applied_time, (time, self.applied_time)

    def _advance(self, index: Index, time: int, changes: list[KeyValue], result: ApplyResult | None) -> None:
        self.digest = digest.advance(self.digest, index, time, changes, result)
        self.applied_index = index
        self.applied_time = time

    # ── reads ───────────────────────────────────────────────────────────────────────────────────────

    def range(self, request: Range) -> RangeReply:
        """One page of keys, newest or at `request.revision`. Never waits.

        Raises: FutureRevision, Compacted, BadRequest.
        """
        wanted = request.revision
        if wanted:
            refusal = check_readable(wanted, self.revision, self.compact_revision)
            if refusal is not None:
                match refusal.code:
                    case FutureRevision.code:
                        raise FutureRevision(refusal.message, revision=self.revision)
                    case Compacted.code:
                        raise Compacted(refusal.message, compact_revision=self.compact_revision)
                raise BadRequest(refusal.message)
        return self._operations.range(request, wanted or self.revision)

    def hash_at(self) -> str:
        """The rolling digest at the applied index, in hex: equal on all nodes at equal applied index."""
        return self.digest.hex()

    # ── flushing ────────────────────────────────────────────────────────────────────────────────────

    def cut(self) -> Cut | None:
        """Freeze what was applied since the last cut, for a commit; None if there is nothing or one is outstanding."""
        if self._recent.is_frozen or self.applied_index == self._cut_index:
            return None
        layer = self._recent.freeze()
        self._cut_index = self.applied_index
        meta = Meta(
            applied_index=self.applied_index,
            applied_time=self.applied_time,
            revision=self.revision,
            compact_revision=self.compact_revision,
            digest=self.digest,
            logical_bytes=self.logical_bytes,
        )
        return Cut(meta, layer.changes, layer.bytes)

    def evict(self, cut: Cut) -> None:
        """Drop a cut's versions from memory: its commit is durable, reads find them in the backend."""
        assert cut.applied_index == self._cut_index, (cut.applied_index, self._cut_index)
        self._recent.evict()


def logical_bytes(kv: KeyValue) -> int:
    """What a version counts against the quota, history and deletions included."""
    return len(kv.key) + len(kv.value) + VERSION_OVERHEAD_BYTES
