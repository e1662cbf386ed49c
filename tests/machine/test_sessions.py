"""Sessions and Idempotency-Keys: each named write takes effect once; every later sending of it gets its first answer.

The state machine is held to a model in any order of opens, uses, repeats, misuses, acknowledgements, ends, evictions,
flushes and restarts; a twin that is flushed at other moments, and works in smaller slices, has the same digest.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from kvnode.ids import Index, Term
from kvnode.kv.requests import (
    ApplyResult,
    Campaign,
    Command,
    Compare,
    Delete,
    Fence,
    LeaseGrant,
    LeaseRevoke,
    Put,
    Range,
    Refusal,
    SessionEnd,
    SessionOpen,
    SessionReply,
    SessionsEnded,
    StoreWrite,
    Txn,
    WriteRequest,
)
from kvnode.machine import answers, sessions
from kvnode.machine.pace import Pace
from tests.machine.harness import BACKENDS, MODES, Store, opener

LIMITS = {"sessions_max": 3, "session_answers_max": 4, "answers_bytes_max": 4_000, "idempotency_keys_max": 5}
encode = msgspec.msgpack.Encoder().encode
KEYS = [b"a", b"b", b"c"]


def code(result: ApplyResult) -> str:
    return result.code if isinstance(result, Refusal) else "ok"


class ModelSession:
    def __init__(self, used: int) -> None:
        self.used = used
        self.floor = 0
        self.answers: dict[int, tuple[StoreWrite, ApplyResult]] = {}

    @property
    def size(self) -> int:
        kept = sum(len(encode(result)) for _, result in self.answers.values())
        return sessions.OVERHEAD_BYTES + kept + answers.OVERHEAD_BYTES * len(self.answers)


class Model:
    """Plain dicts, looked through as a whole each time; what is executed is applied to a store of its own, unnamed."""

    def __init__(self, open_reference: Any) -> None:
        self.reference = Store(open_reference)
        self.sessions: dict[int, ModelSession] = {}
        self.keys: dict[bytes, tuple[int, StoreWrite, ApplyResult]] = {}
        self.executed = 0

    def apply(self, index: int, request: WriteRequest) -> ApplyResult | str:
        """The whole answer, or the code of a refusal by the tables themselves."""
        if isinstance(request, SessionOpen):
            self.sessions[index] = ModelSession(index)
            self._evict(index)
            return SessionReply(index, request.ttl_ms)
        if isinstance(request, SessionEnd):
            return self._end(request)
        if not isinstance(request, Command):
            return self._execute(index, request)
        if request.key:
            return self._apply_key(index, request)
        session = self.sessions.get(request.session)
        if session is None:
            return "session_expired"
        session.used = index
        session.floor = max(session.floor, min(request.acknowledged, request.sequence - 1))
        session.answers = {n: kept for n, kept in session.answers.items() if n > session.floor}
        if request.sequence in session.answers:
            asked, result = session.answers[request.sequence]
            return result if asked == request.request else "conflict"
        if request.sequence <= session.floor:
            return "sequence_too_old"
        if len(session.answers) >= LIMITS["session_answers_max"] or session.size >= LIMITS["answers_bytes_max"] // 2:
            return "overloaded"
        result = self._execute(index, request.request)
        session.answers[request.sequence] = (request.request, result)
        self._evict(request.session)
        return result

    def _apply_key(self, index: int, command: Command) -> ApplyResult | str:
        if command.key in self.keys:
            _, asked, result = self.keys[command.key]
            return result if asked == command.request else "conflict"
        kept = [len(key) + answers.OVERHEAD_BYTES + len(encode(result)) for key, (_, _, result) in self.keys.items()]
        if len(kept) >= LIMITS["idempotency_keys_max"] or sum(kept) >= LIMITS["answers_bytes_max"]:
            return "overloaded"
        result = self._execute(index, command.request)
        self.keys[command.key] = (index, command.request, result)
        return result

    def _end(self, request: SessionEnd) -> SessionsEnded:
        named = {id_ for id_, used in request.sessions if id_ in self.sessions}
        ended = {id_ for id_, used in request.sessions if id_ in named and used in (0, self.sessions[id_].used)}
        gone = {key for key, (index, _, _) in self.keys.items() if index <= request.keys_through}
        self.sessions = {id_: session for id_, session in self.sessions.items() if id_ not in ended}
        self.keys = {key: kept for key, kept in self.keys.items() if key not in gone}
        return SessionsEnded(len(ended), len(gone))

    def _evict(self, spared: int) -> None:
        while (
            len(self.sessions) > LIMITS["sessions_max"]
            or sum(session.size for session in self.sessions.values()) > LIMITS["answers_bytes_max"]
        ):
            oldest = min(self.sessions, key=lambda id_: self.sessions[id_].used)
            if oldest == spared:
                return
            del self.sessions[oldest]

    def _execute(self, index: int, request: StoreWrite) -> ApplyResult:
        self.executed += 1
        return self.reference.apply(request, time=index * 10).result


writes = st.one_of(
    st.builds(
        Put,
        st.sampled_from(KEYS),
        st.sampled_from([b"", b"v", bytes(900)]),
        if_revision=st.sampled_from([-1, -1, 0, -2, 3]),
        return_previous=st.booleans(),
    ),
    st.builds(Delete, st.sampled_from(KEYS), st.sampled_from([b"", b"c"]), return_previous=st.booleans()),
    st.builds(
        lambda key, other: Txn((Compare(key, "exists", "=", 1),), (Delete(key), Range(other)), (Put(key, b"new"),)),
        st.sampled_from(KEYS),
        st.sampled_from(KEYS),
    ),
)


class Exactly(RuleBasedStateMachine):
    kind = "memory"

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        home = Path(self.folder.name)
        self.store = Store(opener(self.kind, home / "one"), **LIMITS)
        self.twin = Store(opener("memory", home / "two"), **LIMITS)
        self.twin.machine._pace = Pace(1)
        self.model = Model(opener("memory", home / "three"))
        self.opened: list[int] = []
        self.asked: list[Command] = []

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.machine.backend.close()
            self.folder.cleanup()

    def apply(self, request: WriteRequest) -> ApplyResult:
        before = self.store.machine.revision
        executed = self.model.executed
        index = self.store.machine.applied_index + 1
        expected = self.model.apply(index, request)
        applied = self.store.apply(request)
        assert self.twin.apply(request).result == applied.result
        found = code(applied.result) if isinstance(expected, str) else applied.result
        assert found == expected, (request, applied)
        if self.model.executed == executed:
            assert (self.store.machine.revision, applied.events) == (before, ())
        self.check()
        return applied.result

    def check(self) -> None:
        one, reference = self.store.machine, self.model.reference.machine
        assert one.hash_at() == self.twin.machine.hash_at()
        assert one.revision == reference.revision
        assert [self.store.get(key) for key in KEYS] == [self.model.reference.get(key) for key in KEYS]
        tables = one.exactly_once
        by_use = sorted(self.model.sessions, key=lambda id_: self.model.sessions[id_].used)
        assert tables.sessions.ids() == by_use
        assert tables.sessions.bytes_used == sum(session.size for session in self.model.sessions.values())
        assert len(tables.keys) == len(self.model.keys)
        assert tables.keys.oldest == min((index for index, _, _ in self.model.keys.values()), default=0)

    @rule()
    def open(self) -> None:
        result = self.apply(SessionOpen(1_000))
        assert isinstance(result, SessionReply)
        self.opened.append(result.session)

    @precondition(lambda self: self.opened)
    @rule(data=st.data(), write=writes, sequence=st.integers(1, 8))
    def use(self, data: st.DataObject, write: StoreWrite, sequence: int) -> None:
        session = data.draw(st.sampled_from(self.opened[-4:]))
        acknowledged = data.draw(st.sampled_from([0, 0, sequence - 1]))
        command = Command(write, session, sequence, acknowledged)
        self.asked.append(command)
        self.apply(command)

    @rule(key=st.sampled_from([b"1", b"2", b"3", b"4", b"5", b"6", b"7"]), write=writes)
    def use_key(self, key: bytes, write: StoreWrite) -> None:
        command = Command(write, key=key)
        self.asked.append(command)
        self.apply(command)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        self.apply(data.draw(st.sampled_from(self.asked[-6:])))

    @rule(write=writes)
    def write(self, write: StoreWrite) -> None:
        self.apply(write)

    @precondition(lambda self: self.opened)
    @rule(data=st.data(), stale=st.booleans())
    def end(self, data: st.DataObject, stale: bool) -> None:
        session = data.draw(st.sampled_from(self.opened[-4:]))
        known = self.model.sessions.get(session)
        used = known.used if known is not None else 5
        self.apply(SessionEnd(((session, data.draw(st.sampled_from([0, used - 1 if stale else used]))),)))

    @rule(back=st.integers(0, 6))
    def forget_keys(self, back: int) -> None:
        self.apply(SessionEnd((), max(0, self.store.machine.applied_index - back)))

    @rule(mode=st.sampled_from(MODES[1:]))
    def flush(self, mode: str) -> None:
        machine = self.store.machine
        cut = machine.cut(Term(1))
        if cut is None:
            return
        machine.backend.commit(cut)
        if mode != "committed":
            machine.evict(cut)
        if mode == "reopened":
            self.store.reopen()
        elif mode == "committed":
            machine.evict(cut)
        self.check()

    @rule()
    def flush_twin(self) -> None:
        cut = self.twin.machine.cut(Term(1))
        if cut is not None:
            self.twin.machine.backend.commit(cut)
            self.twin.machine.evict(cut)
            self.twin.reopen()
            self.twin.machine._pace = Pace(1)


class ExactlyOnLmdb(Exactly):
    kind = "lmdb"


def store(tmp_path: Path, backend: str = "memory", **limits: int) -> Store:
    return Store(opener(backend, tmp_path), "reopened", **limits)


def opened(found: Store) -> int:
    result = found.apply(SessionOpen(1_000)).result
    assert isinstance(result, SessionReply)
    assert result.session == found.machine.applied_index
    return result.session


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_repeat_gets_the_first_answer_after_a_restart_refusals_too(backend: str, tmp_path: Path) -> None:
    found = store(tmp_path, backend)
    session = opened(found)
    create = Command(Put(b"k", b"v", if_revision=0, return_previous=True), session, 1)
    again = Command(Put(b"k", b"w", if_revision=0), session, 2)
    first = [found.apply(create).result, found.apply(again).result]
    assert [code(result) for result in first] == ["ok", "compare_failed"]
    found.settle()
    found.apply(Delete(b"k"))
    revision = found.machine.revision
    assert [found.apply(create).result, found.apply(again).result] == first
    assert found.machine.revision == revision
    assert found.get(b"k") is None
    found.machine.backend.close()


def test_ir_t3_a_late_retry_finds_the_session_gone_and_changes_nothing(tmp_path: Path) -> None:
    found = store(tmp_path)
    session = opened(found)
    write = Command(Put(b"k", b"v"), session, 1)
    found.apply(write)
    assert found.apply(SessionEnd(((session, session),))).result == SessionsEnded(0, 0), "used since that was decided"
    used = found.machine.exactly_once.sessions.get(session)
    assert used is not None
    assert found.apply(SessionEnd(((session, used.used),))).result == SessionsEnded(1, 0)
    found.settle()
    applied = found.apply(write)
    assert (code(applied.result), applied.events) == ("session_expired", ())
    assert found.machine.revision == 2


def test_at_the_bounds(tmp_path: Path) -> None:
    """What the model's machine may meet only by luck: each bound, and what goes or is refused there."""
    found = store(tmp_path, session_answers_max=2, sessions_max=2, idempotency_keys_max=1)
    one, two = opened(found), opened(found)
    for sequence in (1, 2):
        assert code(found.apply(Command(Put(b"k", b"v"), one, sequence)).result) == "ok"
    assert code(found.apply(Command(Put(b"k", b"v"), one, 3)).result) == "overloaded"
    assert code(found.apply(Command(Put(b"k", b"v"), one, 3, acknowledged=1)).result) == "ok", "not kept: tried again"
    assert code(found.apply(Command(Put(b"k", b"v"), one, 1)).result) == "sequence_too_old"
    assert code(found.apply(Command(Put(b"k", b"x"), one, 2)).result) == "conflict"
    three = opened(found)
    assert found.machine.exactly_once.sessions.ids() == [one, three], "two was used longest ago"
    assert code(found.apply(Command(Put(b"k", b"v"), two, 1)).result) == "session_expired"
    assert code(found.apply(Command(Put(b"k", b"v"), key=b"once")).result) == "ok"
    assert code(found.apply(Command(Put(b"k", b"v"), key=b"more")).result) == "overloaded"
    found.apply(SessionEnd((), found.machine.applied_index))
    assert code(found.apply(Command(Put(b"k", b"v"), key=b"more")).result) == "ok"


