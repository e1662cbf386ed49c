"""``kvnode serve``: one node in this process, until a signal stops it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from kvnode.cli.main import fail
from kvnode.errors import Fatal, KvnodeError


@click.command()
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="KVNODE_CONFIG",
    help="TOML file with the settings; see `kvnode config --example`.",
)
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="Override one setting; repeatable.")
@click.option(
    "--loop",
    type=click.Choice(["auto", "uvloop", "asyncio"]),
    default="auto",
    show_default=True,
    help="Event loop; auto takes uvloop where it is installed.",
)
def serve(file: Path | None, assignments: tuple[str, ...], loop: str) -> None:
    """Run one node.

    Settings come from --set, then the environment (KVNODE_RAFT__HEARTBEAT_MS), then the file, then the defaults.
    SIGTERM and Ctrl-C hand leadership over, finish or honestly fail what is in flight, and exit 0. A node that must
    not go on (damaged log, failed fsync, wrong data directory) exits 5 and says why.

    \b
    Examples:
      kvnode serve --config config/node1.toml
      kvnode serve --config config/node1.toml --set raft.heartbeat_ms=20 --set log.level=debug
    """
    from kvnode.cli.config import load  # noqa: PLC0415  loads msgspec; `kvnode serve --help` does without

    try:
        settings = load(file, assignments)
        from kvnode import process  # noqa: PLC0415  loads aiohttp, lmdb and the rest of the server

        sys.exit(process.run(settings, loop=loop))
    except KvnodeError as error:
        fail(error)
    except OSError as error:  # an address that cannot be bound, a log file that cannot be opened
        fail(Fatal(f"cannot start: {error}"))
