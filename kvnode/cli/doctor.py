"""``kvnode doctor``: what is wrong with a data directory or a cluster, and what to do about it."""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvnode.cli.main import FATAL, REFUSED, fail
from kvnode.cli.options import DURATION, endpoint_option, output_option, timeout_option
from kvnode.errors import BadRequest, KvnodeError

if TYPE_CHECKING:
    from kvnode.config import Config
    from kvnode.doctor.findings import Finding, Report

_COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "problem": "red"}
_WIDTH = max(map(len, _COLOURS))
_SIGNS_S = 0.5  # progress is told this often


@click.command()
@click.argument("targets", metavar="[DIR|URL]...", nargs=-1)
@click.option("--only", is_flag=True, help="Ask only the endpoints given, not the members they name.")
@click.option(
    "--disk-test/--no-disk-test",
    "disk_test",
    default=None,
    help="Measure small writes with their sync in DIR, also beside a running node; or do not. [default: if not in use]",
)
@click.option(
    "--time-limit",
    "limit_ms",
    type=DURATION,
    default="10m",
    show_default=True,
    help="Read the log and the store of a DIR for so long each, at most.",
)
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="KVNODE_CONFIG",
    help="The node's configuration: its limits count, and DIR must fit it.",
)
@output_option("json", "plain", default="plain")
@endpoint_option
@timeout_option("2s")
def doctor(
    *,
    targets: tuple[str, ...],
    only: bool,
    disk_test: bool | None,
    limit_ms: int,
    file: Path | None,
    output: str | None,
    endpoints: list[str],
    timeout_ms: int,
) -> None:
    """Check data directories and a cluster, and say what to do.

    A DIR is read and never changed, whether its node runs or not: lock, identity, permissions, file system, space,
    every record of the log, every row of the store, the speed of the disk. URLs (host:port) are members of one cluster:
    they and the members they name are asked who is up, who leads, how far each is, whether states, clocks, versions
    and settings agree. Without either, the cluster at --endpoint is asked.

    Every finding is a line: ok, note, warning or problem, and below it what to type. Exits 0 if there is no
    problem, 1 if there is one, 5 if something could not be read.

    \b
    Examples:
      kvnode doctor                                  the cluster at KVNODE_ENDPOINTS, or 127.0.0.1:7401
      kvnode doctor 127.0.0.1:7402                   the cluster that this node belongs to
      kvnode doctor data/n1 --config config/node1.toml
      kvnode doctor data/n1 data/n2 -o json
    """
    from kvnode.cli.config import load  # noqa: PLC0415  loads msgspec; `kvnode doctor --help` does without

    directories, urls = _sorted_out(targets)
    try:
        settings = load(file, ())
    except KvnodeError as error:
        fail(error)
    reports = [
        _check_directory(path, settings, compare=file is not None, disk_test=disk_test, seconds=limit_ms / 1e3)
        for path in directories
    ]
    if urls or not directories:
        reports.append(_check_cluster(urls or endpoints, settings, timeout_ms, only=only))
    if output == "json":
        click.echo(json.dumps(_document(reports), indent=2))
    else:
        _print(reports)
    sys.exit(_exit_code(reports))


def _sorted_out(targets: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Directories and endpoints. What exists as a file or directory, or has a slash where no URL has one, is a path."""
    from kvnode.client.http import parse_endpoints  # noqa: PLC0415  as above

    directories, endpoints = [], []
    for target in targets:
        try:
            if os.path.lexists(target):
                raise BadRequest("a path")
            endpoints += parse_endpoints(target)
        except BadRequest as error:
            if "://" in target:
                raise click.BadParameter(f"{error.message}; only http is spoken here", param_hint="URL") from None
            directories.append(target)
    return directories, endpoints


def _check_directory(path: str, settings: Config, *, compare: bool, disk_test: bool | None, seconds: float) -> Report:
    from kvnode.doctor import directory, directory_rules  # noqa: PLC0415
    from kvnode.doctor.aside import carry_out_aside  # noqa: PLC0415
    from kvnode.doctor.findings import Report, unread  # noqa: PLC0415

    signs = _Signs(path)
    try:
        aside = partial(carry_out_aside, seconds=seconds)
        facts = directory.gather(path, disk_test=disk_test, carry_out=aside, on_sign=signs.tell)
    except OSError as error:
        what = f"{path} cannot be read: {error.strerror}"
        do = "kvnode doctor HOST:PORT" if isinstance(error, FileNotFoundError) else f"sudo ls -la {path}"
        return Report(path, "directory", (unread("directory", what, do),))
    finally:
        signs.end()
    contradictions = directory.fits_configuration(facts, settings) if compare else []
    return Report(path, "directory", directory_rules.judge(facts, settings, contradictions=contradictions))


def _check_cluster(endpoints: list[str], settings: Config, timeout_ms: int, *, only: bool) -> Report:
    from kvnode.doctor import cluster, cluster_rules  # noqa: PLC0415
    from kvnode.doctor.findings import Report  # noqa: PLC0415

    facts = cluster.gather(endpoints, timeout_ms=timeout_ms, only=only)
    return Report(", ".join(endpoints), "cluster", cluster_rules.judge(facts, settings))


class _Signs:
    """Progress of a long reading, on one line of a terminal; elsewhere nothing."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._is_wanted = sys.stderr.isatty()
        self._told_s = time.monotonic()  # what is done sooner needs no line
        self._has_told = False

    def tell(self, what: str, text: str) -> None:
        if self._is_wanted and time.monotonic() - self._told_s >= _SIGNS_S:
            self._told_s = time.monotonic()
            self._has_told = True
            click.echo(f"\r\x1b[K{self._path}: reading the {what}: {text}", nl=False, err=True)

    def end(self) -> None:
        if self._has_told:
            click.echo("\r\x1b[K", nl=False, err=True)


def _exit_code(reports: list[Report]) -> int:
    if any(report.is_unread for report in reports):
        return FATAL
    return REFUSED if any(finding.level == "problem" for report in reports for finding in report.findings) else 0


def _document(reports: list[Report]) -> dict[str, Any]:
    from kvnode.doctor.findings import count, worst  # noqa: PLC0415

    every = [finding for report in reports for finding in report.findings]
    return {
        "worst": worst(every),
        "exit_code": _exit_code(reports),
        "count": count(every),
        "reports": [
            {
                "subject": report.subject,
                "kind": report.kind,
                "findings": [
                    {
                        "level": one.level,
                        "check": one.check,
                        "what": one.what,
                        "do": list(one.do),
                        "unread": one.is_unread,
                    }
                    for one in report.findings
                ],
            }
            for report in reports
        ],
    }


def _print(reports: list[Report]) -> None:
    from kvnode.doctor.findings import count  # noqa: PLC0415

    is_coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for report in reports:
        click.echo(report.subject)
        for finding in report.findings:
            _print_finding(finding, is_coloured=is_coloured)
    counts = count(finding for report in reports for finding in report.findings)
    told = [f"{times} {level}{'s' if times > 1 else ''}" for level, times in counts.items() if times and level != "ok"]
    click.echo(", ".join(told) + "." if told else "Nothing to do.")


def _print_finding(finding: Finding, *, is_coloured: bool) -> None:
    level = finding.level.ljust(_WIDTH)
    shown = click.style(level, fg=_COLOURS[finding.level]) if is_coloured else level
    click.echo(f"  {shown}  {finding.check}: {finding.what}")
    for command in finding.do:
        click.echo(f"  {'':{_WIDTH}}    → {command}")
