"""``kvnode wal``: look into a log on disk, and check logs against each other. Reads only."""

from __future__ import annotations

import json
from itertools import islice

import click

from kvnode.errors import LogCorrupted
from kvnode.storage.wal_dump import dump as dump_log
from kvnode.storage.wal_verify import VerifiedLog, compare
from kvnode.storage.wal_verify import verify as verify_log


@click.group()
def wal() -> None:
    """Look into write-ahead logs, also of running nodes."""


@wal.command(short_help="Print the entries of a log as JSON lines.")
@click.argument("directory", metavar="DIR")
@click.option(
    "--from",
    "first_index",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="First log index to print.",
)
@click.option("--limit", type=click.IntRange(min=0), default=0, help="Print at most this many lines; 0 prints all.")
@click.option("--all", "everything", is_flag=True, help="Also hard states, marks, truncations and cut entries.")
def dump(directory: str, first_index: int, limit: int, everything: bool) -> None:
    """Print the entries of the log in DIR, a data directory or its wal/, as JSON lines."""
    lines = dump_log(directory, first_index=first_index, everything=everything)
    try:
        for line in islice(lines, limit or None):
            click.echo(json.dumps(line, ensure_ascii=False))
    except BrokenPipeError:  # `| head` has seen enough
        raise
    except (LogCorrupted, OSError) as error:
        raise click.ClickException(str(error)) from error


@wal.command()
@click.argument("directories", metavar="DIR...", nargs=-1, required=True)
def verify(directories: tuple[str, ...]) -> None:
    """Check the log in each DIR, and that all of them agree.

    Checksums, the chain of records, consecutive indexes, terms and times; across nodes: equal entries have equal
    prefixes, and each term has one leader. Exit code 1 if anything is violated.
    """
    try:
        logs = [verify_log(directory) for directory in directories]
    except OSError as error:
        raise click.ClickException(str(error)) from error
    problems = [problem for log in logs for problem in log.problems] + compare(logs)
    _print_table(logs)
    for problem in problems:
        click.echo(f"{problem.where}: {problem.what}", err=True)
    if problems:
        click.echo(f"{len(problems)} violation{'s' if len(problems) > 1 else ''} found.", err=True)
        raise SystemExit(1)
    click.echo("No violation found." if len(logs) == 1 else f"The {len(logs)} logs match.")


def _print_table(logs: list[VerifiedLog]) -> None:
    rows: list[tuple[str, ...]] = [
        ("log", "member", "entries", "term", "vote", "commit", "segments", "records", "unfinished")
    ]
    for log in logs:
        entries = f"{log.first_index}-{log.last_index}" if log.terms else "none"
        counts = (log.term, log.vote, log.commit, log.segments, log.records, log.unfinished_bytes)
        rows.append((log.path, str(log.member), entries, *map(str, counts)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        click.echo("  ".join(cells))
