"""Every disk that a power loss may leave at one moment, each once."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import islice

from kvnode.sim.choices import Choices, RandomChoices, every_choice
from kvnode.sim.disk import FakeDisk, SimulatedCrash

Found = tuple[FakeDisk, str]
"""A disk, and how it came about: "torn", "whole" (sectors), "sampled" or "killed", with the choices taken."""


def fingerprint(disk: FakeDisk) -> tuple[tuple[str, bytes], ...]:
    """Equal for disks that a start cannot tell apart."""
    found: list[tuple[str, bytes]] = []
    pending = ["/"]
    while pending:
        path = pending.pop()
        try:
            names = disk.listdir(path)
        except NotADirectoryError:
            found.append((path, disk.content(path)))
        else:
            found.append((path, b"/"))
            pending.extend(f"{path.rstrip('/')}/{name}" for name in names)
    return tuple(found)


def crash_states(disk: FakeDisk, *, seed: int, runs_max: int = 300, sampled: int = 24) -> Iterator[Found]:
    """Distinct disks after a power loss now, and the one after ``kill -9``.

    All of them, sectors torn at three places or at one, if that takes at most `runs_max` runs. Otherwise all of them
    with whole sectors, under the same condition, and a sample of both kinds.
    """
    seen: dict[tuple[tuple[str, bytes], ...], bool] = {}
    for after, how in _ways(disk, seed, runs_max, sampled):
        mark = fingerprint(after)
        if mark not in seen:
            seen[mark] = True
            yield after, how


def _ways(disk: FakeDisk, seed: int, runs_max: int, sampled: int) -> Iterator[Found]:
    yield disk.kill(), "killed"
    for cuts in (3, 1):
        found = _all(disk, cuts, runs_max)
        if found:
            yield from found
            return
    yield from _all(disk, 0, runs_max)
    rng = random.Random(seed)
    for number in range(2 * sampled):
        choices: Choices = RandomChoices(rng)
        yield disk.crash(choices, cuts=number % 2), f"sampled {choices.taken}"


def _all(disk: FakeDisk, cuts: int, runs_max: int) -> list[Found]:
    """Every run, none if they are too many."""
    name = f"torn at {cuts}" if cuts else "whole"
    runs = islice(every_choice(), runs_max + 1)
    found = [(disk.crash(choices, cuts=cuts), f"{name} {choices.taken}") for choices in runs]
    return found if len(found) <= runs_max else []


def stop_everywhere(
    make_disk: Callable[[], FakeDisk], work: Callable[[FakeDisk], object]
) -> Iterator[tuple[FakeDisk, int]]:
    """Run `work` once for each changing call it makes, and end the process before that call; once to its end."""
    change = 0
    while True:
        change += 1
        disk = make_disk()
        disk.crash_at(disk.changes + change)
        try:
            work(disk)
            done = True
        except SimulatedCrash:
            done = False
        yield disk, change
        if done:
            return
