"""What has come of an import: told at its end, however it ends, and turned into an exit code."""

from __future__ import annotations

import json
import sys
from typing import Any, NoReturn

import click

from kvnode.cli.kv import shown
from kvnode.cli.main import FATAL, REFUSED, TRY_AGAIN, UNKNOWN_OUTCOME, exit_code
from kvnode.client.importer import Importer, Tally

_FAULTS_SHOWN = 10
_WORDS = {
    "created": "{}created",
    "overwritten": "{}overwritten",
    "same": "had their value already",
    "skipped": "keep another value",
    "leased": "left out",
    "failed": "failed",
    "unknown": "unknown",
}


class Outcome:
    """Of one run of `importer`. `output`: json, or plain. `place`: what the numbers of entries count, like "line"."""

    def __init__(self, importer: Importer, *, dry_run: bool, output: str | None, place: str) -> None:
        self._importer = importer
        self._dry_run = dry_run
        self._output = output
        self._place = place
        self.has_written = False  # or may have
        self.leased = 0  # left out
        self.about: dict[str, Any] | None = None  # where the keys come from; None: nothing was read

    def went_wrong(self) -> bool:
        return bool(self._importer.total.faults or self._importer.total.error)

    def end(self, code: int, why: str, warning: str = "") -> NoReturn:
        """Say what has come of it, and exit: with `code`, or with one that says more."""
        total = self._importer.total
        if not self._dry_run and not self.has_written:  # what would have been written was not
            total.created = total.overwritten = 0
        for fault in total.faults[:_FAULTS_SHOWN]:
            click.echo(f"kvnode: {self._place} {fault.line}: {shown(fault.key)}: {fault.why}", err=True)
        if len(total.faults) > _FAULTS_SHOWN:
            click.echo(f"kvnode: … and {len(total.faults) - _FAULTS_SHOWN} more such keys", err=True)
        if total.error is not None and not why:
            code = exit_code(total.error, write=True)
            why = f"{total.error.message} [{total.error.code}]"
        if total.faults and not why:
            code = REFUSED
            conflicts = sum(fault.is_conflict for fault in total.faults)
            why = "keys that have another value: see --on-conflict [conflict]" if conflicts else "not all was imported"
        if code == TRY_AGAIN and self.has_written and (total.written or total.unknown):
            code = UNKNOWN_OUTCOME  # something was changed
        if why:
            click.echo(f"kvnode: {why}; {self._how_far(total, code)}", err=True)
        elif warning:
            click.echo(f"kvnode: {warning}", err=True)
        if self.leased:
            click.echo(f"kvnode: left out because they were under a lease: {self.leased} (--with-leased)", err=True)
        self._print(total)
        sys.exit(code)

    def _how_far(self, total: Tally, code: int) -> str:
        if not self.has_written or not (total.written or total.unknown):
            return "nothing was written"
        unknown = f", {total.unknown} more may have been" if total.unknown else ""
        goes_on = "" if code == FATAL else "; given again, it goes on: keys that have their value are left alone"
        return f"{total.written} keys were written{unknown}{goes_on}"

    def _print(self, total: Tally) -> None:
        if self.about is None:
            return
        counts = {
            "created": total.created,
            "overwritten": total.overwritten,
            "same": total.same,
            "skipped": total.skipped,
            "leased": self.leased,
            "failed": len(total.faults),
            "unknown": total.unknown,
        }
        if self._output == "json":
            click.echo(json.dumps({**self.about, **counts, "dry_run": self._dry_run}))
            return
        would = "would be " if self._dry_run else ""
        words = [f"{counts[name]} {_WORDS[name].format(would)}" for name in counts if counts[name] or name == "created"]
        click.echo(", ".join(words))
