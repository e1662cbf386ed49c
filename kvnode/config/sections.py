"""The sections of the configuration: every setting with its bounds, and what must hold between them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


def _node(sentence: str, *, unit: str = "", **bounds: Any) -> Meta:
    return Meta(description=sentence, extra={"scope": "node", "unit": unit}, **bounds)


def _cluster(sentence: str, *, unit: str = "", **bounds: Any) -> Meta:
    return Meta(description=sentence, extra={"scope": "cluster", "unit": unit}, **bounds)


class NodeSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Who this node is and where it keeps its data."""

    id: Annotated[
        int,
        _node(
            "Member id of this node; stands in `cluster.members`. 0 = the one that the data directory has; so it is "
            "with `cluster.join`.",
            ge=0,
            le=1_000_000,
        ),
    ] = 1
    data_dir: Annotated[
        str, _node("Directory of log, store and identity; relative to the working directory.", min_length=1)
    ] = "data/n1"
    name: Annotated[str, _node("A name for people; `node-<id>` when empty.", max_length=64)] = ""


class ClusterSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The cluster this node belongs to."""

    name: Annotated[str, _cluster("Cluster name; must be equal on all members.", min_length=1, max_length=64)] = "local"
    members: Annotated[
        tuple[str, ...],
        _node("Initial members as `id=host:port` of their peer listeners; read at the very first start only."),
    ] = ("1=127.0.0.1:7501",)
    secret_file: Annotated[
        str,
        _node("File with the 32-byte secret that peers prove to each other; empty only for a one-node cluster."),
    ] = ""
    join: Annotated[
        tuple[str, ...],
        _node(
            "Client addresses of a cluster to join, as host:port: a new data directory is made a member there, instead "
            "of one of `cluster.members`. Later starts ignore it."
        ),
    ] = ()
    replace: Annotated[
        int, _node("With `cluster.join`: the member that goes once this node has its vote; 0 = none.", ge=0)
    ] = 0
    join_timeout_ms: Annotated[
        int, _node("A new node that the cluster has not taken in within this gives up.", unit="ms", ge=1_000)
    ] = 60_000
    feature_level_max: Annotated[
        int, _node("The feature level this node claims at most: holds a cluster back; 0 = all it knows.", ge=0)
    ] = 0


class ClientSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The listener that clients talk to."""

    listen: Annotated[str, _node("host:port clients connect to; port 0 takes a free one.")] = "127.0.0.1:7401"
    advertise: Annotated[str, _node("host:port told to clients and peers; `listen` when empty.")] = ""
    insecure: Annotated[bool, _node("Allow a listener off loopback without TLS.")] = False
    allowed_hosts: Annotated[
        tuple[str, ...],
        _node("Host names accepted in a request's Host header besides IP addresses, localhost and `advertise`."),
    ] = ()
    connections_max: Annotated[int, _node("Open client connections; further ones get 503 and are closed.", ge=1)] = (
        16_384
    )
    in_flight_max: Annotated[int, _node("Client requests being served; further ones get 429.", ge=1)] = 8_192
    head_timeout_ms: Annotated[
        int, _node("An incomplete or idle request head is closed after this.", unit="ms", ge=100)
    ] = 75_000
    body_timeout_ms: Annotated[int, _node("A request body must have arrived within this.", unit="ms", ge=100)] = 30_000


class PeerSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The listener that other nodes talk to."""

    listen: Annotated[str, _node("host:port peers connect to by TCP, and send gossip to by UDP.")] = "127.0.0.1:7501"
    advertise: Annotated[str, _node("host:port told to peers; `listen` when empty.")] = ""
    insecure: Annotated[bool, _node("Allow a peer listener off loopback without TLS.")] = False
    reconnect_ms_min: Annotated[
        int, _node("First pause before dialling a lost peer again; doubles, with jitter.", unit="ms", ge=1)
    ] = 20
    reconnect_ms_max: Annotated[int, _node("Longest pause before dialling a lost peer again.", unit="ms", ge=1)] = 1_000
    handshake_timeout_ms: Annotated[int, _node("A peer connection must be proven within this.", unit="ms", ge=10)] = (
        2_000
    )
    keepalive_ms: Annotated[int, _node("A peer connection that is idle sends a ping this often.", unit="ms", ge=10)] = (
        1_000
    )
    silence_ms_max: Annotated[
        int, _node("A peer connection silent for longer is dead and is closed.", unit="ms", ge=20)
    ] = 3_000
    unproven_max: Annotated[
        int, _node("Connections that may wait for their handshake; further ones are closed.", ge=1)
    ] = 64
    queue_bytes_max: Annotated[
        int,
        _node(
            "Bytes queued to one peer; beyond it appends are dropped and resent later.",
            unit="bytes",
            ge=1 * MIB,
        ),
    ] = 16 * MIB
    message_bytes_max: Annotated[int, _cluster("Largest message on a peer connection.", unit="bytes", ge=1 * MIB)] = (
        4 * MIB
    )
    snapshot_bytes_per_s: Annotated[
        int, _node("Bytes of snapshots sent a second, to all peers together.", unit="bytes", ge=64 * KIB)
    ] = 64 * MIB

    def __post_init__(self) -> None:
        if self.reconnect_ms_min > self.reconnect_ms_max:
            raise ValueError("peer.reconnect_ms_min must not exceed peer.reconnect_ms_max")
        if self.keepalive_ms * 2 > self.silence_ms_max:
            raise ValueError("peer.silence_ms_max must be at least twice peer.keepalive_ms")


class RaftSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Timing and flow control of the replicated log. `profile` sets the timing for a kind of network."""

    profile: Annotated[
        Literal["lan", "wan"],
        _cluster("`lan`: 50/300 ms. `wan`: heartbeat 250 ms, election timeout 2 500 ms."),
    ] = "lan"
    heartbeat_ms: Annotated[
        int, _cluster("Leader's heartbeat interval; 0 = from the profile.", unit="ms", ge=0, le=60_000)
    ] = 0
    election_timeout_ms: Annotated[
        int,
        _cluster(
            "T: a follower campaigns after a silence drawn from [T, 2T); also stickiness and CheckQuorum; 0 = profile.",
            unit="ms",
            ge=0,
            le=600_000,
        ),
    ] = 0
    append_bytes_max: Annotated[
        int,
        _cluster("Entry bytes in one append message; a larger entry goes alone.", unit="bytes", ge=1 * KIB),
    ] = 1 * MIB
    window_messages_max: Annotated[int, _cluster("Append messages in flight to one follower.", ge=1)] = 64
    window_bytes_max: Annotated[int, _cluster("Entry bytes in flight to one follower.", unit="bytes", ge=1 * KIB)] = (
        4 * MIB
    )
    commit_note_ms: Annotated[
        int,
        _node(
            "A follower that waits for nothing hears of a new commit index with the next append, or after this; "
            "0 = at once.",
            unit="ms",
            ge=0,
            le=1_000,
        ),
    ] = 2
    uncommitted_bytes_max: Annotated[
        int,
        _cluster("Bytes the leader holds uncommitted; beyond it proposals get 429.", unit="bytes", ge=1 * MIB),
    ] = 64 * MIB
    log_cache_bytes: Annotated[
        int,
        _node("Entries kept in memory for followers; older ones are read from disk.", unit="bytes", ge=64 * KIB),
    ] = 16 * MIB
    clock_drift_ms: Annotated[
        int,
        _cluster(
            "Entries, tokens and times further ahead of a node's wall clock are refused; clocks must agree within it.",
            unit="ms",
            ge=1,
            le=86_400_000,
        ),
    ] = 500
    leader_lease_reads: Annotated[
        bool,
        _cluster(
            "The leader answers linearizable reads without asking a majority while none of it may elect another; right "
            "only as long as no clock runs more than 10 % fast or slow. Failover then waits for T."
        ),
    ] = False
    leader_lost_ms_min: Annotated[
        int,
        _cluster("Shortest wait before campaigning once the leader's port refuses connections.", unit="ms", ge=1),
    ] = 10
    leader_lost_ms_max: Annotated[
        int,
        _cluster("Longest wait before campaigning once the leader's port refuses connections.", unit="ms", ge=2),
    ] = 50

    def __post_init__(self) -> None:
        heartbeat, timeout = (50, 300) if self.profile == "lan" else (250, 2_500)
        msgspec.structs.force_setattr(self, "heartbeat_ms", self.heartbeat_ms or heartbeat)
        msgspec.structs.force_setattr(self, "election_timeout_ms", self.election_timeout_ms or timeout)
        if self.heartbeat_ms * 3 > self.election_timeout_ms:
            raise ValueError(
                f"raft.heartbeat_ms ({self.heartbeat_ms}) must be at most a third of "
                f"raft.election_timeout_ms ({self.election_timeout_ms})"
            )
        if self.leader_lost_ms_min >= self.leader_lost_ms_max:
            raise ValueError("raft.leader_lost_ms_min must be below raft.leader_lost_ms_max")


class GossipSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How members find out who is alive, without a leader. Nothing here touches votes, terms or leases."""

    probe_interval_ms: Annotated[
        int, _node("One member is probed in each interval; stretched while this node hears badly.", unit="ms", ge=20)
    ] = 1_000
    probe_timeout_ms: Annotated[
        int, _node("A probe without an answer for this long goes by helpers and by HTTP, too.", unit="ms", ge=10)
    ] = 500
    helpers: Annotated[int, _node("Members asked to probe for this node.", ge=0, le=16)] = 3
    gossip_interval_ms: Annotated[int, _node("Between two rounds of telling what is new.", unit="ms", ge=10)] = 200
    fanout: Annotated[int, _node("Members told in a round.", ge=1, le=16)] = 3
    suspicion_factor: Annotated[
        int, _node("A suspect has so many probe intervals, or more in a large group, to refute.", ge=1, le=100)
    ] = 4
    push_pull_ms: Annotated[
        int, _node("Whole tables of members are exchanged with one of them this often.", unit="ms", ge=100)
    ] = 30_000

    def __post_init__(self) -> None:
        if self.probe_timeout_ms >= self.probe_interval_ms:
            raise ValueError("gossip.probe_timeout_ms must be below gossip.probe_interval_ms")


class StorageSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The log, the store and the disk under them."""

    backend: Annotated[
        Literal["lmdb", "memory"],
        _node("`memory` keeps no store on disk: the whole log is replayed at start."),
    ] = "lmdb"
    stall_ms: Annotated[int, _node("A leader whose fsync is in flight for longer steps down.", unit="ms", ge=10)] = (
        1_000
    )
    abort_ms: Annotated[
        int,
        _node("The process exits when an fsync of the log or a commit to the store takes longer.", unit="ms", ge=100),
    ] = 30_000
    segment_bytes: Annotated[int, _node("Size of one log segment.", unit="bytes", ge=8 * KIB, le=4 * GIB)] = 64 * MIB
    batch_bytes_max: Annotated[
        int, _node("Most bytes written to the log before one fsync.", unit="bytes", ge=4 * KIB)
    ] = 8 * MIB
    flush_versions: Annotated[int, _node("Recent versions that start a flush to the store.", ge=1)] = 4_000
    flush_bytes: Annotated[
        int, _node("Bytes of recent versions that start a flush to the store.", unit="bytes", ge=64 * KIB)
    ] = 16 * MIB
    flush_ms: Annotated[int, _node("Recent versions are flushed at least this often.", unit="ms", ge=10)] = 1_000
    recent_bytes_max: Annotated[
        int,
        _node("Recent versions in memory; at the bound applying waits for the flush.", unit="bytes", ge=1 * MIB),
    ] = 64 * MIB
    map_bytes: Annotated[int, _node("LMDB map size: address space, not memory.", unit="bytes", ge=16 * MIB)] = 64 * GIB
    tail_bytes: Annotated[
        int,
        _node(
            "Log kept for followers that are a little behind, once the store has it; who is further behind gets a "
            "snapshot.",
            unit="bytes",
            ge=0,
        ),
    ] = 128 * MIB
    scrub_every_s: Annotated[
        int, _node("Old log segments are verified this often; 0 = never.", unit="s", ge=0, le=31_536_000)
    ] = 3_600
    scrub_bytes_per_s: Annotated[
        int, _node("Log bytes verified a second, while it goes on.", unit="bytes", ge=64 * KIB)
    ] = 1 * MIB
    check_every_s: Annotated[
        int, _node("As leader, have all members compare their states this often; 0 = never.", unit="s", ge=0, le=86_400)
    ] = 60
    quota_bytes: Annotated[
        int, _cluster("Logical bytes the store may hold; beyond it writes get 507.", unit="bytes", ge=1 * MIB)
    ] = 8 * GIB
    free_bytes_min: Annotated[int, _node("Free disk space below which writes get 507.", unit="bytes", ge=0)] = 256 * MIB
    allow_unsafe_filesystem: Annotated[
        bool, _node("Start even on tmpfs, ramfs or a network file system, where fsync may promise nothing.")
    ] = False


class LimitsSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What one request may cost. Equal on all members."""

    key_bytes_max: Annotated[int, _cluster("Longest key.", unit="bytes", ge=1, le=64 * KIB)] = 4 * KIB
    value_bytes_max: Annotated[int, _cluster("Longest value.", unit="bytes", ge=1)] = 1 * MIB
    request_bytes_max: Annotated[int, _cluster("Longest request body.", unit="bytes", ge=1 * KIB)] = 1536 * KIB
    txn_operations_max: Annotated[int, _cluster("Compares, and operations of each list, of a transaction.", ge=1)] = 128
    batch_operations_max: Annotated[int, _cluster("Operations in one batch.", ge=1)] = 1_024
    page_items: Annotated[int, _cluster("Keys in a listing page unless asked otherwise.", ge=1)] = 1_000
    page_items_max: Annotated[int, _cluster("Most keys in a listing page.", ge=1)] = 10_000
    page_bytes_max: Annotated[
        int, _cluster("Most key and value bytes in a listing page.", unit="bytes", ge=64 * KIB)
    ] = 8 * MIB
    delete_keys_max: Annotated[int, _cluster("Keys one command may delete; above it 413.", ge=1)] = 100_000
    leases_max: Annotated[int, _cluster("Leases at one time; beyond it 429.", ge=1)] = 100_000
    lease_keys_max: Annotated[int, _cluster("Keys that one lease holds; above it 413.", ge=1)] = 100_000
    session_ttl_ms: Annotated[
        int, _cluster("A session that is not used for so long ends, unless it asked otherwise.", unit="ms", ge=1_000)
    ] = 3_600_000
    sessions_max: Annotated[int, _cluster("Sessions; beyond it the one used longest ago ends.", ge=1)] = 10_000
    session_answers_max: Annotated[
        int, _cluster("Answers kept for one session until it acknowledges them; beyond it 429.", ge=1)
    ] = 16_384
    answers_bytes_max: Annotated[
        int,
        _cluster(
            "Memory for the answers of all sessions; beyond it the session used longest ago ends, and one that has "
            "half of it gets 429. As much again for those of Idempotency-Keys; beyond it 429.",
            unit="bytes",
            ge=64 * KIB,
        ),
    ] = 64 * MIB
    idempotency_ms: Annotated[
        int, _cluster("The answer of an Idempotency-Key is kept for so long.", unit="ms", ge=1_000)
    ] = 600_000
    idempotency_keys_max: Annotated[int, _cluster("Idempotency-Keys kept; beyond it 429.", ge=1)] = 65_536
    queue_items_max: Annotated[int, _node("Proposals in the update queue; beyond it 429.", ge=16)] = 32_768
    queue_bytes_max: Annotated[
        int, _node("Proposal bytes in the update queue; beyond it 429.", unit="bytes", ge=1 * MIB)
    ] = 64 * MIB
    timeout_ms: Annotated[int, _node("A request's deadline unless it names one.", unit="ms", ge=1)] = 5_000
    timeout_ms_max: Annotated[int, _node("Longest deadline a request may name.", unit="ms", ge=1)] = 60_000
    no_leader_ms: Annotated[int, _node("A request that finds no leader for this long gets 503.", unit="ms", ge=1)] = (
        1_500
    )
    watches_max: Annotated[int, _node("Open watches; beyond it 429.", ge=1)] = 10_000
    watch_buffer_bytes: Annotated[
        int, _node("What a watch may have sent that its client has not read.", unit="bytes", ge=4 * KIB)
    ] = 1 * MIB
    watch_stall_ms: Annotated[
        int, _node("A watch whose full buffer does not shrink for this long is cancelled as slow.", unit="ms", ge=1)
    ] = 10_000
    json_depth_max: Annotated[int, _cluster("Nesting depth of a JSON body.", ge=4, le=128)] = 32
    shutdown_ms: Annotated[int, _node("A clean shutdown takes at most this.", unit="ms", ge=100)] = 5_000

    def __post_init__(self) -> None:
        if self.page_items > self.page_items_max:
            raise ValueError("limits.page_items must not exceed limits.page_items_max")
        if self.value_bytes_max > self.request_bytes_max:
            raise ValueError("limits.value_bytes_max must not exceed limits.request_bytes_max")
        if self.timeout_ms > self.timeout_ms_max:
            raise ValueError("limits.timeout_ms must not exceed limits.timeout_ms_max")


class HistorySection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How much of the past is kept, and how it is given up."""

    retention_ms: Annotated[
        int, _cluster("States older than this are given up; 0 = none for its age.", unit="ms", ge=0)
    ] = 86_400_000
    budget_bytes: Annotated[
        int, _cluster("Logical bytes of history; beyond it the oldest goes; 0 = no bound.", unit="bytes", ge=0)
    ] = 2 * GIB
    compact_revisions: Annotated[int, _cluster("Compaction is proposed once it gives up so many revisions.", ge=1)] = (
        10_000
    )
    compact_ms: Annotated[
        int, _cluster("Compaction is proposed after this if it gives up any revision at all.", unit="ms", ge=100)
    ] = 60_000
    sweep_changes: Annotated[
        int, _cluster("Changes whose rows one entry removes; up to eight times as many if far behind.", ge=1, le=10_000)
    ] = 128


class LogSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What the process tells its operator."""

    level: Annotated[Literal["debug", "info", "warning", "error"], _node("Least level that is written.")] = "info"
    format: Annotated[Literal["auto", "json", "console"], _node("`auto`: console on a terminal, JSON otherwise.")] = (
        "auto"
    )
    file: Annotated[str, _node("Write to this file instead of standard error.")] = ""
    queue_lines_max: Annotated[
        int, _node("Lines waiting to be written; further ones are dropped and counted.", ge=100)
    ] = 10_000
