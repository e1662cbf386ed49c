"""Figures: what the parts have found, by row, system and front; one number for each time it was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Figure:
    """One row of one system. `values`: in the row's unit (`report.ROWS`)."""

    row: str
    system: str
    values: list[float] = field(default_factory=list)


class Figures:
    """`progress` is told of each number as it is added."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self.found: dict[tuple[str, str], Figure] = {}
        self.progress = progress

    def add(self, row: str, system: str, number: float) -> None:
        self.found.setdefault((row, system), Figure(row, system)).values.append(number)
        self.progress(f"  {system:7} {row:28} {number:,.1f}")
