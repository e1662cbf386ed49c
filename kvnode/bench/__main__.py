"""``python -m kvnode.bench``: measure this kvnode on this machine, beside etcd where it is installed."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import click
import uvloop

from kvnode.bench import report
from kvnode.bench.cluster import ClusterFailed
from kvnode.bench.ending import ended_by_sigterm
from kvnode.bench.rounds import ROWS, Plan, run, systems
from kvnode.version import __version__


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), help="Alternating rounds; 3 unless --quick.")
@click.option("--quick", is_flag=True, help="One short round: does it work, and roughly how fast.")
@click.option("--only", default="", metavar="ROW,…", help=f"Only these rows: {', '.join(ROWS)}.")
@click.option("--system", "only_system", type=click.Choice(["kvnode", "etcd"]), help="Only this system.")
@click.option("--spread", is_flag=True, help="Spread connections over all nodes instead of the leader.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("data/bench"),
    show_default=True,
    help="Where the clusters keep their data while they run; on the disk to be measured.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write all figures here.")
def main(
    *,
    rounds: int | None,
    quick: bool,
    only: str,
    only_system: str | None,
    spread: bool,
    data: Path,
    json_file: Path | None,
) -> None:
    """Run kvnode, and etcd if it is on the PATH, in alternating rounds and compare them."""
    rows = tuple(only.split(",")) if only else ROWS
    unknown = [row for row in rows if row not in ROWS]
    if unknown:
        raise click.BadParameter(f"unknown row {unknown[0]!r}; known: {', '.join(ROWS)}", param_hint="--only")
    plan = Plan(rows=rows, spread=spread)
    if quick:
        plan = plan.quick()
    if rounds is not None:
        plan = dataclasses.replace(plan, rounds=rounds)
    competitors = [system for system in systems(__version__) if only_system in {None, system.name}]
    if not competitors:
        raise click.UsageError("etcd is not on the PATH")
    if len(competitors) == 1:
        click.echo(f"measuring {competitors[0].name} alone", err=True)
    data.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data, prefix="run-") as home:
        try:
            results = uvloop.run(
                ended_by_sigterm(
                    lambda: run(plan, competitors, Path(home).resolve(), lambda line: click.echo(line, err=True))
                )
            )
        except (ClusterFailed, OSError) as error:
            raise click.ClickException(str(error)) from error
    click.echo(report.text(results, plan, competitors))
    if json_file is not None:
        json_file.write_text(json.dumps(report.as_json(results, plan, competitors), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
