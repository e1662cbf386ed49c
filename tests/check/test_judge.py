"""The whole judgement: legal histories pass, whatever their shape."""

from __future__ import annotations

import pytest

from kvnode.check.judge import judge
from tests.check.histories import Shape, legal


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_legal_histories_pass(first: int):
    for seed in range(first, first + 50):
        history = legal(seed, Shape())
        verdict = judge(history.operations, final=history.final)
        assert (verdict.result, verdict.problems) == ("ok", ()), seed
