"""What the state machines of all nodes did: one table by index, kept at each apply; every later node must repeat it.

I7 and I21: the same entry, the same rolling hash of state and results at equal applied index, whoever applies it and in
whichever life. The table is also the one history that clients' answers are judged by: what each revision changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from kvnode.config import LimitsSection
from kvnode.ids import Index, NodeId
from kvnode.kv.events import Event
from kvnode.kv.requests import KeyValue, StateCheckReply, WriteRequest
from kvnode.kv.stored import level_of
from kvnode.machine.backend import Backend
from kvnode.machine.machine import Applied, StateMachine
from kvnode.raft.messages import Configuration
from kvnode.wire.codec import decode_configuration


class History(NamedTuple):
    """What the store keeps, after an entry."""

    compact_revision: int
    swept_revision: int
    logical_bytes: int
    live_bytes: int


@dataclass(frozen=True)
class Step:
    """One applied entry: `request` is None for an entry that is no command."""

    time: int
    request: WriteRequest | None
    digest: bytes
    revision: int  # of the store, after it
    history: History
    events: tuple[Event, ...] = ()


@dataclass
class AppliedLog:
    """Of index i at i - 1."""

    steps: list[Step] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)  # when the first node had applied each, in true time
    now_s: Callable[[], float] = lambda: 0.0
    configurations: list[tuple[Index, Configuration]] = field(default_factory=list)  # as the first node applied each
    on_checked: Callable[[], None] = lambda: None  # a state check was applied, by anybody
    on_new_form: Callable[[], None] = lambda: None  # … a write that older versions do not know
    on_configured: Callable[[Index, Configuration], None] = lambda _, __: None

    def on_applied(self, node: NodeId, index: Index, step: Step) -> None:
        if index > len(self.steps):
            assert index == len(self.steps) + 1, ("I7: an index was skipped by everybody", node, index)
            before = self.steps[-1].history if self.steps else History(0, 0, 0, 0)
            assert before[:2] <= step.history[:2], ("I22: compaction went back", node, index, before, step)
            assert step.history.swept_revision <= step.history.compact_revision <= step.revision, (node, index, step)
            self._check_level(index, step)
            self.steps.append(step)
            self.at_s.append(self.now_s())
            return
        known = self.steps[index - 1]
        assert (known.time, known.request) == (step.time, step.request), ("I7: another entry", node, index, known, step)
        assert known.digest == step.digest, ("I21: another state", node, index, known, step)
        assert known.history == step.history, ("I21: keeps something else", node, index, known, step)

    def _check_level(self, index: Index, step: Step) -> None:
        """What an older version would misread comes only when nobody can be one (S92)."""
        needed = level_of(step.request) if step.request is not None else 0
        level = self.configurations[-1][1].feature_level if self.configurations else 1
        assert needed <= level, ("S92: some members may read another request there", index, level, step)
        if needed > 1:
            self.on_new_form()

    def on_opened(self, node: NodeId, index: Index, digest: bytes, history: History) -> None:
        """A store that survived a restart is at some index, in the state that everybody had there."""
        assert index <= len(self.steps), ("the store is ahead of everything applied", node, index, len(self.steps))
        if index:
            known = self.steps[index - 1]
            assert (known.digest, known.history) == (digest, history), ("I19: not what its index says", node, index)

    def changes(self) -> dict[int, tuple[KeyValue, ...]]:
        """Revision → the versions it made; a deletion is a version 0."""
        return {step.revision: tuple(event.kv for event in step.events) for step in self.steps if step.events}

    def floors(self) -> list[int]:
        return [step.history.compact_revision for step in self.steps]

    @property
    def swept(self) -> int:
        return self.steps[-1].history.swept_revision if self.steps else 0


class StrayLog(AppliedLog):
    """Of a process on what is not its member's own: what it has applied, or applies, is nobody's state."""

    def on_applied(self, node: NodeId, index: Index, step: Step) -> None:
        """Compared with nothing."""

    def on_opened(self, node: NodeId, index: Index, digest: bytes, history: History) -> None:
        """Likewise."""


class WatchedMachine(StateMachine):
    """A state machine that tells of every entry it has finished."""

    def __init__(self, backend: Backend, limits: LimitsSection, *, node: NodeId, log: AppliedLog) -> None:
        super().__init__(backend, limits)
        self._node = node
        self._log = log
        self._pending: tuple[int, WriteRequest] | None = None
        log.on_opened(node, self.applied_index, self.digest, self._kept())

    def begin(self, index: Index, time: int, request: WriteRequest) -> Applied | None:
        self._pending = (time, request)
        return self._note(super().begin(index, time, request))

    def resume(self) -> Applied | None:
        return self._note(super().resume())

    def skip(self, index: Index, time: int) -> None:
        super().skip(index, time)
        self._log.on_applied(self._node, index, Step(time, None, self.digest, self.revision, self._kept()))

    def configure(self, index: Index, time: int, payload: bytes) -> Applied:
        applied = super().configure(index, time, payload)
        is_first = index > len(self._log.steps)
        self._log.on_applied(self._node, index, Step(time, None, self.digest, self.revision, self._kept()))
        if is_first:
            configuration = decode_configuration(payload)
            self._log.configurations.append((index, configuration))
            self._log.on_configured(index, configuration)
        return applied

    def take_over(self, other: StateMachine) -> None:
        super().take_over(other)
        self._pending = None
        self._log.on_opened(self._node, self.applied_index, self.digest, self._kept())

    def _kept(self) -> History:
        return History(self.compact_revision, self.swept_revision, self.logical_bytes, self.live_bytes)

    def _note(self, applied: Applied | None) -> Applied | None:
        if applied is not None and self._pending is not None:  # `begin` may have come here by way of `resume`
            time, request = self._pending
            self._pending = None
            step = Step(time, request, self.digest, self.revision, self._kept(), applied.events)
            self._log.on_applied(self._node, self.applied_index, step)
            if type(applied.result) is StateCheckReply:
                self._log.on_checked()
        return applied
