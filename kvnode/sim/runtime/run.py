"""Tier 2, one seed: the real runtime of a whole cluster on virtual time, under every fault; what came of it."""

from __future__ import annotations

import time
import traceback

from kvnode.sim.loop import run_virtual
from kvnode.sim.report import SeedReport
from kvnode.sim.runtime.life import Life
from kvnode.sim.trace import LAST_EVENTS, Trace

USEFUL_OPERATIONS = 10
"""A run in which fewer requests were answered proves nothing."""


def run_seed(seed: int, trace: Trace | None = None) -> SeedReport:
    """Live one seed's life. A violated invariant is reported, not raised."""
    started = time.process_time()
    life = Life(seed, trace)
    failure = detail = ""
    try:
        run_virtual(life.run(), rng=life.fork("turns") if life.world.shuffles else None)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this seed's failure, and the runner goes on
        failure = f"{type(error).__name__}: {error}"
        events = "\n".join(life.trace.lines(LAST_EVENTS))
        detail = f"{life.world}\n{events}\n{life.describe()}\n{traceback.format_exc()}"
    counts = life.counts()
    useful = counts.get("operations_ok", 0) >= USEFUL_OPERATIONS
    return SeedReport(
        tier="runtime",
        seed=seed,
        verdict="failed" if failure else "passed" if useful else "useless",
        virtual_ms=life.virtual_ms,
        real_s=time.process_time() - started,
        steps=life.steps,
        trace=life.trace.hash(),
        counts=counts,
        marks=life.marks(),
        failure=failure,
        detail=detail,
    )
