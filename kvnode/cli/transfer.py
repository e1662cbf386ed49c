"""``kvnode transfer``: leadership handed over on purpose, before a planned stop."""

from __future__ import annotations

import json

import click

from kvnode.cli.main import fail
from kvnode.cli.options import caller, endpoint_option, output_option, timeout_option
from kvnode.client.http import Answer
from kvnode.errors import KvnodeError, NoLeader


@click.command()
@click.argument("member", type=click.IntRange(min=1), required=False)
@output_option("json", "plain", default="plain")
@endpoint_option
@timeout_option()
def transfer(member: int | None, output: str | None, endpoints: list[str], timeout_ms: int) -> None:
    """Hand leadership to another member.

    Without MEMBER to the voter that has most of the log. Writes wait for the moment it takes. A node that is stopped
    by a signal does this by itself.

    \b
    Examples:
      kvnode transfer
      kvnode transfer 2
    """
    query = {} if member is None else {"to": str(member)}
    try:
        answer = _ask(endpoints, timeout_ms, query).json()
    except KvnodeError as error:
        fail(error, write=True)
    click.echo(json.dumps(answer) if output == "json" else f"member {answer['leader']} leads")


def _ask(endpoints: list[str], timeout_ms: int, query: dict[str, str]) -> Answer:
    """Only the leader can do it; any other member says where that one is."""
    try:
        return caller(endpoints, timeout_ms).call("POST", "/v1/admin/transfer", query)
    except NoLeader as error:
        leader = str(error.detail.get("leader_url", "")).removeprefix("http://").rstrip("/")
        if not leader:
            raise
        return caller([leader], timeout_ms).call("POST", "/v1/admin/transfer", query)
