"""``kvnode sim``: whole clusters on virtual time, one for each seed, under faults, checked after every step."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import Literal

import click

from kvnode.checkout import source_digest
from kvnode.cli.main import FATAL, USAGE

SEEDS_DEFAULT = 200
FRESH_BELOW = 1 << 40


@click.command()
@click.option(
    "--tier",
    type=click.Choice(["core", "runtime", "both"]),
    default="both",
    show_default=True,
    help="core: consensus on an event heap; runtime: the whole node on virtual time.",
)
@click.option("--seeds", type=click.IntRange(min=1), help=f"How many of each tier. [default: {SEEDS_DEFAULT}]")
@click.option("--seed", type=click.IntRange(min=0), help="Replay this one and tell everything about it.")
@click.option("--start", type=click.IntRange(min=0), default=0, show_default=True, help="The first seed.")
@click.option("--fresh", is_flag=True, help="Begin at a seed never used before; it is printed.")
@click.option("--by-source", is_flag=True, help="Begin at a seed that kvnode's source decides; it is printed.")
@click.option("--jobs", type=click.IntRange(min=1), help="Worker processes. [default: the number of cores]")
@click.option("--twice", type=click.IntRange(min=1), help="Run so many seeds twice and compare every event.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="Start no more seeds after this time.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="One report a line, too.")
@click.option("--shrink", is_flag=True, help="With --seed: leave out what its failure does not need (tier core).")
@click.option("--verbose", is_flag=True, help="A line for every seed.")
def sim(
    *,
    tier: Literal["core", "runtime", "both"],
    seeds: int | None,
    seed: int | None,
    start: int,
    fresh: bool,
    by_source: bool,
    jobs: int | None,
    twice: int | None,
    seconds: float | None,
    json_file: Path | None,
    shrink: bool,
    verbose: bool,
) -> None:
    """Simulate clusters under faults, one for each seed, and check every invariant.

    A failed seed is printed with the command that replays it. Exits 1 if a seed failed, if too many runs were useless,
    or if a situation that every large run must meet was never met.

    \b
    Examples:
      kvnode sim --seeds 1000                  a thousand of each tier
      kvnode sim --seed 7 --tier core          replay one
      kvnode sim --fresh --seconds 170         new seeds for about three minutes
      kvnode sim --by-source --seeds 200       for a gate: other code, other seeds; the same code, the same verdict
      kvnode sim --seed 7 --shrink             what of it does its failure need?
      kvnode sim --twice 20                    is a run decided by its seed alone?
    """
    from kvnode.sim import runner, worker  # noqa: PLC0415  the simulator is slow to import, and help does not need it
    from kvnode.sim.report import TIERS, Tier  # noqa: PLC0415

    tiers: tuple[Tier, ...] = TIERS if tier == "both" else (tier,)
    for one in tiers if tier == "both" else ():
        try:
            worker.tier_module(one)
        except worker.TierMissing as missing:
            click.echo(f"kvnode: {missing}", err=True)
            tiers = tuple(other for other in tiers if other != one)
    if fresh and by_source:
        raise click.UsageError("--fresh and --by-source name two beginnings")
    if fresh:
        start = secrets.randbelow(FRESH_BELOW)
        click.echo(f"fresh seeds from {start}")
    if by_source:
        start = int.from_bytes(source_digest()) % FRESH_BELOW
        click.echo(f"seeds of this source from {start}")
    if seeds is None and seconds is None:
        seeds = SEEDS_DEFAULT
    plan = runner.Plan(
        tiers=tiers, start=start, seeds=twice or seeds, jobs=jobs or os.cpu_count() or 1, seconds=seconds
    )
    try:
        if shrink:
            if seed is None:
                raise click.UsageError("--shrink needs --seed")
            code = runner.shrink_core(seed, sys.stdout)
        elif seed is not None:
            code = max(runner.replay(one, seed, sys.stdout) for one in tiers)
        elif twice is not None:
            code = runner.twice(plan, sys.stdout)
        else:
            code = runner.run(plan, sys.stdout, json_file=json_file, is_verbose=verbose)
    except worker.TierMissing as missing:
        click.echo(f"kvnode: {missing}", err=True)
        sys.exit(USAGE)
    except OSError as error:
        click.echo(f"kvnode: {error}", err=True)
        sys.exit(FATAL)
    sys.exit(code)
