"""Failure detector: one member is probed in each interval, in a shuffled round, so each is within a bounded time.

A probe: a direct ping; without an answer within the probe timeout, `helpers` other members are asked to ping it and
an exchange by HTTP is tried; without any answer by the end of the interval, it has failed. The interval and the
timeout are stretched by the local health. A helper that gets no answer says so (`Nack`), so that whoever asked can
tell a dead member from its own bad hearing: missing nacks count against itself.

This file keeps the probe and what is relayed for others; `kvnode.gossip.core` sends and judges.
Source: SWIM §3.1, §4.3 (round-robin); Lifeguard §4.1.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from kvnode.gossip.local_health import LocalHealth
from kvnode.gossip.membership import Entry, MemberTable
from kvnode.gossip.settings import GossipSettings
from kvnode.ids import NodeId

RELAYS_MAX = 64
"""Pings under way on behalf of others; further ones are not made, and whoever asked gets no nack."""

NACK_PART = 0.8
"""Of the probe timeout, after which a helper says that it has no answer: early enough to arrive in time."""


@dataclass(slots=True)
class Probe:
    """The probe under way."""

    target: NodeId
    number: int  # of the target when it began: an accusation holds against that life only
    seq: int
    sent_ms: int
    helpers_at_ms: int
    ends_ms: int
    is_indirect: bool = False
    has_answer: bool = False
    helpers: tuple[NodeId, ...] = ()
    nacks: dict[NodeId, None] = field(default_factory=dict)

    @property
    def deadline_ms(self) -> int:
        return self.ends_ms if self.is_indirect or self.has_answer else self.helpers_at_ms


@dataclass(slots=True)
class Relay:
    """A ping for somebody else."""

    asker: NodeId
    asker_seq: int
    target: NodeId
    nack_at_ms: int


class FailureDetector:
    """Whom to probe next, the probe under way, and the relays."""

    def __init__(
        self, settings: GossipSettings, table: MemberTable, health: LocalHealth, rng: random.Random, now_ms: int
    ) -> None:
        self._settings = settings
        self._table = table
        self._health = health
        self._rng = rng
        self._seq = rng.getrandbits(32)  # an answer to an earlier life of this node answers nothing
        self._round: list[NodeId] = []
        self._relays: dict[int, Relay] = {}  # by the sequence number of our ping
        self.probe: Probe | None = None
        self.next_probe_ms = now_ms + rng.randrange(settings.probe_interval_ms)  # members do not probe in step

    def next_seq(self) -> int:
        self._seq += 1
        return self._seq

    # ── the probe ───────────────────────────────────────────────────────────────────────────────────

    def on_added(self, member: NodeId) -> None:
        """A new member comes somewhere into what is left of the round."""
        self._round.insert(self._rng.randint(0, len(self._round)), member)

    def begin(self, now_ms: int) -> Probe | None:
        """The next probe, if there is anybody to probe; either way an interval begins."""
        assert self.probe is None, self.probe
        ends_ms = now_ms + self._health.stretch(self._settings.probe_interval_ms)
        self.next_probe_ms = ends_ms
        entry = self._next_target()
        if entry is None:
            return None
        helpers_at_ms = now_ms + self._health.stretch(self._settings.probe_timeout_ms)
        seq = self.next_seq()
        self.probe = Probe(entry.rumor.member, entry.rumor.number, seq, now_ms, helpers_at_ms, ends_ms)
        return self.probe

    def _next_target(self) -> Entry | None:
        for is_new_round in (False, True):
            if is_new_round:
                self._round = [entry.rumor.member for entry in self._table if entry.is_here]
                self._rng.shuffle(self._round)
            while self._round:
                entry = self._table.get(self._round.pop())
                if entry is not None and entry.is_here:
                    return entry
        return None

    def choose_helpers(self, probe: Probe, alive: list[NodeId]) -> tuple[NodeId, ...]:
        """Whom to ask, of those believed alive."""
        others = [id_ for id_ in alive if id_ != probe.target]
        return tuple(self._rng.sample(others, min(self._settings.helpers, len(others))))

    def missed(self, probe: Probe) -> int:
        """What a failed probe says about this node's own hearing: nacks that did not come; 1 if nobody could help."""
        return len(probe.helpers) - len(probe.nacks) if probe.helpers else 1

    # ── for others ──────────────────────────────────────────────────────────────────────────────────

    def relay(self, asker: NodeId, asker_seq: int, target: NodeId, now_ms: int) -> int | None:
        """Sequence number of the ping to send for `asker`; None: no room, or it is under way already."""
        if len(self._relays) >= RELAYS_MAX or any(
            (relay.asker, relay.asker_seq) == (asker, asker_seq) for relay in self._relays.values()
        ):
            return None
        seq = self.next_seq()
        nack_at_ms = now_ms + int(NACK_PART * self._settings.probe_timeout_ms)
        self._relays[seq] = Relay(asker, asker_seq, target, nack_at_ms)
        return seq

    def relayed(self, seq: int, member: NodeId) -> Relay | None:
        """An answer came: whom it is for."""
        relay = self._relays.get(seq)
        return self._relays.pop(seq) if relay is not None and relay.target == member else None

    def overdue(self, now_ms: int) -> list[Relay]:
        """Relays without an answer: their askers get a nack."""
        found = [seq for seq, relay in self._relays.items() if relay.nack_at_ms <= now_ms]
        return [self._relays.pop(seq) for seq in found]

    def forget(self, member: NodeId) -> None:
        """`member` is no member any more: nothing is asked of it or answered to it."""
        if self.probe is not None and self.probe.target == member:
            self.probe = None
        for seq in [seq for seq, relay in self._relays.items() if member in (relay.asker, relay.target)]:
            del self._relays[seq]

    @property
    def deadline_ms(self) -> int:
        first = self.next_probe_ms if self.probe is None else self.probe.deadline_ms
        return min([first, *(relay.nack_at_ms for relay in self._relays.values())])
