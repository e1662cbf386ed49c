"""Shape: what one seed's world is like. Drawn first, from a generator of its own (swarm testing).

Every kind of trouble is either absent or present, and only then how much of it: a world with all faults at once hides
what needs one of them to be absent. Intensities are skewed towards little. Limits are often tiny: one message in
flight, one entry a message, nothing in the cache. Source: Groce et al., "Swarm Testing" (2012).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from kvnode.config import RaftSection
from kvnode.ids import NodeId
from kvnode.raft.leader_lease import RATE_BOUND
from kvnode.raft.messages import Configuration

FRACTIONS_ON = 0.5
LEASES_ON = 0.3
LIFE_ON = 0.4


def fork(seed: int, label: str) -> random.Random:
    """A generator of its own for one subsystem, so that a draw in one does not shift the others."""
    return random.Random(f"{seed}/{label}")


@dataclass
class Shape:
    """Everything that stays as it is for one run. Fractions are probabilities per message."""

    configuration: Configuration
    settings: RaftSection
    drop: float  # never arrives
    duplicate: float  # arrives twice
    bury: float  # a copy is kept, to be dug out much later
    straggle: float  # takes up to three election timeouts longer
    delay_ms: int  # at most, otherwise
    fsync_ms: int  # at most
    stall_ms: int  # a disk silent for so long is reported to its core
    drift: float  # clocks run fast or slow by up to this fraction
    ambush: float  # how often a new leader is struck at once
    faults: tuple[str, ...]  # the kinds this world knows
    fault_every_ms: int
    client_every_ms: int
    duration_ms: int  # until peace
    has_calm: bool  # trouble comes in spells, with time between them in which the cluster works
    trims: bool  # logs lose their prefix, so that followers get snapshots
    churn_every_ms: int  # members come and go; 0: they do not

    @property
    def timeout(self) -> int:
        return self.settings.election_timeout_ms

    @property
    def ids(self) -> tuple[NodeId, ...]:
        return self.configuration.voters + self.configuration.learners


def draw_shape(seed: int, faults: Sequence[str]) -> Shape:
    rng = fork(seed, "shape")
    settings = msgspec.structs.replace(
        _settings(rng),
        clock_drift_ms=fork(seed, "clocks").choice([10, 500, 500, 5_000, 20_000]),
        leader_lease_reads=fork(seed, "leases").random() < LEASES_ON,
    )
    timeout = settings.election_timeout_ms
    life = fork(seed, "life")
    voters = rng.choice([1, 2, 3, 3, 3, 3, 4, 5, 5, 7])
    learners = rng.choice([0, 0, 0, 1, 2])
    ids = [NodeId(number) for number in range(1, voters + learners + 1)]
    return Shape(
        configuration=Configuration(tuple(ids[:voters]), tuple(ids[voters:])),
        settings=settings,
        drop=_fraction(rng, 0.3),
        duplicate=_fraction(rng, 0.5),
        bury=_fraction(rng, 0.5),
        straggle=_fraction(rng, 0.2),
        delay_ms=rng.choice([1, 3, timeout // 10, timeout // 6]),
        fsync_ms=rng.choice([0, 1, 5, timeout // 8, timeout // 4]),
        stall_ms=timeout * rng.choice([1, 2, 4]) // 2,
        drift=min(rng.choice([0.0, 0.0, 0.02, 0.1, 0.3]), RATE_BOUND / 100 if settings.leader_lease_reads else 1.0),
        ambush=rng.choice([0.0, 0.0, 0.3, 0.8]),
        faults=tuple(kind for kind in faults if rng.random() < FRACTIONS_ON) or ("crash_one",),
        fault_every_ms=rng.choice([timeout // 4, timeout, 2 * timeout, 4 * timeout]),
        client_every_ms=rng.choice([10, 50, 50, timeout // 3]),
        duration_ms=timeout * rng.choice([20, 40]),
        has_calm=rng.random() < 0.85,
        trims=life.random() < LIFE_ON,
        churn_every_ms=timeout * life.choice([1, 3, 8]) if life.random() < LIFE_ON else 0,
    )


def _fraction(rng: random.Random, most: float) -> float:
    return most * rng.random() ** 3 if rng.random() < FRACTIONS_ON else 0.0


def _settings(rng: random.Random) -> RaftSection:
    timeout = rng.choice([60, 150, 300, 1_000])
    return RaftSection(
        heartbeat_ms=timeout // rng.choice([3, 4, 6]),
        election_timeout_ms=timeout,
        commit_note_ms=rng.choice([0, 2, 20]),
        append_bytes_max=rng.choice([1, 200, 1_000, 1 << 20]),
        window_messages_max=rng.choice([1, 2, 4, 64]),
        window_bytes_max=rng.choice([1, 300, 4_096, 4 << 20]),
        uncommitted_bytes_max=rng.choice([200, 2_000, 64 << 20]),
        log_cache_bytes=rng.choice([1, 500, 5_000, 16 << 20]),
        leader_lost_ms_min=1,
        leader_lost_ms_max=timeout // 6,
    )
