"""The benchmark runs from start to end on a real cluster; what it measures here means nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvnode.bench import report
from kvnode.bench.cluster import KvnodeCluster
from kvnode.bench.kvnode_front import KVNODE_HTTP
from kvnode.bench.rounds import Plan, System, run

pytestmark = pytest.mark.system


def _make(home: Path) -> KvnodeCluster:
    return KvnodeCluster(home, 3, {"storage.allow_unsafe_filesystem": True})


async def test_a_tiny_run(tmp_path: Path) -> None:
    plan = Plan(
        ("put64", "get64", "past64", "keepalive64", "lock16", "watch10", "failover1", "idle", "memory"),
        rounds=1,
        warm_up_s=0.1,
        measure_s=0.3,
        idle_s=0.3,
        kills=1,
        preload=100,
    )
    systems = [System("kvnode", "0", _make, (KVNODE_HTTP,))]
    results = await run(plan, systems, tmp_path / "data", lambda _: None)
    assert [row for row, _, _ in results.series] == [
        *("idle", "put64", "get64", "past64", "keepalive64", "lock16", "watch10", "memory", "failover1")
    ]
    for series in results.series.values():
        assert series.failures == 0, series
        assert series.row == "idle" or min(series.values) > 0, series
    assert "put, 64 in flight" in report.text(results, plan, systems)
    assert list((tmp_path / "data").iterdir()) == []
