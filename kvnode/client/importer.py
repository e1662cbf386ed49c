"""Importer: brings the keys of an export into a cluster, each written at most once, however often it is tried.

For each batch of keys: *look* what the cluster has, *decide* key by key, *write* what is to be written under the
condition that the key is still at the revision that was seen (0: absent). What failed is looked at again:

* a write that certainly was not done (another writer came first, no leader) is decided anew;
* one whose outcome is not known was done if the key has the value now. If the key is still at the revision that was
  seen, the same conditional write is sent again: only one of the two can take effect. If it is at a third, somebody
  else has written since, and it is left alone: to write again might undo what was written on top of ours.

A key that has the value of the file is left alone, whatever its revision and lease. So a run that broke off is simply
repeated: it writes what is missing.

Keys that were under a lease are left out unless asked for: without the lease they would stay for ever, and those that
stand for a place in the queue of a lock would hold it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from kvnode.client import bodies
from kvnode.client.export_file import Entry
from kvnode.client.http import error_from
from kvnode.client.patience import PatientCaller
from kvnode.errors import BadRequest, CompareFailed, KvnodeError, Rejected, TooLarge, TryAgain, Unknown
from kvnode.kv.requests import KeyValue, Operation, OperationReply, Put, PutReply, Range, RangeReply

OnConflict = Literal["skip", "overwrite", "fail"]

BATCH_ITEMS = 128
BATCH_BYTES = 512 << 10
"""Of lines of the file. A larger item is a batch of its own."""

IN_FLIGHT = 4
FAULTS_MAX = 100
"""So many keys may be refused or in conflict before a run ends."""

_NONE_SENT = -1
_CHANGED_SINCE = "the answer to its write was lost, and another writer has changed it since: left as it is"


class Fault(msgspec.Struct, frozen=True):
    """A key that was not imported, and why."""

    line: int
    key: bytes
    why: str
    is_conflict: bool = False


@dataclass(slots=True)
class Tally:
    """What became of the keys of some batches."""

    created: int = 0
    overwritten: int = 0
    same: int = 0  # had the value already
    skipped: int = 0  # keep another value
    unknown: int = 0  # were sent, and may have been written or not
    size: int = 0  # bytes of the batches that are through
    keys: int = 0  # of those
    faults: list[Fault] = field(default_factory=list)
    error: KvnodeError | None = None  # the batch was given up

    @property
    def written(self) -> int:
        return self.created + self.overwritten

    def add(self, other: Tally) -> None:
        for name in ("created", "overwritten", "same", "skipped", "unknown", "size", "keys"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.faults += other.faults
        self.error = self.error or other.error


@dataclass(slots=True)
class _Pending:
    """A key that is not settled. `seen`: its mod revision when it was last decided about."""

    entry: Entry
    seen: int = 0
    sent_at: int = _NONE_SENT  # `seen` of a write whose outcome is not known


def batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Neighbours, by number and bytes; never empty."""
    batch: list[Entry] = []
    size = 0
    for entry in entries:
        if batch and (len(batch) == BATCH_ITEMS or size + entry.size > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += entry.size
    if batch:
        yield batch


class Importer:
    """One run over a cluster. `total` is what has become of all batches so far."""

    def __init__(self, endpoints: Sequence[str], timeout_ms: int, on_conflict: OnConflict) -> None:
        self._stopped = threading.Event()
        self._caller = PatientCaller(endpoints, timeout_ms, sleep=self._sleep)
        self._on_conflict = on_conflict
        self.total = Tally()

    def write(self, entries: Iterable[Entry]) -> Generator[Tally, None, None]:
        """Import; a tally for each batch that is through, at last of those that are not.

        Ends early when one is given up (`total.error`), after `FAULTS_MAX` faults, and at a conflict that is to fail.
        """
        return self._run(entries, self._import, conflict_ends=self._on_conflict == "fail")

    def compare(self, entries: Iterable[Entry]) -> Generator[Tally, None, None]:
        """What `write` would do, as it would tell it; all conflicts, not the first only. Writes nothing."""
        return self._run(entries, self._compare, conflict_ends=False)

    def _run(
        self, entries: Iterable[Entry], work: Callable[[list[Entry]], Tally], *, conflict_ends: bool
    ) -> Generator[Tally, None, None]:
        self.total = total = Tally()
        waiting: set[Future[Tally]] = set()

        def is_over() -> bool:
            is_stopped = conflict_ends and any(fault.is_conflict for fault in total.faults)
            return is_stopped or total.error is not None or len(total.faults) >= FAULTS_MAX

        pool = ThreadPoolExecutor(IN_FLIGHT)
        try:
            for batch in batches(entries):
                waiting.add(pool.submit(work, batch))
                if len(waiting) > IN_FLIGHT:
                    yield from self._through(waiting)
                if is_over():
                    return
            while waiting and not is_over():
                yield from self._through(waiting)
        finally:  # what is under way comes to its end; what it has done is counted
            self._stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            for future in waiting:
                if not future.cancelled():
                    total.add(future.result())
            self._stopped.clear()

    def _through(self, waiting: set[Future[Tally]]) -> Iterator[Tally]:
        for future in wait(waiting, return_when=FIRST_COMPLETED).done:
            waiting.remove(future)
            tally = future.result()
            self.total.add(tally)
            yield tally

    def _compare(self, batch: list[Entry]) -> Tally:
        tally = Tally()
        try:
            for each in self._decide([_Pending(entry) for entry in batch], tally):
                _count_written(tally, each.seen)
        except KvnodeError as error:
            tally.error = error
        except _Stopped:
            return tally
        tally.size, tally.keys = sum(entry.size for entry in batch), len(batch)
        return tally

    def _import(self, batch: list[Entry]) -> Tally:
        tally = Tally()
        pending = [_Pending(entry) for entry in batch]
        patience = self._caller.patience()
        try:
            while pending := self._decide(pending, tally):
                before = len(pending)
                pending, failure = self._write(pending, tally)
                if len(pending) < before:
                    patience.renew()
                if failure is not None:
                    patience.pause(failure)
        except KvnodeError as error:
            tally.error = error
        except _Stopped:
            pass
        if not pending:
            tally.size, tally.keys = sum(entry.size for entry in batch), len(batch)
        tally.unknown = sum(each.sent_at != _NONE_SENT for each in pending)
        return tally

    def _decide(self, pending: list[_Pending], tally: Tally) -> list[_Pending]:
        """Look at them. → Those that are to be written if they still are as they were seen. Raises: KvnodeError."""
        to_write = []
        for each, found in zip(pending, self._look(pending), strict=True):
            if isinstance(found, Rejected):
                tally.faults.append(_refused(each.entry, found))
                continue
            each.seen = found.mod_revision if found is not None else 0
            is_doubtful = each.sent_at != _NONE_SENT
            if found is not None and found.value == each.entry.kv.value:
                if is_doubtful:
                    _count_written(tally, each.sent_at)
                else:
                    tally.same += 1
            elif is_doubtful and each.seen != each.sent_at and self._on_conflict == "overwrite":
                tally.faults.append(Fault(each.entry.line, each.entry.kv.key, _CHANGED_SINCE))
            elif found is None or self._on_conflict == "overwrite":
                to_write.append(each)
            elif self._on_conflict == "skip":
                tally.skipped += 1
            else:
                why = f"has another value, of revision {found.mod_revision}"
                tally.faults.append(Fault(each.entry.line, each.entry.kv.key, why, is_conflict=True))
        return to_write

    def _look(self, pending: list[_Pending]) -> list[KeyValue | Rejected | None]:
        """What the cluster has of them: None is nothing. Raises: KvnodeError."""
        patience = self._caller.patience()
        while True:
            replies = self._send([Range(each.entry.kv.key) for each in pending])
            failure = next((reply for reply in replies if isinstance(reply, TryAgain | Unknown)), None)
            if failure is None:
                return [_found(reply) for reply in replies]
            patience.pause(failure)

    def _write(self, pending: list[_Pending], tally: Tally) -> tuple[list[_Pending], KvnodeError | None]:
        """→ Those to look at again, and what went wrong with the last of them."""
        rest: list[_Pending] = []
        failure: KvnodeError | None = None
        puts = [Put(each.entry.kv.key, each.entry.kv.value, if_revision=each.seen) for each in pending]
        for each, reply in zip(pending, self._send(puts), strict=True):
            match reply:
                case PutReply():
                    _count_written(tally, each.seen)
                    continue
                case Unknown():
                    each.sent_at = each.seen
                case TryAgain() | CompareFailed():
                    pass
                case Rejected():
                    tally.faults.append(_refused(each.entry, reply))
                    continue
                case _:
                    raise AssertionError(reply)
            rest.append(each)
            failure = reply
        return rest, failure

    def _send(self, operations: Sequence[Operation]) -> list[OperationReply | KvnodeError]:
        """As one batch; halved until it is plain which operation a batch is refused for. Raises: Fatal."""
        if self._stopped.is_set():
            raise _Stopped
        if not operations:
            return []
        try:
            return self._ask(operations)
        except (TooLarge, BadRequest) as error:
            if len(operations) == 1:
                return [error]
            middle = len(operations) // 2
            return self._send(operations[:middle]) + self._send(operations[middle:])
        except (TryAgain, Unknown) as error:
            return [error] * len(operations)

    def _ask(self, operations: Sequence[Operation]) -> list[OperationReply | KvnodeError]:
        """In one request, or in several; an error that is raised is that of all. Raises: a `KvnodeError`."""
        body = bodies.encode([bodies.operation_body(operation, condition=True) for operation in operations])
        answer = self._caller.once("POST", "/v1/batch", None, body)
        results = bodies.json_of(answer.status, answer.body)["results"]
        return [_reply(operation, result) for operation, result in zip(operations, results, strict=True)]

    def _sleep(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise _Stopped


class _Stopped(Exception):
    """The run is over: go no further."""


def _reply(operation: Operation, result: bodies.Json) -> OperationReply | KvnodeError:
    if "error" in result:
        return error_from(result["status"], result.get("outcome", ""), bodies.encode(result), write=True)
    return bodies.operation_reply(operation, result)


def _found(reply: OperationReply | KvnodeError) -> KeyValue | Rejected | None:
    if isinstance(reply, Rejected):
        return reply
    assert isinstance(reply, RangeReply), reply
    return reply.items[0] if reply.items else None


def _refused(entry: Entry, error: Rejected) -> Fault:
    return Fault(entry.line, entry.kv.key, f"{error.message} [{error.code}]")


def _count_written(tally: Tally, seen: int) -> None:
    if seen:
        tally.overwritten += 1
    else:
        tally.created += 1