def test_bytes_are_bounded(tmp_path: Path) -> None:
    found = store(tmp_path, answers_bytes_max=64 << 10)
    big = Command(Txn((), (Put(b"k", bytes(20_000), return_previous=True),)))
    sessions_ = [opened(found) for _ in range(3)]
    found.apply(Put(b"k", bytes(20_000)))
    tables = found.machine.exactly_once
    for sequence in (1, 2):
        for session in sessions_:
            named = msgspec.structs.replace(big, session=session, sequence=sequence)
            found.apply(named)
            assert tables.sessions.bytes_used <= 64 << 10
    assert len(tables.sessions) < 3
    last = tables.sessions.ids()[-1]
    kept = tables.sessions.get(last)
    assert kept is not None
    results = [code(found.apply(msgspec.structs.replace(big, session=last, sequence=n)).result) for n in range(10, 14)]
    assert "overloaded" in results
    assert kept.bytes < 64 << 10
    outcomes = [code(found.apply(msgspec.structs.replace(big, key=b"%d" % n)).result) for n in range(6)]
    assert outcomes == ["ok"] * 4 + ["overloaded"] * 2, "as much again, and one answer over"


def test_leases_and_places_in_queues_begin_once(tmp_path: Path) -> None:
    found = store(tmp_path)
    session = opened(found)
    writes: list[StoreWrite] = [
        LeaseGrant(5_000),
        LeaseGrant(5_000, put=Put(b"k", b"v")),
        Campaign(b"lock", 5_000, b"me"),
        LeaseRevoke(2),
        LeaseRevoke(2),
    ]
    named = [Command(write, session, number) for number, write in enumerate(writes, start=1)]
    first = [found.apply(command).result for command in named]
    assert [code(result) for result in first] == ["ok", "ok", "ok", "ok", "lease_not_found"]
    found.settle()
    leases, revision = len(found.machine.leases), found.machine.revision
    assert [found.apply(command).result for command in named] == first
    assert (len(found.machine.leases), found.machine.revision) == (leases, revision)


