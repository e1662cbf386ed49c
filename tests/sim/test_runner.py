"""The runner: what it counts, when it fails, and that a broken seed breaks nothing but itself."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import msgspec
import pytest

from kvnode.sim import runner, worker
from kvnode.sim.pool import run_jobs
from kvnode.sim.report import SeedReport
from kvnode.sim.summary import (
    MARKS_JUDGED_FROM,
    RARE_MARKS_JUDGED_FROM,
    USELESS_JUDGED_FROM,
    Tally,
    failure_text,
    summary_text,
)
from kvnode.sim.trace import Trace, first_difference
from kvnode.sim.worker import Job

ENVIRONMENT = {**os.environ, "PYTHONUNBUFFERED": "1"}


def report(seed: int, **fields: object) -> SeedReport:
    values = {"tier": "core", "seed": seed, "verdict": "passed", "virtual_ms": 2_000, "real_s": 0.5, **fields}
    return msgspec.convert(values, SeedReport)


def plan(**fields: object) -> runner.Plan:
    values: dict[str, object] = {"tiers": ("core",), "start": 0, "seeds": 2, "jobs": 2}
    return runner.Plan(**{**values, **fields})  # type: ignore[arg-type]


def of_one_tier(monkeypatch: pytest.MonkeyPatch, run_seed: object) -> None:
    """In this process only: `run_job` then runs this instead of a simulated cluster."""
    module = ModuleType("fake tier")
    module.run_seed = run_seed  # type: ignore[attr-defined]
    monkeypatch.setattr(worker, "tier_module", lambda _tier: module)


def test_a_tally_adds_up_and_knows_its_speed() -> None:
    tally = Tally("core", {"a": "…", "b": "…"})
    tally.add(report(1, counts={"commits": 3}, marks={"a": 1}, states=[7, 8]))
    tally.add(report(2, counts={"commits": 4}, states=[8, 9]))
    assert tally.counts["commits"] == 7
    assert tally.ratio == 4.0
    assert tally.missing_marks() == ["b"]
    assert len(tally.states) == 3


def test_a_failure_is_a_complaint_with_one_command_to_replay_it() -> None:
    tally = Tally("core", {})
    tally.add(report(41, verdict="failed", failure="AssertionError: ('I5', 2)"))
    assert tally.complaints() == ["core: 1 of 1 seeds failed"]
    text = summary_text([tally], 1.0, is_interrupted=False)
    assert "make sim TIER=core SEED=41" in text
    assert "I5" in text
    assert "make sim TIER=core SEED=41" in failure_text(tally.failures[0])


@pytest.mark.parametrize(("useless", "is_too_many"), [(10, False), (11, True)])
def test_too_many_useless_runs_prove_too_little(useless: int, is_too_many: bool) -> None:
    tally = Tally("core", {})
    for seed in range(USELESS_JUDGED_FROM):
        tally.add(report(seed, verdict="useless" if seed < useless else "passed"))
    assert bool(tally.complaints()) == is_too_many


def test_few_useless_runs_of_few_are_no_complaint() -> None:
    tally = Tally("core", {})
    tally.add(report(0, verdict="useless"))
    assert tally.complaints() == []


def test_a_mark_never_met_is_a_complaint_of_a_large_run_only() -> None:
    tally = Tally("core", {"rare": "a rare thing"})
    for seed in range(MARKS_JUDGED_FROM - 1):
        tally.add(report(seed))
    assert tally.complaints() == []
    tally.add(report(MARKS_JUDGED_FROM))
    assert tally.complaints() == [f"core: never met in {MARKS_JUDGED_FROM} seeds: rare"]
    assert "NOT MET rare: a rare thing" in summary_text([tally], 1.0, is_interrupted=False)


def test_a_rare_mark_may_be_missing_for_longer() -> None:
    tally = Tally("core", {"rare": "a rare thing"}, rare=("rare",))
    for seed in range(MARKS_JUDGED_FROM):
        tally.add(report(seed))
    assert tally.complaints() == []
    tally.seeds = RARE_MARKS_JUDGED_FROM
    assert tally.complaints() == [f"core: never met in {RARE_MARKS_JUDGED_FROM} seeds: rare"]


def test_a_run_that_never_ends_is_interrupted_where_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_seed(_seed: int) -> SeedReport:
        while True:
            pass

    of_one_tier(monkeypatch, run_seed)
    done = worker.run_job(Job("core", 3, cpu_limit_s=0.05))
    assert done.report.verdict == "failed"
    assert "more than 0.05 s of processor time" in done.report.failure
    assert "while True" in done.report.detail


def test_a_run_that_raises_is_a_failure_of_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_seed(_seed: int) -> SeedReport:
        raise RuntimeError("broken")

    of_one_tier(monkeypatch, run_seed)
    done = worker.run_job(Job("core", 3, cpu_limit_s=10))
    assert (done.report.seed, done.report.verdict, done.report.failure) == (3, "failed", "RuntimeError: broken")


def test_a_worker_that_dies_fails_its_seed_and_the_others_go_on() -> None:
    answers = run_jobs(iter([Job("core", seed, 60) for seed in range(4)]), workers=1)
    killed = None
    verdicts: dict[int, str] = {}
    for done in answers:
        if done is not None:
            verdicts[done.report.seed] = done.report.verdict
        if killed is None:  # the first worker is at a seed now
            children = subprocess.run(
                ["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True, text=True, check=True
            )
            workers = [int(pid) for pid in children.stdout.split() if is_worker(int(pid))]
            assert len(workers) == 1
            killed = workers[0]
            os.kill(killed, signal.SIGKILL)
    assert sorted(verdicts) == [0, 1, 2, 3]
    assert list(verdicts.values()).count("failed") == 1


def is_worker(pid: int) -> bool:
    try:
        return b"kvnode.sim.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False


def test_two_seeds_run_and_are_summed_up(tmp_path: Path) -> None:
    out, lines = io.StringIO(), tmp_path / "reports.jsonl"
    assert runner.run(plan(), out, json_file=lines, is_verbose=True) == runner.PASSED
    assert "core: 2 seeds" in out.getvalue()
    assert "passed" in out.getvalue()
    reports = [msgspec.json.decode(line, type=SeedReport) for line in lines.read_bytes().splitlines()]
    assert sorted(one.seed for one in reports) == [0, 1]


def test_time_that_is_over_starts_no_more_seeds() -> None:
    out = io.StringIO()
    assert runner.run(plan(seeds=None, seconds=1e-9), out) == runner.PASSED
    assert "nothing was run" in out.getvalue()


def test_a_seed_is_replayed_with_all_it_can_tell() -> None:
    out = io.StringIO()
    assert runner.replay("core", 1, out) == runner.PASSED
    assert "core seed 1: passed" in out.getvalue()
    assert "commands done" in out.getvalue()


def test_a_seed_decides_its_run_whatever_the_hash_seed() -> None:
    out = io.StringIO()
    assert runner.twice(plan(seeds=3), out) == runner.PASSED
    assert "0 differ" in out.getvalue()


def test_a_run_that_depends_on_the_hash_seed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first differing event is printed. The two processes are played by two answers."""

    def run_jobs(jobs: list[Job], _workers: int, hash_seed: str = "") -> object:
        for job in jobs:
            trace = Trace(is_recorded=True)
            trace.add(1, "same")
            trace.add(2, hash_seed)
            yield SimpleNamespace(report=report(job.seed, trace=trace.hash()), events=trace.lines())

    monkeypatch.setattr(runner, "run_jobs", run_jobs)
    out = io.StringIO()
    assert runner.twice(plan(seeds=1), out) == runner.FAILED
    assert "event 2 differs:\n  2 1\n  2 2" in out.getvalue()


def test_where_two_traces_part() -> None:
    assert first_difference(["a", "b"], ["a", "b"]) == ""
    assert first_difference(["a", "b"], ["a"]) == "one run ends after 1 events, the other goes on with:\n  b"


def test_ctrl_c_ends_with_a_summary() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "kvnode", "sim", "--tier", "core", "--seconds", "600", "--jobs", "1", "--verbose"],
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    assert "core seed" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert "interrupted" in rest
    assert process.returncode == runner.INTERRUPTED


def test_a_tier_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kvnode.sim.core.run", None)
    with pytest.raises(worker.TierMissing, match=r"no module kvnode\.sim\.core\.run"):
        worker.tier_module("core")


def test_what_simulated_nodes_log_is_not_on_the_screen() -> None:
    """Of these seeds several would warn of something; a screen full of that hides the run's own lines."""
    jobs = b"".join(msgspec.json.encode(Job("runtime", seed, 60.0)) + b"\n" for seed in (4, 6, 8))
    done = subprocess.run(
        [sys.executable, "-m", "kvnode.sim.worker"], input=jobs, capture_output=True, check=True, timeout=120
    )
    assert done.stdout.count(b"\n") == 3
    assert done.stderr == b""
