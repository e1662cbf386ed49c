"""``kvnode txn``: a transaction from a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from kvnode.cli.kv import fail_write
from kvnode.cli.main import OK, REFUSED
from kvnode.cli.options import caller, endpoint_option, print_bytes, timeout_option
from kvnode.errors import KvnodeError


@click.command()
@click.option("-f", "--file", "file", required=True, help="The transaction as JSON; - for standard input.")
@endpoint_option
@timeout_option()
def txn(**given: Any) -> None:
    """Do several operations at once, if all that is compared holds.

    The file holds what POST /v1/txn takes: {"compare": […], "success": […], "failure": […]}. The answer is printed as
    it comes. Exits 0 if the compares held and "success" was done, 1 if they did not and "failure" was done.

    \b
    Examples:
      kvnode txn -f move.json
      kvnode txn -f - <<'END'
      {"compare": [{"key": "a", "target": "value", "op": "=", "value": "1"}],
       "success": [{"put": {"key": "a", "value": "2"}}, {"delete": {"key": "b"}}],
       "failure": [{"get": {"key": "a"}}]}
      END
    """
    try:
        answer = caller(given["endpoints"], given["timeout_ms"]).call("POST", "/v1/txn", None, _read(given["file"]))
    except KvnodeError as error:
        fail_write(error)
    print_bytes(answer.body.rstrip(b"\n") + b"\n")
    sys.exit(OK if answer.json()["succeeded"] else REFUSED)


def _read(file: str) -> bytes:
    if file == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise click.UsageError(f"cannot read {file}: {error.strerror}") from error
