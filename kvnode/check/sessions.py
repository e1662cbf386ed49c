"""Sessions: a write with (session, sequence) takes effect at most once, and every answer to it is the first (I20).

A client may send the same write many times, to many nodes; each sending is an attempt. Its effects are known from the
log or from a watcher, as values are unique.

    applied-twice      more than one effect
    answers-differ     two attempts were told different things
    wrong-revision     the answer names another revision than the effect has
    lost               acknowledged, without an effect
    refused-but-seen   every attempt was refused, and there is an effect
    values-differ      one (session, sequence) was used for two writes: the recorder's mistake
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from kvnode.check.verdict import Problem


class Attempt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One sending of one write. One JSON object a line in a file.

    ok    answered; `answer` is the body as text, `rev` the revision it names (0: the write changed nothing)
    fail  refused, not executed by this attempt: `code` says why (session_expired, sequence_too_old …)
    info  anything else
    """

    session: str
    sequence: int
    value: str  # unique to the write, not to the attempt; names its effects
    call: int
    ret: int | None = None
    status: Literal["ok", "fail", "info"] = "ok"
    answer: str = ""
    rev: int = 0
    node: int = 0
    code: str = ""


def check(attempts: Iterable[Attempt], effects: Mapping[str, Sequence[int]]) -> list[Problem]:
    """`effects`: value → the revisions at which the log has it, for the whole run."""
    writes: dict[tuple[str, int], list[Attempt]] = {}
    for attempt in attempts:
        writes.setdefault((attempt.session, attempt.sequence), []).append(attempt)
    return [
        Problem(rule, f"session {session}, sequence {sequence}: {message}")
        for (session, sequence), sent in sorted(writes.items())
        for rule, message in _judge(sent, effects)
    ]


def _judge(sent: list[Attempt], effects: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, str]]:
    values = list(dict.fromkeys(attempt.value for attempt in sent))
    if len(values) > 1:
        yield "values-differ", f"used for {' and '.join(values)}"
        return
    revisions = sorted(set(effects.get(values[0], ())))
    times = len(effects.get(values[0], ()))
    if times > 1:
        yield "applied-twice", f"{values[0]} was written {times} times, at revisions {_list(revisions)}"
    answered = [attempt for attempt in sent if attempt.status == "ok"]
    answers = list(dict.fromkeys((attempt.answer, attempt.rev) for attempt in answered))
    if len(answers) > 1:
        yield "answers-differ", " and ".join(f"{text!r} at revision {rev}" for text, rev in answers)
    told = [rev for _, rev in answers if rev]
    if told and not times:
        yield "lost", f"{values[0]} was acknowledged at revision {told[0]} and is nowhere"
    elif any(rev not in revisions for rev in told):
        yield "wrong-revision", f"{values[0]} was acknowledged at {_list(told)}, it is at {_list(revisions)}"
    if times and all(attempt.status == "fail" for attempt in sent):
        codes = ", ".join(dict.fromkeys(attempt.code or "refused" for attempt in sent))
        yield "refused-but-seen", f"{values[0]} was refused ({codes}) each time, and is at {_list(revisions)}"


def _list(revisions: Sequence[int]) -> str:
    return ", ".join(map(str, revisions))
