"""What compaction gave up in a run: every floor the log set, and what may be shown and refused because of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile

Version = tuple[int, str | None]  # mod revision; value, or None for a deletion


class Floors:
    """The compact revisions of a run, ascending; 0, nothing given up, is the first."""

    def __init__(self, floors: Iterable[int]) -> None:
        self._floors = sorted({0, *floors})

    @property
    def last(self) -> int:
        return self._floors[-1]

    def histories(self, made: Sequence[Version]) -> list[list[Version]]:
        """What can be shown, under one floor or another, of a key's versions `made`, newest first."""
        return [_shown(made, floor) for floor in self._floors]

    def check_refused(self, revision: int, told: int) -> None:
        """A read of `revision` was refused for the floor `told`. Raises: AssertionError."""
        assert told in self._floors, ("refused for a floor that never was", revision, told, self._floors)
        assert revision < told, ("refused although it was kept", revision, told)


def _shown(made: Sequence[Version], floor: int) -> list[Version]:
    above = list(takewhile(lambda version: version[0] > floor, made))
    shows = made[len(above) : len(above) + 1]  # what the floor itself shows
    return above + [version for version in shows if version[0] == floor or version[1] is not None]
