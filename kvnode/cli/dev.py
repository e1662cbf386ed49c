"""``kvnode dev``: a whole cluster on this machine, one process a node; what ``make cluster`` runs.

Made for watching: the nodes' lines are merged with a prefix, one may be killed and started again by hand, and the
data stay between runs (``--fresh`` drops them). Not made for production: all nodes share one disk and one machine.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import shutil
import socket
import sys
from pathlib import Path

import click

from kvnode.cli.main import fail
from kvnode.cli.supervisor import Member, Supervisor, say
from kvnode.config import Config, load, parse_address
from kvnode.errors import ConfigInvalid
from kvnode.storage.realdisk import RealDisk

CONFIG_DIR = Path("config")
_SECRET_BYTES = 32
_CLIENT_PORT = 7401
_PEER_PORT = 7501
_UNSAFE_FILESYSTEMS = frozenset({"tmpfs", "ramfs", "nfs", "nfs4", "cifs", "smb3", "9p"})
_ALLOW_UNSAFE = "KVNODE_STORAGE__ALLOW_UNSAFE_FILESYSTEM"
_DATA_DIR_ENTRIES = ("identity", "LOCK", "wal")


@click.command()
@click.option("--nodes", "count", type=click.IntRange(1, 9), default=3, show_default=True, help="How many nodes.")
@click.option(
    "--config-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=CONFIG_DIR,
    show_default=True,
    help="Holds node1.toml …; files for another number of nodes are written below data/dev/.",
)
@click.option("--fresh", is_flag=True, help="Drop the nodes' data first.")
def dev(count: int, config_dir: Path, fresh: bool) -> None:
    """Run a whole cluster on this machine, for trying out.

    Starts one process a node, makes the secret they share, merges their output and prints lines to try. A node that
    dies stays dead; the command that starts it again is printed. Ctrl-C stops all.

    \b
    Examples:
      kvnode dev --nodes 3
      kvnode dev --nodes 5 --fresh
    """
    try:
        files = config_files(count, config_dir)
        configs = {file: load(file) for file in files}
        check_ports(configs)
        if fresh:
            for settings in configs.values():
                drop_data(Path(settings.node.data_dir))
        for settings in configs.values():
            make_secret(settings.cluster.secret_file)
            Path(settings.node.data_dir).parent.mkdir(parents=True, exist_ok=True)
    except ConfigInvalid as error:
        fail(error)
    unsafe = _unsafe_filesystem(configs)
    if unsafe:
        say(f"dev: data lie on {unsafe}, where a power loss may lose them; fine for trying out")
    members = [_member(file, settings, unsafe=bool(unsafe)) for file, settings in configs.items()]
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    environment = {"KVNODE_LOG__FORMAT": "console", _ALLOW_UNSAFE: "true", "PYTHONUNBUFFERED": "1"}
    if colour:
        environment["FORCE_COLOR"] = "1"
    supervisor = Supervisor(
        members, environment, say=say, colour=colour, on_ready=lambda: say(things_to_try([m.endpoint for m in members]))
    )
    sys.exit(asyncio.run(supervisor.run()))


def config_files(count: int, config_dir: Path) -> list[Path]:
    """The nodes' configuration files: those in `config_dir` if they describe exactly `count` members, else new ones.

    Raises: ConfigInvalid if a directory other than the default one does not describe `count` nodes.
    """
    files = [config_dir / f"node{number}.toml" for number in range(1, count + 1)]
    if all(file.is_file() and len(load(file).initial_members()) == count for file in files):
        return files
    if config_dir != CONFIG_DIR:
        raise ConfigInvalid(f"--config-dir {config_dir} does not describe a cluster of {count} nodes")
    return _generated_files(count)


def _generated_files(count: int) -> list[Path]:
    # A directory per size: members are read at the very first start only, so data of one size do not fit another.
    directory = Path("data/dev") / str(count)
    directory.mkdir(parents=True, exist_ok=True)
    members = ", ".join(f'"{number}=127.0.0.1:{_PEER_PORT + number - 1}"' for number in range(1, count + 1))
    files = []
    for number in range(1, count + 1):
        file = directory / f"node{number}.toml"
        file.write_text(
            f"# Written by `kvnode dev --nodes {count}`.\n"
            f'[node]\nid = {number}\ndata_dir = "{directory}/n{number}"\n\n'
            f'[cluster]\nname = "dev-{count}"\nmembers = [{members}]\nsecret_file = "data/secret"\n\n'
            f'[client]\nlisten = "127.0.0.1:{_CLIENT_PORT + number - 1}"\n\n'
            f'[peer]\nlisten = "127.0.0.1:{_PEER_PORT + number - 1}"\n',
            encoding="utf-8",
        )
        files.append(file)
    return files


def make_secret(name: str) -> None:
    """Make the secret file once: 32 random bytes that only this user can read."""
    if not name or Path(name).exists():
        return
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, secrets.token_bytes(_SECRET_BYTES))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    aside.rename(path)
    say(f"dev: made {path}, the secret by which the nodes know each other")


def check_ports(configs: dict[Path, Config]) -> None:
    """Refuse, naming them, when listeners' ports are taken. Raises: ConfigInvalid."""
    taken = []
    for file, settings in configs.items():
        for name, listen in (("client", settings.client.listen), ("peer", settings.peer.listen)):
            host, port = parse_address(listen, f"{name}.listen")
            if not _is_free(host, port):
                taken.append(f"{listen} ({name}.listen of {file})")
    if taken:
        raise ConfigInvalid(f"in use: {', '.join(taken)}. Is another cluster running? Stop it, or change the ports.")


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the node does: TIME_WAIT is not "in use"
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def drop_data(directory: Path) -> None:
    """Remove a node's data directory. Raises: ConfigInvalid if it does not look like one."""
    if not directory.exists():
        return
    if any(directory.iterdir()) and not any((directory / entry).exists() for entry in _DATA_DIR_ENTRIES):
        raise ConfigInvalid(f"--fresh: {directory} does not look like a data directory of kvnode; nothing was removed")
    shutil.rmtree(directory)
    say(f"dev: dropped {directory}")


