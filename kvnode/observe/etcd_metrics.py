"""The names under which dashboards and alerts for etcd find the numbers that a node counts anyway.

What a node does not count has no name here. `ALIASES` are kvnode's own metrics once more; `OWN` come from the etcd API
itself, in part by a label that holds what etcd puts there.
"""

from __future__ import annotations

from collections.abc import Mapping

from kvnode.observe.metrics import BY_NAME, MetricDeclaration, Value, render

ALIASES: Mapping[str, str] = {
    "etcd_server_has_leader": "kvnode_has_leader",
    "etcd_server_is_leader": "kvnode_is_leader",
    "etcd_server_leader_changes_seen_total": "kvnode_leader_changes_total",
    "etcd_server_proposals_committed_total": "kvnode_commit_index",
    "etcd_server_proposals_applied_total": "kvnode_applied_index",
    "etcd_server_proposals_pending": "kvnode_proposals_pending",
    "etcd_server_proposals_failed_total": "kvnode_proposals_failed_total",
    "etcd_server_heartbeat_send_failures_total": "kvnode_heartbeats_late_total",
    "etcd_disk_wal_fsync_duration_seconds": "kvnode_wal_fsync_seconds",
    "etcd_disk_backend_commit_duration_seconds": "kvnode_flush_seconds",
    "etcd_mvcc_db_total_size_in_bytes": "kvnode_store_bytes",
    "etcd_mvcc_db_total_size_in_use_in_bytes": "kvnode_logical_bytes",
    "etcd_network_peer_sent_failures_total": "kvnode_peer_messages_dropped_total",
    "etcd_debugging_mvcc_current_revision": "kvnode_revision",
    "etcd_debugging_mvcc_compact_revision": "kvnode_compact_revision",
    "etcd_debugging_mvcc_watcher_total": "kvnode_watches",
    "etcd_mvcc_put_total": "kvnode_puts_total",
    "etcd_mvcc_delete_total": "kvnode_deletes_total",
}

OWN: tuple[MetricDeclaration, ...] = (
    MetricDeclaration("etcd_server_id", "gauge", "", "1, for this member's id in hexadecimal.", "server_id"),
    MetricDeclaration(
        "etcd_server_version", "gauge", "", "1, for the version of etcd's API that is served.", "server_version"
    ),
    MetricDeclaration("etcd_cluster_version", "gauge", "", "1, for what every member can do.", "cluster_version"),
    MetricDeclaration("etcd_server_is_learner", "gauge", "", "1 while this node has no vote."),
    MetricDeclaration("etcd_server_quota_backend_bytes", "gauge", "bytes", "Setting `storage.quota_bytes`."),
    MetricDeclaration(
        "etcd_server_health_success", "gauge", "", "Answers of `/health` that were good, since the start."
    ),
    MetricDeclaration("etcd_server_health_failures", "gauge", "", "Others."),
    MetricDeclaration(
        "etcd_debugging_mvcc_watch_stream_total", "gauge", "", "Streams of `/v3/watch`, whatever watches each has."
    ),
)

DECLARED: Mapping[str, MetricDeclaration] = {
    declared.name: declared
    for declared in (
        *(
            MetricDeclaration(name, BY_NAME[own].kind, BY_NAME[own].unit, f"The same as `{own}`.", BY_NAME[own].label)
            for name, own in ALIASES.items()
        ),
        *OWN,
    )
}


def render_as_etcd(values: Mapping[str, Value], own: Mapping[str, Value]) -> bytes:
    """Prometheus text. `values`: kvnode's, those left out that are not there; `own`: those of `OWN`."""
    found = {name: values[source] for name, source in ALIASES.items() if source in values}
    return render({**found, **own}, DECLARED)
