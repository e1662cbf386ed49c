"""``kvnode snapshot``: back a cluster up, check a backup, and begin a new cluster from one."""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from kvnode.cli.main import FATAL, REFUSED, TRY_AGAIN, fail
from kvnode.cli.new_file import place, written_aside
from kvnode.cli.options import endpoint_option, output_option, timeout_option
from kvnode.cli.progress import Progress
from kvnode.clocks.hybrid import COUNTER_BITS
from kvnode.errors import KvnodeError, SnapshotRefused

if TYPE_CHECKING:
    from kvnode.restore import Verified

_MIB = 1 << 20
_SKIPPED = 1_000_000


@click.group()
def snapshot() -> None:
    """Back the whole cluster up, check a backup, begin anew from one.

    A backup has all keys with their history, leases, locks and sessions, at one moment. It has no configuration
    file and no secret: keep those elsewhere.

    \b
    Examples:
      kvnode snapshot save backup.snapshot
      kvnode snapshot verify backup.snapshot
      kvnode snapshot restore backup.snapshot --data-dir /var/lib/kvnode --peer 10.0.0.1:7501
    """


@snapshot.command()
@click.argument("file")
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@output_option("json", "plain", default="plain")
@endpoint_option
@timeout_option("30s")
def save(*, file: str, force: bool, output: str | None, endpoints: list[str], timeout_ms: int) -> None:
    """Write a backup of the cluster to FILE.

    It has everything that was committed before, and is checked as it comes. FILE is written aside, for its user only,
    and appears when it is complete. --timeout is for the beginning; after it a node that sends nothing for a minute is
    given up.
    """
    path = place(file, force=force)
    try:
        with written_aside(path, force=force) as target:
            found = _save(endpoints, timeout_ms, target)
    except SnapshotRefused as error:
        click.echo(f"kvnode: {error.message} [{error.code}]; {file} was not written", err=True)
        sys.exit(REFUSED)
    except FileExistsError:
        click.echo(f"kvnode: {file} has come into being meanwhile; --force replaces it", err=True)
        sys.exit(REFUSED)
    except KvnodeError as error:
        click.echo(f"kvnode: {file} was not written", err=True)
        fail(error)
    except OSError as error:
        click.echo(f"kvnode: cannot write {file}: {error.strerror}", err=True)
        sys.exit(FATAL)
    except KeyboardInterrupt:
        click.echo(f"kvnode: interrupted; {file} was not written", err=True)
        sys.exit(TRY_AGAIN)
    _show(file, found, output)


@snapshot.command()
@click.argument("file")
@output_option("json", "plain", default="plain")
def verify(*, file: str, output: str | None) -> None:
    """Read all of FILE, and say what it is a backup of.

    Exits 1 if it is damaged or cut off, naming the block.
    """
    with _opened(file) as source:
        found = _verified(source, file)
    _show(file, found, output)


@snapshot.command()
@click.argument("file")
@click.option("--data-dir", required=True, metavar="DIR", help="The data directory to make; new, or empty.")
@click.option("--peer", required=True, metavar="HOST:PORT", help="Where peers will reach this member.")
@click.option("--id", "id_", type=click.IntRange(1, 1_000_000), default=1, show_default=True, help="Its member id.")
@click.option("--name", default="", help="A name for people.")
@click.option("--cluster-name", default="local", show_default=True, help="As cluster.name will be.")
@click.option(
    "--bump",
    type=click.IntRange(min=1),
    default=_SKIPPED,
    show_default=True,
    help="Revisions left out: more than the old cluster can have made since the backup.",
)
@click.option("--allow-unsafe-filesystem", is_flag=True, help="For tests: DIR may be in memory or on a network.")
@output_option("json", "plain", default="plain")
def restore(
    *,
    file: str,
    data_dir: str,
    peer: str,
    id_: int,
    name: str,
    cluster_name: str,
    bump: int,
    allow_unsafe_filesystem: bool,
    output: str | None,
) -> None:
    """Make a data directory of a new cluster, of one member, from a backup. No node is asked.

    Start it there, and let the others join it with empty directories. It is another cluster: members of the old one do
    not talk to it. Revisions go on far above those of the backup, so that no client takes something new for something
    it has seen, and watches that go on from before are told that their history is compacted.
    """
    from kvnode.config import check_told_address  # noqa: PLC0415  slow to import, as all that follows
    from kvnode.ids import NodeId  # noqa: PLC0415
    from kvnode.restore import restore as make  # noqa: PLC0415

    try:
        check_told_address(peer, "--peer")
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    with _opened(file) as source:
        checked = _verified(source, file)
        try:
            with _progress("restoring", checked.bytes) as (progress, advance):
                made = make(
                    source,
                    data_dir,
                    member=NodeId(id_),
                    peer=peer,
                    name=name,
                    cluster_name=cluster_name,
                    skipped=bump,
                    random_u64=lambda: secrets.randbits(64),
                    allow_unsafe_filesystem=allow_unsafe_filesystem,
                    on_progress=advance,
                )
                progress.finish()
        except KvnodeError as error:
            fail(error)
        except OSError as error:
            click.echo(f"kvnode: cannot make {data_dir}: {error.strerror}; remove it", err=True)
            sys.exit(FATAL)
        except KeyboardInterrupt:
            click.echo(f"kvnode: interrupted; {data_dir} is not whole and does not start: remove it", err=True)
            sys.exit(TRY_AGAIN)
    if output == "json":
        click.echo(
            json.dumps(
                {
                    "data_dir": data_dir,
                    "cluster_id": f"{made.cluster_id:016x}",
                    "old_cluster_id": f"{made.old.cluster_id:016x}",
                    "member": made.member,
                    "revision": made.revision,
                    "old_revision": made.old.revision,
                    "chain": checked.chain,
                }
            )
        )
        return
    named = "" if cluster_name == "local" else f" --set cluster.name={cluster_name}"
    click.echo(f"""\
{data_dir}: member {made.member} of the new cluster {made.cluster_id:016x}, at revision {made.revision}
(backup: cluster {made.old.cluster_id:016x}, revision {made.old.revision}, {_time(made.old.time)})

Secret and configuration are not in a backup. Start this member with yours:
  kvnode serve --data-dir {data_dir} --peer {peer} --client HOST:PORT --secret-file FILE --set node.id={made.member} \
--set cluster.members={made.member}={peer}{named}
then each other member, with an empty directory of its own:
  kvnode serve --join HOST:PORT --data-dir DIR --peer HOST:PORT --client HOST:PORT --secret-file FILE{named}
and take a first backup of the new cluster:
  kvnode snapshot save FILE --endpoint HOST:PORT""")


