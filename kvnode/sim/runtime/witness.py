"""The judge with a witness: the log that the nodes applied is the order, so answers are compared with it, not searched.

Every answer names the revision it was given at. These must agree with what the log did at that revision, with real
time (what was answered before a request began stands before it), and with the outcome the client was told: `fail` never
took effect, `info` at most once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from kvnode.check.history import ANY, Operation, Seen
from kvnode.kv.requests import Await, History, KeyValue, Range, RangeReply
from kvnode.sim.runtime.floors import Floors


class Witness:
    """Every version of every key, by the revision that made it; keys below `but` are others' business."""

    def __init__(self, changes: Mapping[int, Sequence[KeyValue]], *, but: bytes | None = None) -> None:
        self._versions: dict[str, list[tuple[int, str | None]]] = {}  # key → (revision, value or None), ascending
        self.places: dict[str, tuple[int, str]] = {}  # value → (revision, key)
        self.tombstones: dict[str, list[int]] = {}
        self._times: list[tuple[int, int]] = []  # (time, revision), ascending
        before = 0
        for revision, versions in sorted(changes.items()):
            assert revision > before, (revision, before)
            before = revision
            self._times.append((versions[0].time, revision))
            for kv in versions:
                if but is None or not kv.key.startswith(but):
                    self._add(revision, kv)

    def _add(self, revision: int, kv: KeyValue) -> None:
        key = kv.key.decode()
        value = kv.value.decode() if kv.version else None
        self._versions.setdefault(key, []).append((revision, value))
        if value is None:
            self.tombstones.setdefault(key, []).append(revision)
            return
        assert value not in self.places, ("I20: a write has taken effect twice", value, revision, self.places[value])
        self.places[value] = (revision, key)

    def at(self, key: str, revision: int) -> tuple[int, str | None]:
        """(mod revision, value) of the key at that revision; (0, None) if there is none."""
        versions = self._versions.get(key, [])
        position = bisect_right(versions, revision, key=lambda version: version[0])
        mod, value = versions[position - 1] if position else (0, None)
        return (mod, value) if value is not None else (0, None)

    def was(self, key: str, mod: int, since: int) -> bool:
        """Whether the key had this mod revision (0: was absent) at some revision from `since` on."""
        if self.at(key, since)[0] == mod:
            return True
        return any((0 if value is None else r) == mod for r, value in self._versions.get(key, []) if r > since)

    def revision_at(self, time: int) -> int:
        """The newest revision made at or before that time; 1 if there is none."""
        made = bisect_right(self._times, time, key=lambda each: each[0])
        return self._times[made - 1][1] if made else 1

    def history(self, key: str, revision: int) -> list[tuple[int, str | None]]:
        """(mod revision, value or None for a deletion) of the key's versions up to that revision, newest first."""
        return [version for version in reversed(self._versions.get(key, [])) if version[0] <= revision]

    def final(self) -> dict[str, Seen]:
        """What is there at the end, as readers see it."""
        found = {}
        for key, versions in sorted(self._versions.items()):
            revision, value = versions[-1]
            if value is not None:
                found[key] = Seen(key, value, revision)
        return found


def judge_by_log(operations: Iterable[Operation], witness: Witness) -> None:
    """Raises: AssertionError that says which answer is impossible."""
    operations = list(operations)
    least = _answered_before(operations)
    for operation in operations:
        if operation.status == "ok":
            _judge_ok(operation, witness, 0 if operation.consistency == "stale" else least[id(operation)])
        else:
            _judge_unanswered(operation, witness, least[id(operation)])
    _judge_deletions(operations, witness)


def judge_past(
    looked_back: Iterable[tuple[Range | History, int, RangeReply]], witness: Witness, floors: Floors
) -> None:
    """What was read of the past is what the log did (I21), also by then unwritten times. Raises: AssertionError."""
    for request, time, reply in looked_back:
        revision = witness.revision_at(time) if time else request.revision
        assert reply.revision == revision, ("another revision than was asked for", request, time, revision, reply)
        if isinstance(request, Range):
            kv = reply.items[0] if reply.items else None
            found = (kv.mod_revision, kv.value.decode()) if kv is not None else (0, None)
            expected = witness.at(request.start.decode(), revision)
            assert found == expected, ("not what was there", expected, request, reply)
        else:
            versions = [(kv.mod_revision, kv.value.decode() if kv.version else None) for kv in reply.items]
            made = witness.history(request.key.decode(), revision)
            assert versions == made[: len(versions)], ("not what happened", made, request, reply)
            assert reply.more or versions in floors.histories(made), ("a part of what is kept", made, request, reply)


def judge_given_up(refused: Iterable[tuple[int, int, int]], witness: Witness, floors: Floors) -> None:
    """(revision asked for or 0, time asked for, floor told) of reads that were `compacted`. Raises: AssertionError."""
    for revision, time, told in refused:
        floors.check_refused(revision or witness.revision_at(time), told)


def judge_awaited(awaited: Iterable[tuple[Await, RangeReply]], witness: Witness, floors: Floors) -> None:
    """A long poll tells the newest version if that is newer, and nothing if it is not. Raises: AssertionError.

    A deletion below the floor is not told to who waits for any version at all.
    """
    for request, reply in awaited:
        made = witness.history(request.key.decode(), reply.revision)
        newest = made[0] if made and made[0][0] > request.after_revision else None
        kv = reply.items[0] if reply.items else None
        found = None if kv is None else (kv.mod_revision, kv.value.decode() if kv.version else None)
        if found is None and newest is not None and newest[1] is None and not request.after_revision > 0:
            assert newest[0] < floors.last, ("a deletion was not told", newest, request, reply)
            continue
        assert found == newest, ("not the newest", newest, request, reply)


