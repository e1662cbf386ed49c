"""``kvnode import``: brings an export back, into the same cluster or another.

A file is read twice: whole, to check it, before anything is written; then to import it. Standard input and pipes can be
read once only, so they are checked as they go. How keys are written: `kvnode.client.importer`.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any, BinaryIO, NoReturn

import click
import msgspec

from kvnode.cli.kv import shown
from kvnode.cli.main import FATAL, OK, REFUSED, TRY_AGAIN, UNKNOWN_OUTCOME, exit_code
from kvnode.cli.options import endpoint_option, output_option, timeout_option
from kvnode.cli.progress import Progress
from kvnode.client.export_file import BadExport, Entry, Reader
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


@click.command("import")
@click.argument("file")
@click.option("--prefix-map", metavar="OLD=NEW", help="Keys that start with OLD get NEW in its place.")
@click.option(
    "--on-conflict",
    type=click.Choice(["fail", "skip", "overwrite"]),
    default="fail",
    show_default=True,
    help="What to do about keys that have another value: end, keep it, or replace it.",
)
@click.option("--dry-run", is_flag=True, help="Only tell what would be done.")
@click.option("--partial", is_flag=True, help="Also what is there of a file that was cut off or edited.")
@click.option("--with-leased", is_flag=True, help="Also keys that were under a lease, as keys that stay.")
@output_option("json", "plain", default="plain")
@endpoint_option
@timeout_option("30s")
def import_(**given: Any) -> None:
    """Bring the keys of an export into a cluster.

    FILE is what kvnode export wrote; - is standard input. It is checked before anything is written; standard input is
    checked as it goes. Keys that have their value already are left alone, so after an interruption the same command
    goes on. Revisions, versions and times are new ones. Keys that were under a lease are left out unless asked for:
    leases are not restored.

    With --on-conflict fail nothing is written if any key has another value (from standard input: nothing more).
    It gives up when nothing has succeeded for --timeout.

    \b
    Examples:
      kvnode import all.jsonl
      kvnode import app.jsonl --dry-run
      kvnode import app.jsonl --prefix-map app/=copy/
      kvnode import app.jsonl --on-conflict overwrite
      zcat all.jsonl.gz | kvnode import -
    """
    name = "standard input" if given["file"] == "-" else given["file"]
    run = _Run(given, name)
    try:
        with _opened(given["file"]) as file:
            run.go(file)
    except BadExport as error:
        run.end(FATAL if error.is_damaged else REFUSED, f"{name}: {error}")
    except OSError as error:
        run.end(FATAL, f"cannot read {name}: {error.strerror}")
    except KeyboardInterrupt:
        run.end(TRY_AGAIN, "interrupted")
    run.end(OK, "")


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(name, "rb"))
        except OSError as error:
            raise click.UsageError(f"cannot read {name}: {error.strerror}") from error
        yield file


class _Run:
    """One run of the command, and what it has to tell, however it ends."""

    def __init__(self, given: dict[str, Any], name: str) -> None:
        self._given = given
        self._name = name
        self._importer = Importer(given["endpoints"], given["timeout_ms"], given["on_conflict"])
        self._old, self._new = _prefix_map(given["prefix_map"])
        self._dry_run: bool = given["dry_run"]
        self._has_written = False  # or may have
        self._reader: Reader | None = None
        self._leased = 0  # left out

    def go(self, file: BinaryIO) -> None:
        """Raises: BadExport, OSError."""
        if self._given["file"] == "-" or not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            click.echo(
                f"kvnode: {self._name} is checked as it is read: what is wrong at its end shows after the rest",
                err=True,
            )
            self._pass(file, 0, compare=self._dry_run)
            return
        size = os.fstat(file.fileno()).st_size
        with Progress("checking", size) as progress:
            for entry in self._begin(file):
                progress.advance(entry.size, 1)
            progress.finish()
        if self._dry_run or self._given["on_conflict"] == "fail":
            file.seek(0)
            self._pass(file, size, compare=True)
            if self._dry_run or self._went_wrong() or not self._importer.total.written:
                return
        file.seek(0)
        self._pass(file, size, compare=False)

    def end(self, code: int, why: str) -> NoReturn:
        """Say what has come of it, and exit: with `code`, or with one that says more."""
        total = self._importer.total
        if not self._dry_run and not self._has_written:  # what would have been written was not
            total.created = total.overwritten = 0
        for fault in total.faults[:_FAULTS_SHOWN]:
            click.echo(f"kvnode: line {fault.line}: {shown(fault.key)}: {fault.why}", err=True)
        if len(total.faults) > _FAULTS_SHOWN:
            click.echo(f"kvnode: … and {len(total.faults) - _FAULTS_SHOWN} more such keys", err=True)
        if total.error is not None and not why:
            code = exit_code(total.error, write=True)
            why = f"{total.error.message} [{total.error.code}]"
        if total.faults and not why:
            code = REFUSED
            conflicts = sum(fault.is_conflict for fault in total.faults)
            why = "keys that have another value: see --on-conflict [conflict]" if conflicts else "not all was imported"
        if code == TRY_AGAIN and self._has_written and (total.written or total.unknown):
            code = UNKNOWN_OUTCOME  # something was changed
        if why:
            click.echo(f"kvnode: {why}; {self._how_far(total, code)}", err=True)
        elif self._reader is not None and not self._reader.is_whole:
            click.echo(f"kvnode: {self._name} is not whole; its {self._reader.items} keys were taken", err=True)
        if self._leased:
            click.echo(f"kvnode: left out because they were under a lease: {self._leased} (--with-leased)", err=True)
        self._print(total)
        sys.exit(code)

    def _begin(self, file: BinaryIO) -> Reader:
        """Raises: BadExport."""
        self._reader = reader = Reader(file, partial=self._given["partial"])
        if not reader.prefix.startswith(self._old):
            raise click.UsageError(
                f"--prefix-map: the export is of the keys that start with {shown(reader.prefix)!r}; not all of them "
                f"start with {shown(self._old)!r}"
            )
        return reader

    def _pass(self, file: BinaryIO, size: int, *, compare: bool) -> None:
        """Through all of the file, against the cluster."""
        self._leased = 0
        self._has_written = not compare
        entries = self._chosen(self._begin(file))
        work = self._importer.compare(entries) if compare else self._importer.write(entries)
        with Progress("comparing" if compare else "importing", size) as progress, closing(work) as tallies:
            for tally in tallies:
                progress.advance(tally.size, tally.keys)
            if not self._went_wrong():
                progress.finish()

    def _chosen(self, reader: Reader) -> Iterator[Entry]:
        """Those to import, under their new names."""
        for entry in reader:
            if entry.kv.lease and not self._given["with_leased"]:
                self._leased += 1
                continue
            key = self._new + entry.kv.key.removeprefix(self._old)
            yield msgspec.structs.replace(entry, kv=msgspec.structs.replace(entry.kv, key=key))

    def _went_wrong(self) -> bool:
        return bool(self._importer.total.faults or self._importer.total.error)

    def _how_far(self, total: Tally, code: int) -> str:
        if not self._has_written or not (total.written or total.unknown):
            return "nothing was written"
        unknown = f", {total.unknown} more may have been" if total.unknown else ""
        goes_on = "" if code == FATAL else "; given again, it goes on: keys that have their value are left alone"
        return f"{total.written} keys were written{unknown}{goes_on}"

    def _print(self, total: Tally) -> None:
        reader = self._reader
        if reader is None:
            return
        counts = {
            "created": total.created,
            "overwritten": total.overwritten,
            "same": total.same,
            "skipped": total.skipped,
            "leased": self._leased,
            "failed": len(total.faults),
            "unknown": total.unknown,
        }
        if self._given["output"] == "json":
            about = {"revision": reader.header.revision, "cluster_id": reader.header.cluster_id}
            click.echo(json.dumps({**about, **counts, "whole": reader.is_whole, "dry_run": self._dry_run}))
            return
        would = "would be " if self._dry_run else ""
        words = [f"{counts[name]} {_WORDS[name].format(would)}" for name in counts if counts[name] or name == "created"]
        click.echo(", ".join(words))


def _prefix_map(text: str | None) -> tuple[bytes, bytes]:
    if text is None:
        return b"", b""
    old, equals, new = os.fsencode(text).partition(b"=")
    if not equals:
        raise click.UsageError("--prefix-map takes OLD=NEW; OLD ends at the first =")
    return old, new
