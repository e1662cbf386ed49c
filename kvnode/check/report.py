"""Report: a verdict for people, as text and as a timeline.

The text leads to the first impossible point: what is wrong there, and what everybody did and saw around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from kvnode.check.describe import describe
from kvnode.check.history import Operation, first_call
from kvnode.check.timeline import page
from kvnode.check.verdict import Problem, Verdict

BEFORE, AFTER = 14, 8
"""Operations shown around the first impossible point."""

PROBLEMS_MAX = 20
"""Problems told one by one; the rest is counted."""


def text(operations: Sequence[Operation], verdict: Verdict) -> str:
    """Several lines, the last one ended. The first says the result."""
    lines = [headline(verdict)]
    lines += [f"evidence: {gap}" for gap in verdict.gaps]
    if not verdict.problems:
        if verdict.result == "unknown":
            lines.append("The search gave up at its budget. This is not a pass: give it more states (--budget).")
        return "\n".join(lines) + "\n"
    problems = sorted(verdict.problems, key=moment)
    first = problems[0]
    start = first_call(operations)
    lines += ["", f"First impossible point{_at(first, start)} [{first.rule}]", first.message]
    around = nearby(operations, first)
    if around:
        marked = {id(operation) for operation in first.operations}
        lines += ["", "Around it, by time of call (> marks what cannot be true together):"]
        lines += [
            f"  {'>' if id(operation) in marked else ' '} {describe(operation, start=start)}" for operation in around
        ]
    if first.prefix:
        lines += ["", "The end of the longest order that fits:"]
        lines += [f"    {describe(operation, start=start)}" for operation in first.prefix[-BEFORE:]]
    others = problems[1:]
    if others:
        lines += ["", f"{len(others)} more, by time:"]
        for problem in others[:PROBLEMS_MAX]:
            lines += [f"  [{problem.rule}]{_at(problem, start)} {problem.message.splitlines()[0]}"]
        if len(others) > PROBLEMS_MAX:
            lines.append(f"  … and {len(others) - PROBLEMS_MAX} others")
    return "\n".join(lines) + "\n"


def html(operations: Sequence[Operation], verdict: Verdict) -> str:
    """One page without external resources: the text, and every operation as a bar on its client's line."""
    problems = sorted(verdict.problems, key=moment)
    marked = {id(operation): problem.rule for problem in reversed(problems) for operation in problem.operations}
    centre = problems[0].operations[0] if problems and problems[0].operations else None
    return page(operations, text(operations, verdict), verdict.result, marked, centre)


def headline(verdict: Verdict) -> str:
    counts = verdict.counts
    said = {"ok": "ok", "failed": f"FAILED, {_many(len(verdict.problems), 'problem')}", "unknown": "UNKNOWN"}
    return (
        f"history: {said[verdict.result]} ({_many(counts.operations, 'operation')}: {counts.ok} ok, "
        f"{counts.fail} not applied, {counts.info} without an answer; "
        f"{_many(counts.keys, 'key')}; {_many(counts.states, 'state')} searched)"
    )


def moment(problem: Problem) -> float:
    """When the impossible was told: the return of the most telling operation. The final state comes last."""
    return problem.operations[0].last_known if problem.operations else inf


def nearby(operations: Sequence[Operation], problem: Problem) -> list[Operation]:
    """The problem's operations, and those on the same keys around its first one; by call."""
    if not problem.operations:
        return []
    keys = {key for operation in problem.operations for key in _keys(operation)}
    related = sorted(
        (operation for operation in operations if _concerns(operation, keys)), key=lambda operation: operation.call
    )
    centre = problem.operations[0].call
    before = [operation for operation in related if operation.call <= centre][-BEFORE:]
    after = [operation for operation in related if operation.call > centre][:AFTER]
    shown = {id(operation): operation for operation in (*before, *after, *problem.operations)}
    return sorted(shown.values(), key=lambda operation: operation.call)


def _keys(operation: Operation) -> list[str]:
    return [part.key for part in operation.steps]


def _concerns(operation: Operation, keys: set[str]) -> bool:
    if operation.op == "range":
        return any(key.startswith(operation.key) for key in keys)
    return not keys.isdisjoint(_keys(operation))


def _at(problem: Problem, start: int) -> str:
    when = moment(problem)
    return "" if when == inf else f" at {(when - start) / 1e6:.3f} ms"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