def things_to_try(endpoints: list[str]) -> str:
    """The lines that are printed once all nodes are ready."""
    first, last = _local(endpoints[0]), _local(endpoints[-1])
    return (
        f"\ndev: ready, {len(endpoints)} node{'s' * (len(endpoints) > 1)}. Try in another terminal:\n\n"
        f"  curl -X PUT {first}/v1/kv/greeting -d hello\n"
        f"  curl {last}/v1/kv/greeting\n"
        f"  curl '{last}/v1/kv?prefix=gre'\n"
        f"  curl {first}/v1/status\n\n"
        "Kill any node (kill -9 PROCESS) and try again; Ctrl-C here stops all.\n"
    )


def _local(endpoint: str) -> str:
    return endpoint.replace("127.0.0.1:", "localhost:")


def _member(file: Path, settings: Config, *, unsafe: bool) -> Member:
    command = (sys.executable, "-m", "kvnode", "serve", "--config", str(file))
    here = f"{Path.cwd()}{os.sep}"
    shown = shlex.join((sys.executable.removeprefix(here), *command[1:]))
    return Member(
        name=f"n{settings.node.id}",
        command=command,
        shown_command=f"{_ALLOW_UNSAFE}=true {shown}" if unsafe else shown,
        endpoint=settings.client.listen,
    )


def _unsafe_filesystem(configs: dict[Path, Config]) -> str:
    """The type of the file system below the data if fsync may promise nothing there, else ""."""
    disk = RealDisk()
    kinds = {disk.filesystem(str(Path(settings.node.data_dir).parent)) for settings in configs.values()}
    return ", ".join(sorted(kinds & _UNSAFE_FILESYSTEMS))
