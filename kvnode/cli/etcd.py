"""``kvnode import-etcd`` and ``kvnode export-etcd``: keys from an etcd cluster, and back to one.

Both read pages at one revision and write each key at most once (`kvnode.client.importer`), so that a run which broke
off is simply repeated.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NoReturn

import click
import msgspec

from kvnode.cli.import_ import prefix_map
from kvnode.cli.import_outcome import Outcome
from kvnode.cli.main import FATAL, OK, TRY_AGAIN, exit_code
from kvnode.cli.options import endpoint_option, output_option, timeout_option
from kvnode.cli.progress import Progress
from kvnode.client.etcd import EtcdCaller, EtcdImporter, read_entries
from kvnode.client.export_file import Entry
from kvnode.client.importer import Importer
from kvnode.errors import BadRequest, Compacted, KvnodeError

_OPTIONS = (
    click.option("--prefix", default="", help="Only keys that start with this."),
    click.option("--prefix-map", metavar="OLD=NEW", help="Keys that start with OLD get NEW in its place."),
    click.option(
        "--on-conflict",
        type=click.Choice(["fail", "skip", "overwrite"]),
        default="fail",
        show_default=True,
        help="What to do about keys that have another value: end, keep it, or replace it.",
    ),
    click.option("--dry-run", is_flag=True, help="Only tell what would be done."),
    click.option("--with-leased", is_flag=True, help="Also keys that are under a lease, as keys that stay."),
    click.option("--rev", type=click.IntRange(min=1), help="As this revision shows them. [default: the newest]"),
    click.option("--user", default="", envvar="KVNODE_ETCD_USER", metavar="NAME:PASSWORD", help="Of the etcd cluster."),
    click.option("--ca-file", default="", help="Whose certificates to trust, for https. [default: the system's]"),
)


def _copy_options(command: Any) -> Any:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command("import-etcd")
@click.argument("url")
@_copy_options
@output_option("json", "plain", default="plain")
@endpoint_option
@timeout_option("30s")
def import_etcd(**given: Any) -> None:
    """Bring the keys of an etcd cluster into this one.

    URL is a client URL of etcd. Its keys are read in pages, all as one revision shows them, while etcd goes on serving.
    Keys that have their value already are left alone, so after an interruption the same command goes on. Revisions,
    versions and times are new ones. Keys under a lease are left out unless asked for: leases are not copied.

    With --on-conflict fail it ends at the first key that has another value. It gives up when nothing has succeeded for
    --timeout.

    \b
    Examples:
      kvnode import-etcd http://10.0.0.5:2379
      kvnode import-etcd http://10.0.0.5:2379 --prefix /app/ --dry-run
      kvnode import-etcd https://etcd.example:2379 --ca-file ca.pem --user root:secret
    """
    source = _caller(given, given["url"], is_etcd=True)
    importer = Importer(given["endpoints"], given["timeout_ms"], given["on_conflict"])
    _Copy(given, source, importer).run()


@click.command("export-etcd")
@click.argument("url")
@_copy_options
@output_option("json", "plain", default="plain")
@endpoint_option
@timeout_option("30s")
def export_etcd(**given: Any) -> None:
    """Bring the keys of this cluster into an etcd cluster.

    URL is a client URL of etcd. Everything else is as with import-etcd, the other way round.

    \b
    Examples:
      kvnode export-etcd http://10.0.0.5:2379
      kvnode export-etcd http://10.0.0.5:2379 --prefix /app/ --on-conflict overwrite
    """
    source = _caller(given, f"http://{given['endpoints'][0]}", is_etcd=False)
    importer = EtcdImporter(_caller(given, given["url"], is_etcd=True), given["on_conflict"])
    _Copy(given, source, importer).run()


def _caller(given: dict[str, Any], url: str, *, is_etcd: bool) -> EtcdCaller:
    try:
        if not is_etcd:
            return EtcdCaller(url, given["timeout_ms"])
        return EtcdCaller(url, given["timeout_ms"], user=given["user"], ca_file=given["ca_file"])
    except BadRequest as error:
        raise click.UsageError(error.message) from error
    except OSError as error:
        raise click.UsageError(f"--ca-file: {error.strerror or error}") from error


class _Copy:
    """One run of either command."""

    def __init__(self, given: dict[str, Any], source: EtcdCaller, importer: Importer) -> None:
        self._given = given
        self._source = source
        self._importer = importer
        self._outcome = Outcome(importer, dry_run=given["dry_run"], output=given["output"], place="key")
        self._old, self._new = prefix_map(given["prefix_map"])
        self._prefix = os.fsencode(given["prefix"])
        if not self._prefix.startswith(self._old):
            raise click.UsageError("--prefix-map: not all keys of --prefix start with its OLD; give --prefix OLD")

    def run(self) -> NoReturn:
        try:
            self._copy()
        except Compacted as error:
            self._outcome.end(
                exit_code(error, write=False),
                f"{error.message}: the revision is gone; given again without --rev it reads the newest one",
            )
        except KvnodeError as error:
            self._outcome.end(exit_code(error, write=False), f"{error.message} [{error.code}]")
        except OSError as error:
            self._outcome.end(FATAL, str(error))
        except KeyboardInterrupt:
            self._outcome.end(TRY_AGAIN, "interrupted")
        self._outcome.end(OK, "")

    def _copy(self) -> None:
        """Raises: KvnodeError."""
        dry_run = self._given["dry_run"]
        pages = read_entries(self._source, self._prefix, self._given["rev"] or 0)
        revision, total, first = next(pages)
        self._outcome.about = {"source": self._source.url, "revision": revision}
        self._outcome.has_written = not dry_run
        entries = self._chosen(first, pages)
        work = self._importer.compare(entries) if dry_run else self._importer.write(entries)
        with Progress("comparing" if dry_run else "copying", total) as progress, closing(work) as tallies:
            for tally in tallies:
                progress.advance(tally.keys, tally.keys)
            if not self._outcome.went_wrong():
                progress.finish()

    def _chosen(self, entries: list[Entry], pages: Iterator[tuple[int, int, list[Entry]]]) -> Iterator[Entry]:
        """Those to copy, under their new names."""
        while True:
            for entry in entries:
                if entry.kv.lease and not self._given["with_leased"]:
                    self._outcome.leased += 1
                    continue
                key = self._new + entry.kv.key.removeprefix(self._old)
                yield msgspec.structs.replace(entry, kv=msgspec.structs.replace(entry.kv, key=key))
            page = next(pages, None)
            if page is None:
                return
            entries = page[2]
