"""Metrics: every one declared once, counted as plain numbers, rendered only when somebody asks.

The hot path bumps ints and `Histogram` buckets owned by the loop; no lock, no label look-up. A scrape hands
the numbers to prometheus_client through a collector of its own, which writes the text format. No label ever
holds a key or a client, so the number of series is fixed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

Kind = Literal["counter", "gauge", "histogram"]

SECONDS_BOUNDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip


class Histogram:
    """Observations counted by bucket. Owned by one thread; a reader of another sees whole ints."""

    __slots__ = ("bounds", "buckets", "total")

    def __init__(self, bounds: tuple[float, ...] = SECONDS_BOUNDS) -> None:
        self.bounds = bounds  # ascending upper bounds, inclusive; one more bucket takes the rest
        self.buckets = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.buckets[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    @property
    def count(self) -> int:
        return sum(self.buckets)


Value = float | Histogram | Mapping[str, float]
"""A number, a histogram, or numbers by the value of the metric's one label."""


class MetricDeclaration(msgspec.Struct, frozen=True):
    name: str
    kind: Kind
    unit: str
    sentence: str
    label: str = ""


DECLARED: tuple[MetricDeclaration, ...] = (
    MetricDeclaration("kvnode_is_leader", "gauge", "", "1 while this node is the leader."),
    MetricDeclaration("kvnode_has_leader", "gauge", "", "1 while this node knows a leader."),
    MetricDeclaration("kvnode_leader_changes_total", "counter", "", "Changes of leader this node has seen."),
    MetricDeclaration("kvnode_term", "gauge", "", "Current term."),
    MetricDeclaration("kvnode_commit_index", "gauge", "", "Highest log index known to be committed."),
    MetricDeclaration("kvnode_applied_index", "gauge", "", "Highest log index applied to the store."),
    MetricDeclaration("kvnode_durable_index", "gauge", "", "Highest log index synced to this node's disk."),
    MetricDeclaration("kvnode_revision", "gauge", "", "Revision of this node's applied state."),
    MetricDeclaration("kvnode_compact_revision", "gauge", "", "Oldest revision that can be read; 0: all can."),
    MetricDeclaration("kvnode_swept_revision", "gauge", "", "History given up below it has been removed."),
    MetricDeclaration("kvnode_logical_bytes", "gauge", "", "Keys and values of all versions, and 64 for each."),
    MetricDeclaration("kvnode_history_bytes", "gauge", "", "Of these, what only readers of the past can see."),
    MetricDeclaration("kvnode_puts_total", "counter", "", "Versions that this node has applied."),
    MetricDeclaration("kvnode_deletes_total", "counter", "", "Deletions of a key that it has applied."),
    MetricDeclaration("kvnode_versions_removed_total", "counter", "", "Versions removed by compaction."),
    MetricDeclaration("kvnode_proposals_total", "counter", "", "Writes this node has proposed."),
    MetricDeclaration(
        "kvnode_proposals_failed_total", "counter", "", "Proposed writes that were not answered with ok."
    ),
    MetricDeclaration("kvnode_proposals_pending", "gauge", "", "Writes proposed and not yet answered."),
    MetricDeclaration("kvnode_queue_length", "gauge", "", "Inputs waiting in the update queue."),
    MetricDeclaration("kvnode_queue_bytes", "gauge", "bytes", "Bytes of proposals waiting in the update queue."),
    MetricDeclaration("kvnode_loop_lag_seconds", "histogram", "seconds", "How late the event loop ran a timer."),
    MetricDeclaration(
        "kvnode_wal_fsync_seconds", "histogram", "seconds", "Duration of one write and fdatasync of the log."
    ),
    MetricDeclaration("kvnode_wal_batch_entries", "histogram", "", "Entries made durable by one fdatasync."),
    MetricDeclaration("kvnode_commit_seconds", "histogram", "seconds", "From a proposal to its application."),
    MetricDeclaration(
        "kvnode_read_index_seconds", "histogram", "seconds", "From asking for a read index to its confirmation."
    ),
    MetricDeclaration(
        "kvnode_lease_reads_total", "counter", "", "Reads answered under the leader's lease, without asking a majority."
    ),
    MetricDeclaration("kvnode_wal_bytes", "gauge", "bytes", "Size of the log on disk."),
    MetricDeclaration(
        "kvnode_hybrid_ahead_seconds",
        "gauge",
        "seconds",
        "How far the newest applied entry is ahead of the wall clock.",
    ),
    MetricDeclaration(
        "kvnode_stamps_refused_total", "counter", "", "Appends not taken whole: stamped beyond `raft.clock_drift_ms`."
    ),
    MetricDeclaration("kvnode_clock_jumps_total", "counter", "", "Jumps of this node's wall clock beyond that limit."),
    MetricDeclaration("kvnode_wal_scrubs_total", "counter", "", "Times all sealed segments of the log were re-read."),
    MetricDeclaration("kvnode_is_quarantined", "gauge", "", "1 while this node has lost acknowledged entries."),
    MetricDeclaration("kvnode_store_bytes", "gauge", "bytes", "Size of the store on disk."),
    MetricDeclaration("kvnode_recent_bytes", "gauge", "bytes", "Versions in memory that the store does not hold yet."),
    MetricDeclaration("kvnode_sessions", "gauge", "", "Sessions that clients number their writes under."),
    MetricDeclaration("kvnode_session_answers_bytes", "gauge", "bytes", "Memory for the stored answers of sessions."),
    MetricDeclaration("kvnode_idempotency_keys", "gauge", "", "Idempotency-Keys whose answers are stored."),
    MetricDeclaration(
        "kvnode_repeated_writes_total", "counter", "", "Named writes answered without being executed (again)."
    ),
    MetricDeclaration("kvnode_flush_seconds", "histogram", "seconds", "Duration of one flush of recent versions."),
    MetricDeclaration("kvnode_peer_messages_sent_total", "counter", "", "Messages handed to peer connections."),
    MetricDeclaration("kvnode_peer_messages_received_total", "counter", "", "Messages received from peers."),
    MetricDeclaration(
        "kvnode_peer_messages_dropped_total", "counter", "", "Messages dropped: link down or queue full."
    ),
    MetricDeclaration("kvnode_snapshots_sent_total", "counter", "", "Snapshots that followers have taken over."),
    MetricDeclaration("kvnode_snapshots_installed_total", "counter", "", "Snapshots that became this node's store."),
    MetricDeclaration("kvnode_snapshots_sent_bytes_total", "counter", "", "Bytes of snapshots sent to peers."),
    MetricDeclaration("kvnode_log_first_index", "gauge", "", "The first entry the log still holds."),
    MetricDeclaration("kvnode_members", "gauge", "", "Members of the configuration in force, learners included."),
    MetricDeclaration("kvnode_free_bytes", "gauge", "bytes", "Free bytes of the data directory's file system."),
    MetricDeclaration("kvnode_peer_reconnects_total", "counter", "", "Peer connections made after the first."),
    MetricDeclaration(
        "kvnode_heartbeats_late_total", "counter", "", "Heartbeats that left later than twice their interval."
    ),
    MetricDeclaration("kvnode_gossip_packets_sent_total", "counter", "", "Datagrams of gossip sent."),
    MetricDeclaration(
        "kvnode_gossip_packets_received_total", "counter", "", "Datagrams received, whatever was in them."
    ),
    MetricDeclaration("kvnode_gossip_packets_sent_bytes_total", "counter", "", "Their bytes, without UDP's headers."),
    MetricDeclaration("kvnode_gossip_packets_received_bytes_total", "counter", "", "Bytes of those received."),
    MetricDeclaration(
        "kvnode_gossip_packets_dropped_total",
        "counter",
        "",
        "Not sent (no address, socket full), unreadable, of no member in its newest start, or come before.",
        "reason",
    ),
    MetricDeclaration("kvnode_gossip_exchanges_total", "counter", "", "Exchanges by HTTP this node has begun."),
    MetricDeclaration("kvnode_gossip_exchanges_failed_total", "counter", "", "Of these, those without a good answer."),
    MetricDeclaration("kvnode_gossip_exchange_sent_bytes_total", "counter", "", "Bytes sent, as asker and answerer."),
    MetricDeclaration("kvnode_gossip_exchange_received_bytes_total", "counter", "", "Bytes received, likewise."),
    MetricDeclaration("kvnode_gossip_probes_total", "counter", "", "Probes of other members."),
    MetricDeclaration("kvnode_gossip_probes_failed_total", "counter", "", "Of these, those answered by no way."),
    MetricDeclaration("kvnode_gossip_probes_by_http_total", "counter", "", "Probes that went by HTTP, too."),
    MetricDeclaration("kvnode_gossip_pulls_total", "counter", "", "Times this node asked another for what it lacks."),
    MetricDeclaration("kvnode_gossip_pulls_failed_total", "counter", "", "Of these, those that were broken off."),
    MetricDeclaration("kvnode_gossip_pull_pages_total", "counter", "", "Pages that pulls have brought."),
    MetricDeclaration("kvnode_gossip_suspicions_total", "counter", "", "Members held suspect, by whomever."),
    MetricDeclaration("kvnode_gossip_refutations_total", "counter", "", "Accusations of this node it has taken back."),
    MetricDeclaration("kvnode_gossip_members", "gauge", "", "Members as gossip sees them.", "status"),
    MetricDeclaration(
        "kvnode_gossip_health_score", "gauge", "", "0: this node hears well; up to 7: it accuses that much later."
    ),
    MetricDeclaration("kvnode_ap_keys", "gauge", "", "Keys of the always-writable keyspace that have a value."),
    MetricDeclaration("kvnode_ap_tombstones", "gauge", "", "Deleted keys that not every member is known to have."),
    MetricDeclaration("kvnode_ap_siblings", "gauge", "", "Values that stand beside another one of their key."),
    MetricDeclaration("kvnode_ap_logical_bytes", "gauge", "bytes", "Keys, values and contexts of that keyspace."),
    MetricDeclaration("kvnode_ap_writes_total", "counter", "", "Its writes that this node took and made durable."),
    MetricDeclaration("kvnode_ap_writes_pending", "gauge", "", "Writes taken and not durable yet."),
    MetricDeclaration("kvnode_ap_reads_waiting", "gauge", "", "Reads that wait for a write another node took."),
    MetricDeclaration("kvnode_ap_conflicts_total", "counter", "", "Changes that left a key with several values."),
    MetricDeclaration(
        "kvnode_ap_blind_writes_refused_total", "counter", "", "Writes without context to keys with too many values."
    ),
    MetricDeclaration("kvnode_events", "gauge", "", "Events of the timeline held, of all members."),
    MetricDeclaration("kvnode_events_logical_bytes", "gauge", "bytes", "Their bytes."),
    MetricDeclaration("kvnode_events_recorded_total", "counter", "", "Events of this node, its users' among them."),
    MetricDeclaration("kvnode_events_posted_total", "counter", "", "Users' events this node took and made durable."),
    MetricDeclaration("kvnode_events_dropped_total", "counter", "", "This node's own events that found no room."),
    MetricDeclaration("kvnode_events_refused_total", "counter", "", "Events of others that did not fit their origin."),
    MetricDeclaration("kvnode_events_followers", "gauge", "", "Readers that wait for events."),
    MetricDeclaration(
        "kvnode_timeline_lag",
        "gauge",
        "",
        "Lamport time that the final order is behind: it grows while a voter is silent.",
    ),
    MetricDeclaration("kvnode_lamport_time", "gauge", "", "The newest Lamport time issued or seen."),
    MetricDeclaration(
        "kvnode_lamport_times_refused_total", "counter", "", "Times that came and that no honest node sends."
    ),
    MetricDeclaration("kvnode_ap_commits_total", "counter", "", "Synced commits of the store of keys and events."),
    MetricDeclaration("kvnode_ap_commit_batches_total", "counter", "", "Batches of rows that these made durable."),
    MetricDeclaration("kvnode_ap_commit_seconds", "histogram", "seconds", "Duration of one such commit."),
    MetricDeclaration("kvnode_ap_commit_waiting_bytes", "gauge", "bytes", "Rows that wait for the one under way."),
    MetricDeclaration("kvnode_watches", "gauge", "", "Open watches."),
    MetricDeclaration(
        "kvnode_watch_pages_total", "counter", "", "Pages of the store's changes read for watches that were behind."
    ),
    MetricDeclaration(
        "kvnode_watches_cancelled_total", "counter", "", "Watches the node ended: compacted, slow or stopping."
    ),
    MetricDeclaration(
        "kvnode_http_requests_total", "counter", "", "Client requests answered, by status class.", "status"
    ),
    MetricDeclaration("kvnode_http_request_seconds", "histogram", "seconds", "From a request's head to its answer."),
    MetricDeclaration("kvnode_http_requests_in_flight", "gauge", "", "Client requests being served now."),
    MetricDeclaration("kvnode_http_connections", "gauge", "", "Open client connections."),
    MetricDeclaration("kvnode_http_malformed_total", "counter", "", "Requests refused because they were not HTTP."),
)
"""Every metric. A value under another name is a bug and fails the scrape."""

