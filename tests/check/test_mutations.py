"""Legal histories pass; the same with one thing spoiled are caught, by the rules that are made for it."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from kvnode.check.judge import judge
from kvnode.check.verdict import Problem
from tests.check.histories import Shape, legal
from tests.check.mutations import MUTATIONS

HISTORIES = 100

RULES = {
    "stale read": {"real-time", "not-linearizable"},
    "lost write": {"made-twice", "real-time", "wrong-answer", "orphan", "lost"},
    "swapped revisions": {"real-time"},
    "duplicated effect": {"applied-twice"},
    "fail that shows up": {"refused-but-seen"},
    "acknowledged but gone": {"lost"},
    "condition ignored": {"made-twice", "wrong-answer", "not-linearizable", "real-time"},
    "torn range": {"wrong-answer"},
}
"""Of these rules at least one must speak, whatever others say."""


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_spoiled_history_is_caught(name: str):
    spoiled = 0
    for seed in range(HISTORIES):
        history = legal(seed, Shape(operations=50))
        wrong = MUTATIONS[name](Random(f"{name}{seed}"), history)
        if wrong is None:
            continue
        spoiled += 1
        verdict = judge(wrong.operations, final=wrong.final)
        assert verdict.result == "failed", (seed, verdict)
        assert RULES[name] & {problem.rule for problem in verdict.problems}, (seed, verdict.problems)
    assert spoiled > HISTORIES // 2, spoiled


@pytest.mark.parametrize(
    "shape",
    [
        Shape(operations=60, clients=8, keys=1),
        Shape(operations=60, clients=2, keys=10),
        Shape(operations=60, unanswered=0.5),
        Shape(operations=60, unanswered=0.0, refused=0.0),
        Shape(operations=60, takes=1, think=1),
        Shape(operations=40, kinds=("txn",), keys=6),
        Shape(operations=60, kinds=("delete", "put", "get"), keys=1, unanswered=0.4),
        Shape(operations=60, kinds=("create", "delete", "cas", "stale"), keys=2, unanswered=0.2),
        Shape(operations=60, kinds=("put", "range", "txn"), keys=20),
    ],
    ids=[
        "one key",
        "many keys",
        "half unanswered",
        "all answered",
        "no overlap",
        "txn",
        "delete",
        "cas",
        "many grouped",
    ],
)
def test_legal_histories_of_every_shape_pass(shape: Shape):
    for seed in range(40):
        history = legal(seed, shape)
        verdict = judge(history.operations, final=history.final)
        assert (verdict.result, verdict.problems) == ("ok", ()), seed


def test_a_long_legal_history_is_judged_by_few_states():
    """Linear: about as many states as writes, though transactions and whole ranges tie all keys together."""
    history = legal(1, Shape(operations=4000, keys=10, clients=8, unanswered=0.02))
    verdict = judge(history.operations, final=history.final)
    assert (verdict.result, verdict.problems) == ("ok", ())
    assert verdict.counts.groups == 1
    assert verdict.counts.states < verdict.counts.operations, verdict.counts


def test_each_checker_alone_would_not_do():
    """Which of the three finds how much: the reason for all of them."""
    alone: Counter[str] = Counter()
    for seed in range(60):
        for name, mutation in MUTATIONS.items():
            wrong = mutation(Random(f"{name}{seed}"), legal(seed, Shape(operations=30)))
            if wrong is not None:
                alone[_finders(judge(wrong.operations, final=wrong.final).problems)] += 1
    assert alone["search witness"] > 0
    assert alone["witness"] > 0
    assert alone["outcomes search witness"] > 0
    assert alone[""] <= 1, alone  # an unanswered write may explain what the mutation did


def _finders(problems: tuple[Problem, ...]) -> str:
    outcomes = {"unexpected", "refused-but-seen", "early", "applied-twice", "lost"}
    found = {
        "outcomes" if problem.rule in outcomes else "search" if problem.rule == "not-linearizable" else "witness"
        for problem in problems
    }
    return " ".join(sorted(found))
