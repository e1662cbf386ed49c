"""The benchmarks run from start to end on real clusters; what they measure here means nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvnode.bench import report
from kvnode.bench.cluster import KvnodeCluster
from kvnode.bench.kvnode_front import KVNODE_HTTP
from kvnode.bench.large import growth
from kvnode.bench.large import report as large_report
from kvnode.bench.large import run as large
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


async def test_a_large_store_that_is_tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "_PREPARED", 1_000)
    plan = large.Plan(
        keys=500,
        few_keys=20,
        many_keys=300,
        seconds=0.2,
        growth_rounds=1,
        restarts=1,
        settle_s=0.1,
        load_limit_s=30.0,
    )
    systems = [System("kvnode", "0", _make, (KVNODE_HTTP,))]
    found = await large.run(plan, systems, tmp_path / "data", lambda _: None)
    of_kvnode = {row for row, system in found.found if system == "kvnode"}
    assert {"load_rate", "txns_rate", "private_memory", "disk", "restart_node", "restart_cluster_all"} <= of_kvnode
    assert {"learner_seconds", "learner_snapshots", "learner_p99_before", "learner_p99_meanwhile"} <= of_kvnode
    assert {("put1_p50", "few"), ("put64_p99", "many")} <= found.found.keys()
    assert all(row in large_report.ROWS for row, _ in found.found)
    may_be_none = ("repeated", "elections", "failed_before", "failed_meanwhile")
    too_short_for = ("cpu_leader", "cpu_follower")
    for figure in found.found.values():
        assert min(figure.values) > 0 or figure.row.endswith(may_be_none + too_short_for), figure
    text = large_report.text(found, plan, systems)
    assert "many is" in text
    assert "aim ≤ 1,500: " in text
    assert large_report.as_json(found, plan, systems)["plan"]["keys"] == 500
    assert list((tmp_path / "data").iterdir()) == []
