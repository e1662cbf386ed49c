"""``kvnode lock`` and ``kvnode elect``: a command that runs while a lock is held, or while leading."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from typing import Any, Literal

import click

from kvnode.cli.kv import fail_write, item_bytes
from kvnode.cli.main import LOST, REFUSED, fail
from kvnode.cli.options import DURATION, caller, endpoint_option, output_option, print_bytes, timeout_option
from kvnode.client.http import key_path
from kvnode.errors import Fenced, KvnodeError

_FOR_EVER_MS = 100 * 366 * 86_400_000


def _shared_options(noun: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    options = (
        click.argument("name"),
        click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND…]"),
        click.option(
            "--ttl", "ttl_ms", type=DURATION, default="30s", show_default=True,
            help=f"How long the {noun} outlives this process: it is renewed every third of that.",
        ),
        click.option("--wait", "wait_ms", type=DURATION, help="Give up after so long. [default: wait for ever]"),
        click.option("-n", "--no-wait", is_flag=True, help="Fail at once if another has it."),
        click.option(
            "--grace", "grace_ms", type=DURATION, default="5s", show_default=True,
            help=f"When the {noun} is lost: from SIGTERM to SIGKILL.",
        ),
        click.option("--show", is_flag=True, help="Only show who has it."),
        output_option("json", "plain", default="plain; for --show"),
        endpoint_option,
        timeout_option(),
    )  # fmt: skip

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@click.command()
@_shared_options("lock")
@click.option("--owner", help="Who holds it, for others to see. [default: host:process]")
def lock(**given: Any) -> None:
    """Run a command while holding a lock.

    Waits until the lock is free, runs COMMAND, lets it go and exits as COMMAND did (128 + N if signal N ended it).

    COMMAND has KVNODE_LOCK_NAME, KVNODE_LOCK_TOKEN and KVNODE_LOCK_LEASE in its environment. If the lock is lost,
    COMMAND and all it started get SIGTERM and after --grace SIGKILL, and the exit status is 75. Ctrl-C and SIGTERM are
    passed on to COMMAND. Without a COMMAND the lock is held until Ctrl-C; once it is, a JSON line with its token is
    printed.

    Exits 1 if another holds it for all of --wait, 126 or 127 if COMMAND cannot be run or found, else as listed by
    kvnode --help.

    \b
    Examples:
      kvnode lock deploy -- ./deploy.sh production
      kvnode lock nightly --no-wait -- backup.sh      skip if another machine does it
      kvnode lock deploy --wait 1m --ttl 10s -- make release
      kvnode lock deploy --show
    """
    _hold_or_show("locks", "owner", given)


@click.command()
@_shared_options("leadership")
@click.option("--value", help="What the leader announces. [default: host:process]")
def elect(**given: Any) -> None:
    """Run a command while leading.

    Like kvnode lock, with the same environment and exit statuses: of all who run this for NAME one leads at a time, and
    the others wait for their turn. The leader announces a value, its address for instance.

    \b
    Examples:
      kvnode elect scheduler --value 10.0.0.7:80 -- ./scheduler
      kvnode elect scheduler --show
    """
    _hold_or_show("elections", "value", given)


def _hold_or_show(kind: Literal["locks", "elections"], word: str, given: dict[str, Any]) -> None:
    if given["show"]:
        if given["command"]:
            raise click.UsageError("--show runs no command")
        _show(kind, word, given)
        return
    if given["wait_ms"] and given["no_wait"]:
        raise click.UsageError("--wait and --no-wait exclude each other")
    from kvnode.cli.keeping import Work, run_holding  # noqa: PLC0415  slow to import, not needed to show or to help
    from kvnode.client.locks import Acquire  # noqa: PLC0415

    wait_ms = 0 if given["no_wait"] else given["wait_ms"] or _FOR_EVER_MS
    value = given[word] if given[word] is not None else f"{socket.gethostname()}:{os.getpid()}"
    name = Acquire(kind, os.fsencode(given["name"]), given["ttl_ms"], wait_ms, os.fsencode(value))
    noun = "lock" if kind == "locks" else "leadership"
    work = Work(given["endpoints"], name, given["command"], given["timeout_ms"], given["grace_ms"], noun)
    try:
        code = run_holding(work)
    except Fenced as error:
        click.echo(f"kvnode: {error.message} [lost]", err=True)
        code = LOST
    except KvnodeError as error:
        fail_write(error)
    sys.exit(code)


def _show(kind: Literal["locks", "elections"], word: str, given: dict[str, Any]) -> None:
    try:
        answer = caller(given["endpoints"], given["timeout_ms"]).call("GET", key_path(os.fsencode(given["name"]), kind))
    except KvnodeError as error:
        fail(error)
    found = answer.json()
    if kind == "locks" and found["holder"] is None:
        click.echo("kvnode: nobody holds it", err=True)
        sys.exit(REFUSED)
    if given["output"] == "json":
        print_bytes(answer.body.rstrip(b"\n") + b"\n")
        return
    places = [found["holder"], *found["queue"]] if kind == "locks" else [found]
    for number, place in enumerate(places):
        marker = f"{word}_encoding" if word == "owner" else "encoding"
        who = item_bytes({word: place[word], "encoding": place.get(marker)}, word)
        print_bytes(b"%b %d %b\n" % (b"waits" if number else b"holds", place["token"], who))
