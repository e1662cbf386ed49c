"""Watches: every stream of changes against the known history of changes (I23).

    order     revisions never fall, and nothing is older than the stream's start
    unique    no change comes twice
    atomic    the changes of one revision follow each other; all but the last say that there is more
    gap       up to the newest finished revision, or a progress mark, every matching change has come
    filter    only changes that match come
    content   a change is what the history has; a previous value, where one is told, is the right one
    listing   the items listed first are exactly the matching state at the revision of the mark that ends the list
    progress  a mark R comes after all matching changes up to R
    end       a cancelled stream says where to resume, skips nothing silently, and ends there
    resume    a stream that continues another begins right after what that one finished

A stream that ends in the middle of a revision has not finished it; who resumes must get it again, whole.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from kvnode.check.verdict import Problem


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """One key at one revision, as the log has it."""

    revision: int
    key: str
    value: str | None = None  # None: deleted


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of a stream, as it arrived."""

    kind: Literal["put", "delete", "progress", "synced", "cancelled"]
    revision: int = 0
    key: str = ""
    value: str | None = None
    prev: str | None = None  # None: not told
    more: bool = False  # another change of this revision follows
    code: str = ""  # of a cancelled stream: slow, compacted …
    resume_rev: int = 0


class Stream(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one watcher asked for, and what it got, in the order of arrival. One JSON object a line in a file."""

    stream: int
    from_rev: int  # inclusive; for a watcher that asked for "from now on": the revision after the one it was told
    prefix: str = ""
    key: str = ""  # instead of a prefix: exactly this key
    kinds: tuple[Literal["put", "delete"], ...] = ("put", "delete")
    listed: bool = False  # current items first, ended by `synced`
    resumes: int = 0  # the stream that this one continues
    until: int = 0  # at the end the recorder waited until changes up to here must have come
    compact_revision: int = 0  # the store's, when the stream was cancelled
    messages: tuple[Message, ...] = ()

    def matches(self, change: Change) -> bool:
        kind = "delete" if change.value is None else "put"
        return self.covers(change.key) and kind in self.kinds

    def covers(self, key: str) -> bool:
        return key == self.key if self.key else key.startswith(self.prefix)


def check(streams: Iterable[Stream], changes: Sequence[Change]) -> list[Problem]:
    """`changes`: all of them, from the first revision on, by revision. At most one problem a rule and stream."""
    problems = []
    history = _History(changes)
    resume_at: dict[int, int] = {}
    for stream in streams:
        checker = _Checker(stream, history)
        told: dict[str, bool] = {}
        for rule, message in checker.run(resume_at):
            if rule not in told:
                told[rule] = True
                problems.append(Problem(rule, f"stream {stream.stream} ({_asked(stream)}): {message}"))
        resume_at[stream.stream] = checker.resume_at
    return problems


class _History:
    """What the store went through."""

    def __init__(self, changes: Sequence[Change]) -> None:
        self.changes = changes
        self.at = {(change.revision, change.key): change for change in changes}
        self._by_key: dict[str, list[Change]] = {}
        for change in changes:
            self._by_key.setdefault(change.key, []).append(change)

    def item(self, key: str, revision: int) -> tuple[str, int] | None:
        """Value and revision of a key as of `revision`; None if it did not exist."""
        own = self._by_key.get(key, [])
        place = bisect_right(own, revision, key=lambda change: change.revision)
        if not place or (value := own[place - 1].value) is None:
            return None
        return value, own[place - 1].revision

    def state(self, stream: Stream, revision: int) -> dict[str, tuple[str, int]]:
        items = {key: self.item(key, revision) for key in self._by_key if stream.covers(key)}
        return {key: item for key, item in items.items() if item is not None}


class _Checker:
    """One stream. What it owes comes from the history, by revision."""

    def __init__(self, stream: Stream, history: _History) -> None:
        self.stream = stream
        self.history = history
        self.owed = [
            change for change in history.changes if stream.matches(change) and change.revision >= stream.from_rev
        ]
        self.position = 0  # everything owed before it has come
        self.came: dict[tuple[int, str], bool] = {}  # False: it did not, and that was told
        self.finished = stream.from_rev - 1  # everything up to this revision has come
        self.newest = 0  # revision of the last change
        self.open = False  # the last change said that there is more
        self.resume_at = stream.from_rev

    def run(self, resume_at: Mapping[int, int]) -> Iterator[tuple[str, str]]:
        stream = self.stream
        if stream.resumes and resume_at.get(stream.resumes) != stream.from_rev:
            yield "resume", f"continues stream {stream.resumes}, to be resumed at {resume_at.get(stream.resumes)}"
        messages = list(stream.messages)
        if stream.listed:
            listed = next((number for number, message in enumerate(messages) if message.kind == "synced"), None)
            if listed is None:
                return  # cut off before the list was whole: nothing was promised yet
            yield from self._listing(messages[:listed], messages[listed])
            messages = messages[listed + 1 :]
        for number, message in enumerate(messages):
            match message.kind:
                case "put" | "delete":
                    yield from self._change(message)
                case "progress" | "synced":
                    yield from self._progress(message)
                case "cancelled":
                    yield from self._cancelled(message)
                    if number < len(messages) - 1:
                        yield "end", "goes on after it was cancelled"
                    return
        missing = self._missing(stream.until)
        if missing is not None:
            yield "gap", f"everything up to revision {stream.until} should have come, but not {_show(missing)}"
        self.resume_at = self.finished + 1

    def _listing(self, items: Sequence[Message], mark: Message) -> Iterator[tuple[str, str]]:
        said = {item.key: (item.value, item.revision) for item in items}
        right = self.history.state(self.stream, mark.revision)
        if len(said) < len(items):
            yield "listing", "an item is listed twice"
        wrong = [key for key in sorted({**said, **right}) if said.get(key) != right.get(key)]
        if wrong:
            key = wrong[0]
            yield "listing", f"at revision {mark.revision} {key} is {right.get(key)}, listed was {said.get(key)}"
        self._finish(mark.revision)
        self.owed = [change for change in self.owed if change.revision > mark.revision]

    def _change(self, message: Message) -> Iterator[tuple[str, str]]:
        revision = message.revision
        told = _told(message)
        if self.came.get((revision, message.key)):
            yield "unique", f"{told} comes twice"
            return
        if revision < self.newest or revision <= self.finished:
            yield "order", f"{told} comes after revision {max(self.newest, self.finished)}"
            return
        if self.open and revision > self.newest:
            yield "atomic", f"revision {self.newest} was to have more, but {told} comes"
        change = self.history.at.get((revision, message.key))
        if change is None:
            yield "content", f"no such change: {told}"
            return
        if not self.stream.matches(change):
            yield "filter", f"{told} does not match"
            return
        missing = self._missing(revision - 1)
        if missing is not None:
            yield "gap", f"{told} comes, but not {_show(missing)}"
            self._write_off(revision - 1)
        if not _is(change, message):
            yield "content", f"{told}, but the history has {_show(change)}"
        before = self.history.item(message.key, revision - 1)
        if message.prev is not None and (before is None or message.prev != before[0]):
            yield "content", f"{told} is said to replace {message.prev}, but it replaces {before}"
        self.came[revision, message.key] = True
        last = self._missing(revision) is None
        if message.more == last:
            yield "atomic", f"{told} says that {'more' if last else 'nothing more'} of its revision follows"
        self.newest = revision
        self.open = message.more
        if not message.more:
            self._finish(revision)

    def _progress(self, message: Message) -> Iterator[tuple[str, str]]:
        if message.revision < self.finished:
            yield "progress", f"a mark at revision {message.revision} after revision {self.finished}"
        missing = self._missing(message.revision)
        if missing is not None or self.open:
            what = f"revision {self.newest} was finished" if missing is None else _show(missing)
            yield "progress", f"a mark at revision {message.revision} before {what}"
            self._write_off(message.revision)
        self._finish(message.revision)

    def _cancelled(self, message: Message) -> Iterator[tuple[str, str]]:
        resume = message.resume_rev
        missing = self._missing(resume - 1)
        if not message.code or not resume:
            yield "end", "was cancelled without a reason, or without a place to resume"
        elif resume <= self.finished:
            yield "end", f"is to be resumed at {resume}, but revision {self.finished} has come: it would come again"
        elif message.code == "compacted":
            if self.stream.compact_revision and self.finished + 1 > self.stream.compact_revision:
                yield "end", f"was cancelled as compacted, but revision {self.finished + 1} was still there"
        elif missing is not None:
            yield "end", f"is to be resumed at {resume}, which skips {_show(missing)}"
        self.resume_at = resume

    def _missing(self, revision: int) -> Change | None:
        """The first change owed up to `revision` that has not come."""
        owed = self.owed
        while self.position < len(owed) and (owed[self.position].revision, owed[self.position].key) in self.came:
            self.position += 1
        for place in range(self.position, len(owed)):  # a revision may come in any order: few are looked at
            change = owed[place]
            if change.revision > revision:
                return None
            if (change.revision, change.key) not in self.came:
                return change
        return None

    def _write_off(self, revision: int) -> None:
        """One gap is told once."""
        while (missing := self._missing(revision)) is not None:
            self.came[missing.revision, missing.key] = False

    def _finish(self, revision: int) -> None:
        self.finished = max(self.finished, revision)


def _is(change: Change, message: Message) -> bool:
    kind = "delete" if change.value is None else "put"
    return change.value == message.value and kind == message.kind


def _asked(stream: Stream) -> str:
    return f"{stream.key or stream.prefix + '*'} from revision {stream.from_rev}"


def _told(message: Message) -> str:
    value = f" = {message.value}" if message.kind == "put" else ""
    return f"{message.kind} {message.key}{value} at revision {message.revision}"


def _show(change: Change) -> str:
    what = f"delete {change.key}" if change.value is None else f"put {change.key} = {change.value}"
    return f"{what} at revision {change.revision}"
