"""The importer against the real front door: a key is written at most once, whatever becomes of the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvnode import errors
from kvnode.client import importer
from kvnode.client.export_file import Entry
from kvnode.client.http import Caller, key_path
from kvnode.client.importer import Importer, OnConflict, Tally
from kvnode.kv.interface import Options
from kvnode.kv.requests import ANY_REVISION, Delete, KeyValue, Put
from tests.cli.cluster import ServedNode, serving
from tests.cli.test_kv import dead_endpoint
from tests.client.local_node import LocalNode

OTHER = b"other"


class ScriptedNode(LocalNode):
    """Calls `before` with each conditional put that comes, `after` with each that was done; they may raise."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Callable[[Put], Any] = lambda put: None
        self.after: Callable[[Put], Any] = lambda put: None
        self.attempts: list[tuple[bytes, int]] = []  # key and condition of each conditional put that came
        self.done: list[bytes] = []

    async def execute(self, request: Any, options: Options = Options()) -> Any:  # noqa: B008
        is_import = isinstance(request, Put) and request.if_revision != ANY_REVISION
        if is_import:
            self.attempts.append((request.key, request.if_revision))
            self.before(request)
        reply = await super().execute(request, options)
        if is_import:
            self.done.append(request.key)
            self.after(request)
        return reply

    def put(self, key: bytes, value: bytes) -> None:
        """By another writer."""
        self._apply(Put(key, value))

    def delete(self, key: bytes) -> None:
        self._apply(Delete(key))

    def _apply(self, request: Any) -> None:
        index: Any = self.machine.applied_index + 1
        self.machine.apply(index, self.clock.next(1_790_000_000_000), request)


class Once:
    """Raises `error` the first `times` times, after `then`."""

    def __init__(self, error: errors.KvnodeError, times: int = 1, then: Callable[[], None] = lambda: None) -> None:
        self._error = error
        self._left = times
        self._then = then

    def __call__(self, put: Put) -> None:
        if self._left:
            self._left -= 1
            self._then()
            raise self._error


LOST = errors.Timeout("the answer is lost")


@pytest.fixture
def served() -> Iterator[ServedNode]:
    with serving(ScriptedNode()) as found:
        yield found


@pytest.fixture
def node(served: ServedNode) -> ScriptedNode:
    assert isinstance(served.node, ScriptedNode)
    return served.node


def entries(**values: str) -> list[Entry]:
    return [
        Entry(line, KeyValue(key.encode(), value.encode(), 1, 1, 1), 100)
        for line, (key, value) in enumerate(values.items(), start=2)
    ]


def run(endpoint: str, on_conflict: OnConflict, given: list[Entry], *, timeout_ms: int = 10_000) -> Tally:
    found = Importer(endpoint.split(","), timeout_ms, on_conflict)
    for _ in found.write(given):
        pass
    return found.total


def value(served: ServedNode, key: str) -> str:
    try:
        return Caller([served.endpoint], 5_000).call("GET", key_path(key.encode())).body.decode()
    except errors.KeyNotFound:
        return ""


def test_what_is_there_already_is_not_written(served: ServedNode, node: ScriptedNode) -> None:
    node.put(b"b", b"2")
    total = run(served.endpoint, "fail", entries(a="1", b="2", c="3"))
    assert (total.created, total.same, total.faults, total.keys, total.size) == (2, 1, [], 3, 300)
    assert sorted(node.attempts) == [(b"a", 0), (b"c", 0)]
    again = run(served.endpoint, "fail", entries(a="1", b="2", c="3"))
    assert (again.created, again.same) == (0, 3)
    assert len(node.attempts) == 2


def test_skip_keeps_and_overwrite_replaces(served: ServedNode, node: ScriptedNode) -> None:
    node.put(b"a", OTHER)
    revision = node.machine.revision
    total = run(served.endpoint, "skip", entries(a="1", b="2"))
    assert (total.created, total.skipped, total.overwritten, value(served, "a")) == (1, 1, 0, "other")
    total = run(served.endpoint, "overwrite", entries(a="1", b="2"))
    assert (total.overwritten, total.same, value(served, "a")) == (1, 1, "1")
    assert node.attempts == [(b"b", 0), (b"a", revision)], "both under the condition of what was seen"


def test_fail_ends_at_the_first_conflict_and_compare_finds_all(served: ServedNode, node: ScriptedNode) -> None:
    given = entries(**{f"k{number:04}": "1" for number in range(3_000)})
    for number in (5, 6):
        node.put(b"k%04d" % number, OTHER)
    found = Importer([served.endpoint], 5_000, "fail")
    for _ in found.compare(given):
        pass
    assert [(fault.line, fault.key, fault.is_conflict) for fault in found.total.faults] == [
        (7, b"k0005", True),
        (8, b"k0006", True),
    ]
    assert (found.total.created, node.attempts) == (2_998, [])
    total = run(served.endpoint, "fail", given)
    assert len(total.faults) == 2
    assert len(node.done) < 2_998, "what was not under way was not begun"
    assert total.created == len(node.done)


@pytest.mark.parametrize("on_conflict", ["skip", "overwrite", "fail"])
def test_a_lost_answer_of_a_write_that_was_done(
    served: ServedNode, node: ScriptedNode, on_conflict: OnConflict
) -> None:
    node.after = Once(LOST)
    total = run(served.endpoint, on_conflict, entries(a="1", b="2"))
    assert (total.created, total.same, total.unknown, total.faults) == (2, 0, 0, [])
    assert node.done == [b"a", b"b"]


