"""Report: the table of a large store, with ratios and aims, and the same as JSON."""

from __future__ import annotations

import dataclasses
from statistics import median
from typing import Any

from kvnode.bench.large.figures import Figure, Figures
from kvnode.bench.large.run import Plan
from kvnode.bench.report import environment
from kvnode.bench.rounds import System
from kvnode.bench.workloads import VALUE_BYTES

ROWS = {
    "load_rate": ("load, each key a write of its own", "keys/s"),
    "load_cpu_leader": ("  processor time, leader", "µs/key"),
    "load_cpu_follower": ("  processor time, follower", "µs/key"),
    "load_repeated": ("  batches refused and sent again", ""),
    "txns_rate": ("a tenth more, 128 keys a transaction", "keys/s"),
    "txns_cpu_leader": ("  processor time, leader", "µs/key"),
    "txns_cpu_follower": ("  processor time, follower", "µs/key"),
    "txns_repeated": ("  transactions refused and sent again", ""),
    "private_memory": ("memory per node, private", "MiB"),
    "mapped_memory": ("  mapped files, the kernel's to take back", "MiB"),
    "resident_memory": ("  resident in all", "MiB"),
    "disk": ("disk per node", "MiB"),
    "learner_seconds": ("a fourth node with nothing started: has what was committed then", "s"),
    "learner_speed": ("  keys and values", "MiB/s"),
    "learner_snapshots": ("  snapshots it took over", ""),
    "learner_elections": ("  elections meanwhile", ""),
    **{
        f"learner_{what}_{when}": (f"  put, 4 in flight, {when}: {what}", unit)
        for when in ("before", "meanwhile")
        for what, unit in (("rate", "/s"), ("p50", "ms"), ("p99", "ms"), ("failed", ""))
    },
    "restart_node": ("one node killed and started: first linearizable read", "ms"),
    "restart_cluster": ("all killed and started: first linearizable read", "ms"),
    "restart_cluster_all": ("  and on every node", "ms"),
    **{
        f"put{in_flight}_{what}": (title.format(in_flight), unit)
        for in_flight in (1, 64)
        for what, title, unit in (
            ("rate", "put, {} in flight", "/s"),
            ("p50", "  p50", "ms"),
            ("p99", "  p99", "ms"),
            ("flush", "  a flush to the store", "ms"),
        )
    },
}
"""Row → (title, unit)."""

_AGAINST_ETCD = {"load_rate": (2.0, True), "private_memory": (0.25, False)}
_AGAINST_FEW = {"put1_p50": 1.3, "put1_p99": 1.3, "put64_p50": 1.3, "put64_p99": 1.3}
_ABSOLUTE = {"restart_node": 1500.0, "restart_cluster": 1500.0}
"""Aims: (factor, whether more is better) of etcd's; at most that times few keys'; at most so many."""


def text(figures: Figures, plan: Plan, competitors: list[System]) -> str:
    names = ", ".join(f"{system.name} {system.version}" for system in competitors)
    lines = [
        f"{names}; three nodes each unless said otherwise, fsync on, one machine",
        ", ".join(f"{name} {found}" for name, found in environment().items()),
        f"{plan.keys:,} keys with values of {VALUE_BYTES} random bytes, in scattered order, through the leader",
        f"few: {plan.few_keys:,} keys, many: {plan.many_keys:,} keys, in {plan.growth_nodes} node(s)",
        "",
    ]
    for row, (title, unit) in ROWS.items():
        found = [figure for figure in figures.found.values() if figure.row == row]
        if found:
            lines += [f"{title}{f' ({unit})' if unit else ''}", *map(_line, found), *_verdicts(row, found), ""]
    return "\n".join(lines)


def as_json(figures: Figures, plan: Plan, competitors: list[System]) -> dict[str, Any]:
    return {
        "environment": environment(),
        "systems": {system.name: system.version for system in competitors},
        "plan": dataclasses.asdict(plan),
        "figures": [
            {**dataclasses.asdict(figure), "median": median(figure.values), "unit": ROWS[figure.row][1]}
            for figure in figures.found.values()
        ],
    }


def _line(figure: Figure) -> str:
    low, high = min(figure.values), max(figure.values)
    line = f"  {figure.system:8}{_number(median(figure.values)):>12}"
    return line + (f"  ({_number(low)} to {_number(high)})" if len(figure.values) > 1 else "")


def _verdicts(row: str, found: list[Figure]) -> list[str]:
    by_system = {figure.system: median(figure.values) for figure in found}
    lines = []
    for ours, theirs in (("kvnode", "etcd"), ("many", "few")):
        if by_system.get(theirs) and ours in by_system:
            ratio = by_system[ours] / by_system[theirs]
            lines.append(f"  {ours} is {ratio:.2f} × {theirs}{_aim(row, theirs, ratio)}")
    if row in _ABSOLUTE and "kvnode" in by_system:
        lines.append(f"  aim ≤ {_ABSOLUTE[row]:,.0f}: {_met(by_system['kvnode'] <= _ABSOLUTE[row])}")
    return lines


def _aim(row: str, theirs: str, ratio: float) -> str:
    if theirs == "etcd" and row in _AGAINST_ETCD:
        factor, more = _AGAINST_ETCD[row]
        return f"; aim {'≥' if more else '≤'} {factor:.2f}: {_met(ratio >= factor if more else ratio <= factor)}"
    if theirs == "few" and row in _AGAINST_FEW:
        return f"; aim ≤ {_AGAINST_FEW[row]:.2f}: {_met(ratio <= _AGAINST_FEW[row])}"
    return ""


def _met(met: bool) -> str:
    return "met" if met else "NOT MET"


def _number(number: float) -> str:
    return f"{number:,.{1 if abs(number) < 100 else 0}f}"
