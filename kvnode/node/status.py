"""Status: one read-only view of the node, the same for /v1/status, metrics, dashboards and the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import msgspec

from kvnode.clocks import hybrid
from kvnode.config import Config
from kvnode.ids import NOBODY
from kvnode.kv.interface import PeerProgress, Status
from kvnode.machine.machine import StateMachine
from kvnode.node.applier import Applier
from kvnode.node.driver import Driver
from kvnode.node.facts import FactLog
from kvnode.node.log_writer import LogWriter
from kvnode.node.member_view import MemberView
from kvnode.node.ports import LinkInfo, Transport
from kvnode.node.snapshots import Snapshots
from kvnode.node.waiting_list import WaitingList
from kvnode.node.watches import Watches
from kvnode.raft.core import Raft
from kvnode.raft.messages import Configuration
from kvnode.raft.quorum import majority
from kvnode.version import __version__


class NodeIdentity(msgspec.Struct, frozen=True):
    """What the node knows of itself that no core keeps."""

    cluster_id: int
    initial: Configuration  # the members of the first start, or as they were when this node joined
    client_url: str
    free_bytes: Callable[[], int]  # on the data directory's file system
    alarms: Callable[[], tuple[str, ...]]
    feature_level: int  # what this node claims to know
    boot: int  # counts the starts of this directory: ids that peers hold are never used again by a later life


def build(
    *,
    config: Config,
    identity: NodeIdentity,
    view: MemberView,
    raft: Raft,
    machine: StateMachine,
    driver: Driver,
    transport: Transport,
    log_bytes: int,
    ready: bool,
    now_ms: int,
    started_ms: int,
    alarms: Iterable[str],
    short_of_space: bool,
    corrupted: bool,
) -> Status:
    """Cheap enough to be asked once a second. `alarms`: what other parts of the node have to say."""
    links = transport.links()
    voters = raft.configuration.voters
    reachable = sum(1 for voter in voters if voter == raft.node or voter in driver.connected)
    refused = [f"peer {link.peer}: {link.refused}" for link in links.values() if link.refused]
    hangs = ["a write to the log hangs"] if driver.disk_stalled else []
    return Status(
        id=raft.node,
        name=config.name,
        cluster_id=f"{identity.cluster_id:016x}",
        role=raft.role,
        term=raft.term,
        leader=raft.leader if raft.leader != NOBODY else None,
        commit_index=raft.commit_index,
        applied_index=machine.applied_index,
        durable_index=raft.durable_index,
        last_index=raft.last_index,
        revision=machine.revision,
        compact_revision=machine.compact_revision,
        hybrid_time=hybrid.to_text(machine.applied_time),
        swept_revision=machine.swept_revision,
        logical_bytes=machine.logical_bytes,
        history_bytes=machine.history_bytes,
        state_hash=machine.digest.hex(),
        members=view.infos(raft.configuration),
        configuration_index=raft.configuration_index,
        peers=_progress(raft, links, now_ms),
        quorum={"voters": len(voters), "needed": majority(len(voters)), "reachable": reachable},
        wal_bytes=log_bytes,
        store_bytes=machine.backend.bytes_used,
        free_bytes=identity.free_bytes(),
        queue_length=driver.queue.length,
        alarms=(*identity.alarms(), *refused, *alarms, *hangs),
        ready=ready,
        quarantined=raft.is_quarantined,
        version=__version__,
        uptime_ms=now_ms - started_ms,
        short_of_space=short_of_space,
        corrupted=corrupted,
    )


def _progress(raft: Raft, links: Any, now_ms: int) -> tuple[PeerProgress, ...]:
    """Replication as the leader sees it; empty elsewhere."""
    if raft.role != "leader":
        return ()
    found = []
    for peer, progress in sorted(raft.progress.items()):
        link: LinkInfo | None = links.get(peer)
        state: Literal["probe", "replicate", "snapshot"] = progress.state
        found.append(
            PeerProgress(
                id=peer,
                match_index=progress.match_index,
                next_index=progress.next_index,
                state=state,
                in_flight=progress.in_flight,
                last_contact_ms=raft.last_contact_ms(peer, now_ms),
                connected=link is not None and link.connected,
                reconnects=max(0, link.epoch - 1) if link is not None else 0,
            )
        )
    return tuple(found)


def counters(
    *,
    raft: Raft,
    machine: StateMachine,
    driver: Driver,
    writer: LogWriter,
    applier: Applier,
    waiting: WaitingList,
    watches: Watches,
    facts: FactLog,
    snapshots: Snapshots,
    free_bytes: int,
    scrub_passes: int,
    traffic: Mapping[str, int],
    log_bytes: int,
    proposals: int,
    proposals_failed: int,
    lease_reads: int,
    wall_ms: int,
) -> dict[str, Any]:
    """Plain numbers and histograms by metric name; the table in `kvnode.observe.metrics` describes each."""
    return {
        "kvnode_is_leader": int(raft.role == "leader"),
        "kvnode_has_leader": int(raft.leader != NOBODY),
        "kvnode_leader_changes_total": facts.leader_changes,
        "kvnode_term": raft.term,
        "kvnode_commit_index": raft.commit_index,
        "kvnode_applied_index": machine.applied_index,
        "kvnode_durable_index": raft.durable_index,
        "kvnode_revision": machine.revision,
        "kvnode_compact_revision": machine.compact_revision,
        "kvnode_swept_revision": machine.swept_revision,
        "kvnode_logical_bytes": machine.logical_bytes,
        "kvnode_history_bytes": machine.history_bytes,
        "kvnode_puts_total": machine.puts,
        "kvnode_deletes_total": machine.deletes,
        "kvnode_versions_removed_total": machine.versions_removed,
        "kvnode_proposals_total": proposals,
        "kvnode_proposals_failed_total": proposals_failed,
        "kvnode_proposals_pending": len(waiting),
        "kvnode_queue_length": driver.queue.length,
        "kvnode_queue_bytes": driver.queue.bytes_used,
        "kvnode_loop_lag_seconds": driver.loop_lag_seconds,
        "kvnode_wal_fsync_seconds": writer.fsync_seconds,
        "kvnode_wal_batch_entries": writer.batch_entries,
        "kvnode_commit_seconds": applier.commit_seconds,
        "kvnode_flush_seconds": applier.flush_seconds,
        "kvnode_wal_bytes": log_bytes,
        "kvnode_wal_scrubs_total": scrub_passes,
        "kvnode_is_quarantined": int(raft.is_quarantined),
        "kvnode_hybrid_ahead_seconds": max(0, hybrid.wall_part_ms(machine.applied_time) - wall_ms) / 1e3,
        "kvnode_stamps_refused_total": raft.stamps_refused,
        "kvnode_clock_jumps_total": raft.clock_jumps,
        "kvnode_store_bytes": machine.backend.bytes_used,
        "kvnode_recent_bytes": machine.recent_bytes,
        "kvnode_sessions": len(machine.exactly_once.sessions),
        "kvnode_session_answers_bytes": machine.exactly_once.sessions.bytes_used,
        "kvnode_idempotency_keys": len(machine.exactly_once.keys),
        "kvnode_repeated_writes_total": machine.exactly_once.repeats,
        "kvnode_read_index_seconds": driver.reads.round_seconds,
        "kvnode_lease_reads_total": lease_reads,
        "kvnode_watches": watches.open,
        "kvnode_watch_pages_total": watches.pages_read,
        "kvnode_watches_cancelled_total": watches.cancelled,
        "kvnode_heartbeats_late_total": driver.heartbeats_late,
        "kvnode_peer_messages_sent_total": _both_lanes(traffic, "messages_sent"),
        "kvnode_peer_messages_received_total": _both_lanes(traffic, "messages_received"),
        "kvnode_peer_messages_dropped_total": _both_lanes(traffic, "messages_dropped"),
        "kvnode_snapshots_sent_total": snapshots.sender.sent,
        "kvnode_snapshots_installed_total": snapshots.receiver.received,
        "kvnode_snapshots_sent_bytes_total": traffic.get("bytes_sent_snapshot", 0),
        "kvnode_log_first_index": raft.base.index + 1,
        "kvnode_members": len(raft.configuration.voters) + len(raft.configuration.learners),
        "kvnode_free_bytes": free_bytes,
        "kvnode_peer_reconnects_total": traffic.get("reconnects", 0),
    }


def _both_lanes(traffic: Mapping[str, int], what: str) -> int:
    return traffic.get(f"{what}_control", 0) + traffic.get(f"{what}_data", 0)
