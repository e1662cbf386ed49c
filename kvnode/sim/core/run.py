"""One seed of tier 1: cores on an event heap, from the first election to the last read in peace."""

from __future__ import annotations

import traceback

from kvnode.sim.core.chaos import Chaos
from kvnode.sim.core.marks import MARKS, RARE_MARKS
from kvnode.sim.core.script import Script
from kvnode.sim.report import SeedReport, Verdict
from kvnode.sim.trace import Trace

__all__ = ["MARKS", "RARE_MARKS", "run_seed"]


def run_seed(seed: int, trace: Trace | None = None, script: Script | None = None) -> SeedReport:
    """Live one seed's life, by its own script or another. A violated invariant is reported, not raised."""
    chaos = Chaos(seed, trace, script)
    failure = detail = ""
    try:
        chaos.run()
    except Exception as error:  # noqa: BLE001  whatever it is, it is this seed's failure, and the runner goes on
        failure = f"{type(error).__name__}: {error}"
        detail = f"at {chaos.now_ms} ms, step {chaos.steps}\n{chaos.describe()}\n{traceback.format_exc()}"
    verdict: Verdict = "failed" if failure else "useless" if chaos.is_useless() else "passed"
    return SeedReport(
        tier="core",
        seed=seed,
        verdict=verdict,
        virtual_ms=chaos.now_ms,
        steps=chaos.steps,
        trace=chaos.trace.hash(),
        counts=chaos.totals(),
        marks={name: count for name, count in chaos.observer.marks.items() if count},
        states=list(chaos.observer.states),
        failure=failure,
        detail=detail,
    )
