"""Report: the table a person reads, and the same as JSON. Medians with their ranges, ratios, where and of what."""

from __future__ import annotations

import dataclasses
import os
import platform
from pathlib import Path
from statistics import median
from typing import Any

from kvnode.bench.rounds import ARRIVALS, GOSSIP, Plan, Results, Series, System
from kvnode.bench.workloads import AVAILABLE, KEYS, VALUE_BYTES, WATCHES, WORKLOADS
from kvnode.checkout import revision

_TITLES = {
    **{row.name: row.title for workload in (*WORKLOADS, *AVAILABLE) for row in (workload, workload.beside) if row},
    **{watch.name: watch.title for watch in WATCHES},
    "converge": "written without a quorum on the leader and acknowledged: until a read on a follower shows it",
    "converge_read": "the same read once it is there",
    "converge_put": "linearizable put, 1 in flight, between those writes",
    "gossip3": "gossip sent by each of three idle nodes, sealed",
    "gossip100": "gossip sent by each of 100 simulated members, not sealed",
    "gossip100_cpu": "processor time of each of them, its network included",
    "failover1": "gap on kill -9 of the leader, 1 writer",
    "failover8": "gap on kill -9 of the leader, 8 writers",
    "idle": "idle processor time per node",
    "memory": "resident memory per node after the load",
}
_ONLY_KVNODE = frozenset({*(row.name for row in AVAILABLE), *ARRIVALS[:2], *GOSSIP})
_UNITS = {
    **dict.fromkeys(ARRIVALS, "ms"),
    "gossip3": "B/s",
    "gossip100": "B/s",
    "gossip100_cpu": "%",
    "failover1": "ms",
    "failover8": "ms",
    "idle": "%",
    "memory": "MiB",
}

# What kvnode aims at: row → (front compared with, factor, whether more is better).
_AIMS: dict[str, tuple[tuple[str, float, bool], ...]] = {
    "put1": (("grpc", 1.0, True),),
    "put64": (("grpc", 0.7, True), ("json", 1.2, True)),
    "failover1": (("grpc", 1 / 3, False),),
    "failover8": (("grpc", 1 / 3, False),),
}
_IDLE_AIM_PERCENT = 3.0


def environment() -> dict[str, str]:
    """Where this was measured."""
    return {
        "commit": revision(),
        "python": platform.python_version(),
        "kernel": f"{platform.system()} {platform.release()}",
        "processor": f"{_processor()} × {os.cpu_count()}",
    }


def text(results: Results, plan: Plan, competitors: list[System]) -> str:
    names = ", ".join(f"{system.name} {system.version}" for system in competitors)
    lines = [
        f"{names}; three nodes each, fsync on, one machine",
        ", ".join(f"{name} {found}" for name, found in environment().items()),
        f"{plan.rounds} rounds of {plan.measure_s:g} s; values of {VALUE_BYTES} bytes, random keys of {KEYS:,}; "
        + ("connections spread over all nodes" if plan.spread else "clients connect to the leader"),
        "",
    ]
    for row, title in _TITLES.items():
        found = [series for series in results.series.values() if series.row == row]
        if found:
            found.sort(key=lambda series: series.system != "kvnode")
            lines += [*_row(row, title, found), *_beside_rest(results, found), ""]
    return "\n".join(lines)


def as_json(results: Results, plan: Plan, competitors: list[System]) -> dict[str, Any]:
    return {
        "environment": environment(),
        "systems": {system.name: system.version for system in competitors},
        "plan": dataclasses.asdict(plan),
        "series": [
            {**dataclasses.asdict(series), "median": median(series.values)} for series in results.series.values()
        ],
    }


def _row(row: str, title: str, found: list[Series]) -> list[str]:
    unit = _UNITS.get(row, "/s")
    lines = [title]
    for series in found:
        low, high = min(series.values), max(series.values)
        line = f"  {series.system:7}{series.front:5} {_figure(median(series.values), unit):>12}"
        line += f"  ({_figure(low, '')} to {_figure(high, '')})".ljust(24)
        if series.p50_ms:
            line += f"  p50 {median(series.p50_ms):7.2f} ms  p99 {median(series.p99_ms):7.2f} ms"
        if series.generator_cpu:
            line += f"  generator {median(series.generator_cpu) * 100:3.0f} %"
            line += f"  leader {median(series.server_cpu) * 100:3.0f} %"
        if series.failures:
            line += f"  FAILED {series.failures}"
        lines.append(line)
    if row in _ONLY_KVNODE:
        return [*lines, "  etcd has nothing like it"]
    ours = [series for series in found if series.system == "kvnode"]
    others = [series for series in found if series.system != "kvnode"]
    if ours:
        lines += _verdicts(row, ours[0], others)
    for series in ours[1:]:
        lines += _like_with_like(series, others)
    return lines


def _like_with_like(ours: Series, others: list[Series]) -> list[str]:
    """kvnode behind another's front, beside that system behind the same."""
    lines = []
    for other in others:
        if other.front == ours.front and median(other.values):
            ratio = median(ours.values) / median(other.values)
            met = "met" if ratio > 1 else "NOT MET"
            lines.append(f"  kvnode {ours.front} is {ratio:.2f} × {other.system} {other.front}; aim > 1.00: {met}")
    return lines


def _beside_rest(results: Results, found: list[Series]) -> list[str]:
    """What compaction costs: the same puts without it."""
    lines = []
    for series in found:
        rest = results.series.get(("put64", series.system, series.front)) if series.row == "compact64" else None
        if rest is not None and median(rest.values) and median(rest.p99_ms):
            slower = median(series.p99_ms) / median(rest.p99_ms)
            lines.append(
                f"  {series.system} {series.front}: p99 {slower:.2f} × that of put64, "
                f"throughput {median(series.values) / median(rest.values):.2f} ×"
            )
    return lines


def _verdicts(row: str, ours: Series, others: list[Series]) -> list[str]:
    lines = []
    aims = {front: (factor, more) for front, factor, more in _AIMS.get(row, ())}
    for other in others:
        ratio = median(ours.values) / median(other.values) if median(other.values) else float("inf")
        line = f"  kvnode is {ratio:.2f} × {other.system} {other.front}"
        if other.front in aims:
            factor, more = aims[other.front]
            met = ratio >= factor if more else ratio <= factor
            line += f"; aim {'≥' if more else '≤'} {factor:.2f}: {'met' if met else 'NOT MET'}"
        lines.append(line)
    if row == "idle":
        met = median(ours.values) < _IDLE_AIM_PERCENT
        lines.append(f"  aim < {_IDLE_AIM_PERCENT:g} %: {'met' if met else 'NOT MET'}")
    return lines


def _figure(number: float, unit: str) -> str:
    digits = 0 if unit == "/s" or abs(number) >= 100 else 3 if 0 < abs(number) < 0.1 else 1
    return f"{number:,.{digits}f}{'' if unit == '/s' else ' ' if unit else ''}{unit}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
