"""Aftermath: wait until all are level, read everything, judge, end the nodes and look at what they left on disk."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from kvnode.check import report
from kvnode.check.history import Operation, Seen
from kvnode.check.judge import judge as judge_history
from scripts.faults.nodes import ChaosCluster
from scripts.faults.recorders import NotSent, read_all

LEVEL_S = 90.0
"""How long all nodes may take to be level once everything is healed: generous, for a machine that has other work."""

BUDGET_STATES = 2_000_000
"""States that the search may visit: some tens of seconds at most, after minutes of run."""

_NEXT_SEGMENT = "next.tmp"  # made ahead by a running log; any other temporary file is left over


async def level(cluster: ChaosCluster, limit_s: float) -> list[str]:
    """Wait until all nodes are level → problems, unequal state among them."""
    try:
        statuses = await cluster.wait_level(limit_s)
    except TimeoutError:
        return [f"not level {limit_s:.0f} s after everything was healed"]
    hashes = {node: status["state_hash"] for node, status in statuses.items()}
    if len(set(hashes.values())) != 1:
        return [f"state hashes differ at index {statuses[1]['applied_index']}: {hashes}"]
    return []


async def everything(cluster: ChaosCluster) -> tuple[dict[str, Seen], list[str]]:
    """What every node shows at the end, read through each → (it, problems)."""
    found: dict[int, dict[str, Seen]] = {}
    try:
        for node in cluster.ids:
            found[node] = await read_all(cluster.clients[node])
    except (NotSent, OSError, TimeoutError, ValueError) as error:
        return {}, [f"could not read everything at the end: {error!r}"]
    first = found[cluster.ids[0]]
    return first, [f"node {node} shows other data than node 1" for node in found if found[node] != first]


def judge(
    operations: Sequence[Operation], final: Mapping[str, Seen], home: Path, *, budget: int = BUDGET_STATES
) -> list[str]:
    """Contradictions in the clients' history, which began with an empty store and ended with `final`.

    If there are any, `home` gets a report of them: verdict.txt to read, verdict.html with every client's line of time.
    """
    verdict = judge_history(operations, final=final, budget=budget)
    found = [f"{problem.rule}: {problem.message}" for problem in verdict.problems]
    if verdict.result == "unknown":
        found.append(f"the checker gave up: {report.headline(verdict)}")
    if verdict.result != "ok":
        (home / "verdict.txt").write_text(report.text(operations, verdict), encoding="utf-8")
        (home / "verdict.html").write_text(report.html(operations, verdict), encoding="utf-8")
    return found


async def stop(cluster: ChaosCluster) -> list[str]:
    """A clean end of every node → those that did not end so."""
    for node in cluster.ids:
        cluster.excuse(node, "the end")
    codes = await asyncio.gather(*(asyncio.to_thread(cluster.processes[node].stop) for node in cluster.running()))
    return [f"SIGTERM at the end, exit code {code}" for code in codes if code != 0]


def look_at_disks(cluster: ChaosCluster) -> list[str]:
    """`kvnode wal verify` over all logs, and no temporary file left over. The nodes must have ended."""
    directories = [str(cluster.data_dir(node)) for node in cluster.ids]
    command = [sys.executable, "-m", "kvnode", "wal", "verify", *directories]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    found = [f"kvnode wal verify: {done.stdout}{done.stderr}"] if done.returncode else []
    for node in cluster.ids:
        temporary = [path for path in cluster.data_dir(node).rglob("*.tmp") if path.name != _NEXT_SEGMENT]
        found += [f"left over: {path}" for path in temporary]
    return found


def complaints(cluster: ChaosCluster) -> Counter[str]:
    """Why nodes gave up, by their own words; for people to read, not judged."""
    found: Counter[str] = Counter()
    for node in cluster.ids:
        for line in cluster.output(node).read_text(encoding="utf-8", errors="replace").splitlines():
            if '"event":"node.failed"' in line:
                with contextlib.suppress(ValueError):  # a killed process leaves half a line before the next one's first
                    event = json.loads(line)
                    found[f"{event['code']}: {event['message']}"[:120]] += 1
    return found
