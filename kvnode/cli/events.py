"""``kvnode events``: the cluster's timeline as text, one event a line, causes before effects.

Every node tells it from what it has. While members cannot reach each other none has all of it: ``--merge`` asks every
node that answers and puts the parts together, which is what an incident report wants.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import click

from kvnode.cli.kv import fail_write, value_of
from kvnode.cli.main import TRY_AGAIN, fail
from kvnode.cli.options import caller, endpoint_option, output_option, timeout_option
from kvnode.errors import KvnodeError, TryAgain, Unknown

Json = dict[str, Any]

_PAGE_ITEMS = 1_000
_WAIT_MS = 5_000
_PAUSE_S = 0.3
_COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "bright_red", "bright_cyan", "bright_yellow")
_PLAIN = re.compile(r"[A-Za-z0-9_./:@+-]+")


@click.command()
@click.option("--follow", "-f", is_flag=True, help="Go on as events happen, until interrupted.")
@click.option("--stable", is_flag=True, help="Only what can no longer be reordered: the same on every node.")
@click.option(
    "--allow-late",
    is_flag=True,
    help="With --stable: also what has no place in the final order; what came late is marked.",
)
@click.option("--merge", is_flag=True, help="Ask every member that answers, and put together what each has.")
@click.option("--last", type=click.IntRange(min=0), metavar="N", help="Only the N newest of what is kept.")
@click.option("--post", metavar="JSON", help="Add an event of your own: a JSON object; - standard input, @FILE a file.")
@output_option("json", "plain", default="plain")
@endpoint_option
@timeout_option()
def events(**given: Any) -> None:
    """Show what happened in the cluster, causes before effects.

    Elections, suspicions, repairs, changes of members, and what was posted. Any node answers, also without a leader.
    plain: a line an event: logical time, time by the clock of the node, node, kind, fields; coloured by node on a
    terminal. The order is that of the logical time: clocks may be wrong. json: the objects of GET /v1/events.

    --merge is for incident reports, while members cannot reach each other or are lost: each has what it has heard.

    \b
    Examples:
      kvnode events --last 20
      kvnode events --follow
      kvnode events --stable > incident.txt       every node prints the same
      kvnode events --merge --endpoint n1:7401,n2:7401
      kvnode events --post '{"deploy": "web", "version": 17}'
    """
    _check_usage(given)
    show = (
        _Json() if given["output"] == "json" else _Plain(colour=sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
    )
    try:
        if given["post"] is not None:
            _post(given)
        elif given["merge"]:
            _merge(given, show)
        else:
            cursor = _show_pages(given, show)
            if given["follow"]:
                _follow(given, show, cursor)
    except KvnodeError as error:
        fail(error)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # whoever read it has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_usage(given: Json) -> None:
    reading = [name for name in ("follow", "stable", "allow_late", "merge", "last") if given[name] not in (None, False)]
    if given["post"] is not None and reading:
        raise click.UsageError(f"--post adds an event: leave --{reading[0].replace('_', '-')} out")
    if given["merge"] and given["follow"]:
        raise click.UsageError("--merge and --follow exclude each other: one node hears of everything by and by")


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────


def _query(given: Json) -> dict[str, str]:
    return {"limit": str(_PAGE_ITEMS), **{name: "1" for name in ("stable", "allow_late") if given[name]}}


def _pages(endpoints: list[str], given: Json) -> Iterator[Json]:
    """All that is kept, page by page."""
    query = _query(given)
    http = caller(endpoints, given["timeout_ms"])
    while True:
        page = http.call("GET", "/v1/events", query).json()
        yield page
        if not page["more"]:
            return
        query["cursor"] = page["cursor"]


def _show_pages(given: Json, show: _Plain | _Json) -> str:
    """Returns the cursor after what was shown."""
    cursor = ""
    newest: list[Json] = []
    for page in _pages(given["endpoints"], given):
        cursor = page["cursor"]
        if given["last"] is None:
            show.events(page["events"])
        else:
            newest = (newest + page["events"])[-given["last"] :] if given["last"] else []
    show.events(newest)
    return cursor


def _follow(given: Json, show: _Plain | _Json, cursor: str) -> None:
    """Goes on at another node when one goes away; gives up when none has answered for the timeout."""
    http, query = caller(given["endpoints"], given["timeout_ms"]), {**_query(given), "wait": f"{_WAIT_MS}ms"}
    failing_since: float | None = None
    while True:
        try:
            page = http.call("GET", "/v1/events", {**query, "cursor": cursor}, wait_ms=_WAIT_MS).json()
        except (TryAgain, Unknown):
            now = time.monotonic()
            failing_since = failing_since or now  # not since the last answer: it waited for an event meanwhile
            if now - failing_since > given["timeout_ms"] / 1e3:
                raise
            http.endpoints.append(http.endpoints.pop(0))  # whoever is silent is not asked first again
            time.sleep(_PAUSE_S)
            continue
        failing_since = None
        cursor = page["cursor"]
        show.events(page["events"])


class _Part(NamedTuple):
    """What one node tells."""

    node: str  # its member id
    events: list[Json]
    watermark: int
    endpoints: list[str]  # of the members it knows


def _merge(given: Json, show: _Plain | _Json) -> None:
    """What each member that answers has, in one order, each event once."""
    found: dict[str, _Part | KvnodeError] = {}
    waiting = list(dict.fromkeys(given["endpoints"]))
    while waiting:
        with ThreadPoolExecutor(len(waiting)) as pool:
            found |= zip(waiting, pool.map(lambda endpoint: _part(endpoint, given), waiting), strict=True)
        parts = [part for part in found.values() if isinstance(part, _Part)]
        waiting = [one for one in dict.fromkeys(one for part in parts for one in part.endpoints) if one not in found]
    for endpoint, part in found.items():
        if isinstance(part, KvnodeError):
            click.echo(f"kvnode: {endpoint} was not heard: {part.message}", err=True)
    if not parts:
        click.echo("kvnode: no node answered", err=True)
        sys.exit(TRY_AGAIN)
    merged = merge([part.events for part in parts])
    if given["last"] is not None:
        merged = merged[max(0, len(merged) - given["last"]) :]
    show.head(len({part.node for part in parts}), len(merged), max(part.watermark for part in parts))
    show.events(merged)


def _part(endpoint: str, given: Json) -> _Part | KvnodeError:
    try:
        pages = list(_pages([endpoint], given))
        answer = caller([endpoint], given["timeout_ms"]).call("GET", "/v1/members")
    except KvnodeError as error:
        return error
    urls = [member["client_url"].removeprefix("http://").rstrip("/") for member in answer.json()["members"]]
    told = [event for page in pages for event in page["events"]]
    return _Part(answer.headers.get("Kv-Node", ""), told, pages[-1]["watermark"], [url for url in urls if url])


def merge(parts: Iterable[list[Json]]) -> list[Json]:
    """Each event once, in the one order there is. Of two tellings the one that knows of no gap: it had more."""
    by_id: dict[str, Json] = {}
    for event in (event for part in parts for event in part):
        known = by_id.get(event["id"])
        if known is None or event.get("gap", 0) < known.get("gap", 0):
            by_id[event["id"]] = event
    merged = sorted(by_id.values(), key=lambda one: (one["lamport"], one["member"], one["incarnation"], one["seq"]))
    return _without_closed_gaps(merged)


def _without_closed_gaps(merged: list[Json]) -> list[Json]:
    """A gap is one only if no other node had what it left out."""
    there = {(event["member"], event["incarnation"], event["seq"]) for event in merged}
    for event in merged:
        if event.get("gap") and (event["member"], event["incarnation"], event["seq"] - 1) in there:
            event["gap"] = 0
    return merged


def _post(given: Json) -> None:
    try:
        answer = caller(given["endpoints"], given["timeout_ms"]).call("POST", "/v1/events", {}, value_of(given["post"]))
    except KvnodeError as error:
        fail_write(error)
    event = answer.json()
    click.echo(json.dumps(event, ensure_ascii=False) if given["output"] == "json" else event["id"])


# ── showing ─────────────────────────────────────────────────────────────────────────────────────────


class _Json:
    """The objects of the HTTP API, one a line."""

    def head(self, nodes: int, count: int, watermark: int) -> None:
        pass

    def events(self, found: list[Json]) -> None:
        for event in found:
            click.echo(json.dumps(event, ensure_ascii=False))


class _Plain:
    """Columns for people. Widths only grow, so that a stream stays readable."""

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour
        self._widths = [7, 8, 16]  # of logical time, node, kind

    def head(self, nodes: int, count: int, watermark: int) -> None:
        told = "1 node tells" if nodes == 1 else f"{nodes} nodes tell"
        click.echo(f"# {count} events, as {told} them; final up to logical time {watermark}")

    def events(self, found: list[Json]) -> None:
        cells = [
            (str(event["lamport"]), _words(event["node"] or str(event["member"])), _words(event["kind"]))
            for event in found
        ]
        for row in cells:
            self._widths = [max(width, len(cell)) for width, cell in zip(self._widths, row, strict=True)]
        for event, row in zip(found, cells, strict=True):
            for line in self._lines(event, row):
                text = click.style(line, fg=_COLOURS[event["member"] % len(_COLOURS)]) if self._colour else line
                click.echo(text, color=self._colour)

    def _lines(self, event: Json, row: tuple[str, str, str]) -> Iterator[str]:
        lamport, node, kind = row
        wide, node_wide, kind_wide = self._widths
        if event.get("gap"):
            yield f"{'…':>{wide}}  {event['gap']} earlier events of {node} are no longer kept"
        late = "late: " if event.get("late") else ""
        line = f"{lamport:>{wide}}  {event['time']}  {node:<{node_wide}}  {kind:<{kind_wide}}  {late}"
        yield (line + " ".join(f"{_words(name)}={_words(value)}" for name, value in event["fields"].items())).rstrip()


def _words(value: Any) -> str:
    """On one line of a terminal, whatever somebody posted."""
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return "".join(one if one.isprintable() else f"\\u{ord(one):04x}" for one in text)
