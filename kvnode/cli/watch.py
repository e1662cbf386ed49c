"""``kvnode watch``: changes on standard output as they happen, over as many nodes as it takes."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import aclosing
from typing import Any

import click

from kvnode.api import shapes
from kvnode.cli.main import REFUSED, fail
from kvnode.cli.options import endpoint_option, output_option, print_bytes, timeout_option
from kvnode.errors import KvnodeError
from kvnode.kv.events import Cancelled, Changes, Event, Listed, Synced, WatchPart
from kvnode.kv.interface import Options
from kvnode.kv.keys import ONE_KEY, prefix_end
from kvnode.kv.requests import KeyValue, Watch


@click.command()
@click.argument("key", default="")
@click.option("--prefix", is_flag=True, help="Watch every key that starts with KEY; every key if it is left out.")
@click.option("--from-rev", type=click.IntRange(min=1), help="Changes of revision N and later, not only new ones.")
@click.option("--list", "list_first", is_flag=True, help="First what is there, then every change after it.")
@click.option("--prev", is_flag=True, help="Tell what each change replaced (with -o json).")
@click.option("--events", type=click.Choice(["put", "delete"]), help="Only changes of this kind.")
@output_option("json", "plain", default="plain")
@endpoint_option
@timeout_option()
def watch(**given: Any) -> None:
    """Print changes as they happen, each once, until interrupted.

    plain: a line a change: revision, put or delete, key, and the value of a put. json: the objects of GET /v1/watch.
    When the node goes away the next one is asked; it fails when none has answered for --timeout. Exits 1 if history
    that it still needed has been dropped.

    \b
    Examples:
      kvnode watch greeting
      kvnode watch app/ --prefix --list          what is there, and what becomes of it
      kvnode watch --prefix --from-rev 1         everything that ever happened
      kvnode watch jobs/ --prefix --events delete -o json --prev
    """
    key = os.fsencode(given["key"])
    if not key and not given["prefix"]:
        raise click.UsageError("name a KEY, or give --prefix to watch every key")
    if given["list_first"] and given["from_rev"]:
        raise click.UsageError("--list and --from-rev exclude each other")
    request = Watch(
        key,
        prefix_end(key) if given["prefix"] else ONE_KEY,
        given["from_rev"] or 0,
        list_first=given["list_first"],
        previous=given["prev"],
        puts=given["events"] != "delete",
        deletes=given["events"] != "put",
    )
    show = _Json(previous=given["prev"]) if given["output"] == "json" else _Plain()
    try:
        asyncio.run(_follow(given["endpoints"], request, given["timeout_ms"], show))
    except KvnodeError as error:
        fail(error)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # whoever read it has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def _follow(endpoints: list[str], request: Watch, timeout_ms: int, show: _Plain | _Json) -> None:
    from kvnode.client.client import Client  # noqa: PLC0415  slow to import, needed by this command only

    async with (
        Client(endpoints) as client,
        aclosing(client.watch(request, Options(timeout_ms=timeout_ms))) as stream,
    ):
        async for part in stream:
            if isinstance(part, Cancelled):
                click.echo(
                    f"kvnode: history up to revision {part.compact_revision} has been dropped; some of it was still to "
                    f"come [{part.code}]",
                    err=True,
                )
                sys.exit(REFUSED)
            print_bytes(b"".join(show.part(part)))


class _Plain:
    """A line a change."""

    def part(self, part: WatchPart) -> list[bytes]:
        match part:
            case Changes():
                return [self._line(event.kv) for event in part.events]
            case Listed():
                return [self._line(kv) for kv in part.items]
            case _:
                return []

    @staticmethod
    def _line(kv: KeyValue) -> bytes:
        if kv.version:
            return b"%d put %b %b\n" % (kv.mod_revision, kv.key, kv.value)
        return b"%d delete %b\n" % (kv.mod_revision, kv.key)


class _Json:
    """The objects of the HTTP API."""

    def __init__(self, *, previous: bool) -> None:
        self._previous = previous

    def part(self, part: WatchPart) -> list[bytes]:
        match part:
            case Changes():
                return [
                    self._line(event, more=number < len(each.events))
                    for each in part.sets
                    for number, event in enumerate(each.events, start=1)
                ]
            case Listed():
                return [_encode(shapes.watch_line(kv)) for kv in part.items]
            case Synced():
                return [_encode(shapes.WatchLine(type="synced", revision=part.revision))]
            case _:
                return []

    def _line(self, event: Event, *, more: bool) -> bytes:
        line = shapes.watch_line(event.kv, more=more)
        if self._previous:
            line.prev = shapes.previous_of(event.previous)
        return _encode(line)


def _encode(line: shapes.WatchLine) -> bytes:
    return shapes.encode(line) + b"\n"
