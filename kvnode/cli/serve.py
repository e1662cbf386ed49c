"""``kvnode serve``: one node in this process, until a signal stops it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from kvnode.cli.main import fail
from kvnode.errors import Fatal, KvnodeError

SETTING_OF_FLAG = {
    "join": "cluster.join",
    "replace": "cluster.replace",
    "data_dir": "node.data_dir",
    "peer": "peer.listen",
    "client": "client.listen",
    "name": "node.name",
    "secret_file": "cluster.secret_file",
}


@click.command()
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="KVNODE_CONFIG",
    help="TOML file with the settings; see `kvnode config --example`.",
)
@click.option("--join", metavar="HOST:PORT,…", help="Join the cluster whose clients are served there (cluster.join).")
@click.option("--replace", metavar="ID", help="With --join: the member that goes once this node votes.")
@click.option("--data-dir", metavar="DIR", help="Where this node keeps its data (node.data_dir).")
@click.option("--peer", metavar="HOST:PORT", help="Where peers reach this node (peer.listen).")
@click.option("--client", metavar="HOST:PORT", help="Where clients reach this node (client.listen).")
@click.option("--name", metavar="NAME", help="A name for people (node.name).")
@click.option("--secret-file", metavar="FILE", help="The secret that all members share (cluster.secret_file).")
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="Override one setting; repeatable.")
@click.option(
    "--loop",
    type=click.Choice(["auto", "uvloop", "asyncio"]),
    default="auto",
    show_default=True,
    help="Event loop; auto takes uvloop where it is installed.",
)
def serve(file: Path | None, assignments: tuple[str, ...], loop: str, **flags: str | None) -> None:
    """Run one node.

    Settings come from --set and the options that stand for one, then the environment (KVNODE_RAFT__HEARTBEAT_MS), then
    the file, then the defaults. SIGTERM and Ctrl-C hand leadership over, finish or honestly fail what is in flight, and
    exit 0. A node that must not go on (damaged log, failed fsync, wrong data directory) exits 5 and says why.

    With --join a new, empty data directory is made a member of a cluster that is running: it waits for the cluster,
    is told its id, gets the log, and then its vote; each step is logged. Later starts may keep the option: the
    directory knows its id. --replace 3 is all it takes to replace a dead member 3.

    \b
    Examples:
      kvnode serve --config config/node1.toml
      kvnode serve --join 10.0.0.1:7401,10.0.0.2:7401 --replace 3 --data-dir /var/lib/kvnode --secret-file secret \\
             --peer 10.0.0.4:7501 --client 10.0.0.4:7401 --set peer.insecure=true --set client.insecure=true
      kvnode serve --config config/node1.toml --set raft.heartbeat_ms=20 --set log.level=debug
    """
    from kvnode.cli.config import load  # noqa: PLC0415  loads msgspec; `kvnode serve --help` does without

    try:
        named = [f"{SETTING_OF_FLAG[flag]}={value}" for flag, value in flags.items() if value is not None]
        settings = load(file, [*named, *assignments])
        from kvnode import process  # noqa: PLC0415  loads aiohttp, lmdb and the rest of the server

        sys.exit(process.run(settings, loop=loop))
    except KvnodeError as error:
        fail(error)
    except OSError as error:  # an address that cannot be bound, a log file that cannot be opened
        fail(Fatal(f"cannot start: {error}"))
