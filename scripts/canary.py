"""Canary: one rule of kvnode broken on purpose, and how the harness is to notice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Canary:
    """`old`, found exactly once in `file`, becomes `new`; every way named must then notice.

    `number` is the one of the reliability notes, 0 for those of our own. `tests`: pytest files that guard the rule.
    `sim`: (tier of `kvnode sim`, seeds that may be spent until one fails).
    """

    name: str
    rule: str  # what is broken, as a sentence
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    sim: tuple[str, int] | None = None
    number: int = 0
