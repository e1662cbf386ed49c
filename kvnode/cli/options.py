"""Options that every command which talks to a cluster has: where, how long, and in which form to answer."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, Literal

import click

from kvnode.client.http import ENDPOINT_DEFAULT, Caller, parse_duration_ms, parse_endpoints
from kvnode.errors import BadRequest

Output = Literal["json", "table", "plain"]


class _Endpoints(click.ParamType[list[str]]):
    name = "host:port,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        if isinstance(value, list):
            return value
        try:
            return parse_endpoints(value)
        except BadRequest as error:
            self.fail(error.message, param, ctx)


class _Duration(click.ParamType[int]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            duration_ms = parse_duration_ms(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if not duration_ms:
            self.fail("no time at all: nothing could answer", param, ctx)
        return duration_ms


DURATION = _Duration()


def endpoint_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--endpoint",
        "endpoints",
        type=_Endpoints(),
        envvar="KVNODE_ENDPOINTS",
        default=ENDPOINT_DEFAULT,
        show_default=True,
        show_envvar=True,
        help="Nodes to ask, separated by commas; tried in order.",
    )(command)


def timeout_option(default: str = "5s") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        "--timeout", "timeout_ms", type=DURATION, default=default, show_default=True, help="Like 500ms, 30s, 5m."
    )


def output_option(*forms: Output, default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        "-o", "--output", type=click.Choice(list(forms)), help=f"Form of the answer. [default: {default}]"
    )


def caller(endpoints: list[str], timeout_ms: int) -> Caller:
    return Caller(endpoints, timeout_ms)


def print_bytes(data: bytes) -> None:
    """Bytes to standard output, unchanged."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def table_by_default() -> Output:
    """Tables are for people: only when standard output is a terminal."""
    return "table" if sys.stdout.isatty() else "plain"


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    """Aligned columns. Uses rich on a terminal, where it also colours and folds."""
    if not sys.stdout.isatty():
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        for row in [columns, *rows]:
            click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    from rich.console import Console  # noqa: PLC0415  slow to import, needed for terminals only
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*map(escape, row))
    Console(no_color=bool(os.environ.get("NO_COLOR"))).print(table)
