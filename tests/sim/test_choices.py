from __future__ import annotations

import random

import pytest

from kvnode.sim.choices import Choices, RandomChoices, Replay, every_choice


def test_every_choice_visits_each_leaf_of_an_uneven_tree_once() -> None:
    def run(choices: Choices) -> str:
        if choices.pick(2) == 0:
            return "a"
        return "b" + str(choices.pick(3)) + str(choices.pick(2))

    assert [run(choices) for choices in every_choice()] == ["a", "b00", "b01", "b10", "b11", "b20", "b21"]


def test_a_run_without_choices_happens_once() -> None:
    assert len(list(every_choice())) == 1


def test_a_world_that_is_not_small_is_refused() -> None:
    def run_all() -> None:
        for choices in every_choice(runs_max=10):
            choices.pick(11)

    with pytest.raises(AssertionError, match="more than 10 runs"):
        run_all()


def test_a_run_that_depends_on_something_else_is_refused() -> None:
    def run_all() -> None:
        for options, choices in zip([2, 3], every_choice(), strict=False):
            choices.pick(options)
            choices.pick(2)

    with pytest.raises(AssertionError, match="does not depend on its choices alone"):
        run_all()


def test_taken_repeats_a_random_run() -> None:
    choices = RandomChoices(random.Random(7))
    first = [choices.pick(n) for n in (5, 2, 9)]
    replay = Replay(choices.taken)
    assert [replay.pick(n) for n in (5, 2, 9)] == first
    assert replay.pick(4) == 0
