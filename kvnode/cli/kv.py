"""``kvnode put get del ls``: keys and values from a shell.

Each command is one request (`ls`: one a page). Values come and go as bytes, unchanged. A failed write says on
standard error whether it was applied, in the words of the HTTP API: ``Kv-Outcome: not-applied`` or ``unknown``.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import click

from kvnode.cli.main import fail
from kvnode.cli.options import (
    DURATION,
    caller,
    endpoint_option,
    output_option,
    print_bytes,
    print_table,
    table_by_default,
    timeout_option,
)
from kvnode.client.http import Answer, Caller, key_path
from kvnode.errors import KvnodeError

_PAGE_ITEMS = 1_000

_AT_REV = click.option("--at-rev", type=click.IntRange(min=1), help="As it was at revision N of the store.")
_AT_TIME = click.option("--at-time", help="As it was at a time: 2026-11-22T10:00:00Z, or an age such as -5m.")


def past_options(command: Callable[..., None]) -> Callable[..., None]:
    """Two ways to name a state of the past."""
    return _AT_REV(_AT_TIME(command))


_PREVIEW_CHARACTERS = 60

once_option = click.option(
    "--idempotency-key", help="Takes effect once under this key, however often the command is given (10 minutes)."
)


fence_option = click.option(
    "--fence",
    metavar="NAME:TOKEN",
    help="Only while the lock or election NAME is held under exactly that token ($KVNODE_LOCK_TOKEN).",
)


@click.command()
@click.argument("key")
@click.argument("value")
@click.option("--if-rev", type=click.IntRange(min=0), help="Only if the key's revision is N; 0: only if it is absent.")
@click.option("--prev", is_flag=True, help="Show the value that was replaced (with -o json).")
@once_option
@fence_option
@click.option("--lease", type=click.IntRange(min=1), help="The key goes when this lease ends.")
@click.option(
    "--ttl", "ttl_ms", type=DURATION, help="The key gets a lease of its own, and goes after so long: 30s, 5m."
)
@output_option("json", "plain", default="plain")
@endpoint_option
@timeout_option()
def put(**given: Any) -> None:
    """Set a key.

    VALUE is the value itself, - to read standard input, or @FILE to read a file. The bytes are stored unchanged.

    \b
    Examples:
      kvnode put greeting hello
      kvnode put app/config @config.json
      date | kvnode put now -
      kvnode put lock/owner me --if-rev 0       create, fail if it exists
      kvnode put total 17 --idempotency-key order-17
      kvnode put workers/7 alive --ttl 30s      gone after 30 seconds, unless put again
      kvnode put done 7 --fence nightly:$KVNODE_LOCK_TOKEN    only while the lock is held
    """
    if given["lease"] and given["ttl_ms"]:
        raise click.UsageError("--lease and --ttl exclude each other")
    query = {"if_rev": str(given["if_rev"])} if given["if_rev"] is not None else {}
    if given["prev"]:
        query["prev"] = "1"
    if given["lease"]:
        query["lease"] = str(given["lease"])
    if given["ttl_ms"]:
        query["ttl"] = f"{given['ttl_ms']}ms"
    body = value_of(given["value"])
    answer = _write("PUT", key_path(_bytes(given["key"])), query, body, given)
    if given["output"] == "json":
        print_bytes(answer.body.rstrip(b"\n") + b"\n")
    else:
        lease = f", lease {answer.headers['Kv-Lease']}" if given["ttl_ms"] else ""
        click.echo(f"revision {answer.json()['revision']}{lease}")


@click.command()
@click.argument("key")
@past_options
@click.option("--consistency", type=click.Choice(["linearizable", "stale"]), help="stale: this node's applied state.")
@click.option("--max-staleness", help="Answered without asking the leader if nothing older is missing: 500ms, 30s.")
@output_option("json", "table", "plain", default="plain")
@endpoint_option
@timeout_option()
def get(**given: Any) -> None:
    """Print the value of a key.

    The bytes are printed unchanged, without a newline of our own; -o json shows the revisions too. Exits 1 if there
    is no such key.

    \b
    Examples:
      kvnode get greeting
      kvnode get app/config > config.json
      kvnode get greeting -o json
      kvnode get greeting --at-rev 7            as it was
      kvnode get greeting --at-time -5m         as it was five minutes ago
      kvnode get greeting --max-staleness 1s    as it was a second ago, or newer
    """
    if given["consistency"] and given["max_staleness"]:
        raise click.UsageError("--max-staleness and --consistency exclude each other")
    query = {"consistency": given["consistency"]} if given["consistency"] else {}
    if given["max_staleness"]:
        query |= {"consistency": "bounded", "max_staleness": given["max_staleness"]}
    query |= _past(given)
    if given["output"] in {"json", "table"}:
        query["meta"] = "1"
    try:
        answer = _caller(given).call("GET", key_path(_bytes(given["key"])), query)
    except KvnodeError as error:
        fail(error)
    if given["output"] == "table":
        _print_items([answer.json()])
    elif given["output"] == "json":
        print_bytes(answer.body.rstrip(b"\n") + b"\n")
    else:
        print_bytes(answer.body)


@click.command("del")
@click.argument("key")
@click.option("--prefix", is_flag=True, help="Delete every key that starts with KEY.")
@click.option("--if-rev", type=click.IntRange(min=1), help="Only if the key's revision is N.")
@click.option("--prev", is_flag=True, help="Show what was deleted (with -o json).")
@once_option
@fence_option
@output_option("json", "plain", default="plain")
@endpoint_option
@timeout_option()
def delete(**given: Any) -> None:
    """Delete a key, or every key with a prefix.

    Prints how many keys were deleted; deleting a missing key is not an error and prints 0.

    \b
    Examples:
      kvnode del greeting
      kvnode del app/ --prefix
    """
    if given["prefix"] and (given["if_rev"] is not None or given["prev"]):
        raise click.UsageError("--prefix goes with neither --if-rev nor --prev")
    query: dict[str, str | bytes] = {"if_rev": str(given["if_rev"])} if given["if_rev"] is not None else {}
    if given["prev"]:
        query["prev"] = "1"
    key = _bytes(given["key"])
    if given["prefix"]:
        answer = _write("DELETE", "/v1/kv", {"prefix": key}, None, given)
    else:
        answer = _write("DELETE", key_path(key), query, None, given)
    if given["output"] == "json":
        print_bytes(answer.body.rstrip(b"\n") + b"\n")
    else:
        click.echo(answer.json()["deleted"])


@click.command()
@click.argument("prefix", default="")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after this many keys.")
@click.option("--keys-only", is_flag=True, help="Do not fetch values (with -o json or table).")
@past_options
@output_option("json", "table", "plain", default="table on a terminal, else plain")
@endpoint_option
@timeout_option()
def ls(**given: Any) -> None:
    """List keys, in byte order.

    plain: one key a line. json: one item a line, with value and revisions. All pages are read at one revision.

    \b
    Examples:
      kvnode ls
      kvnode ls app/
      kvnode ls app/ -o json --limit 100
    """
    output = given["output"] or table_by_default()
    query: dict[str, str | bytes] = {"prefix": _bytes(given["prefix"]), **_past(given)}
    if given["keys_only"] or output == "plain":
        query["keys_only"] = "1"
    items: list[dict[str, Any]] = []
    try:
        for item in _pages(_caller(given), "/v1/kv", query, given["limit"]):
            if output == "table":
                items.append(item)
            elif output == "json":
                click.echo(json.dumps(item, ensure_ascii=False))
            else:
                print_bytes(item_bytes(item, "key") + b"\n")
    except KvnodeError as error:
        fail(error)
    if output == "table":
        _print_items(items)


@click.command()
@click.argument("key")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after this many versions.")
@past_options
@output_option("json", "table", "plain", default="table on a terminal, else plain")
@endpoint_option
@timeout_option()
def history(**given: Any) -> None:
    """Show the versions of a key that are kept, newest first.

    plain: one version a line: revision, time, put or delete. json: one item a line, with its value; deletions have
    "deleted": true. Exits 1 if no version is kept.

    \b
    Examples:
      kvnode history greeting
      kvnode history greeting -o json --limit 10
    """
    output = given["output"] or table_by_default()
    rows: list[list[str]] = []
    try:
        for item in _pages(_caller(given), key_path(_bytes(given["key"]), "history"), _past(given), given["limit"]):
            if output == "json":
                click.echo(json.dumps(item, ensure_ascii=False))
                continue
            what = "delete" if item.get("deleted") else "put"
            row = [str(item["mod_revision"]), item["time"], what]
            if output == "table":
                rows.append([*row, str(item["version"]), shown(item_bytes(item, "value"))])
            else:
                click.echo(" ".join(row))
    except KvnodeError as error:
        fail(error)
    if output == "table":
        print_table(["revision", "time", "change", "version", "value"], rows)


def _past(given: dict[str, Any]) -> dict[str, str]:
    asked = {"at_rev": given["at_rev"], "at_time": given["at_time"]}
    return {name: str(value) for name, value in asked.items() if value is not None}


def _pages(http: Caller, path: str, query: Mapping[str, str | bytes], limit: int | None) -> Iterator[dict[str, Any]]:
    left = sys.maxsize if limit is None else limit
    cursor: dict[str, str | bytes] = {}
    while left > 0:
        page = http.call("GET", path, {**query, **cursor, "limit": str(min(left, _PAGE_ITEMS))}).json()
        yield from page["items"]
        left -= len(page["items"])
        if not page["more"]:
            return
        cursor = {"cursor": page["cursor"]}


def _write(method: str, path: str, query: Any, body: bytes | None, given: dict[str, Any]) -> Answer:
    key = _bytes(given["idempotency_key"] or "")
    if given["fence"]:
        query = {**query, "fence": _bytes(given["fence"])}
    try:
        return _caller(given).call(method, path, query, body, idempotency_key=key)
    except KvnodeError as error:
        fail_write(error)


def fail_write(error: KvnodeError) -> NoReturn:
    click.echo(f"Kv-Outcome: {'unknown' if error.may_have_applied else 'not-applied'}", err=True)
    fail(error, write=True)


def _caller(given: dict[str, Any]) -> Caller:
    return caller(given["endpoints"], given["timeout_ms"])


def _bytes(argument: str) -> bytes:
    """The bytes the shell gave us, also when they are not valid UTF-8."""
    return os.fsencode(argument)


def value_of(argument: str) -> bytes:
    """The value that an argument stands for: itself, - standard input, @FILE a file."""
    if argument == "-":
        return sys.stdin.buffer.read()
    if argument.startswith("@"):
        try:
            return Path(argument[1:]).read_bytes()
        except OSError as error:
            raise click.UsageError(f"cannot read {argument[1:]}: {error.strerror}") from error
    return _bytes(argument)


def item_bytes(item: dict[str, Any], name: str) -> bytes:
    """A key or value of a JSON item as bytes: base64 if the item says so (`docs/http-api.md`)."""
    marker = "key_encoding" if name == "key" else "encoding"
    text: str = item.get(name) or ""
    return base64.b64decode(text) if item.get(marker) == "base64" else text.encode()


def _print_items(items: list[dict[str, Any]]) -> None:
    rows = [
        [
            shown(item_bytes(item, "key")),
            str(item["mod_revision"]),
            str(item["version"]),
            shown(item_bytes(item, "value")),
        ]
        for item in items
    ]
    print_table(["key", "revision", "version", "value"], rows)


def shown(data: bytes) -> str:
    """On one line of a terminal, shortened."""
    text = data.decode("utf-8", "backslashreplace")
    text = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
    return text if len(text) <= _PREVIEW_CHARACTERS else f"{text[: _PREVIEW_CHARACTERS - 1]}…"