BY_NAME: dict[str, MetricDeclaration] = {declared.name: declared for declared in DECLARED}


def render(values: Mapping[str, Value], declared: Mapping[str, MetricDeclaration] = BY_NAME) -> bytes:
    """Prometheus text format of the given values. Raises: KeyError for a name that is not declared."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Values(values, declared))
    return generate_latest(registry)


def render_process() -> bytes:
    """Prometheus text of what the operating system counts of this process: memory, processor time, open files.

    The names are those of all of Prometheus' clients. Empty where there is no `/proc`.
    """
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Values(Collector):
    """One scrape's numbers, as prometheus_client wants them."""

    def __init__(self, values: Mapping[str, Value], declared: Mapping[str, MetricDeclaration]) -> None:
        self._values = values
        self._declared = declared

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        for name, value in self._values.items():
            declared = self._declared[name]
            if isinstance(value, Histogram):
                yield _histogram(declared, value)
            else:
                yield _number(declared, value)


def _number(declared: MetricDeclaration, value: float | Mapping[str, float]) -> Metric:
    family: CounterMetricFamily | GaugeMetricFamily
    labels = [declared.label] if declared.label else []
    if declared.kind == "counter":
        family = CounterMetricFamily(declared.name, declared.sentence, labels=labels)
    else:
        assert declared.kind == "gauge", declared
        family = GaugeMetricFamily(declared.name, declared.sentence, labels=labels)
    if isinstance(value, Mapping):
        for label, number in value.items():
            family.add_metric([label], number)
    else:
        family.add_metric([], value)
    return family


def _histogram(declared: MetricDeclaration, value: Histogram) -> Metric:
    assert declared.kind == "histogram", declared
    counts = list(value.buckets)  # copied first: the loop goes on counting
    buckets: list[tuple[str, float]] = []
    running = 0
    for bound, count in zip((*map(str, value.bounds), "+Inf"), counts, strict=True):
        running += count
        buckets.append((bound, running))
    family = HistogramMetricFamily(declared.name, declared.sentence)
    family.add_metric([], buckets=buckets, sum_value=value.total)
    return family
