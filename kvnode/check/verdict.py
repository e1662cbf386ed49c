"""Verdict: what the checkers found in one history, in a form that reports and runs can use."""

from __future__ import annotations

from typing import Literal

import msgspec

from kvnode.check.history import Operation

Result = Literal["ok", "failed", "unknown"]


class Problem(msgspec.Struct, frozen=True):
    """One thing that cannot be. `rule` is its stable name, `message` a sentence or more for people."""

    rule: str
    message: str
    operations: tuple[Operation, ...] = ()  # those that cannot be true together, most telling first
    prefix: tuple[Operation, ...] = ()  # of a failed search: the longest order that fits, in that order
    state: dict[str, str] = {}  # of a failed search: what each key would hold after `prefix`


class Counts(msgspec.Struct, frozen=True):
    """What was judged, and what it took."""

    operations: int
    ok: int
    fail: int
    info: int
    keys: int
    groups: int  # of several keys, judged together
    states: int  # that the searches visited


class Verdict(msgspec.Struct, frozen=True):
    """The judgement of one history.

    ok       every check passed and none gave up
    failed   at least one problem
    unknown  no problem found, but the search gave up at its budget: this is not a pass
    """

    result: Result
    problems: tuple[Problem, ...]
    counts: Counts
    gaps: tuple[str, ...]  # where the evidence by revisions is incomplete, in words
