"""``kvnode status`` and ``kvnode health``: what the nodes say about themselves."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click

from kvnode.cli.main import REFUSED, TRY_AGAIN
from kvnode.cli.options import endpoint_option, output_option, print_table, timeout_option
from kvnode.client.http import fetch
from kvnode.errors import KvnodeError

_COLUMNS = ["node", "endpoint", "role", "term", "leader", "commit", "applied", "revision", "ready", "alarms"]


@click.command()
@click.option("--only", is_flag=True, help="Ask only the endpoints given, not the members they name.")
@output_option("json", "table", default="table")
@endpoint_option
@timeout_option("2s")
def status(endpoints: list[str], timeout_ms: int, output: str | None, only: bool) -> None:
    """Show what each node of the cluster believes.

    Asks the endpoints given and the members they name. Exits 3 if not a single node answered.

    \b
    Examples:
      kvnode status
      kvnode status -o json --endpoint 127.0.0.1:7402
    """
    found: dict[str, dict[str, Any]] = {}
    waiting = list(dict.fromkeys(endpoints))
    while waiting:
        with ThreadPoolExecutor(len(waiting)) as pool:
            found |= zip(waiting, pool.map(lambda endpoint: _status(endpoint, timeout_ms), waiting), strict=True)
        seen = {answer.get("id") for answer in found.values()}
        named = [] if only else [url for answer in found.values() for url in _members(answer, seen)]
        waiting = [endpoint for endpoint in dict.fromkeys(named) if endpoint not in found]
    if output == "json":
        click.echo(json.dumps([{"endpoint": endpoint, **answer} for endpoint, answer in found.items()], indent=2))
    else:
        rows = [_row(endpoint, answer) for endpoint, answer in found.items()]
        print_table(_COLUMNS, sorted(rows))
        for answer in found.values():
            if "unreachable" in answer:
                click.echo(f"kvnode: {answer['unreachable']}", err=True)
    if all("unreachable" in answer for answer in found.values()):
        click.echo("kvnode: no node answered", err=True)
        sys.exit(TRY_AGAIN)


@click.command()
@endpoint_option
@timeout_option("2s")
def health(endpoints: list[str], timeout_ms: int) -> None:
    """Exit 0 if a node is ready to serve, 1 otherwise.

    Asks the first endpoint only: the node beside which this runs. Ready means that it has a leader and has caught up.
    Made for container health checks.
    """
    try:
        answer = fetch(endpoints[0], "/readyz", timeout_ms)
    except KvnodeError as error:
        click.echo(f"kvnode: {error.message}", err=True)
        sys.exit(REFUSED)
    if answer.status != 200:
        click.echo(f"kvnode: {endpoints[0]} is not ready: {answer.body.decode('utf-8', 'replace').strip()}", err=True)
        sys.exit(REFUSED)
    click.echo("ready")


def _status(endpoint: str, timeout_ms: int) -> dict[str, Any]:
    try:
        answer = fetch(endpoint, "/v1/status", timeout_ms)
    except KvnodeError as error:
        return {"unreachable": error.message}
    try:
        data = answer.json()
    except ValueError:
        data = None
    if isinstance(data, dict) and "id" in data:
        return data
    return {"unreachable": f"{endpoint}: the answer {answer.status} is not kvnode's (a peer port? a proxy?)"}


def _members(answer: dict[str, Any], seen: set[Any]) -> list[str]:
    members = [member for member in answer.get("members", []) if member["id"] not in seen and member.get("client_url")]
    return [member["client_url"].removeprefix("http://").rstrip("/") for member in members]


def _row(endpoint: str, answer: dict[str, Any]) -> list[str]:
    if "unreachable" in answer:
        return ["?", endpoint, "unreachable", *["-"] * (len(_COLUMNS) - 3)]
    keys = ("term", "leader", "commit_index", "applied_index", "revision", "ready")
    values = ["-" if answer.get(key) is None else str(answer[key]).lower() for key in keys]
    return [str(answer["id"]), endpoint, str(answer["role"]), *values, ", ".join(answer.get("alarms", [])) or "-"]