class _Tee:
    """Reads from a node what goes to a file, too."""

    def __init__(self, read: Callable[[int], bytes], target: BinaryIO) -> None:
        self._read = read
        self._target = target

    def read(self, length: int) -> bytes:
        data = self._read(length)
        self._target.write(data)
        return data


def _save(endpoints: list[str], timeout_ms: int, target: BinaryIO) -> Verified:
    """Raises: KvnodeError, OSError."""
    from kvnode.client.snapshot_download import download  # noqa: PLC0415
    from kvnode.restore import verify as check  # noqa: PLC0415

    with download(endpoints, timeout_ms) as source:
        total = int(source.headers.get("Kv-Logical-Bytes", "0"))
        with _progress("saving", total) as (progress, advance):
            found = check(_Tee(source.read, target), advance)  # type: ignore[arg-type] # only read is used
            progress.finish()
    return found


def _verified(source: BinaryIO, file: str) -> Verified:
    from kvnode.restore import verify as check  # noqa: PLC0415

    try:
        size = source.seek(0, 2)
        source.seek(0)
        with _progress("verifying", size) as (progress, advance):
            found = check(source, advance)
            progress.finish()
    except SnapshotRefused as error:
        click.echo(f"kvnode: {file}: {error.message} [{error.code}]", err=True)
        sys.exit(REFUSED)
    except OSError as error:
        click.echo(f"kvnode: cannot read {file}: {error.strerror}", err=True)
        sys.exit(FATAL)
    return found


def _opened(file: str) -> BinaryIO:
    try:
        return Path(file).open("rb")
    except OSError as error:
        click.echo(f"kvnode: cannot read {file}: {error.strerror}", err=True)
        sys.exit(FATAL)


class _progress:
    """``with _progress("saving", total) as (progress, advance)``: bytes, and how fast they come."""

    def __init__(self, what: str, total: int) -> None:
        began_s = time.monotonic()

        def words(size: int) -> str:
            rate = size / max(time.monotonic() - began_s, 1e-3)
            return f"{size / _MIB:.1f} MiB, {rate / _MIB:.1f} MiB/s"

        self._progress = Progress(what, total, words=words)

    def __enter__(self) -> tuple[Progress, Callable[[int], None]]:
        progress = self._progress.__enter__()
        return progress, lambda size: progress.advance(size, size)

    def __exit__(self, *raised: Any) -> None:
        self._progress.__exit__(*raised)


def _time(hybrid: int) -> str:
    return f"{datetime.fromtimestamp((hybrid >> COUNTER_BITS) / 1e3, UTC):%Y-%m-%dT%H:%M:%S}Z"


def _show(file: str, found: Verified, output: str | None) -> None:
    old = found.description
    facts: dict[str, Any] = {
        "file": file,
        "cluster_id": f"{old.cluster_id:016x}",
        "revision": old.revision,
        "compact_revision": old.compact_revision,
        "index": old.index,
        "term": old.term,
        "time": _time(old.time),
        "members": [f"{member.id}={member.address}" for member in found.members],
        "feature_level": found.feature_level,
        "rows": found.rows,
        "blocks": found.blocks,
        "bytes": found.bytes,
        "chain": found.chain,
    }
    if output == "json":
        click.echo(json.dumps(facts))
        return
    click.echo(f"""\
{file}: whole, {found.bytes} bytes, {found.rows} rows in {found.blocks} blocks
cluster   {facts["cluster_id"]} ({", ".join(facts["members"]) or "no members"})
revision  {old.revision}, history from {old.compact_revision}
entry     index {old.index}, term {old.term}, {facts["time"]}
name      {found.chain}""")
