"""Choices: where a simulated world branches, and the two ways to decide.

A fake asks `choices.pick(options)` whenever the world could go one way or another. `RandomChoices` answers
from a seed. `every_choice()` answers with all possibilities, one run at a time: it remembers the numbers it
gave and how many options each had, and for the next run increments the last one that can still grow and drops
what came behind it. The code under test is written once and runs either way; it must be deterministic apart
from its choices, or the remembered prefix would not mean the same thing twice (asserted).

`taken` is the whole decision of a run. A failing test prints it; `Replay(taken)` repeats the run.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Protocol


class Choices(Protocol):
    """Decides. `taken` lists the numbers given so far, in order."""

    taken: list[int]

    def pick(self, options: int) -> int:
        """A number from 0 to options - 1."""
        ...


class RandomChoices:
    """Every option equally likely, from a seeded generator."""

    def __init__(self, rng: random.Random) -> None:
        self.taken: list[int] = []
        self._rng = rng

    def pick(self, options: int) -> int:
        assert options >= 1, options
        number = self._rng.randrange(options)
        self.taken.append(number)
        return number


class Replay:
    """The given numbers first, 0 for everything after them."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.taken: list[int] = []
        self._numbers = list(numbers)

    def pick(self, options: int) -> int:
        position = len(self.taken)
        number = self._numbers[position] if position < len(self._numbers) else 0
        assert 0 <= number < options, f"choice {position} was {number}, but has {options} options now"
        self.taken.append(number)
        return number


class Enumerated:
    """One run of `every_choice`: replays a prefix, then takes 0, and notes how many options there were."""

    def __init__(self, prefix: list[int], bounds: list[int]) -> None:
        self.taken: list[int] = []
        self.bounds: list[int] = []
        self.replayed = len(prefix)  # up to its last choice, which is new, this run repeats an earlier one
        self._prefix = prefix
        self._prefix_bounds = bounds

    def pick(self, options: int) -> int:
        assert options >= 1, options
        position = len(self.taken)
        number = 0
        if position < len(self._prefix):
            number = self._prefix[position]
            assert options == self._prefix_bounds[position], (
                f"choice {position} had {self._prefix_bounds[position]} options before and {options} now: "
                "the run does not depend on its choices alone"
            )
        self.taken.append(number)
        self.bounds.append(options)
        return number


def every_choice(*, runs_max: int = 1_000_000) -> Iterator[Enumerated]:
    """Yield a `Choices` for each possible run; the caller makes one complete run with each.

    A run may end early, where it meets a state that has been explored already: nothing behind it is tried then.

    Raises: AssertionError after `runs_max` runs: the world under test is not small.
    """
    prefix: list[int] = []
    bounds: list[int] = []
    for _ in range(runs_max):
        run = Enumerated(prefix, bounds)
        yield run
        prefix, bounds = run.taken, run.bounds
        while prefix and prefix[-1] + 1 == bounds[-1]:
            prefix.pop()
            bounds.pop()
        if not prefix:
            return
        prefix[-1] += 1
    raise AssertionError(f"more than {runs_max} runs: too many choices to try them all")
