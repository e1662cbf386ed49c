"""The ``kvnode`` command: the argument tree, and the one table from error family to exit code.

Start-up time is a feature: this module imports click and nothing else that is slow. `COMMANDS` lists every
command with the module that holds it and its one-line help, so that ``kvnode --help`` loads none of them; a test
keeps the help equal to what the command itself says.
"""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

import click

from kvnode.errors import ConfigInvalid, Fatal, KvnodeError, Rejected, TryAgain, Unknown
from kvnode.version import __version__

OK, REFUSED, USAGE, TRY_AGAIN, UNKNOWN_OUTCOME, FATAL = range(6)
LOST = 75  # not among the small numbers that the commands under a lock end with

EXIT_CODES: dict[int, str] = {
    OK: "done",
    REFUSED: "not found, or refused: the request cannot succeed as it stands",
    USAGE: "wrong usage of the command line",
    TRY_AGAIN: "try again: nothing was changed",
    UNKNOWN_OUTCOME: "unknown: the write may or may not have happened",
    FATAL: "fatal: the configuration, the data or this program is broken",
    LOST: "lost: a lock, leadership or lease was lost while it was held",
}

COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("kvnode.cli.serve", "Run one node."),
    "dev": ("kvnode.cli.dev", "Run a whole cluster on this machine, for trying out."),
    "put": ("kvnode.cli.kv", "Set a key."),
    "get": ("kvnode.cli.kv", "Print the value of a key."),
    "del": ("kvnode.cli.kv", "Delete a key, or every key with a prefix."),
    "ls": ("kvnode.cli.kv", "List keys, in byte order."),
    "ap": ("kvnode.cli.ap", "Keys that can be written without a quorum."),
    "events": ("kvnode.cli.events", "Show what happened in the cluster, causes before effects."),
    "txn": ("kvnode.cli.txn", "Do several operations at once, if all that is compared holds."),
    "lease": ("kvnode.cli.lease", "Leases: keys that go by themselves unless somebody keeps them."),
    "lock": ("kvnode.cli.lock", "Run a command while holding a lock."),
    "elect": ("kvnode.cli.lock", "Run a command while leading."),
    "history": ("kvnode.cli.kv", "Show the versions of a key that are kept, newest first."),
    "export": ("kvnode.cli.export", "Write the keys of a prefix, as they were at one revision, to a file."),
    "import": ("kvnode.cli.import_", "Bring the keys of an export into a cluster."),
    "import-etcd": ("kvnode.cli.etcd", "Bring the keys of an etcd cluster into this one."),
    "export-etcd": ("kvnode.cli.etcd", "Bring the keys of this cluster into an etcd cluster."),
    "snapshot": ("kvnode.cli.snapshot", "Back the whole cluster up, check a backup, begin anew from one."),
    "compact": ("kvnode.cli.compaction", "Give up the history below a revision, on all nodes."),
    "watch": ("kvnode.cli.watch", "Print changes as they happen, each once, until interrupted."),
    "status": ("kvnode.cli.status", "Show what each node of the cluster believes."),
    "health": ("kvnode.cli.status", "Exit 0 if a node is ready to serve, 1 otherwise."),
    "doctor": ("kvnode.cli.doctor", "Check data directories and a cluster, and say what to do."),
    "member": ("kvnode.cli.member", "Show, add, promote, move and remove members of the cluster."),
    "transfer": ("kvnode.cli.transfer", "Hand leadership to another member."),
    "wal": ("kvnode.cli.wal", "Look into write-ahead logs, also of running nodes."),
    "check": ("kvnode.cli.check", "Judge a recorded history of clients."),
    "config": ("kvnode.cli.config", "Show settings, their values and where these come from."),
    "sim": ("kvnode.cli.sim", "Simulate clusters under faults, one for each seed, and check every invariant."),
    "completion": ("kvnode.cli.completion", "Print the completion script of a shell."),
}

_FUNCTIONS = {"del": "delete", "config": "show", "import": "import_"}  # where it cannot have the command's name

_EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code}  {meaning}" for code, meaning in EXIT_CODES.items())

_EXAMPLES = """\
A replicated key-value server for coordination.

\b
Examples:
  kvnode dev --nodes 3                     three nodes on this machine
  kvnode put greeting hello                set a key
  kvnode get greeting                      print its value
  kvnode ls app/ -o json                   list keys below a prefix
  kvnode status                            who leads, who follows, how far

Commands that talk to a cluster ask the nodes named by --endpoint or KVNODE_ENDPOINTS (several: separated by
commas, tried in order); without either, 127.0.0.1:7401.
"""


class _Commands(click.Group):
    """A group that imports a command's module when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        command: click.Command = getattr(module, _FUNCTIONS.get(cmd_name, cmd_name.replace("-", "_")))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=_Commands,
    help=_EXAMPLES,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="kvnode")
def cli() -> None:
    pass


def exit_code(error: KvnodeError, *, write: bool) -> int:
    """What the process ends with. A read never has an effect, so its unknown outcome is just "no answer"."""
    match error:
        case ConfigInvalid() | Fatal():
            return FATAL
        case Rejected():
            return REFUSED
        case Unknown():
            return UNKNOWN_OUTCOME if write else TRY_AGAIN
        case TryAgain():
            return TRY_AGAIN
        case _:
            return FATAL


def fail(error: KvnodeError, *, write: bool = False) -> NoReturn:
    """Say what went wrong on standard error and end with the error's exit code."""
    click.echo(f"kvnode: {error.message} [{error.code}]", err=True)
    sys.exit(exit_code(error, write=write))


def main() -> None:
    """Entry point of the installed command and of ``python -m kvnode``."""
    if not __debug__:
        sys.stderr.write("kvnode: refusing to run under python -O: its assertions guard the data and must stay on\n")
        sys.exit(FATAL)
    cli(prog_name="kvnode")
