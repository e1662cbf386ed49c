"""One seed of tier 1: cores on an event heap, from the first election to the last read in peace."""

from __future__ import annotations

import traceback

from kvnode.sim.core.chaos import Chaos
from kvnode.sim.report import SeedReport
from kvnode.sim.trace import Trace


def run_seed(seed: int, trace: Trace | None = None) -> SeedReport:
    """Live one seed's life. A violated invariant is reported, not raised."""
    chaos = Chaos(seed, trace)
    failure = detail = ""
    try:
        chaos.run()
    except Exception as error:  # noqa: BLE001  whatever it is, it is this seed's failure, and the runner goes on
        failure = f"{type(error).__name__}: {error}"
        detail = f"at {chaos.now_ms} ms, step {chaos.steps}\n{chaos.describe()}\n{traceback.format_exc()}"
    report = SeedReport(
        tier="core",
        seed=seed,
        verdict="failed" if failure else "passed",
        virtual_ms=chaos.now_ms,
        steps=chaos.steps,
        trace=chaos.trace.hash(),
        counts=chaos.counts(),
        failure=failure,
        detail=detail,
    )
    if not failure and chaos.is_useless():
        report.verdict = "useless"
    return report
