"""``python -m kvnode.bench.large``: measure a large store on this machine, beside etcd where it is installed."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import click
import uvloop

from kvnode.bench.cluster import ClusterFailed
from kvnode.bench.ending import ended_by_sigterm
from kvnode.bench.large import report
from kvnode.bench.large.run import PARTS, Plan, run
from kvnode.bench.rounds import systems
from kvnode.version import __version__

_PLAN = Plan()


@click.command()
@click.option("--keys", type=click.IntRange(min=2), default=_PLAN.keys, show_default=True, help="Keys of each system.")
@click.option("--few-keys", type=click.IntRange(min=1), default=_PLAN.few_keys, show_default=True)
@click.option("--many-keys", type=click.IntRange(min=1), default=_PLAN.many_keys, show_default=True)
@click.option(
    "--growth-nodes",
    type=click.IntRange(min=1),
    default=_PLAN.growth_nodes,
    show_default=True,
    help="Nodes of the clusters with few and with many keys.",
)
@click.option("--seconds", type=click.FloatRange(min=0.1), default=_PLAN.seconds, show_default=True, help="Of puts.")
@click.option(
    "--settle", type=click.FloatRange(min=0), default=_PLAN.settle_s, show_default=True, help="Before memory."
)
@click.option("--rounds", type=click.IntRange(min=1), default=_PLAN.rounds, show_default=True, help="Of each system.")
@click.option("--growth-rounds", type=click.IntRange(min=1), default=_PLAN.growth_rounds, show_default=True)
@click.option("--restarts", type=click.IntRange(min=1), default=_PLAN.restarts, show_default=True)
@click.option("--only", default="", metavar="PART,…", help=f"Only these parts: {', '.join(PARTS)}.")
@click.option("--system", "only_system", type=click.Choice(["kvnode", "etcd"]), help="Only this system.")
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
    keys: int,
    few_keys: int,
    many_keys: int,
    growth_nodes: int,
    seconds: float,
    settle: float,
    rounds: int,
    growth_rounds: int,
    restarts: int,
    only: str,
    only_system: str | None,
    data: Path,
    json_file: Path | None,
) -> None:
    """Load a million keys into kvnode, and into etcd if it is on the PATH, and compare what they cost."""
    parts = tuple(only.split(",")) if only else PARTS
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise click.BadParameter(f"unknown part {unknown[0]!r}; known: {', '.join(PARTS)}", param_hint="--only")
    plan = Plan(
        parts=parts,
        keys=keys,
        few_keys=few_keys,
        many_keys=many_keys,
        growth_nodes=growth_nodes,
        seconds=seconds,
        settle_s=settle,
        rounds=rounds,
        growth_rounds=growth_rounds,
        restarts=restarts,
    )
    competitors = [system for system in systems(__version__) if only_system in {None, system.name}]
    if not competitors:
        raise click.UsageError("etcd is not on the PATH")
    if len(competitors) == 1:
        click.echo(f"measuring {competitors[0].name} alone", err=True)
    data.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data, prefix="large-") as home:
        try:
            figures = uvloop.run(
                ended_by_sigterm(
                    lambda: run(plan, competitors, Path(home).resolve(), lambda line: click.echo(line, err=True))
                )
            )
        except (ClusterFailed, OSError) as error:  # TimeoutError is one
            raise click.ClickException(str(error) or "a limit of time was exceeded") from error
    click.echo(report.text(figures, plan, competitors))
    if json_file is not None:
        json_file.write_text(json.dumps(report.as_json(figures, plan, competitors), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
