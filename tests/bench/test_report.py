from __future__ import annotations

import tomllib
from pathlib import Path

from kvnode.bench import report
from kvnode.bench.cluster import KvnodeCluster
from kvnode.bench.rounds import ROWS, Plan, Results, System
from kvnode.config import load


def _results() -> Results:
    results = Results(lambda _: None)
    for ours, theirs in ((700.0, 1000.0), (800.0, 900.0), (900.0, 1100.0)):
        for system, front, number in (("kvnode", "http", ours), ("etcd", "grpc", theirs)):
            series = results.add("put64", system, front, number, "")
            series.p50_ms.append(1.0)
            series.p99_ms.append(2.0)
            series.generator_cpu.append(0.1)
            series.server_cpu.append(0.5)
    for system, front, gap in (("kvnode", "http", 600.0), ("etcd", "grpc", 1500.0)):
        results.add("failover1", system, front, gap, "")
    results.add("idle", "kvnode", "node", 1.5, "")
    return results


def _systems() -> list[System]:
    return [System("kvnode", "1", KvnodeCluster, ()), System("etcd", "3", KvnodeCluster, ())]


def test_the_table_shows_medians_ranges_and_whether_the_aim_is_met() -> None:
    text = report.text(_results(), Plan(ROWS), _systems())
    assert "800/s  (700 to 900)" in text
    assert "kvnode is 0.80 × etcd grpc; aim ≥ 0.70: met" in text
    assert "kvnode is 0.40 × etcd grpc; aim ≤ 0.33: NOT MET" in text
    assert "aim < 3 %: met" in text


def test_the_cost_of_compaction_is_shown_beside_the_same_puts_without_it() -> None:
    results = _results()
    series = results.add("compact64", "kvnode", "http", 400.0, "")
    series.p50_ms.append(2.0)
    series.p99_ms.append(5.0)
    series.generator_cpu.append(0.1)
    series.server_cpu.append(0.5)
    text = report.text(results, Plan(ROWS), _systems())
    assert "kvnode http: p99 2.50 × that of put64, throughput 0.50 ×" in text


def test_behind_the_same_front_like_is_compared_with_like() -> None:
    results = _results()
    for system, number in (("kvnode", 300.0), ("etcd", 200.0)):
        results.add("put64", system, "json", number, "")
    text = report.text(results, Plan(ROWS), _systems())
    assert "kvnode json is 1.50 × etcd json; aim > 1.00: met" in text
    assert "kvnode is 4.00 × etcd json; aim ≥ 1.20: met" in text


def test_the_json_holds_every_measurement() -> None:
    found = report.as_json(_results(), Plan(ROWS), _systems())
    series = {(one["row"], one["system"]): one for one in found["series"]}
    assert series["put64", "kvnode"]["values"] == [700.0, 800.0, 900.0]
    assert series["put64", "kvnode"]["median"] == 800.0
    assert found["systems"] == {"kvnode": "1", "etcd": "3"}


def test_generated_configuration_is_accepted(tmp_path: Path) -> None:
    cluster = KvnodeCluster(tmp_path, 3, {"raft.heartbeat_ms": 40})
    configs = [load(cluster.config_file(node), environment={}) for node in cluster.ids]
    assert [config.node.id for config in configs] == [1, 2, 3]
    assert configs[0].cluster_scope() == configs[2].cluster_scope()
    assert configs[0].raft.heartbeat_ms == 40
    cluster.write_config(1, node__name="other")
    assert tomllib.loads(cluster.config_file(1).read_text())["node"]["name"] == "other"


def test_rows_that_etcd_has_nothing_for_say_so() -> None:
    results = Results(lambda _: None)
    series = results.add("converge", "kvnode", "http", 1.5, "")
    series.p50_ms.append(1.5)
    series.p99_ms.append(9.0)
    results.add("gossip100_cpu", "kvnode", "core", 0.015, "")
    text = report.text(results, Plan(ROWS), _systems())
    assert "p50    1.50 ms  p99    9.00 ms" in text
    assert "0.015 %" in text
    assert text.count("etcd has nothing like it") == 2