def test_a_lost_answer_of_a_write_that_was_not_done(served: ServedNode, node: ScriptedNode) -> None:
    node.put(b"a", OTHER)
    revision = node.machine.revision
    node.before = Once(LOST)
    assert run(served.endpoint, "overwrite", entries(a="1")).overwritten == 1
    assert node.attempts == [(b"a", revision)] * 2, "the same write: only one of the two can take effect"


def test_what_was_written_on_top_of_a_lost_answer_is_kept(served: ServedNode, node: ScriptedNode) -> None:
    node.after = Once(LOST, then=lambda: node.put(b"a", b"theirs, after ours"))
    total = run(served.endpoint, "overwrite", entries(a="1", b="2"))
    assert value(served, "a") == "theirs, after ours"
    assert [(fault.line, fault.is_conflict) for fault in total.faults] == [(2, False)]
    assert "changed it since" in total.faults[0].why
    assert (total.created, node.done) == (1, [b"a", b"b"])


def test_what_was_deleted_after_a_lost_answer_stays_deleted(served: ServedNode, node: ScriptedNode) -> None:
    node.put(b"a", OTHER)
    node.after = Once(LOST, then=lambda: node.delete(b"a"))
    total = run(served.endpoint, "overwrite", entries(a="1"))
    assert (value(served, "a"), len(total.faults), len(node.done)) == ("", 1, 1)


@pytest.mark.parametrize(("on_conflict", "kept"), [("skip", "theirs"), ("overwrite", "1"), ("fail", "theirs")])
def test_another_writer_between_the_look_and_the_write(
    served: ServedNode, node: ScriptedNode, on_conflict: OnConflict, kept: str
) -> None:
    meanwhile = iter([b"theirs"])
    node.before = lambda put: [node.put(b"a", value) for value in meanwhile]
    total = run(served.endpoint, on_conflict, entries(a="1"))
    assert value(served, "a") == kept
    assert (total.skipped, total.overwritten, len(total.faults)) == {
        "skip": (1, 0, 0),
        "overwrite": (0, 1, 0),
        "fail": (0, 0, 1),
    }[on_conflict]


def test_no_leader_and_a_full_queue_are_waited_out(served: ServedNode, node: ScriptedNode) -> None:
    node.before = Once(errors.NoLeader("none"), times=3)
    node.refuse_next(errors.NoLeader("none"), errors.Timeout("late"))  # meets the looks
    total = run(f"{dead_endpoint()},{served.endpoint}", "fail", entries(a="1", b="2", c="3"))
    assert (total.created, total.error, total.unknown) == (3, None, 0)
    assert sorted(node.done) == [b"a", b"b", b"c"]


def test_it_gives_up_and_says_what_is_not_known(served: ServedNode, node: ScriptedNode) -> None:
    node.before = Once(LOST, times=1 << 30)
    total = run(served.endpoint, "fail", entries(a="1", b="2"), timeout_ms=100)
    assert isinstance(total.error, errors.Timeout)
    assert (total.created, total.unknown, total.keys) == (0, 2, 0)
    node.before = Once(errors.NoLeader("none"), times=1 << 30)
    total = run(served.endpoint, "fail", entries(a="1", b="2"), timeout_ms=100)
    assert isinstance(total.error, errors.NoLeader)
    assert total.unknown == 0


def test_a_full_store_is_not_asked_again(served: ServedNode, node: ScriptedNode) -> None:
    node.before = Once(errors.NoSpace("full"), times=1 << 30)
    total = run(served.endpoint, "fail", entries(a="1"))
    assert (type(total.error), len(node.attempts)) == (errors.NoSpace, 1)


def test_what_is_too_large_is_named_and_the_others_are_imported(served: ServedNode, node: ScriptedNode) -> None:
    given = entries(**{f"k{number:02}": "1" for number in range(40)}, **{"x" * 5_000: "1", "y": "z" * (1 << 20) + "z"})
    total = run(served.endpoint, "fail", given)
    assert total.created == 40
    assert [(fault.line, "[too_large]" in fault.why) for fault in total.faults] == [(42, True), (43, True)]
    assert (total.keys, total.error) == (42, None)


def test_too_many_faults_end_it(served: ServedNode, node: ScriptedNode) -> None:
    given = entries(**{f"{'x' * 5_000}{number:04}": "1" for number in range(700)})
    total = run(served.endpoint, "skip", given)
    assert importer.FAULTS_MAX <= len(total.faults) < 700


def test_leaving_early_counts_what_was_done(served: ServedNode, node: ScriptedNode) -> None:
    found = Importer([served.endpoint], 5_000, "fail")
    work = found.write(entries(**{f"k{number:04}": "1" for number in range(3_000)}))
    next(work)
    work.close()
    assert 0 < found.total.created < 3_000
    assert found.total.created == len(node.done)


def test_batches_are_bounded_by_number_and_bytes() -> None:
    sizes = [100] * 300 + [300 << 10] * 3 + [2 << 20] + [100]
    given = [Entry(line, KeyValue(b"k%d" % line, b"", 1, 1, 1), size) for line, size in enumerate(sizes)]
    found = list(importer.batches(given))
    assert [entry for batch in found for entry in batch] == given
    assert [len(batch) for batch in found] == [128, 128, 44 + 1, 1, 1, 1, 1]
    assert list(importer.batches([])) == []
