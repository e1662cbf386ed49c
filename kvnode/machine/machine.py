"""StateMachine: committed entries in, answers and events out; the same on every node.

`apply` is a pure function of the state and the entry: no clock, no chance, no setting of this node alone, no
exception for what a client asked (such answers are `Refusal`s). The rolling digest proves it (I7, I21).

State lives in two places read as one (`mvcc`): the recent table, which `apply` changes, and the backend,
which a flush brings up to date: `cut` freezes what is recent at the end of an entry, another thread commits it
together with the applied index it belongs to, and `evict` drops it from memory once that is durable. The log
keeps every entry after the backend's applied index, so a restart is: open the backend, apply the rest.

Not thread-safe: all calls come from the node's loop. Only `Cut.rows` may run elsewhere.

What may touch many keys (range deletes, transactions, range reads) is done in slices (`pace`). While an entry is
unfinished its versions carry a revision above the store's, which nobody may read, and nothing is cut; applied
index, revision and digest move after the last slice, all at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from kvnode.config import LimitsSection
from kvnode.errors import BadRequest, Compacted, FutureRevision
from kvnode.ids import Index, Revision, Term
from kvnode.kv.events import Event
from kvnode.kv.keys import ONE_KEY
from kvnode.kv.requests import (
    ApplyResult,
    Command,
    Compact,
    ConfigurationReply,
    Delete,
    Fence,
    HashReply,
    History,
    LeaseList,
    LeaseListReply,
    Put,
    QueueReply,
    Range,
    RangeReply,
    ReadRequest,
    Refusal,
    SessionEnd,
    SessionOpen,
    StateCheck,
    StateCheckReply,
    Sweep,
    SweepReply,
    TableRequest,
    Txn,
    WriteRequest,
)
from kvnode.machine import digest, keycode
from kvnode.machine.backend import Backend
from kvnode.machine.changelog import Changelog, ChangesAsked, ChangesFound, Page
from kvnode.machine.compaction import Compaction
from kvnode.machine.exactly_once import ExactlyOnce
from kvnode.machine.lease_commands import LeaseCommands
from kvnode.machine.leases import Leases
from kvnode.machine.mvcc import Versions
from kvnode.machine.operations import Operations
from kvnode.machine.pace import SLICE_STEPS, Pace, Work, in_one_go
from kvnode.machine.recent import Recent
from kvnode.machine.rows import Cut, Meta, decode_meta, logical_bytes
from kvnode.machine.side_rows import SideRows
from kvnode.machine.state_hash import state_hash
from kvnode.machine.txn import Transactions, check_readable

__all__ = ["Applied", "Cut", "StateMachine", "logical_bytes"]

MANY_CHANGES = 256
"""An entry with fewer is finished at once."""

TIMES_KEPT_MAX = 256
"""Times whose revisions are remembered."""


Reading = TypeVar("Reading")


class Applied(msgspec.Struct, frozen=True):
    """What became of one entry: the answer for whoever asked, the events for whoever watches."""

    result: ApplyResult
    events: tuple[Event, ...]


class StateMachine:
    """The multi-version store at one applied index."""

    def __init__(self, backend: Backend, limits: LimitsSection, *, slice_steps: int = SLICE_STEPS) -> None:
        """Starts where the backend was cut. Raises: StorageFailed if that store cannot be read."""
        row = backend.seek(keycode.META_KEY)
        meta = decode_meta(row[1]) if row is not None and row[0] == keycode.META_KEY else Meta()
        self.applied_index = meta.applied_index
        self.applied_time = meta.applied_time  # never decreases along the log
        self.revision = meta.revision
        self.digest = meta.digest
        self.logical_bytes = meta.logical_bytes  # of all versions
        self.live_bytes = meta.live_bytes  # of the versions that the newest revision shows
        self.configuration = meta.configuration  # payload of the newest configuration entry; b"": the initial one holds
        self.configuration_index = meta.configuration_index
        self.installed = meta.installed
        """(index, term) of the entry that the snapshot ended with which this store began as; None: it began empty."""
        self.restored = meta.restored
        """(revision, hybrid time): this cluster began at that revision, with a snapshot of that time; None: empty."""
        self.cut_term = meta.applied_term
        """Of the last entry in the newest cut."""
        self.versions_removed = 0  # since this machine was opened, like the next two
        self.puts = 0  # versions made
        self.deletes = 0  # keys deleted
        self.generation = 0
        """How many stores came before this one (`take_over`): what was read of an earlier one is not gone on with."""
        self.backend = backend
        self._cut_index = meta.applied_index  # of the newest cut
        self._unfinished: Work[Applied] | None = None
        self._pace = Pace(slice_steps)
        self._recent = Recent()
        self._side = SideRows()
        self._versions = versions = Versions(backend, self._recent)
        self._revisions_at: dict[int, int] = {}  # by time: who looks at the past looks at many keys of one time
        self.leases = leases = Leases(backend, self._side)  # to be read only
        self._operations = Operations(versions, self._recent, leases, limits)
        self._lease_commands = LeaseCommands(leases, versions, self._operations, limits)
        self._transactions = Transactions(versions, self._recent, self._operations, limits)
        self.exactly_once = ExactlyOnce(backend, self._side, limits)
        self._changelog = Changelog(backend, self._recent, versions, limits.page_bytes_max)
        self._compaction = Compaction(backend, self._recent, self._side, meta)

    def take_over(self, other: StateMachine) -> None:
        """Become `other`, which was opened over a snapshot that is ahead of this store; `other` is of no use then.

        An unfinished entry and a cut under way are dropped: the snapshot has all of it. Reads between two slices begin
        again, those who held `leases` or `exactly_once` must fetch them anew, the backend before may be closed.
        """
        assert other.applied_index >= self.applied_index, (other.applied_index, self.applied_index)
        assert other.revision >= self.revision, (other.revision, self.revision)
        assert other.is_flushed, "it has applied something by itself"
        if self._unfinished is not None:
            self._unfinished.close()
        generation, removed, repeats = self.generation, self.versions_removed, self.exactly_once.repeats
        puts, deletes = self.puts, self.deletes
        vars(self).update(vars(other))  # all of it, whatever a store has: nothing of this one must stay behind
        self.generation = generation + 1
        self.versions_removed += removed
        self.puts += puts
        self.deletes += deletes
        self.exactly_once.repeats += repeats

    @property
    def compact_revision(self) -> int:
        """The oldest revision that can be read; 0: all can. Never decreases, never above `revision`."""
        return self._compaction.compact_revision

    @property
    def swept_revision(self) -> int:
        """What was given up below it has been removed. At most `compact_revision`."""
        return self._compaction.swept_revision

    @property
    def history_bytes(self) -> int:
        """Logical bytes of all that is there for readers of the past only."""
        return self.logical_bytes - self.live_bytes

    @property
    def is_unfinished(self) -> bool:
        """A command has begun and waits for `resume`."""
        return self._unfinished is not None

    @property
    def recent_bytes(self) -> int:
        """What memory holds until it is flushed: versions, and rows beside them that change or go."""
        return self._recent.size_bytes + self._side.size_bytes

    @property
    def recent_versions(self) -> int:
        return self._recent.versions

    @property
    def is_flushed(self) -> bool:
        """Nothing waits for a cut, or in one for its commit, but, maybe, the applied index."""
        return not self._recent.versions and self._side.is_empty and not self._recent.is_frozen

    # ── entries ─────────────────────────────────────────────────────────────────────────────────────

    def apply(self, index: Index, time: int, request: WriteRequest) -> Applied:
        """Carry out one command in one go, however long it takes."""
        applied = self.begin(index, time, request)
        while applied is None:
            applied = self.resume()
        return applied

    def begin(self, index: Index, time: int, request: WriteRequest) -> Applied | None:
        """Carry out one command, or only its first slice; None: `resume` until it is finished, before anything else.

        `index` follows the applied index; `time` is the entry's.
        """
        self._expect(index, time)
        events: list[Event] = []
        result: ApplyResult
        if isinstance(request, Put):
            result = self._operations.put(request, self.revision, time, events)
        elif isinstance(request, Delete) and request.end == ONE_KEY:
            result = self._operations.delete_one(request, self.revision, time, events)
        else:
            self._unfinished = self._apply_in_slices(index, time, request)
            return self.resume()
        return self._finish(index, time, events, result)

    def resume(self) -> Applied | None:
        """The next slice of the unfinished command; its outcome after the last."""
        assert self._unfinished is not None
        self._pace.renew()
        try:
            next(self._unfinished)
        except StopIteration as end:
            self._unfinished = None
            applied: Applied = end.value
            return applied
        return None

    def _apply_in_slices(self, index: Index, time: int, request: WriteRequest) -> Work[Applied]:
        events: list[Event] = []
        result: ApplyResult
        if isinstance(request, Command):
            execution = self._execute_fenced(index, time, request, events)
            result = yield from self.exactly_once.carry_out(index, request, self.revision, execution, self._pace)
        else:
            result = yield from self._execute(index, time, request, events)
        if len(events) < MANY_CHANGES:
            return self._finish(index, time, events, result)
        return (yield from self._finish_in_slices(index, time, events, result))

    def _execute_fenced(self, index: Index, time: int, command: Command, events: list[Event]) -> Work[ApplyResult]:
        refusal = self._check_fence(command.fence) if command.fence is not None else None
        if refusal is not None:
            return refusal
        return (yield from self._execute(index, time, command.request, events))

    def _check_fence(self, fence: Fence) -> Refusal | None:
        """Whether the lock or election is held under that token; None: it is, and the write may be executed."""
        holder = self.leases.holder(fence.name)
        if holder is not None and holder[0] == fence.token:
            return None
        held = f"is held under token {holder[0]}" if holder is not None else "is held by nobody"
        name = fence.name.decode(errors="replace")
        return Refusal("fenced", f"{name!r} {held}, not under token {fence.token}", self.revision)

    def _execute(self, index: Index, time: int, request: WriteRequest, events: list[Event]) -> Work[ApplyResult]:
        match request:
            case Put():
                return self._operations.put(request, self.revision, time, events)
            case Delete() if request.end == ONE_KEY:
                return self._operations.delete_one(request, self.revision, time, events)
            case Delete():
                return (yield from self._operations.delete_range(request, self.revision, time, events, self._pace))
            case Txn():
                return (
                    yield from self._transactions.apply(
                        request, self.revision, self.compact_revision, time, events, pace=self._pace
                    )
                )
            case Compact():
                return self._compaction.compact(request, self.revision)
            case Sweep():
                swept = yield from self._compaction.sweep(request, self.revision, self._pace)
                self._on_swept(swept)
                return swept
            case StateCheck():
                return StateCheckReply(self.revision, index, self.digest)
            case SessionOpen():
                return (yield from self.exactly_once.sessions.open(index, request.ttl_ms, self._pace))
            case SessionEnd():
                return (yield from self.exactly_once.end(request, self._pace))
            case Command():
                raise AssertionError("a command in a command")
            case _:
                return (
                    yield from self._lease_commands.apply(
                        request, index, revision=self.revision, time=time, events=events, pace=self._pace
                    )
                )

    def _finish(self, index: Index, time: int, events: list[Event], result: ApplyResult) -> Applied:
        changes = [event.kv for event in events]
        if changes:
            self.revision = Revision(self.revision + 1)
            for kv in changes:
                assert kv.mod_revision == self.revision, (kv.mod_revision, self.revision)
                size = logical_bytes(kv)
                self.logical_bytes += size
                if kv.version:
                    self.live_bytes += size
                    self.puts += 1
                else:
                    self.deletes += 1
            if self.leases:
                self.leases.track(events)
                self.leases.end_emptied(MANY_CHANGES)
        self._settle_replaced(changed=bool(changes))
        self._advance(index, time, digest.advance(self.digest, index, time, changes, result))
        return Applied(result, tuple(events))

    def _finish_in_slices(self, index: Index, time: int, events: list[Event], result: ApplyResult) -> Work[Applied]:
        """As `_finish`: many changes take their time to be encoded and summed up as well."""
        rolling = digest.Advance(self.digest, index, time, len(events))
        revision = Revision(self.revision + 1)
        size = live = puts = 0
        for first in range(0, len(events), MANY_CHANGES):
            if self._pace.left <= 0:
                yield
            piece = events[first : first + MANY_CHANGES]
            changes = [event.kv for event in piece]
            self._pace.left -= len(changes)
            if self.leases:
                self._pace.left -= len(changes)
                self.leases.track(piece)
            assert all(kv.mod_revision == revision for kv in changes), revision
            rolling.add(changes)
            size += sum(map(logical_bytes, changes))
            live += sum(logical_bytes(kv) for kv in changes if kv.version)
            puts += sum(1 for kv in changes if kv.version)
        while not self.leases.end_emptied(MANY_CHANGES):
            self._pace.left -= MANY_CHANGES
            if self._pace.left <= 0:
                yield
        self.revision = revision
        self.logical_bytes += size
        self.live_bytes += live
        self.puts += puts
        self.deletes += len(events) - puts
        self._settle_replaced(changed=True)
        self._advance(index, time, rolling.finish(result))
        return Applied(result, tuple(events))

    def _settle_replaced(self, *, changed: bool) -> None:
        """The versions below the new ones are history now; of a refused entry there are no new ones."""
        if changed:
            self.live_bytes -= self._operations.replaced_bytes
        self._operations.replaced_bytes = 0

    def _on_swept(self, reply: SweepReply) -> None:
        self.logical_bytes -= reply.bytes
        self.versions_removed += reply.versions

    def skip(self, index: Index, time: int) -> None:
        """Pass an entry that says nothing to the store (a leader's no-op)."""
        self._expect(index, time)
        self._advance(index, time, digest.advance(self.digest, index, time, [], None))

    def configure(self, index: Index, time: int, payload: bytes) -> Applied:
        """A configuration entry: kept as it is, for whoever starts from this store without the log's beginning."""
        self._expect(index, time)
        self.configuration, self.configuration_index = payload, index
        result = ConfigurationReply(self.revision, index, payload)
        self._advance(index, time, digest.advance(self.digest, index, time, [], result))
        return Applied(result, ())

    def _expect(self, index: Index, time: int) -> None:
        assert self._unfinished is None
        assert index == self.applied_index + 1, (index, self.applied_index)
        assert time >= self.applied_time, (time, self.applied_time)

    def _advance(self, index: Index, time: int, digest: bytes) -> None:
        self.digest = digest
        self.applied_index = index
        self.applied_time = time

    # ── reads ───────────────────────────────────────────────────────────────────────────────────────

    def range(self, request: Range) -> RangeReply:
        """One page of keys in one go, newest or at `request.revision`. Meant for one key; ranges may take long.

        Raises: FutureRevision, Compacted, BadRequest.
        """
        if request.end == ONE_KEY:
            return self._operations.range_one(request, self._readable(request.revision))
        pace = Pace()
        return in_one_go(self.read(request, pace), pace)

    def read(self, request: ReadRequest, pace: Pace) -> Work[RangeReply]:
        """As `range`, in slices, at the revision that is the newest when the first begins; or a key's history.

        If compaction overtakes it between two slices it ends as `Compacted`, or begins again at what is newest then.
        It also begins again if the store was replaced meanwhile: what a revision shows is the same in every store.
        """

        def begin(revision: Revision) -> Work[RangeReply]:
            if isinstance(request, History):
                return self._operations.history(request, revision, lambda: self.compact_revision, pace)
            return self._operations.range(request, revision, pace)

        return self._at(request.revision, begin)

    def state_hash(self, wanted: int, pace: Pace) -> Work[HashReply]:
        """Of what that revision shows, or the newest (0), in slices; as `read`. Raises: FutureRevision, Compacted."""
        return self._at(wanted, lambda revision: state_hash(self._versions, revision, pace))

    def _at(self, wanted: int, begin: Callable[[Revision], Work[Reading]]) -> Work[Reading]:
        """Work on one revision, begun again for as long as something takes it away between two slices."""
        while True:
            revision, generation = self._readable(wanted), self.generation
            work = begin(revision)
            while revision >= self.compact_revision and generation == self.generation:
                try:
                    next(work)
                except StopIteration as end:
                    result: Reading = end.value
                    return result
                yield
            work.close()

    def look_up(self, request: TableRequest) -> LeaseListReply | QueueReply:
        """What the tables beside the keys say, at the applied state."""
        if isinstance(request, LeaseList):
            return self._lease_commands.list(request, self.revision)
        return self._lease_commands.queue(request, self.revision)

    def revision_at(self, time: int) -> int:
        """The newest revision made at or before hybrid `time`: what the store showed then.

        It can still change while `time` lies above `applied_time`. Below the compacted history it is one that cannot be
        read any more.
        """
        oldest = max(self.compact_revision, 2)  # the first write makes revision 2
        found = self._revisions_at.get(time)
        if found is None:
            found = self._versions.revision_at(time, oldest, self.revision)
            if self.restored is not None and time >= self.restored[1]:
                found = max(found, self.restored[0])  # nothing was changed by it, so no row tells
            if time < self.applied_time and found >= oldest:  # as it will ever be
                if len(self._revisions_at) >= TIMES_KEPT_MAX:
                    self._revisions_at.clear()
                self._revisions_at[time] = found
        return found

    def changes(self, asked: ChangesAsked, pace: Pace) -> Work[ChangesFound]:
        """One page of what happened, oldest first. Raises: Compacted if that is dropped before its turn comes."""
        assert asked.last <= self.revision, (asked.last, self.revision)
        page = Page(asked.first)
        while not self._changelog.slice(asked, page, self.compact_revision, pace):
            yield
        return page.found()

    def _readable(self, wanted: int) -> Revision:
        """The revision that a read asks for; 0 asks for the newest."""
        if not wanted:
            return self.revision
        refusal = check_readable(wanted, self.revision, self.compact_revision)
        if refusal is not None:
            match refusal.code:
                case FutureRevision.code:
                    raise FutureRevision(refusal.message, revision=self.revision)
                case Compacted.code:
                    raise Compacted(refusal.message, compact_revision=self.compact_revision)
            raise BadRequest(refusal.message)
        return Revision(wanted)

    def hash_at(self) -> str:
        """The rolling digest at the applied index, in hex: equal on all nodes at equal applied index."""
        return self.digest.hex()

    # ── flushing ────────────────────────────────────────────────────────────────────────────────────

    def cut(self, applied_term: Term) -> Cut | None:
        """Freeze what was applied since the last cut, for a commit; None if that cannot be now.

        `applied_term` is that of the entry applied last: a snapshot of this cut ends with a position.

        It cannot while an entry is unfinished or another cut is outstanding, and there may be nothing to cut.
        """
        if self._unfinished is not None or self._recent.is_frozen or self.applied_index == self._cut_index:
            return None
        assert applied_term >= self.cut_term, (applied_term, self.cut_term)
        layer = self._recent.freeze()
        self._cut_index, self.cut_term = self.applied_index, applied_term
        meta = Meta(
            applied_index=self.applied_index,
            applied_time=self.applied_time,
            revision=self.revision,
            compact_revision=self.compact_revision,
            digest=self.digest,
            logical_bytes=self.logical_bytes,
            swept_revision=self.swept_revision,
            live_bytes=self.live_bytes,
            applied_term=applied_term,
            configuration=self.configuration,
            configuration_index=self.configuration_index,
            installed=self.installed,
            restored=self.restored,
        )
        return Cut(meta, layer.changes, layer.bytes, self._side.take(), self.generation)

    def evict(self, cut: Cut) -> None:
        """Drop a cut's versions from memory: its commit is durable, reads find them in the backend.

        One of a store that was replaced meanwhile says nothing about this one.
        """
        if cut.generation != self.generation:
            return
        assert cut.applied_index == self._cut_index, (cut.applied_index, self._cut_index)
        self._recent.evict()
        self._side.evict()