def test_what_was_told_to_come_later_may_come_again(tmp_path: Path) -> None:
    found = store(tmp_path, leases_max=1)
    session = opened(found)
    found.apply(LeaseGrant(5_000))
    later = Command(LeaseGrant(5_000), session, 1)
    assert code(found.apply(later).result) == "overloaded"
    found.apply(LeaseRevoke(2))
    granted = found.apply(later).result
    assert code(granted) == "ok"
    assert found.apply(later).result == granted


def test_a_session_and_a_key_exclude_each_other_and_numbers_begin_with_one(tmp_path: Path) -> None:
    found = store(tmp_path)
    session = opened(found)
    both = Command(Put(b"k", b"v"), session, 1, key=b"x")
    assert code(found.apply(both).result) == "bad_request"
    assert code(found.apply(Command(Put(b"k", b"v"), session, 0)).result) == "bad_request"
    fenced = Command(Put(b"k", b"v"), session, 1, fence=Fence(b"lock", 7))
    assert code(found.apply(fenced).result) == "fenced"
    assert code(found.apply(Command(Put(b"k", b"v"), session, 1)).result) == "conflict", "the fence is a part of it"
    assert found.machine.revision == 1


def test_a_long_end_is_done_in_slices_and_nothing_of_it_is_cut_before(tmp_path: Path) -> None:
    found = store(tmp_path)
    session = opened(found)
    for sequence in range(1, 51):
        found.apply(Command(Put(b"k", b"v"), session, sequence))
    machine = found.machine
    machine._pace = Pace(10)
    index = Index(machine.applied_index + 1)
    applied = machine.begin(index, index * 10, SessionEnd(((session, 0),)))
    slices = 1
    while applied is None:
        assert machine.cut(Term(1)) is None
        applied = machine.resume()
        slices += 1
    assert slices == 5
    assert applied.result == SessionsEnded(1, 0)
    assert machine.exactly_once.sessions.bytes_used == 0
    found.settle()
    assert found.machine.exactly_once.sessions.bytes_used == 0


# Last, as what they find takes longer to be told than what the others find.
TestExactlyOnce = Exactly.TestCase
TestExactlyOnce.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestExactlyOnceOnLmdb = ExactlyOnLmdb.TestCase
TestExactlyOnceOnLmdb.settings = settings(max_examples=15, stateful_step_count=40, deadline=None)
