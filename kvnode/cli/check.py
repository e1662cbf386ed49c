"""``kvnode check``: judge a recorded history of clients."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from kvnode.check import report
from kvnode.check.history import decode_final, decode_lines
from kvnode.check.judge import BUDGET_STATES, judge
from kvnode.cli.main import REFUSED, UNKNOWN_OUTCOME, USAGE


@click.command()
@click.argument("history", metavar="HISTORY.jsonl", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Also write a timeline to this file.")
@click.option(
    "--budget",
    type=click.IntRange(min=1),
    default=BUDGET_STATES,
    show_default=True,
    help="States that the search may visit before it gives up.",
)
@click.option(
    "--final",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What the store held in the end: one JSON object a line, as items of a range.",
)
@click.option("--others-write", is_flag=True, help="Clients outside of the history wrote to the store, too.")
def check(history: Path, html: Path | None, budget: int, final: Path | None, others_write: bool) -> None:
    """Judge a recorded history of clients.

    Is there an order of the operations in HISTORY.jsonl that explains what each client was told? One operation a line,
    as docs/checking.md describes. Exit code 0: it is linearizable, and nothing acknowledged is lost. 1: it is not.
    2: the file holds no history. 4: unknown, the search gave up at its budget.

    \b
    Examples:
      kvnode check history.jsonl
      kvnode check history.jsonl --final final.jsonl --html timeline.html
    """
    try:
        with history.open("rb") as lines:
            operations = decode_lines(lines)
        items = None
        if final is not None:
            with final.open("rb") as lines:
                items = decode_final(lines)
        verdict = judge(operations, final=items, budget=budget, sole_writer=not others_write)
        if html is not None:
            html.write_text(report.html(operations, verdict), encoding="utf-8")
    except ValueError as error:  # a line that is none; MalformedHistory is one, too
        click.echo(f"kvnode: {error}", err=True)
        sys.exit(USAGE)
    except OSError as error:
        raise click.ClickException(str(error)) from error
    click.echo(report.text(operations, verdict), nl=False)
    sys.exit({"ok": 0, "failed": REFUSED, "unknown": UNKNOWN_OUTCOME}[verdict.result])
