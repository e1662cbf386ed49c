"""``kvnode compact``: give up history on request, beside what the cluster does by itself."""

from __future__ import annotations

import json

import click

from kvnode.cli.main import fail
from kvnode.cli.options import caller, endpoint_option, output_option, timeout_option
from kvnode.client.http import Caller
from kvnode.errors import Compacted, KvnodeError


@click.command()
@click.argument("revision", type=click.IntRange(min=1), required=False)
@click.option("--keep", metavar="AGE", help="Give up what is older than this instead: 5m, 1h.")
@output_option("json", "plain", default="plain")
@endpoint_option
@timeout_option()
def compact(revision: int | None, keep: str | None, output: str | None, endpoints: list[str], timeout_ms: int) -> None:
    """Give up the history below a revision, on all nodes.

    The state at that revision, and all that happened since, can still be read. Space is freed by and by. The cluster
    does the same by itself, by the settings of [history].

    \b
    Examples:
      kvnode compact 1200
      kvnode compact --keep 1h
    """
    if (revision is None) == (keep is None):
        raise click.UsageError("name a revision, or --keep an age")
    http = caller(endpoints, timeout_ms)
    try:
        wanted = _revision_at(http, keep) if keep is not None else revision
        answer = http.call("POST", "/v1/admin/compact", {"rev": str(wanted)}).json()
    except KvnodeError as error:
        fail(error, write=True)
    click.echo(json.dumps(answer) if output == "json" else f"compact revision {answer['compact_revision']}")


def _revision_at(http: Caller, age: str) -> int:
    """What was the newest then; if that is given up already, the oldest that is not."""
    newest_then = {"prefix": "", "limit": "1", "keys_only": "1", "at_time": f"-{age}"}
    try:
        revision: int = http.call("GET", "/v1/kv", newest_then).json()["revision"]
    except Compacted as error:
        revision = error.detail["compact_revision"]
    return revision
