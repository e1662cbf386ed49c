"""Swarm: what one seed's world is like, drawn before it begins.

First which faults are on at all, each with even odds, as a run with every fault at once hides what needs the absence of
one; then how bad they are, from wide and skewed ranges; then the cluster's shape, its settings and its clients. Tiny
segments, batches, windows and caches make rare paths common.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvnode import perturb
from kvnode.raft.leader_lease import RATE_BOUND
from kvnode.sim.disk import FsyncFailure
from kvnode.sim.runtime.available_clients import PlaneMix
from kvnode.sim.runtime.workload import WEIGHTS, Mix

KIB = 1 << 10
BEYOND_THE_RATE_BOUND = ("drift", "freeze")
"""Faults that leader leases are not made for."""

CHURNING = 0.4
"""Share of worlds in which members come and go."""

CHURN = (
    "add_member",
    "remove_member",
    "remove_leader",
    "replace_member",
    "move_member",
    "restart_removed",
    "upgrade",
)

WITH_PLANE = 1 / 3
"""Share of worlds whose members gossip, and serve what needs no quorum."""

NOT_WITH_CHURN = ("bit_rot", "wiped", "foreign", "other_limits", "old_backup", "cloned")
"""What takes a good copy away for good: which minority may be lost so is a matter of who the members are."""


@dataclass(frozen=True)
class World:
    """See the module docstring; times in seconds."""

    size: int
    settings: dict[str, object]
    faults: tuple[str, ...]
    mix: Mix
    lasts_s: float
    calm_s: tuple[float, float]  # between two faults
    heals: float  # chance that a fault is mended before the next
    delay_s: tuple[float, float]
    disk_delay_s: float
    fsync_failure: FsyncFailure
    drift: float  # clocks run at 1 ± this
    skew_s: float
    shuffles: bool
    has_churn: bool  # members come and go
    old_level: float  # share of the first members that claim an older feature level until they are upgraded
    block_bytes: int  # of a snapshot; small, so that there are many
    plane: PlaneMix | None  # who uses what needs no quorum; None: members have no such thing
    in_etcds_words: float  # share of the requests that are asked in them
    perturbed: dict[str, float]  # points of `kvnode.perturb` that are on, and how often each strikes


def draw(fork: Callable[[str], random.Random], faults: Sequence[str]) -> World:
    """One world."""
    rng = fork("swarm")
    settings = _settings(fork("settings"))
    by_lease = bool(settings["raft.leader_lease_reads"])
    if by_lease:
        faults = [kind for kind in faults if kind not in BEYOND_THE_RATE_BOUND]
    on = tuple(kind for kind in faults if kind not in CHURN and rng.random() < 0.5)
    churn = fork("churn")
    has_churn = churn.random() < CHURNING
    if has_churn:
        on = tuple(kind for kind in on if kind not in NOT_WITH_CHURN) + tuple(k for k in CHURN if churn.random() < 0.7)
    timeout_s = float(str(settings["raft.election_timeout_ms"])) / 1e3
    return World(
        size=rng.choice((1, 2, 3, 3, 3, 3, 3, 4, 5, 5, 7)),
        settings=settings,
        faults=on or tuple(faults),
        mix=dataclasses.replace(_mix(fork("mix")), holders=fork("holders").choice((0, 0, 1, 3))),
        lasts_s=rng.choice((4.0, 6.0, 10.0)),
        calm_s=rng.choice(((0.02, 0.2), (0.05, 0.6), (0.3, 1.5))),
        heals=rng.choice((0.2, 0.5, 0.9)),
        delay_s=rng.choice(((0.0002, 0.001), (0.0002, 0.001), (0.0002, 0.01), (timeout_s / 100, timeout_s / 12))),
        disk_delay_s=rng.choice((0.0002, 0.0005, 0.0005, 0.004, 0.02)),
        fsync_failure=_fsync_failure(rng.choice(list(FsyncFailure)), has_churn=has_churn),
        drift=min(rng.choice((0.0, 0.0, 0.02, 0.1, 0.3)), RATE_BOUND / 100 if by_lease else 1.0),
        skew_s=rng.choice((0.0, 1.0, 1e6)),
        shuffles=rng.random() < 0.8,
        has_churn=has_churn,
        old_level=churn.choice((0.0, 0.0, 0.5, 1.0)) if has_churn else 0.0,
        block_bytes=churn.choice((64 * KIB, KIB, 200)),
        plane=_plane(fork("plane")),
        in_etcds_words=fork("etcd").choice((0.0, 0.0, 0.3, 1.0)),
        perturbed=_perturbed(fork("perturb")),
    )


def _plane(rng: random.Random) -> PlaneMix | None:
    if rng.random() >= WITH_PLANE:
        return None
    return PlaneMix(
        writers=rng.choice((1, 2, 3)),
        pause_s=rng.choice((0.1, 0.2, 0.4)),
        keys=rng.choice((1, 2, 5)),
        readers=rng.choice((0, 1, 2)),
        stable_readers=rng.choice((0, 1, 2)),
        tokens=rng.choice((0.0, 0.5, 1.0)),
        roams=rng.choice((0.05, 0.3, 1.0)),
        damages=rng.choice((0.0, 0.0, 0.3)),
        is_mute=rng.random() < 0.1,
    )


def _fsync_failure(drawn: FsyncFailure, *, has_churn: bool) -> FsyncFailure:
    return FsyncFailure.CLEAN_OLD if has_churn and drawn is FsyncFailure.LATE else drawn


def _perturbed(rng: random.Random) -> dict[str, float]:
    """Which points are on, each with even odds in half of the worlds, and how often they strike."""
    if rng.random() < 0.5:
        return {}
    return {point: rng.choice((0.01, 0.1, 0.5)) for point in perturb.POINTS if rng.random() < 0.5}


def _settings(rng: random.Random) -> dict[str, object]:
    timeout_ms = rng.choice((150, 300, 300, 600))
    return {
        "raft.election_timeout_ms": timeout_ms,
        "raft.heartbeat_ms": timeout_ms // rng.choice((3, 4, 6, 6)),
        "raft.commit_note_ms": rng.choice((0, 2, 2, 20)),
        "raft.append_bytes_max": rng.choice((KIB, 4 * KIB, KIB * KIB)),
        "raft.window_messages_max": rng.choice((1, 2, 64, 64)),
        "raft.window_bytes_max": rng.choice((KIB, 16 * KIB, 4 * KIB * KIB)),
        "raft.log_cache_bytes": rng.choice((64 * KIB, 64 * KIB, 16 * KIB * KIB)),
        "storage.segment_bytes": rng.choice((8 * KIB, 8 * KIB, 16 * KIB, 64 * KIB)),
        "storage.batch_bytes_max": rng.choice((4 * KIB, 4 * KIB, 64 * KIB)),
        "storage.flush_versions": rng.choice((1, 5, 50, 10_000)),
        "storage.flush_ms": rng.choice((10, 100, 1_000)),
        "storage.backend": rng.choice(("lmdb", "lmdb", "lmdb", "memory")),
        "storage.stall_ms": rng.choice((200, 1_000)),
        "storage.abort_ms": 3_000,
        "storage.scrub_bytes_per_s": rng.choice((64 * KIB, KIB * KIB)),
        "storage.free_bytes_min": rng.choice((0, 32 * KIB)),
        "limits.queue_items_max": rng.choice((16, 32_768, 32_768)),
        "limits.page_items": rng.choice((2, 1_000)),
        "limits.no_leader_ms": rng.choice((300, 1_500)),
        "limits.sessions_max": rng.choice((1, 3, 10_000, 10_000)),
        "limits.session_answers_max": rng.choice((1, 4, 16_384, 16_384)),
        "limits.idempotency_keys_max": rng.choice((3, 65_536, 65_536)),
        "limits.idempotency_ms": rng.choice((1_000, 600_000)),
        "raft.clock_drift_ms": rng.choice((20, 500, 500, 10_000)),
        "raft.leader_lease_reads": rng.choice((False, False, True)),
        "history.retention_ms": rng.choice((0, 86_400_000, 86_400_000, 500)),
        "history.budget_bytes": rng.choice((2 * KIB * KIB * KIB, 2 * KIB * KIB * KIB, 2 * KIB)),
        "history.compact_revisions": rng.choice((1, 10, 10_000)),
        "history.compact_ms": rng.choice((100, 1_000)),
        "history.sweep_changes": rng.choice((1, 10, 512)),
        "storage.tail_bytes": rng.choice((0, 0, 16 * KIB, 128 * KIB * KIB)),
        "storage.check_every_s": rng.choice((0, 1, 1)),
        "peer.snapshot_bytes_per_s": rng.choice((64 * KIB, 64 * KIB * KIB)),
    }


def _mix(rng: random.Random) -> Mix:
    clients = rng.randint(2, 9)
    per_second = rng.choice((10, 20, 20, 40, 100))
    return Mix(
        clients=clients,
        pause_s=clients / per_second,
        keys=rng.choice((1, 3, 5, 5)),
        conditional=rng.choice((0.0, 0.4, 0.8)),
        padding=rng.choice((0, 0, 300, 2_000)),
        roams=rng.choice((0.0, 0.1, 0.5)),
        timeouts_ms=rng.choice(((50, 300, 2_000), (300, 2_000), (2_000,))),
        watchers=rng.choice((0, 1, 3, 8)),
        weights=rng.choice((WEIGHTS, {**WEIGHTS, "compact": 1})),
    )
