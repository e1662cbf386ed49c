"""Mutants: kvnode broken on purpose, one rule at a time; the tests, and the simulator, must notice.

Each canary replaces one exact text in one file of a copy of the tree. Then the tests that guard the rule run there,
and, where the canary names a tier, fresh simulated runs until one fails. A canary that survives is a rule nobody
guards; a text that is not found once is a canary that has gone stale. Both are failures of this script, as are tests
or runs that fail without any mutation.

    python scripts/mutants.py                 all, as a table
    python scripts/mutants.py own-term        only those whose name contains the word
    python scripts/mutants.py --no-sim WORD   tests only
    python scripts/mutants.py --sim-only      simulator only
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from time import monotonic

import canaries_available
import canaries_changes
import canaries_clocks
import canaries_etcd_door
import canaries_etcd_queues
import canaries_etcd_watch
import canaries_eventual
import canaries_export
import canaries_gossipnet
import canaries_hold
import canaries_keyspace
import canaries_leases
import canaries_members
import canaries_node
import canaries_once
import canaries_plane
import canaries_plane_sim
import canaries_raft
import canaries_snapshots
import canaries_storage
import canaries_swim
import canaries_timeline
import canaries_txn
import canaries_watches
from canary import Canary

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("kvnode", "tests", "config", "docs", "scripts", "pyproject.toml", "Makefile", "README.md")
LIMIT_S = 300
TESTS_FAILED = 1  # pytest's exit code; any other but 0 means that the tests did not run
HEALTHY_SEEDS = 5
WORKERS = 2
FLAGS = ("--no-sim", "--sim-only")
CANARIES: tuple[Canary, ...] = (
    *canaries_raft.CANARIES,
    *canaries_changes.CANARIES,
    *canaries_node.CANARIES,
    *canaries_leases.CANARIES,
    *canaries_hold.CANARIES,
    *canaries_once.CANARIES,
    *canaries_eventual.CANARIES,
    *canaries_storage.CANARIES,
    *canaries_clocks.CANARIES,
    *canaries_watches.CANARIES,
    *canaries_etcd_watch.CANARIES,
    *canaries_etcd_queues.CANARIES,
    *canaries_etcd_door.CANARIES,
    *canaries_snapshots.CANARIES,
    *canaries_export.CANARIES,
    *canaries_members.CANARIES,
    *canaries_available.CANARIES,
    *canaries_gossipnet.CANARIES,
    *canaries_timeline.CANARIES,
    *canaries_swim.CANARIES,
    *canaries_keyspace.CANARIES,
    *canaries_plane.CANARIES,
    *canaries_plane_sim.CANARIES,
    *canaries_txn.CANARIES,
)

SEARCH = """
import importlib, sys, time
tier, budget, limit_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
run_seed = importlib.import_module(f"kvnode.sim.{tier}.run").run_seed
began, tried = time.monotonic(), 0
for seed in range(1, budget + 1):
    tried, failure = seed, ""
    try:
        report = run_seed(seed)
        if report.verdict == "failed":
            failure = report.failure or "failed"
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    if failure or time.monotonic() - began > limit_s:
        break
