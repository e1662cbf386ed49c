"""``kvnode lease``: leases from a shell."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import click

from kvnode.cli.kv import fail_write, item_bytes
from kvnode.cli.main import LOST, fail
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
from kvnode.client.http import Answer, Caller
from kvnode.errors import KvnodeError

_PAGE_LEASES = 1_000

_LEASE_ID = click.IntRange(min=1)


@click.group()
def lease() -> None:
    """Leases: keys that go by themselves unless somebody keeps them.

    \b
    Examples:
      id=$(kvnode lease grant 30s)
      kvnode put workers/7 alive --lease $id
      kvnode lease keepalive $id &               the key stays as long as this runs
      kvnode lease revoke $id                    the key goes now
    """


@lease.command()
@click.argument("ttl_ms", metavar="TTL", type=DURATION)
@output_option("json", "plain", default="plain: the id")
@endpoint_option
@timeout_option()
def grant(**given: Any) -> None:
    """Begin a lease and print its id.

    It ends TTL (30s, 5m) after it was last kept alive, and the keys that were put under it go with it.

    \b
    Examples:
      kvnode lease grant 30s
    """
    answer = _write("POST", "/v1/leases", {"ttl": f"{given['ttl_ms']}ms"}, given)
    _print(answer, given, str(answer.json()["id"]))


@lease.command()
@click.argument("lease_id", metavar="ID", type=_LEASE_ID)
@click.option("--once", is_flag=True, help="Renew it once; else until interrupted.")
@endpoint_option
@timeout_option()
def keepalive(**given: Any) -> None:
    """Keep a lease alive, until interrupted.

    Renews it every third of its TTL, at any node that answers. Exits 1 if there is no such lease, 75 if it was lost
    later, 0 when interrupted.

    \b
    Examples:
      kvnode lease keepalive 12
      kvnode lease keepalive 12 --once
    """
    if given["once"]:
        _write("POST", f"/v1/leases/{given['lease_id']}/keepalive", {}, given)
        return
    from kvnode.cli.keeping import keep_alive  # noqa: PLC0415  slow to import, needed by this command only

    try:
        why = keep_alive(given["endpoints"], given["lease_id"], given["timeout_ms"])
    except KvnodeError as error:
        fail(error)
    if why:
        click.echo(f"kvnode: lease {given['lease_id']} was lost: {why}", err=True)
        sys.exit(LOST)


@lease.command()
@click.argument("lease_id", metavar="ID", type=_LEASE_ID)
@output_option("json", "plain", default="plain")
@endpoint_option
@timeout_option()
def show(**given: Any) -> None:
    """Show what is left of a lease, and its keys.

    plain: the milliseconds that remain, then a key a line.

    \b
    Examples:
      kvnode lease show 12
      kvnode lease show 12 -o json
    """
    try:
        answer = _caller(given).call("GET", f"/v1/leases/{given['lease_id']}")
    except KvnodeError as error:
        fail(error)
    if given["output"] == "json":
        print_bytes(answer.body.rstrip(b"\n") + b"\n")
        return
    found = answer.json()
    click.echo(f"{found['remaining_ms']} of {found['ttl_ms']} ms, {found['count']} keys")
    print_bytes(b"".join(item_bytes(key, "key") + b"\n" for key in found["keys"]))


@lease.command("list")
@output_option("json", "table", "plain", default="table on a terminal, else plain")
@endpoint_option
@timeout_option()
def list_all(**given: Any) -> None:
    """List the leases there are.

    plain: one id a line. json: one lease a line, with its TTL and the number of its keys.

    \b
    Examples:
      kvnode lease list
      kvnode lease list -o json
    """
    output = given["output"] or table_by_default()
    rows: list[list[str]] = []
    try:
        for found in _pages(_caller(given)):
            if output == "table":
                rows.append([str(found["id"]), f"{found['ttl_ms']} ms", str(found["count"])])
            else:
                click.echo(json.dumps(found) if output == "json" else found["id"])
    except KvnodeError as error:
        fail(error)
    if output == "table":
        print_table(["lease", "ttl", "keys"], rows)


@lease.command()
@click.argument("lease_id", metavar="ID", type=_LEASE_ID)
@output_option("json", "plain", default="plain")
@endpoint_option
@timeout_option()
def revoke(**given: Any) -> None:
    """End a lease now, and print how many keys went with it.

    \b
    Examples:
      kvnode lease revoke 12
    """
    answer = _write("DELETE", f"/v1/leases/{given['lease_id']}", {}, given)
    _print(answer, given, str(answer.json()["deleted"]))


def _pages(http: Caller) -> Iterator[dict[str, Any]]:
    after = 0
    while True:
        page = http.call("GET", "/v1/leases", {"after": str(after), "limit": str(_PAGE_LEASES)}).json()
        yield from page["leases"]
        if not page["more"]:
            return
        after = page["leases"][-1]["id"]


def _print(answer: Answer, given: dict[str, Any], plain: str) -> None:
    if given["output"] == "json":
        print_bytes(answer.body.rstrip(b"\n") + b"\n")
    else:
        click.echo(plain)


def _write(method: str, path: str, query: dict[str, str], given: dict[str, Any]) -> Answer:
    try:
        return _caller(given).call(method, path, query)
    except KvnodeError as error:
        fail_write(error)


def _caller(given: dict[str, Any]) -> Caller:
    return caller(given["endpoints"], given["timeout_ms"])
