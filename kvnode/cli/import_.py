"""``kvnode import``: brings an export back, into the same cluster or another.

A file is read twice: whole, to check it, before anything is written; then to import it. Standard input and pipes can be
read once only, so they are checked as they go. How keys are written: `kvnode.client.importer`.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any, BinaryIO, NoReturn

import click
import msgspec

from kvnode.cli.import_outcome import Outcome
from kvnode.cli.kv import shown
from kvnode.cli.main import FATAL, OK, REFUSED, TRY_AGAIN
from kvnode.cli.options import endpoint_option, output_option, timeout_option
from kvnode.cli.progress import Progress
from kvnode.client.export_file import BadExport, Entry, Reader
from kvnode.client.importer import Importer


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
    """One run of the command."""

    def __init__(self, given: dict[str, Any], name: str) -> None:
        self._given = given
        self._name = name
        self._importer = Importer(given["endpoints"], given["timeout_ms"], given["on_conflict"])
        self._outcome = Outcome(self._importer, dry_run=given["dry_run"], output=given["output"], place="line")
        self._old, self._new = prefix_map(given["prefix_map"])
        self._dry_run: bool = given["dry_run"]
        self._reader: Reader | None = None

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
            if self._dry_run or self._outcome.went_wrong() or not self._importer.total.written:
                return
        file.seek(0)
        self._pass(file, size, compare=False)

    def end(self, code: int, why: str) -> NoReturn:
        """Say what has come of it, and exit."""
        warning = ""
        reader = self._reader
        if reader is not None:
            about = {"revision": reader.header.revision, "cluster_id": reader.header.cluster_id}
            self._outcome.about = {**about, "whole": reader.is_whole}
            if not reader.is_whole:
                warning = f"{self._name} is not whole; its {reader.items} keys were taken"
        self._outcome.end(code, why, warning)

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
        self._outcome.leased = 0
        self._outcome.has_written = not compare
        entries = self._chosen(self._begin(file))
        work = self._importer.compare(entries) if compare else self._importer.write(entries)
        with Progress("comparing" if compare else "importing", size) as progress, closing(work) as tallies:
            for tally in tallies:
                progress.advance(tally.size, tally.keys)
            if not self._outcome.went_wrong():
                progress.finish()

    def _chosen(self, reader: Reader) -> Iterator[Entry]:
        """Those to import, under their new names."""
        for entry in reader:
            if entry.kv.lease and not self._given["with_leased"]:
                self._outcome.leased += 1
                continue
            key = self._new + entry.kv.key.removeprefix(self._old)
            yield msgspec.structs.replace(entry, kv=msgspec.structs.replace(entry.kv, key=key))


def prefix_map(text: str | None) -> tuple[bytes, bytes]:
    """(old, new): what stands in ``--prefix-map``."""
    if text is None:
        return b"", b""
    old, equals, new = os.fsencode(text).partition(b"=")
    if not equals:
        raise click.UsageError("--prefix-map takes OLD=NEW; OLD ends at the first =")
    return old, new
