"""``kvnode export``: the keys of a prefix as they were at one revision, as a file of JSON lines.

The first page of the listing pins the revision; its cursor carries it to the others, so that all of them show one state
however long the walk takes, and whatever is written meanwhile.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import click
import msgspec

from kvnode.cli.kv import past_options
from kvnode.cli.main import FATAL, REFUSED, TRY_AGAIN, fail
from kvnode.cli.new_file import place, written_aside
from kvnode.cli.options import endpoint_option, output_option, timeout_option
from kvnode.cli.progress import Progress
from kvnode.client.export_file import Item, Writer, header
from kvnode.client.patience import PatientCaller
from kvnode.errors import Compacted, ConnectionLost, KvnodeError, TryAgain, Unknown

_PAGE_ITEMS = 1_000


class _Page(msgspec.Struct, frozen=True):
    """Of ``GET /v1/kv``."""

    revision: int
    more: bool
    cursor: str | None
    items: list[Item]


_decode_page = msgspec.json.Decoder(_Page).decode


@click.command()
@click.option("--prefix", default="", help="Only keys that start with this.")
@past_options
@click.option("--stale", is_flag=True, help="What the node that answers has, also without a leader; may be old.")
@click.option("-f", "--file", "file", default="-", show_default=True, help="Where to; - for standard output.")
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@output_option("json", "plain", default="plain; of the summary")
@endpoint_option
@timeout_option("30s")
def export(**given: Any) -> None:
    """Write the keys of a prefix, as they were at one revision, to a file.

    All keys are of one revision: the newest, or the one that --at-rev or --at-time names. FILE is written aside and
    appears when it is complete. kvnode import reads it. It gives up when no node has answered for --timeout.

    Where most members are lost for good, --stale with a survivor as the only --endpoint saves what that one has.

    \b
    Examples:
      kvnode export -f all.jsonl
      kvnode export --prefix app/ -f app.jsonl
      kvnode export --prefix app/ --at-time -5m -f app.jsonl      as they were five minutes ago
      kvnode export | gzip > all.jsonl.gz
    """
    if given["at_rev"] and given["at_time"]:
        raise click.UsageError("--at-rev and --at-time exclude each other")
    path = None if given["file"] == "-" else place(given["file"], force=given["force"])
    try:
        if path is None:
            summary = _export(given, sys.stdout.buffer)
        else:
            with written_aside(path, force=given["force"]) as file:
                summary = _export(given, file)
    except Compacted as error:
        _say_compacted(error, given, path)
    except KvnodeError as error:
        fail(error)
    except FileExistsError:
        click.echo(f"kvnode: {given['file']} has come into being meanwhile; --force replaces it", err=True)
        sys.exit(REFUSED)
    except BrokenPipeError:  # whoever read it has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(REFUSED)
    except OSError as error:
        click.echo(
            f"kvnode: cannot write {'standard output' if path is None else given['file']}: {error.strerror}", err=True
        )
        sys.exit(FATAL)
    except KeyboardInterrupt:
        left = "what was written is cut off" if path is None else f"{given['file']} was not written"
        click.echo(f"kvnode: interrupted; {left}", err=True)
        sys.exit(TRY_AGAIN)
    click.echo(json.dumps(summary) if given["output"] == "json" else _line(summary), err=path is None)


def _export(given: dict[str, Any], file: BinaryIO) -> dict[str, Any]:
    """→ The summary. Raises: KvnodeError, OSError."""
    caller = PatientCaller(given["endpoints"], given["timeout_ms"])
    prefix = os.fsencode(given["prefix"])
    began = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"
    cluster_id = caller.read("GET", "/v1/status").json()["cluster_id"]
    pages = _pages(caller, prefix, given)
    page = next(pages)
    revision = page.revision
    writer = Writer(file, header(cluster_id=cluster_id, revision=revision, time=began, prefix=prefix))
    with Progress("exporting", _count(caller, prefix, page, given) if _shows_bar(file) else 0) as progress:
        while True:
            if page.revision != revision:
                raise KvnodeError(f"a page of revision {page.revision} in a listing of revision {revision}")
            writer.write(page.items)
            progress.advance(len(page.items), len(page.items))
            if not page.more:
                progress.finish()
                break
            page = next(pages)
    writer.end()
    return {
        "file": given["file"],
        "items": writer.items,
        "bytes": writer.size,
        "revision": revision,
        "cluster_id": cluster_id,
    }


def _pages(caller: PatientCaller, prefix: bytes, given: dict[str, Any]) -> Iterator[_Page]:
    asked = {"at_rev": given["at_rev"], "at_time": given["at_time"]}
    query: dict[str, str | bytes] = {"prefix": prefix, "limit": str(_PAGE_ITEMS), **_consistency(given)}
    pinned: dict[str, str | bytes] = {name: str(value) for name, value in asked.items() if value is not None}
    while True:
        answer = caller.read("GET", "/v1/kv", query | pinned)
        try:
            page = _decode_page(answer.body)
        except ValueError as error:
            raise ConnectionLost(f"the answer of {answer.endpoint} is no listing: {error}") from error
        yield page
        pinned = {"cursor": page.cursor or ""}


def _consistency(given: dict[str, Any]) -> dict[str, str]:
    return {"consistency": "stale"} if given["stale"] else {}


def _count(caller: PatientCaller, prefix: bytes, page: _Page, given: dict[str, Any]) -> int:
    """Keys in the whole; 0 if no node can tell in time: then there is no bar."""
    if not page.more:
        return len(page.items)
    query: dict[str, str | bytes] = {"prefix": prefix, "count_only": "1", "at_rev": str(page.revision)}
    query |= _consistency(given)
    try:
        count: int = caller.once("GET", "/v1/kv", query).json()["count"]
    except (TryAgain, Unknown):
        return 0
    return count


def _shows_bar(file: BinaryIO) -> bool:
    """Counting costs the cluster a walk over the keys: only for a bar that is seen, and not in between the lines."""
    return sys.stderr.isatty() and not file.isatty()


def _say_compacted(error: Compacted, given: dict[str, Any], path: Path | None) -> None:
    oldest = error.detail.get("compact_revision")
    left = "what was written is cut off" if path is None else f"{given['file']} was not written"
    if given["at_rev"] and oldest is not None and given["at_rev"] < oldest:
        advice = f"revision {oldest} is the oldest that can be exported now: --at-rev {oldest}, or later"
    elif given["at_time"]:
        advice = "name a later time"
    else:
        advice = (
            "it was given up while it was being read: export again, in smaller prefixes, or keep more history "
            "meanwhile (history.retention_ms, history.budget_bytes)"
        )
    click.echo(f"kvnode: {error.message} [{error.code}]; {left}; {advice}", err=True)
    sys.exit(REFUSED)


def _line(summary: dict[str, Any]) -> str:
    target = "" if summary["file"] == "-" else f" in {summary['file']}"
    keys = "1 key" if summary["items"] == 1 else f"{summary['items']} keys"
    return f"{keys} at revision {summary['revision']}{target}, {summary['bytes']} bytes"
