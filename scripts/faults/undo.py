"""Undo: whatever outlives a process is registered here before it is made, and taken back on every way out."""

from __future__ import annotations

from collections.abc import Callable


class Undo:
    """Named steps, run last in, first out. A step must be harmless when there is nothing (left) to undo."""

    def __init__(self) -> None:
        self._steps: dict[str, Callable[[], None]] = {}

    def register(self, name: str, step: Callable[[], None]) -> None:
        assert name not in self._steps, name
        self._steps[name] = step

    def now(self, name: str) -> None:
        """Undo one thing early. Nothing happens if it has been undone already."""
        step = self._steps.pop(name, None)
        if step is not None:
            step()

    def all(self) -> list[str]:
        """Undo everything → what could not be undone, in words."""
        problems = []
        while self._steps:
            name, step = self._steps.popitem()
            try:
                step()
            except Exception as error:  # noqa: BLE001 - the other steps must run whatever this one met
                problems.append(f"{name}: {type(error).__name__}: {error}")
        return problems
