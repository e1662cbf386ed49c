"""``kvnode ap``: keys that any node takes writes of, with or without a leader.

Two writes that did not know of each other stay apart, as siblings, until somebody writes with the context of both.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import click

from kvnode.cli.kv import fail_write, item_bytes, shown, value_of
from kvnode.cli.main import REFUSED, fail
from kvnode.cli.options import (
    caller,
    endpoint_option,
    output_option,
    print_bytes,
    print_table,
    table_by_default,
    timeout_option,
)
from kvnode.client.http import Answer, key_path
from kvnode.errors import KvnodeError

_PAGE_ITEMS = 1_000
_MULTIPLE, _NOT_FOUND = 300, 404


@click.group()
def ap() -> None:
    """Keys that can be written without a quorum.

    Any node takes a write and answers a read from what it has; the others hear of it by gossip. For flags, presence and
    addresses that must be settable when most members are lost; what must not be decided twice belongs into kvnode put.

    \b
    Examples:
      kvnode ap put flags/drain on
      kvnode ap get flags/drain
      kvnode ap put flags/drain off --replace
      kvnode ap list flags/
    """


@ap.command()
@click.argument("key")
@click.option("--resolve", type=click.Choice(["lww", "max", "union"]), help="One value instead of several.")
@output_option("json", "plain", default="plain")
@endpoint_option
@timeout_option()
def get(**given: Any) -> None:
    """Print the value of a key.

    The bytes are printed unchanged. Exits 1 if there is no such key, and if there are several values: then it prints
    one a line, shortened, and says so on standard error. -o json shows all of them, with the context.

    --resolve takes one of several: lww the one written last, max the last in byte order, union merges JSON arrays. It
    changes nothing: to end the siblings, put the value with --replace.

    \b
    Examples:
      kvnode ap get flags/drain
      kvnode ap get flags/drain --resolve lww
      kvnode ap get endpoints -o json
    """
    query = {"resolve": given["resolve"]} if given["resolve"] else {}
    if given["output"] == "json":
        query["meta"] = "1"
    try:
        answer = _call(given, "GET", query)
    except KvnodeError as error:
        fail(error)
    if given["output"] == "json":
        print_bytes(answer.body.rstrip(b"\n") + b"\n")
    elif answer.status != _MULTIPLE:
        print_bytes(answer.body)
    else:
        siblings = answer.json()["siblings"]
        for sibling in siblings:
            click.echo(f"{sibling['time']}  {shown(item_bytes(sibling, 'value'))}")
        told = "choose one with --resolve, or end it: kvnode ap put KEY VALUE --replace"
        click.echo(f"kvnode: {len(siblings)} values were written apart; {told} [siblings]", err=True)
        sys.exit(REFUSED)


@ap.command()
@click.argument("key")
@click.argument("value")
@click.option("--context", help="Of the answer whose values this replaces; else it replaces nothing.")
@click.option(
    "--replace", is_flag=True, help="Replace what a node shows now: reads first, and takes the context of that."
)
@output_option("json", "plain", default="plain")
@endpoint_option
@timeout_option()
def put(**given: Any) -> None:
    """Write a key, on the node that answers.

    VALUE is the value itself, - to read standard input, or @FILE to read a file. Prints the context of what was
    written. Without --context or --replace it stands beside what is there.

    \b
    Examples:
      kvnode ap put flags/drain on --replace
      kvnode ap put endpoints @list.json --context "$(kvnode ap get endpoints -o json | jq -r .context)"
    """
    value = value_of(given["value"])
    _tell(_write(given, "PUT", value), given)


@ap.command()
@click.argument("key")
@click.option("--context", help="Of the answer whose values this deletes; else all that the node has.")
@output_option("json", "plain", default="plain")
@endpoint_option
@timeout_option()
def delete(**given: Any) -> None:
    """Delete a key: all that the node has of it, or what a context covers.

    A write elsewhere that did not know of it survives. Prints the context of the deletion, to write after it with.

    \b
    Examples:
      kvnode ap delete flags/drain
    """
    _tell(_write(given, "DELETE", None), given)


@ap.command("list")
@click.argument("prefix", default="")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after this many keys.")
@output_option("json", "table", "plain", default="table on a terminal, else plain")
@endpoint_option
@timeout_option()
def list_(**given: Any) -> None:
    """List keys, in byte order.

    plain: one key a line. json: one item a line, with value or siblings, and context.

    \b
    Examples:
      kvnode ap list
      kvnode ap list flags/ -o json
    """
    output = given["output"] or table_by_default()
    rows: list[list[str]] = []
    try:
        for item in _items(given):
            if output == "json":
                click.echo(json.dumps(item, ensure_ascii=False))
            elif output == "plain":
                print_bytes(item_bytes(item, "key") + b"\n")
            else:
                values = item.get("siblings") or [item]
                rows += [
                    [shown(item_bytes(item, "key")), one["time"], shown(item_bytes(one, "value"))] for one in values
                ]
    except KvnodeError as error:
        fail(error)
    if output == "table":
        print_table(["key", "time", "value"], rows)


def _items(given: dict[str, Any]) -> Iterator[dict[str, Any]]:
    http = caller(given["endpoints"], given["timeout_ms"])
    left = sys.maxsize if given["limit"] is None else given["limit"]
    query: dict[str, str | bytes] = {"prefix": os.fsencode(given["prefix"])}
    while left > 0:
        page = http.call("GET", "/v1/ap", {**query, "limit": str(min(left, _PAGE_ITEMS))}).json()
        yield from page["items"]
        left -= len(page["items"])
        if not page["more"]:
            return
        query["cursor"] = page["cursor"]


def _write(given: dict[str, Any], method: str, body: bytes | None) -> Answer:
    context = given["context"]
    if given.get("replace"):
        if context is not None:
            raise click.UsageError("--context and --replace exclude each other")
        try:
            context = _call(given, "GET", {}, is_missing_fine=True).headers.get("Kv-Context")
        except KvnodeError as error:
            fail(error)  # nothing was written
    try:
        return _call(given, method, {}, body, context=context)
    except KvnodeError as error:
        fail_write(error)


def _call(
    given: dict[str, Any],
    method: str,
    query: dict[str, str],
    body: bytes | None = None,
    *,
    context: str | None = None,
    is_missing_fine: bool = False,
) -> Answer:
    return caller(given["endpoints"], given["timeout_ms"]).call(
        method,
        key_path(os.fsencode(given["key"]), "ap"),
        query,
        body,
        headers={"Kv-Context": os.fsencode(context)} if context else {},
        accept=lambda status: 200 <= status <= _MULTIPLE or (is_missing_fine and status == _NOT_FOUND),
    )


def _tell(answer: Answer, given: dict[str, Any]) -> None:
    context, time = answer.headers.get("Kv-Context", ""), answer.headers.get("Kv-Time", "")
    click.echo(json.dumps({"context": context, "time": time}) if given["output"] == "json" else context)
