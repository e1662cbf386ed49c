"""A worker process of the runner: one job a line on standard input, one `Done` a line on standard output.

A seed that fails is an answer like any other. One that needs more processor time than its limit is interrupted where it
stands, so that the traceback shows the loop it is in; one that dies takes only its worker with it.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Protocol

import msgspec

from kvnode.sim.report import SeedReport, Tier
from kvnode.sim.trace import Trace


class Job(msgspec.Struct, frozen=True):
    """One seed of one tier. `with_events`: the answer carries the whole trace, for comparing two runs."""

    tier: Tier
    seed: int
    cpu_limit_s: float
    with_events: bool = False


class Done(msgspec.Struct, frozen=True):
    report: SeedReport
    events: list[str] = []


class RunSeed(Protocol):
    """What a tier offers as `kvnode.sim.TIER.run.run_seed`. A trace that is handed in is filled."""

    def __call__(self, seed: int, trace: Trace | None = None) -> SeedReport: ...


class TookTooLong(Exception):
    """The seed has used up its processor time."""


class TierMissing(Exception):
    """This tier has no simulator."""


def tier_module(tier: Tier) -> ModuleType:
    """Raises: TierMissing."""
    name = f"kvnode.sim.{tier}.run"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise TierMissing(f"the tier {tier!r} is not there yet: no module {name}") from None


def run_job(job: Job) -> Done:
    """Run one seed, whatever comes of it."""
    run_seed: RunSeed = tier_module(job.tier).run_seed
    began = time.process_time()
    trace = Trace(is_recorded=True) if job.with_events else None
    try:
        report = _limited(
            job.cpu_limit_s, lambda: run_seed(job.seed, trace) if trace is not None else run_seed(job.seed)
        )
    except Exception as error:  # noqa: BLE001  a broken or endless run; what the tier itself checks, it reports
        report = failed(job, f"{type(error).__name__}: {error}", traceback.format_exc())
    report.real_s = time.process_time() - began
    return Done(report, trace.lines() if trace is not None else [])


def failed(job: Job, failure: str, detail: str = "") -> SeedReport:
    return SeedReport(tier=job.tier, seed=job.seed, verdict="failed", virtual_ms=0, failure=failure, detail=detail)


def _limited(cpu_limit_s: float, run: Callable[[], SeedReport]) -> SeedReport:
    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise TookTooLong(f"more than {cpu_limit_s:g} s of processor time")

    before = signal.signal(signal.SIGPROF, interrupt)
    signal.setitimer(signal.ITIMER_PROF, cpu_limit_s, 10)  # again, should somebody swallow the first
    try:
        return run()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def main() -> None:
    """Serve jobs until standard input ends. Ctrl-C is the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.set_threshold(50_000, 20, 100)  # a run makes many objects and few cycles
    logging.getLogger("kvnode").addHandler(logging.NullHandler())  # simulated nodes have nobody to warn
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a run prints must not get between the answers
    decode, encode = msgspec.json.Decoder(Job).decode, msgspec.json.Encoder().encode
    for line in sys.stdin.buffer:
        answers.write(encode(run_job(decode(line))) + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
