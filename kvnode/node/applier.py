"""Applier: committed entries → state machine, in order, each once; answers → those who wait, events → those who watch.

Applies on the loop, in slices of bounded time, so that heartbeats are never behind a long backlog or a big range
delete: an entry that takes several slices gets one a turn, and what follows it waits. Entries come from memory;
those evicted from it are read back from the log by a worker. When the recent versions reach their bound applying
waits for the flush; the log keeps what is not applied. A flush covers whole entries only and is never ahead of what
this node's own log holds durably (`Output.apply_to` sees to that).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from kvnode import perturb
from kvnode.clocks.clock import Clock
from kvnode.config import StorageSection
from kvnode.errors import NotReady
from kvnode.ids import Index
from kvnode.kv.requests import ApplyResult, Put, StateCheckReply
from kvnode.machine.machine import StateMachine
from kvnode.machine.rows import Cut
from kvnode.node.changes import Changes
from kvnode.node.ports import LogStore
from kvnode.node.reads import Reads
from kvnode.node.state_checks import StateChecks
from kvnode.node.waiting_list import WaitingList
from kvnode.node.watches import Watches
from kvnode.node.worker import Worker
from kvnode.observe.metrics import Histogram
from kvnode.raft.core import Raft
from kvnode.raft.messages import Entry, EntryKind
from kvnode.wire.codec import decode_request

SLICE_BYTES = 1 << 20
SLICE_NS = 5_000_000
"""Longest time spent applying before the loop looks at other causes."""


class Applier:
    """Moves the state machine forward and flushes it. Lives on the node's loop."""

    def __init__(
        self,
        *,
        raft: Raft,
        machine: StateMachine,
        log: LogStore,
        log_reader: Worker,
        flusher: Worker,
        waiting: WaitingList,
        reads: Reads,
        changes: Changes,
        watches: Watches,
        state_checks: StateChecks,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        settings: StorageSection,
        on_configured: Callable[[], None],
        on_flushed: Callable[[Index], None],
        on_failed: Callable[[BaseException], None],
    ) -> None:
        """`on_configured`: the applied members changed. `on_flushed`: the store has all up to that index durably."""
        self._raft = raft
        self._machine = machine
        self._on_configured = on_configured
        self._on_flushed = on_flushed
        self._log = log
        self._log_reader = log_reader
        self._flusher = flusher
        self._waiting = waiting
        self._reads = reads
        self._changes = changes
        self._watches = watches
        self._state_checks = state_checks
        self._loop = loop
        self._clock = clock
        self._settings = settings
        self._on_failed = on_failed
        self._target = machine.applied_index
        self.applied_term = machine.cut_term  # of the newest applied entry
        self._resume_scheduled = False
        self._unfinished: Entry | None = None  # begun in the machine, needs further slices
        self._halted = False
        self._is_paused = False  # a snapshot is about to take the state's place
        self._reading_log = False
        self._cut: Cut | None = None
        self._cut_since_ms = 0
        self._flushed_index = Index(machine.applied_index)
        self._await_flush: list[asyncio.Future[None]] = []
        self._flush_timer: asyncio.TimerHandle | None = None
        self.commit_seconds = Histogram()
        self.flush_seconds = Histogram()
        reads.applied(machine.applied_index, machine.revision)
        waiting.skipped_to(machine.applied_index)

    @property
    def target(self) -> Index:
        """Everything up to here has been handed over for applying."""
        return self._target

    @property
    def is_held_back(self) -> bool:
        """The recent versions are at their bound: applying waits for a flush, proposals are refused."""
        return self._machine.recent_bytes >= self._settings.recent_bytes_max

    def advance(self, apply_to: Index) -> None:
        """Entries up to `apply_to` are committed and durable here: apply what can be applied now."""
        if apply_to > self._target:
            self._target = apply_to
            self._continue()
        elif apply_to < self._target:  # a log that is being restored behind the store: those are applied already
            self._raft.forget(apply_to)

    def _continue(self) -> None:
        if self._reading_log or self._resume_scheduled or self._halted or self._is_paused:
            return
        machine = self._machine
        before = machine.applied_index
        stop_ns = self._clock.elapsed_ns() + SLICE_NS
        if self._unfinished is not None and not self._resume_entry(self._unfinished):
            self._continue_next_turn()
            return
        while machine.applied_index < self._target and not self.is_held_back:
            first = Index(machine.applied_index + 1)
            entries = self._raft.entries(first, self._target, SLICE_BYTES)
            if entries is None or perturb.at("entries-forgotten"):
                self._read_log(first)
                break
            if perturb.at("apply-one"):
                entries, stop_ns = entries[:1], 0
            self._apply(entries, stop_ns)
            if self._unfinished is not None or (
                self._clock.elapsed_ns() >= stop_ns and machine.applied_index < self._target
            ):
                self._continue_next_turn()
                break
        if machine.applied_index > before:
            self._reads.applied(machine.applied_index, machine.revision)
            self._raft.forget(machine.applied_index)
            self._consider_flush()

    def _continue_next_turn(self) -> None:
        self._resume_scheduled = True
        self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        self._resume_scheduled = False
        self._guarded(self._continue)

    def _apply(self, entries: Sequence[Entry], stop_ns: int) -> None:
        machine, waiting, changes, watches = self._machine, self._waiting, self._changes, self._watches
        now_ns = self._clock.elapsed_ns
        for count, entry in enumerate(entries):
            is_put = False
            if entry.kind == EntryKind.COMMAND:
                request = decode_request(entry.payload)
                is_put = type(request) is Put
                applied = machine.begin(entry.index, entry.time, request)
                if applied is None:
                    self._unfinished = entry
                    break
                if type(applied.result) is StateCheckReply:
                    self._state_checks.applied(applied.result)
                if waiting.has_placed:
                    self._answer(entry, applied.result)
                if changes.is_awaited:
                    changes.applied(applied.events)
                if watches.is_watched:
                    watches.applied(applied.events)
            elif entry.kind == EntryKind.CONFIGURATION:
                applied = machine.configure(entry.index, entry.time, entry.payload)
                waiting.applied(entry.index, entry.term, applied.result)
                self._on_configured()
            else:
                machine.skip(entry.index, entry.time)
                waiting.applied(entry.index, entry.term, None)
            self.applied_term = entry.term
            # Puts are short and alike; anything else may have taken a whole slice.
            if (count % 64 == 63 or not is_put) and now_ns() >= stop_ns:
                break
        waiting.skipped_to(machine.applied_index)

    def _resume_entry(self, entry: Entry) -> bool:
        """One more slice of the unfinished entry; whether that finished it."""
        applied = self._machine.resume()
        if applied is None:
            return False
        self._unfinished = None
        self.applied_term = entry.term
        self._answer(entry, applied.result)
        if self._changes.is_awaited:
            self._changes.applied(applied.events)
        if self._watches.is_watched:
            self._watches.applied(applied.events)
        self._waiting.skipped_to(entry.index)
        return True

    def _answer(self, entry: Entry, result: ApplyResult) -> None:
        started = self._waiting.applied(entry.index, entry.term, result)
        if started:
            self.commit_seconds.observe((self._clock.elapsed_ns() - started) / 1e9)

    def _read_log(self, first: Index) -> None:
        """The entries have left memory: read them back from disk, then go on."""
        self._reading_log = True
        last, log = self._target, self._log

        def done(entries: Sequence[Entry]) -> None:
            self._reading_log = False
            if self._halted or self._is_paused:
                return
            if first != self._machine.applied_index + 1:  # a snapshot has come meanwhile
                self._continue()
                return
            assert entries, (first, last)
            self._apply(entries, self._clock.elapsed_ns() + SLICE_NS)
            self._reads.applied(self._machine.applied_index, self._machine.revision)
            self._consider_flush()
            self._continue()

        self._log_reader.submit(
            lambda: log.read(first, last, SLICE_BYTES),
            lambda entries: self._guarded(lambda: done(entries)),
            self._on_failed,
        )

    # ── flushing ────────────────────────────────────────────────────────────────────────────────────

    def _consider_flush(self) -> None:
        machine, settings = self._machine, self._settings
        if self._cut is not None or self._halted or self._is_paused:
            return
        is_due = (
            bool(self._await_flush)
            or machine.recent_versions >= settings.flush_versions
            or machine.recent_bytes >= settings.flush_bytes
        )
        if is_due or perturb.at("flush-early"):
            self.flush()
        elif self._flush_timer is None:
            self._flush_timer = self._loop.call_later(settings.flush_ms / 1e3, self._flush_due)

    def _flush_due(self) -> None:
        self._flush_timer = None
        self._guarded(self.flush)

    def flush(self) -> bool:
        """Start writing everything applied so far to the store; False if there is nothing or one is under way."""
        if self._cut is not None or self._is_paused:
            return False
        machine = self._machine
        cut = machine.cut(self.applied_term)
        if cut is None:
            return False
        self._cut = cut
        self._cut_since_ms = self._clock.monotonic_ms()
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        backend, elapsed_ns = machine.backend, self._clock.elapsed_ns

        def job() -> float:
            started = elapsed_ns()
            backend.commit(cut)
            return (elapsed_ns() - started) / 1e9

        self._flusher.submit(job, lambda seconds: self._guarded(lambda: self._flushed(cut, seconds)), self._on_failed)
        return True

    def _flushed(self, cut: Cut, seconds: float) -> None:
        if cut is not self._cut:  # it went to the store that a snapshot has replaced
            return
        self._machine.evict(cut)
        self._cut = None
        self._flushed_index = Index(cut.applied_index)
        self._wake_flush()
        self.flush_seconds.observe(seconds)
        self._on_flushed(cut.applied_index)
        if not self._machine.is_flushed:
            self._consider_flush()
        if self._machine.applied_index < self._target:
            self._continue()

    async def flushed_through(self, index: Index) -> None:
        """Until the store has all up to `index`, which is applied, durably. Raises: NotReady when the node ends."""
        while self._flushed_index < index:
            if self._halted:
                raise NotReady("this node is stopping")
            woken: asyncio.Future[None] = self._loop.create_future()
            self._await_flush.append(woken)
            self.flush()
            await woken

    def _wake_flush(self) -> None:
        """Whoever waits for a flush looks again."""
        waiting, self._await_flush = self._await_flush, []
        for woken in waiting:
            if not woken.done():
                woken.set_result(None)

    def pause(self) -> None:
        """A snapshot is being installed: what follows in the log does not fit the state here. `replaced` ends it."""
        self._is_paused = True

    def replaced(self) -> None:
        """The state is another one: a snapshot's, up to its index. Go on from there."""
        machine = self._machine
        self._is_paused = False
        self._unfinished = self._cut = None
        self.applied_term = machine.cut_term
        self._target = max(self._target, machine.applied_index)
        self._flushed_index = Index(machine.applied_index)
        self._wake_flush()
        self._waiting.skipped_to(machine.applied_index)
        self._reads.applied(machine.applied_index, machine.revision)
        self._on_configured()  # the snapshot may contain changes of members

    def halt(self) -> None:
        """Apply nothing more, not even the rest of an unfinished entry: the log has all of it."""
        self._halted = True
        self._wake_flush()

    def flush_ms(self, now_ms: int) -> int:
        """How long the flush under way has been at the store; 0 if there is none."""
        return now_ms - self._cut_since_ms if self._cut is not None else 0

    def close(self) -> None:
        """Halt and start the last flush; the flusher's `close` waits for it."""
        self.halt()
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        self.flush()

    def _guarded(self, step: Callable[[], object]) -> None:
        """An exception here means that apply is broken: the node must end, not go on half alive."""
        try:
            step()
        except BaseException as error:  # noqa: BLE001
            self._on_failed(error)
