"""How far a long command has come, on standard error: a bar on a terminal, else a line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import click

EVERY_S = 5
_DRAWN_S = 0.1  # a bar that is drawn for every key is slower than the work


class Progress:
    """``with Progress("exporting", total) as progress: … progress.advance(…)``.

    `total` is the size of the whole in the unit of `advance`; 0: not known, so that there is no bar.
    """

    def __init__(
        self,
        what: str,
        total: int = 0,
        *,
        now_s: Callable[[], float] = time.monotonic,
        words: Callable[[int], str] = lambda keys: f"{keys} keys",
    ) -> None:
        """`words`: how a number of keys, or of whatever it is that `advance` counts beside the whole, is shown."""
        self._what = what
        self._words = words
        self._total = total
        self._now_s = now_s
        self._done = 0
        self._keys = 0
        self._drawn = 0
        self._bar: Any = None
        if total and sys.stderr.isatty():
            self._bar = click.progressbar(
                length=total, label=what, file=sys.stderr, show_eta=True, item_show_func=self._keys_text
            )
        self._told_s = now_s()

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, error, at)

    def advance(self, amount: int, keys: int) -> None:
        """So much of the whole, and so many keys, are done since the last time."""
        self._done += amount
        self._keys += keys
        if self._now_s() - self._told_s < (EVERY_S if self._bar is None else _DRAWN_S):
            return
        self._told_s = self._now_s()
        if self._bar is not None:
            self._draw(self._done)
        else:
            part = f" ({min(100 * self._done // self._total, 99)} %)" if self._total else ""
            click.echo(f"kvnode: {self._what}: {self._words(self._keys)}{part}", err=True)

    def finish(self) -> None:
        """All is done, also what nobody has told of."""
        if self._bar is not None:
            self._draw(self._total)

    def _draw(self, done: int) -> None:
        self._bar.update(done - self._drawn, self._keys)
        self._drawn = done

    def _keys_text(self, keys: int | None) -> str:
        return "" if keys is None else self._words(keys)
