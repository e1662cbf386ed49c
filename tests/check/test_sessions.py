"""Sessions: one effect, one answer, however often a write is sent."""

from __future__ import annotations

from typing import Any

import pytest

from kvnode.check.sessions import Attempt, check


def attempt(status: str = "ok", **more: Any) -> Attempt:
    given = {"session": "s1", "sequence": 3, "value": "v3", "call": 0, "status": status} | more
    if status == "ok":
        given = {"answer": "created", "rev": 9} | given
    return Attempt(**given)


OK, INFO, FAIL = attempt(), attempt("info"), attempt("fail", code="session_expired")
NOTHING: dict[str, list[int]] = {}

LEGAL = {
    "once": ([OK], {"v3": [9]}),
    "answered again": ([OK, OK, attempt(node=2)], {"v3": [9]}),
    "unanswered, applied": ([INFO, OK], {"v3": [9]}),
    "unanswered, applied, never heard of": ([INFO], {"v3": [9]}),
    "unanswered, not applied": ([INFO, INFO], NOTHING),
    "refused": ([FAIL], NOTHING),
    "applied by the first, refused afterwards": ([INFO, FAIL], {"v3": [9]}),
    "changed nothing": ([attempt(rev=0, answer="deleted 0")], NOTHING),
    "another session": ([OK, attempt(session="s2", value="w3", rev=10)], {"v3": [9], "w3": [10]}),
}

ILLEGAL = {
    "applied twice": ({"applied-twice"}, [INFO, OK], {"v3": [9, 14]}),
    "applied twice, unanswered": ({"applied-twice"}, [INFO, INFO], {"v3": [4, 14]}),
    "applied twice at one revision": ({"applied-twice"}, [OK], {"v3": [9, 9]}),
    "two answers": ({"answers-differ"}, [OK, attempt(answer="replaced")], {"v3": [9]}),
    "the second execution is answered": (
        {"applied-twice", "answers-differ"},
        [OK, attempt(rev=14)],
        {"v3": [9, 14]},
    ),
    "another revision": ({"wrong-revision"}, [attempt(rev=8)], {"v3": [9]}),
    "lost": ({"lost"}, [OK], NOTHING),
    "refused, but there": ({"refused-but-seen"}, [FAIL, FAIL], {"v3": [9]}),
    "one number for two writes": ({"values-differ"}, [OK, attempt(value="v4")], {"v3": [9]}),
}


@pytest.mark.parametrize("name", LEGAL)
def test_a_legal_history_passes(name: str):
    attempts, effects = LEGAL[name]
    assert check(attempts, effects) == []


@pytest.mark.parametrize("name", ILLEGAL)
def test_an_illegal_history_is_told_by_its_rule(name: str):
    rules, attempts, effects = ILLEGAL[name]
    problems = check(attempts, effects)
    assert {problem.rule for problem in problems} == rules, problems
    assert all(problem.message.startswith("session s1, sequence 3: ") for problem in problems)
