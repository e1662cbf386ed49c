"""Streams of changes: legal ones pass, and each thing that can go wrong is named."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from kvnode.check.watches import Change, Message, Stream, check

HISTORY = [
    Change(2, "a", "a1"),
    Change(3, "b", "b1"),
    Change(4, "a", "a2"),
    Change(4, "c", "c1"),  # one transaction
    Change(5, "b"),
    Change(6, "a"),
    Change(6, "b", "b2"),
    Change(7, "c", "c2"),
]


def put(revision: int, key: str, value: str, *, prev: str | None = None, more: bool = False) -> Message:
    return Message("put", revision, key, value, prev, more)


def delete(revision: int, key: str, *, prev: str | None = None, more: bool = False) -> Message:
    return Message("delete", revision, key, None, prev, more)


def progress(revision: int) -> Message:
    return Message("progress", revision)


def cancelled(code: str, resume: int) -> Message:
    return Message("cancelled", code=code, resume_rev=resume)


WHOLE = (
    put(2, "a", "a1"),
    put(3, "b", "b1"),
    put(4, "a", "a2", prev="a1", more=True),
    put(4, "c", "c1"),
    delete(5, "b", prev="b1"),
    progress(5),
    delete(6, "a", more=True),
    put(6, "b", "b2"),
    put(7, "c", "c2", prev="c1"),
)


def stream(*messages: Message, from_rev: int = 2, **asked: Any) -> Stream:
    return Stream(1, from_rev, messages=messages, **asked)


LEGAL = {
    "whole": stream(*WHOLE, until=7),
    "nothing yet": stream(),
    "from the middle": stream(*WHOLE[4:], from_rev=5),
    "in the future": stream(progress(9), from_rev=9),
    "one key": stream(WHOLE[0], put(4, "a", "a2"), delete(6, "a"), progress(7), key="a", until=7),
    "prefix": stream(put(4, "c", "c1"), put(7, "c", "c2"), prefix="c"),
    "only deletes": stream(delete(5, "b"), delete(6, "a"), kinds=("delete",), until=7),
    "any order within a revision": stream(*WHOLE[:2], put(4, "c", "c1", more=True), put(4, "a", "a2")),
    "cut off in the middle of a revision": stream(*WHOLE[:3]),
    "listed": stream(
        put(4, "a", "a2"), put(4, "c", "c1"), Message("synced", 5), *WHOLE[6:], from_rev=0, listed=True, until=7
    ),
    "cut off while listing": stream(put(4, "a", "a2"), from_rev=0, listed=True),
    "slow": stream(*WHOLE[:4], cancelled("slow", 5)),
    "slow before anything": stream(cancelled("slow", 2)),
    "compacted": stream(*WHOLE[:2], cancelled("compacted", 6), compact_revision=6),
}


@pytest.mark.parametrize("name", LEGAL)
def test_a_legal_stream_passes(name: str):
    assert check([LEGAL[name]], HISTORY) == []


ILLEGAL = {
    "older than asked for": ({"order"}, stream(WHOLE[0], from_rev=3)),
    "backwards": ({"gap", "order"}, stream(WHOLE[1], WHOLE[0])),
    "the same again": ({"unique"}, stream(*WHOLE[:2], WHOLE[1])),
    "the same revision again": ({"unique"}, stream(*WHOLE[:4], *WHOLE[2:4])),
    "one left out": ({"gap"}, stream(WHOLE[0], *WHOLE[2:])),
    "one left out, of a transaction": ({"atomic", "gap"}, stream(*WHOLE[:3], WHOLE[4])),
    "the newest left out": ({"gap"}, stream(*WHOLE[:-1], until=7)),
    "everything left out": ({"gap"}, stream(until=2)),
    "a delete left out at the end": ({"gap"}, stream(delete(5, "b"), kinds=("delete",), until=6)),
    "another key": ({"filter"}, stream(WHOLE[0], WHOLE[1], key="a")),
    "another kind": ({"filter"}, stream(WHOLE[0], kinds=("delete",))),
    "a change that never was": ({"content"}, stream(*WHOLE, put(8, "c", "c9"))),
    "another value": ({"content"}, stream(put(2, "a", "a2"))),
    "a delete for a put": ({"content"}, stream(delete(2, "a"))),
    "another previous value": ({"content"}, stream(*WHOLE[:2], put(4, "a", "a2", prev="a0", more=True))),
    "a previous value of nothing": ({"content"}, stream(put(2, "a", "a1", prev="a0"))),
    "torn revision": ({"atomic"}, stream(*WHOLE[:2], put(4, "a", "a2"))),
    "more announced, none there": ({"atomic"}, stream(put(2, "a", "a1", more=True))),
    "a mark too early": ({"progress"}, stream(WHOLE[0], progress(3))),
    "a mark in the middle of a revision": ({"progress"}, stream(*WHOLE[:3], progress(4))),
    "a mark that goes back": ({"progress"}, stream(*WHOLE[:2], progress(2))),
    "a change after its mark": ({"order", "progress"}, stream(WHOLE[0], progress(3), WHOLE[1])),
    "listed too little": ({"listing"}, stream(put(4, "a", "a2"), Message("synced", 5), from_rev=0, listed=True)),
    "listed what was deleted": (
        {"listing"},
        stream(put(4, "a", "a2"), put(3, "b", "b1"), put(4, "c", "c1"), Message("synced", 5), from_rev=0, listed=True),
    ),
    "listed an older version": (
        {"listing"},
        stream(put(2, "a", "a1"), put(4, "c", "c1"), Message("synced", 5), from_rev=0, listed=True),
    ),
    "listed twice": (
        {"listing"},
        stream(put(2, "a", "a1"), put(2, "a", "a1"), Message("synced", 2), from_rev=0, listed=True),
    ),
    "a gap after the list": (
        {"gap"},
        stream(put(2, "a", "a1"), Message("synced", 2), *WHOLE[2:4], from_rev=0, listed=True),
    ),
    "slow, resumed too late": ({"end"}, stream(*WHOLE[:2], cancelled("slow", 5))),
    "slow, resumed too early": ({"end"}, stream(*WHOLE[:2], cancelled("slow", 3))),
    "cancelled without a place": ({"end"}, stream(*WHOLE[:2], cancelled("slow", 0))),
    "cancelled without a reason": ({"end"}, stream(*WHOLE[:2], cancelled("", 4))),
    "compacted, but it was not": ({"end"}, stream(*WHOLE[:4], cancelled("compacted", 6), compact_revision=4)),
    "goes on": ({"end"}, stream(*WHOLE[:2], cancelled("slow", 4), *WHOLE[2:4])),
}


@pytest.mark.parametrize("name", ILLEGAL)
def test_an_illegal_stream_is_told_by_its_rule(name: str):
    rules, wrong = ILLEGAL[name]
    problems = check([wrong], HISTORY)
    assert {problem.rule for problem in problems} == rules, problems
    assert all(problem.message.startswith("stream 1 (") for problem in problems)


def test_a_resumed_stream_begins_where_the_other_ended():
    cut = stream(*WHOLE[:3])  # revision 4 is not finished: it must come again, whole
    assert check([cut, replace(cut, stream=2, resumes=1, from_rev=4, messages=WHOLE[2:], until=7)], HISTORY) == []
    late = replace(cut, stream=2, resumes=1, from_rev=5, messages=WHOLE[4:])
    assert [problem.rule for problem in check([cut, late], HISTORY)] == ["resume"]
    slow = stream(*WHOLE[:2], cancelled("slow", 4))
    assert check([slow, replace(cut, stream=2, resumes=1, from_rev=4, messages=WHOLE[2:])], HISTORY) == []


def random_history(random: Random) -> list[Change]:
    there: dict[str, bool] = {}
    changes = []
    for revision in range(2, 40):
        for key in sorted(random.sample("abcd", k=random.choice([1, 1, 1, 2, 3]))):
            gone = there.get(key, False) and random.random() < 0.3
            there[key] = not gone
            changes.append(Change(revision, key, None if gone else f"{key}{revision}"))
    return changes


def deliver(random: Random, changes: list[Change], asked: Stream) -> Stream:
    """What a right server sends, with marks here and there."""
    owed = [change for change in changes if asked.matches(change) and change.revision >= asked.from_rev]
    messages = []
    for number, change in enumerate(owed):
        more = number + 1 < len(owed) and owed[number + 1].revision == change.revision
        kind = "delete" if change.value is None else "put"
        messages.append(Message(kind, change.revision, change.key, change.value, None, more))
        if not more and random.random() < 0.2:
            messages.append(progress(change.revision))
    return replace(asked, messages=tuple(messages), until=39)


def test_random_streams_pass_and_none_with_a_change_left_out_repeated_or_moved():
    for seed in range(400):
        random = Random(seed)
        changes = random_history(random)
        asked = Stream(1, random.randint(2, 20), prefix=random.choice(["", "", "a", "b"]))
        right = deliver(random, changes, asked)
        assert check([right], changes) == [], seed
        messages = list(right.messages)
        place = random.choice([n for n, message in enumerate(messages) if message.kind != "progress"])
        what = random.choice(["left out", "repeated", "moved"])
        if what == "left out":
            del messages[place]
        elif what == "repeated":
            messages.insert(random.randint(place + 1, len(messages)), messages[place])
        else:
            later = [n for n, message in enumerate(messages) if message.revision > messages[place].revision]
            if not later:
                continue
            messages.insert(later[-1], messages.pop(place))
        assert check([replace(right, messages=tuple(messages))], changes), (seed, what)
