"""Failure detector: one member is probed in each interval, in a shuffled round, so each is within a bounded time.

A probe: a direct ping; without an answer within the probe timeout, `helpers` other members are asked to ping it and
an exchange by HTTP is tried; without any answer by the end of the interval, it has failed. The interval and the
timeout are stretched by the local health. A helper that gets no answer says so (`Nack`), so that whoever asked can
tell a dead member from its own bad hearing: missing nacks count against itself.

This file keeps the probe under way, and what is relayed for others; a probe that failed is an accusation (`hearsay`).
Source: SWIM §3.1, §4.3 (round-robin); Lifeguard §4.1.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from kvnode.gossip.hearsay import Hearsay
from kvnode.gossip.local_health import LocalHealth
from kvnode.gossip.membership import Entry, MemberTable
from kvnode.gossip.messages import Ack, Nack, Ping, PingReq
from kvnode.gossip.outbox import Outbox
from kvnode.gossip.output import DatagramsBlocked
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
        self,
        *,
        settings: GossipSettings,
        table: MemberTable,
        health: LocalHealth,
        hearsay: Hearsay,
        outbox: Outbox,
        rng: random.Random,
        now: int,
    ) -> None:
        self._settings = settings
        self._table = table
        self._health = health
        self._hearsay = hearsay
        self._outbox = outbox
        self._rng = rng
        self._seq = rng.getrandbits(32)  # an answer to an earlier life of this node answers nothing
        self._round: list[NodeId] = []
        self._relays: dict[int, Relay] = {}  # by the sequence number of our ping
        self._probe: Probe | None = None
        self._next_probe_ms = now + rng.randrange(settings.probe_interval_ms)  # members do not probe in step
        self.begun = self.failed = 0  # for metrics
        self._is_stopped = False

    def next_seq(self) -> int:
        self._seq += 1
        return self._seq

    # ── the probe ───────────────────────────────────────────────────────────────────────────────────

    def on_added(self, member: NodeId) -> None:
        """A new member comes somewhere into what is left of the round."""
        self._round.insert(self._rng.randint(0, len(self._round)), member)

    def stop(self) -> None:
        """This node leaves: it probes nobody any more."""
        self._probe = None
        self._is_stopped = True

    def on_tick(self, now: int, now_ms: int) -> None:
        """`now`: the node's lived time, as everywhere in this file; `now_ms`: the instant shown to others."""
        probe = self._probe
        if probe is not None and now >= probe.ends_ms:
            self._probe = None
            if not probe.has_answer:
                self.failed += 1
                self._health.change(_missed(probe))
                self._hearsay.accuse(probe.target, probe.number, now, now_ms)
        elif probe is not None and not probe.has_answer and not probe.is_indirect and now >= probe.helpers_at_ms:
            self._go_indirect(probe)
        if self._probe is None and now >= self._next_probe_ms and not self._is_stopped:
            self._begin(now)
        for seq in [seq for seq, relay in self._relays.items() if relay.nack_at_ms <= now]:
            relay = self._relays.pop(seq)
            self._outbox.send(relay.asker, Nack(relay.target, relay.asker_seq))

    def on_ack(self, sender: NodeId, ack: Ack, now: int, *, is_fallback: bool) -> bool:
        """An answer, to a ping of this node's own or, False, to one for somebody else, who gets it."""
        relay = self._relays.get(ack.seq)
        if relay is not None and relay.target == ack.member:
            del self._relays[ack.seq]
            self._outbox.send(relay.asker, Ack(relay.target, relay.asker_seq))
            return False
        probe = self._probe
        if probe is None or (probe.seq, probe.target) != (ack.seq, ack.member) or probe.has_answer:
            return True
        probe.has_answer = True
        self._health.change(-1)
        entry = self._table.get(probe.target)
        if sender == probe.target and entry is not None:
            self._note_way(entry, probe, now, is_fallback=is_fallback)
        return True

    def _note_way(self, entry: Entry, probe: Probe, now: int, *, is_fallback: bool) -> None:
        """By which way the target itself has answered, and how soon."""
        if is_fallback and not entry.is_blocked:
            entry.is_blocked = True
            self._outbox.output.facts.append(DatagramsBlocked(probe.target))
        elif not is_fallback and not probe.is_indirect:
            entry.is_blocked = False
            entry.on_rtt(now - probe.sent_ms)

    def on_nack(self, sender: NodeId, nack: Nack) -> None:
        """A helper has no answer."""
        probe = self._probe
        if probe is not None and (probe.seq, probe.target) == (nack.seq, nack.target) and sender in probe.helpers:
            probe.nacks[sender] = None

    def _begin(self, now: int) -> None:
        """The next probe, if there is anybody to probe; either way an interval begins."""
        ends_ms = now + self._health.stretch(self._settings.probe_interval_ms)
        self._next_probe_ms = ends_ms
        entry = self._next_target()
        if entry is None:
            return
        helpers_at_ms = now + self._health.stretch(self._settings.probe_timeout_ms)
        target, seq = entry.rumor.member, self.next_seq()
        self._probe = Probe(target, entry.rumor.number, seq, now, helpers_at_ms, ends_ms)
        self.begun += 1
        self._outbox.send(target, Ping(target, seq))

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

    def _go_indirect(self, probe: Probe) -> None:
        """By helpers, of those believed alive, and by HTTP."""
        probe.is_indirect = True
        others = [id_ for id_ in self._table.alive() if id_ != probe.target]
        probe.helpers = tuple(self._rng.sample(others, min(self._settings.helpers, len(others))))
        for helper in probe.helpers:
            self._outbox.send(helper, PingReq(probe.target, probe.seq))
        self._outbox.send(probe.target, Ping(probe.target, probe.seq), is_fallback=True)

    # ── for others ──────────────────────────────────────────────────────────────────────────────────

    def on_request(self, asker: NodeId, target: NodeId, asker_seq: int, now: int) -> None:
        """`asker` wants `target` pinged; if there is room, and it is not under way already, it is."""
        if self._table.get(target) is None or len(self._relays) >= RELAYS_MAX:
            return
        if any((relay.asker, relay.asker_seq) == (asker, asker_seq) for relay in self._relays.values()):
            return
        seq = self.next_seq()
        nack_at_ms = now + int(NACK_PART * self._settings.probe_timeout_ms)
        self._relays[seq] = Relay(asker, asker_seq, target, nack_at_ms)
        self._outbox.send(target, Ping(target, seq))

    def forget(self, member: NodeId) -> None:
        """`member` is no member any more: nothing is asked of it or answered to it."""
        if self._probe is not None and self._probe.target == member:
            self._probe = None
        for seq in [seq for seq, relay in self._relays.items() if member in (relay.asker, relay.target)]:
            del self._relays[seq]

    @property
    def deadline_ms(self) -> int:
        first = self._next_probe_ms if self._probe is None else self._probe.deadline_ms
        return min([first, *(relay.nack_at_ms for relay in self._relays.values())])


def _missed(probe: Probe) -> int:
    """What a failed probe says about this node's own hearing: nacks that did not come; 1 if nobody could help."""
    return len(probe.helpers) - len(probe.nacks) if probe.helpers else 1
