"""What the available plane counts, by metric name; the table in `kvnode.observe.metrics` describes each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, get_args

from kvnode.kv.available import AliveMember
from kvnode.kv.interface import AliveStatus
from kvnode.node.available_log import DurableRows
from kvnode.node.eventual import Eventual
from kvnode.node.gossip_driver import GossipDriver
from kvnode.node.story import Story

_DROPPED = {
    "unsent": "datagrams_dropped",
    "unreadable": "gossip_bad",
    "refused": "gossip_refused",
    "replayed": "gossip_replayed",
}
"""Reason → the transport's counter."""


def collect(
    *,
    rows: DurableRows,
    eventual: Eventual,
    story: Story,
    driver: GossipDriver,
    members: Iterable[AliveMember],
) -> dict[str, Any]:
    """Plain numbers, a histogram, and numbers by the values of one label, which are few and fixed."""
    traffic = driver.traffic
    keys, facts = eventual.keyspace.counts(), driver.facts
    events, event_bytes = story.timeline.counts
    by_status = Counter(member.status for member in members)
    probes, failed_probes = driver.gossip.probes
    return {
        "kvnode_gossip_packets_sent_total": traffic.get("datagrams_sent", 0),
        "kvnode_gossip_packets_received_total": traffic.get("datagrams_received", 0),
        "kvnode_gossip_packets_sent_bytes_total": traffic.get("datagram_bytes_sent", 0),
        "kvnode_gossip_packets_received_bytes_total": traffic.get("datagram_bytes_received", 0),
        "kvnode_gossip_packets_dropped_total": {why: traffic.get(name, 0) for why, name in _DROPPED.items()},
        "kvnode_gossip_exchanges_total": traffic.get("exchanges_sent", 0),
        "kvnode_gossip_exchanges_failed_total": traffic.get("exchanges_failed", 0),
        "kvnode_gossip_exchange_sent_bytes_total": traffic.get("exchange_bytes_sent", 0),
        "kvnode_gossip_exchange_received_bytes_total": traffic.get("exchange_bytes_received", 0),
        "kvnode_gossip_probes_total": probes,
        "kvnode_gossip_probes_failed_total": failed_probes,
        "kvnode_gossip_probes_by_http_total": driver.probes_by_http,
        "kvnode_gossip_pulls_total": driver.pulls,
        "kvnode_gossip_pulls_failed_total": driver.pulls_failed,
        "kvnode_gossip_pull_pages_total": driver.pages,
        "kvnode_gossip_suspicions_total": facts.get("MemberSuspected", 0),
        "kvnode_gossip_refutations_total": facts.get("Refuted", 0),
        "kvnode_gossip_members": {status: by_status[status] for status in get_args(AliveStatus)},
        "kvnode_gossip_health_score": driver.gossip.health_score,
        "kvnode_ap_keys": keys["keys"] - keys["tombstones"],
        "kvnode_ap_tombstones": keys["tombstones"],
        "kvnode_ap_siblings": keys["siblings"],
        "kvnode_ap_logical_bytes": keys["bytes"],
        "kvnode_ap_writes_total": eventual.writes,
        "kvnode_ap_writes_pending": keys["staged"],
        "kvnode_ap_reads_waiting": eventual.readers,
        "kvnode_ap_conflicts_total": eventual.conflicts,
        "kvnode_ap_blind_writes_refused_total": eventual.blind_refused,
        "kvnode_events": events,
        "kvnode_events_logical_bytes": event_bytes,
        "kvnode_events_recorded_total": story.recorded,
        "kvnode_events_posted_total": story.posted,
        "kvnode_events_dropped_total": story.dropped,
        "kvnode_events_refused_total": story.refused,
        "kvnode_events_followers": story.followers,
        "kvnode_timeline_lag": story.watermark_lag(),
        "kvnode_lamport_time": story.time(),
        "kvnode_lamport_times_refused_total": story.times_refused,
        "kvnode_ap_commits_total": rows.writes,
        "kvnode_ap_commit_batches_total": rows.submissions,
        "kvnode_ap_commit_seconds": rows.write_seconds,
        "kvnode_ap_commit_waiting_bytes": rows.waiting_bytes,
    }