def judge_bounded(bounded: Iterable[tuple[float, float, int]], operations: Iterable[Operation], stretch: float) -> None:
    """A bounded read misses nothing that somebody had been told of before its bound. Raises: AssertionError.

    `stretch`: how much true time the slowest clock takes for one unit of its own.
    """
    told = sorted((o.ret, o.rev) for o in operations if o.status == "ok" and o.ret is not None and o.rev)
    newest = list(accumulate((rev for _, rev in told), max))
    for asked_s, bound_s, revision in bounded:
        before = bisect_right(told, (int((asked_s - bound_s * stretch) * 1e9) - 1, 0))
        assert not before or revision >= newest[before - 1], ("older than its bound", asked_s, bound_s, revision)


def _answered_before(operations: Sequence[Operation]) -> dict[int, int]:
    """By identity of the operation: the greatest revision that anybody had been told before it was called."""
    told = sorted((o.ret, o.rev) for o in operations if o.status == "ok" and o.ret is not None and o.rev)
    least: dict[int, int] = {}
    newest = at = 0
    for operation in sorted(operations, key=lambda o: o.call):
        while at < len(told) and told[at][0] < operation.call:
            newest = max(newest, told[at][1])
            at += 1
        least[id(operation)] = newest
    return least


def _judge_ok(operation: Operation, witness: Witness, least: int) -> None:
    if not operation.held:
        _judge_refused(operation, witness, least)
        return
    assert operation.rev >= least, ("stale: older than what was answered before it began", least, operation)
    if operation.op == "range":
        _judge_range(operation, witness)
        return
    for part in operation.steps:
        _judge_part(part, operation, witness)


def _judge_refused(operation: Operation, witness: Witness, least: int) -> None:
    """A condition did not hold: it must have been so at some moment since the request began."""
    _judge_no_effect(operation, witness)
    if operation.op != "txn":
        assert operation.mod != operation.exp, ("refused for a condition that held", operation)
        assert witness.was(operation.key, operation.mod, least), ("refused by a version that was not there", operation)
        return
    conditions = [part for part in operation.parts if part.exp != ANY]
    assert conditions, ("a transaction without conditions was refused", operation)


def _judge_part(part: Operation, whole: Operation, witness: Witness) -> None:
    revision = whole.rev
    before = witness.at(part.key, revision - 1)
    match part.op:
        case "put":
            assert part.arg is not None
            assert witness.places.get(part.arg) == (revision, part.key), ("I12: acknowledged and not there", whole)
            assert part.exp in {ANY, before[0]}, ("a condition that did not hold", before, whole)
        case "delete" if part.count:
            assert revision in witness.tombstones.get(part.key, []), ("I12: deleted and still there", whole)
            assert part.exp in {ANY, before[0]}, ("a condition that did not hold", before, whole)
        case "delete":
            assert witness.at(part.key, revision)[0] == 0, ("said to be absent", whole)
        case _:
            now = witness.at(part.key, revision)
            assert (part.mod, part.out) == now, ("not what was there", now, whole)


def _judge_range(operation: Operation, witness: Witness) -> None:
    there = {key: witness.at(key, operation.rev) for key in witness.final().keys() | witness.tombstones.keys()}
    expected = {key: version for key, version in there.items() if key.startswith(operation.key) and version[0]}
    found = {item.key: (item.mod, item.value) for item in operation.items}
    assert found == expected, ("not what was there", sorted(expected.items()), operation)


def _judge_unanswered(operation: Operation, witness: Witness, least: int) -> None:
    if operation.status == "fail":
        _judge_no_effect(operation, witness)
        return
    for part in operation.steps:
        if part.op == "put" and part.arg in witness.places:
            revision, key = witness.places[part.arg]
            assert key == part.key, operation
            assert revision > least, ("took effect before it was asked for", revision, least, operation)
            before = witness.at(key, revision - 1)[0]
            assert part.exp in {ANY, before}, ("a condition that did not hold", before, operation)


def _judge_no_effect(operation: Operation, witness: Witness) -> None:
    for part in operation.steps:
        assert part.op != "put" or part.arg not in witness.places, ("I29: said to have no effect", operation)


def _judge_deletions(operations: Sequence[Operation], witness: Witness) -> None:
    """Deletions carry no value of their own: each must be claimed by one answer, or be the work of an open one."""
    claimed: dict[str, list[int]] = {}
    open_: dict[str, int] = {}
    for operation in operations:
        for part in operation.steps:
            if part.op != "delete":
                continue
            if operation.status == "info":
                open_[part.key] = open_.get(part.key, 0) + 1
            elif operation.status == "ok" and operation.held and part.count:
                claimed.setdefault(part.key, []).append(operation.rev)
    for key, revisions in sorted(witness.tombstones.items()):
        mine = sorted(claimed.get(key, []))
        assert len(set(mine)) == len(mine), ("one deletion was reported twice", key, mine)
        unclaimed = [revision for revision in revisions if revision not in mine]
        assert len(unclaimed) <= open_.get(key, 0), ("I29: a deletion that nobody asked for", key, unclaimed)
