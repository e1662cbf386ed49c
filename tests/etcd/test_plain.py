"""What is served beside the API: the version, health, metrics by the names that dashboards read."""

from __future__ import annotations

import re

import pytest

from tests.etcd.target import Target
from tests.etcd.words import b64

METRICS = [
    *("process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"),
    *("etcd_server_has_leader", "etcd_server_is_leader", "etcd_server_is_learner", "etcd_server_id"),
    *("etcd_server_version", "etcd_cluster_version", "etcd_server_leader_changes_seen_total"),
    *("etcd_server_proposals_committed_total", "etcd_server_proposals_applied_total"),
    *("etcd_server_proposals_pending", "etcd_server_proposals_failed_total"),
    *("etcd_server_heartbeat_send_failures_total", "etcd_server_quota_backend_bytes"),
    *("etcd_server_health_success", "etcd_server_health_failures"),
    *("etcd_disk_wal_fsync_duration_seconds_bucket", "etcd_disk_wal_fsync_duration_seconds_sum"),
    *("etcd_disk_backend_commit_duration_seconds_bucket", "etcd_disk_backend_commit_duration_seconds_sum"),
    *("etcd_mvcc_db_total_size_in_bytes", "etcd_mvcc_db_total_size_in_use_in_bytes"),
    *("etcd_mvcc_put_total", "etcd_mvcc_delete_total", "etcd_debugging_mvcc_watcher_total"),
    *("etcd_debugging_mvcc_current_revision", "etcd_debugging_mvcc_compact_revision"),
]
"""What both have. Of what only one of the two counts the other has no name."""
LATER = {"etcd_debugging_mvcc_current_revision", "etcd_debugging_mvcc_compact_revision"}
"""Not in every version of etcd."""
_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{[^}]*\})? (\S+)$")


def samples(target: Target) -> dict[str, list[float]]:
    """Every name on `/metrics` with its values."""
    answer = target.http("GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain")
    found: dict[str, list[float]] = {}
    for line in answer.body.decode().splitlines():
        if line and not line.startswith("#"):
            matched = _SAMPLE.match(line)
            assert matched is not None, line
            found.setdefault(matched[1], []).append(float(matched[3]))
    return found


def test_the_version_is_of_numbers_alone(target: Target) -> None:
    answer = target.http("GET", "/version")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    version = answer.json()
    for field in ("etcdserver", "etcdcluster"):
        assert re.fullmatch(r"\d+\.\d+\.\d+", version[field]), version
        assert tuple(map(int, version[field].split("."))) >= (3, 4, 0)
    server, cluster = version["etcdserver"].split("."), version["etcdcluster"].split(".")
    assert cluster == [*server[:2], "0"]


def test_health(target: Target) -> None:
    for path in ("/health", "/health?serializable=true", "/health?exclude=NOSPACE"):
        answer = target.http("GET", path)
        assert answer.status == 200, answer
        body = answer.json()
        assert body.pop("reason", "") == ""
        assert body == {"health": "true"}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_health_is_for_get_only(target: Target, method: str) -> None:
    answer = target.http(method, "/health", b"{}")
    assert answer.status == 405
    assert "GET" in answer.headers["allow"]


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_probes(target: Target, path: str) -> None:
    answer = target.http("GET", path)
    if answer.status == 404 and not target.is_kvnode:
        pytest.skip(f"etcd {target.version} has no {path}: they came with 3.4.29 and 3.5.11")
    assert answer.status == 200


def test_metrics_have_the_names_that_dashboards_read(target: Target, own: bytes) -> None:
    target.put(b64(own))
    missing = set(METRICS) - set(samples(target))
    assert missing <= (set() if target.is_kvnode else LATER)


def test_who_leads_is_on_the_metrics(target: Target) -> None:
    found = samples(target)
    assert found["etcd_server_has_leader"] == [1]
    assert found["etcd_server_is_leader"] == [0 if target.name == "kvnode-follower" else 1]
    assert found["etcd_server_is_learner"] == [0]


def test_writes_are_counted(target: Target, own: bytes) -> None:
    """At the member that has been asked."""
    names = ("etcd_server_proposals_applied_total", "etcd_server_proposals_committed_total", "etcd_mvcc_put_total")
    before = samples(target)
    target.put(b64(own))
    target.range(key=b64(own))  # linearizable: the put has been applied here
    after = samples(target)
    for name in names:
        assert after[name][0] > before[name][0], name