print(f"SEED {tried if failure else 0} {tried} {time.monotonic() - began:.1f} " + " ".join(failure.split())[:200])
"""
"""Runs in the copied tree: the first failing seed (0: none), seeds tried, seconds, what was violated."""


@dataclass(frozen=True)
class Verdict:
    """What came of one way to notice: whether it did, and how, in words."""

    caught: bool
    text: str


@dataclass(frozen=True)
class Run:
    code: int
    output: str
    seconds: float

    def first_failure(self) -> str:
        found = re.search(r"^(?:FAILED|ERROR) (\S+)", self.output, re.MULTILINE)
        return found[1].removeprefix("tests/") if found else "?"


def main(arguments: list[str]) -> int:
    unknown = [word for word in arguments if word.startswith("--") and word not in FLAGS]
    if unknown:
        print(__doc__)
        return 2
    words = [word for word in arguments if not word.startswith("--")]
    chosen = [canary for canary in CANARIES if not words or any(word in canary.name for word in words)]
    with_tests, with_sim = "--sim-only" not in arguments, "--no-sim" not in arguments
    if not with_tests:
        chosen = [canary for canary in chosen if canary.sim]
    if not chosen:
        print("no such mutant, or none for the simulator; known:", ", ".join(canary.name for canary in CANARIES))
        return 2
    with tempfile.TemporaryDirectory(prefix="kvnode-mutants-") as temporary:
        trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(WORKERS):
            tree = Path(temporary, str(number))
            tree.mkdir()
            for name in COPIED:
                _copy(ROOT / name, tree / name)
            trees.put(tree)
        complaint = _unhealthy(tree, chosen, with_tests=with_tests, with_sim=with_sim)
        if complaint:
            print(complaint)
            return 2
        with ThreadPoolExecutor(WORKERS) as pool:
            jobs = [pool.submit(_in_some_tree, trees, canary, with_tests, with_sim) for canary in chosen]
            verdicts = [(canary, job.result()) for canary, job in zip(chosen, jobs, strict=True)]
    print(_table(verdicts))
    missed = [canary.name for canary, found in verdicts if not found or not all(one.caught for one in found)]
    print(f"\n{len(verdicts) - len(missed)} of {len(verdicts)} caught" + (f"; missed: {missed}" if missed else ""))
    return 1 if missed else 0


def _unhealthy(tree: Path, chosen: Sequence[Canary], *, with_tests: bool, with_sim: bool) -> str:
    """Why nothing can be concluded: tests or runs that fail without any mutation; "" if none does."""
    if with_tests:
        run = _run_tests(tree, tuple(dict.fromkeys(test for canary in chosen for test in canary.tests)), limit_s=600)
        print(f"without mutation: tests ended with {run.code} after {run.seconds:.0f} s", file=sys.stderr)
        if run.code != 0:
            return f"{run.output}\nthe tests fail without any mutation"
    for tier in dict.fromkeys(canary.sim[0] for canary in chosen if canary.sim):
        if with_sim:
            found = _run_sim(tree, tier, HEALTHY_SEEDS)
            if found.caught:
                return f"the simulator ({tier}) fails without any mutation: {found.text}"
    return ""


def _in_some_tree(trees: SimpleQueue[Path], canary: Canary, with_tests: bool, with_sim: bool) -> list[Verdict]:
    tree = trees.get()
    try:
        return _try(tree, canary, with_tests=with_tests, with_sim=with_sim)
    finally:
        trees.put(tree)


def _try(tree: Path, canary: Canary, *, with_tests: bool, with_sim: bool) -> list[Verdict]:
    """Apply, look, undo → one verdict for each way that was tried."""
    file = tree / canary.file
    original = file.read_text(encoding="utf-8")
    if original.count(canary.old) != 1:
        return [Verdict(False, f"STALE: the text stands {original.count(canary.old)} times in {canary.file}")]
    file.write_text(original.replace(canary.old, canary.new), encoding="utf-8")
    found: list[Verdict] = []
    try:
        if with_tests:
            found.append(_judge_tests(_run_tests(tree, canary.tests)))
        if with_sim and canary.sim:
            found.append(_run_sim(tree, *canary.sim))
    finally:
        file.write_text(original, encoding="utf-8")
    print(f"{canary.name}: {'; '.join(one.text for one in found)}", file=sys.stderr, flush=True)
    return found


def _judge_tests(run: Run) -> Verdict:
    if run.code == TESTS_FAILED:
        return Verdict(True, f"`{run.first_failure()}` ({run.seconds:.0f} s)")
    if run.code == 0:
        return Verdict(False, f"SURVIVED the tests ({run.seconds:.0f} s)")
    return Verdict(False, f"BROKEN: the tests ended with {run.code}: {' '.join(run.output.split())[-300:]}")


def _run_sim(tree: Path, tier: str, seeds: int) -> Verdict:
    """Fresh simulated runs of the tree until one fails."""
    command = [sys.executable, "-c", SEARCH, tier, str(seeds), str(LIMIT_S)]
    try:
        run = _run(tree, command, 2 * LIMIT_S)
    except subprocess.TimeoutExpired:
        return Verdict(True, f"{tier}: a run that never ends")
    found = re.search(r"^SEED (\d+) (\d+) ([\d.]+) ?(.*)$", run.output, re.MULTILINE)
    if found is None:
        return Verdict(False, f"{tier}: BROKEN: {' '.join(run.output.split())[-300:]}")
    if found[1] == "0":
        return Verdict(False, f"{tier}: SURVIVED {found[2]} seeds ({found[3]} s)")
    return Verdict(True, f"{tier} seed {found[1]} ({found[3]} s): {found[4].replace('|', '/')[:90]}")


def _run_tests(tree: Path, tests: tuple[str, ...], limit_s: int = LIMIT_S) -> Run:
    """Tests of the copy, against the copy (the working directory comes first on the module path)."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "--no-header", "-p", "no:cacheprovider", *tests]
    started = monotonic()
    try:
        return _run(tree, command, limit_s)
    except subprocess.TimeoutExpired:  # a mutant that hangs the tests has been noticed by them
        return Run(TESTS_FAILED, f"FAILED a-test-that-never-ends after {limit_s} s", monotonic() - started)


def _run(tree: Path, command: list[str], limit_s: int) -> Run:
    started = monotonic()
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}  # equal size within one second: stale bytecode
    done = subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
    )
    return Run(done.returncode, done.stdout + done.stderr, monotonic() - started)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    elif source.exists():
        shutil.copy(source, target)


def _table(verdicts: Sequence[tuple[Canary, list[Verdict]]]) -> str:
    """As Markdown: the same table stands in docs/testing.md."""
    lines = ["| no. | mutant | what is broken | caught by |", "|---|---|---|---|"]
    for canary, found in verdicts:
        told = "; ".join(one.text for one in found) or "NOT TRIED"
        lines.append(f"| {canary.number or '–'} | `{canary.name}` | {canary.rule} | {told} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
