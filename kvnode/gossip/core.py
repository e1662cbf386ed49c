"""Gossip: one node's part in knowing who is alive. Inputs and the time go in, a `GossipOutput` comes out.

    gossip.step(now_ms, Received(sender, packet))
    gossip.on_tick(now_ms)                        # at gossip.next_deadline_ms(), or at any other time
    output = gossip.take_output()                 # datagrams, exchanges, facts

What it keeps: the table (`membership`) and what it makes of rumors (`hearsay`, with `suspicion` and `dissemination`),
probes (`failure_detector`), from whom to pull (`pulls`), what is to be sent (`outbox`). This file joins
them.

- A node that stood still (was not run in time) has not observed anything meanwhile: its own time stands still, too,
  so no answer is overdue and no suspicion runs out because of it. `_lived` is that time.
- The dead are told for a while and pinged now and then for ever: a partition ends, and then somebody has to begin.

Nothing here is durable. A node that starts anew has a higher number, from its boot counter (S48).
Source: SWIM; Lifeguard; hashicorp/memberlist `state.go`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from math import ceil, log2
from typing import assert_never

import msgspec

from kvnode.gossip.failure_detector import FailureDetector
from kvnode.gossip.hearsay import Hearsay
from kvnode.gossip.local_health import LocalHealth
from kvnode.gossip.membership import MemberState, MemberTable
from kvnode.gossip.messages import (
    NUMBER_MAX,
    Ack,
    Nack,
    Packet,
    Ping,
    PingReq,
    Rumor,
    Status,
    Summary,
)
from kvnode.gossip.outbox import Outbox
from kvnode.gossip.output import (
    Answered,
    GossipFact,
    GossipInput,
    GossipOutput,
    MemberDead,
    MemberForgotten,
    MemberLearned,
    MemberLeft,
    MemberRefused,
    Pull,
    Received,
    StoodStill,
)
from kvnode.gossip.pulls import Pulls
from kvnode.gossip.settings import GossipSettings
from kvnode.ids import NodeId

BEATS_PER_NUMBER = 1 << 20

PUSH_PULL_MEMBERS = 32
"""Up to so many members tables are exchanged at the full rate; twice as many, half as often."""


class Gossip:
    """The core. `number`: boot counter × 2²⁰. All instants are `now_ms`, monotonic."""

    def __init__(
        self,
        *,
        node: NodeId,
        number: int,
        incarnation: int,
        address: str,
        settings: GossipSettings,
        rng: random.Random,
        now_ms: int,
        learn: bool = False,
    ) -> None:
        assert 0 < number < NUMBER_MAX, number
        self._node = node
        self._settings = settings
        self._rng = rng
        self._table = MemberTable(node, learn=learn)
        self._health = LocalHealth(settings.health_max)
        self._pulls = Pulls(settings, rng)
        beat = number * BEATS_PER_NUMBER
        own = Rumor(node, number, Status.ALIVE, incarnation=incarnation, address=address, beat=beat)
        self._hearsay = Hearsay(own, settings, self._table, self._health)
        self._outbox = Outbox(settings, self._table, self._hearsay)
        self._detector = FailureDetector(
            settings=settings,
            table=self._table,
            health=self._health,
            hearsay=self._hearsay,
            outbox=self._outbox,
            rng=rng,
            now=now_ms,
        )
        self._stood_ms = 0  # for how long, in all, this node was not run
        self._promised_ms = now_ms + settings.probe_interval_ms
        self._next_gossip_ms = now_ms + rng.randrange(settings.gossip_interval_ms)
        self._gossiped_ms = now_ms - settings.soon_gap_ms
        self._next_push_pull_ms = now_ms + rng.randrange(settings.probe_interval_ms)  # not all at once at a start
        self._next_contact_ms = now_ms + settings.dead_contact_ms
        self._rounds_to_tell = 0  # that our summary is new
        self._leave_by_ms: int | None = None
        self._leave_told: dict[NodeId, None] = {}

    # ── what this node is ───────────────────────────────────────────────────────────────────────────

    @property
    def own(self) -> Rumor:
        """What this node tells of itself."""
        return self._hearsay.own

    @property
    def health_score(self) -> int:
        """0: well. Higher: this node hears badly, and accuses later for it."""
        return self._health.score

    @property
    def probes(self) -> tuple[int, int]:
        """Begun, and failed of them."""
        return self._detector.begun, self._detector.failed

    def describe(
        self,
        *,
        address: str | None = None,
        client_url: str | None = None,
        role: str | None = None,
        version: str | None = None,
        applied_index: int | None = None,
        incarnation: int | None = None,
    ) -> None:
        """Tell others something new of this node; None: as it was. An applied index alone waits for the next packet."""
        own = self.own
        told = msgspec.structs.replace(
            own,
            address=own.address if address is None else address,
            client_url=own.client_url if client_url is None else client_url,
            role=own.role if role is None else role,
            version=own.version if version is None else version,
            applied_index=own.applied_index if applied_index is None else applied_index,
            incarnation=own.incarnation if incarnation is None else incarnation,
        )
        if told == own:
            return
        is_news = told != msgspec.structs.replace(own, applied_index=told.applied_index)
        told = msgspec.structs.replace(told, beat=own.beat + 1)
        if is_news:
            self._hearsay.tell(told)
        else:
            self._hearsay.own = told

    def set_summary(self, summary: Summary) -> None:
        """Goes into every packet from now on."""
        self._outbox.summary = summary

    def changed(self, now_ms: int) -> None:
        """Something local is new: a few others hear our summary soon, so that they pull."""
        now = self._lived(now_ms)
        self._rounds_to_tell = self._settings.soon_rounds
        soon = max(now + self._settings.soon_ms, self._gossiped_ms + self._settings.soon_gap_ms)
        self._next_gossip_ms = min(max(self._next_gossip_ms, now), soon)
        self._promise(now_ms)

    def set_members(self, members: Mapping[NodeId, str], now_ms: int) -> None:
        """Whom the configuration (or a seed) names, with the addresses of their peer listeners."""
        added, removed, refused = self._table.set_members(members, now_ms)
        for member in removed:
            self._forget(member)
        for member in added:
            self._detector.on_added(member)
        self._outbox.output.facts += [MemberRefused(member) for member in refused]

    # ── what others hold ────────────────────────────────────────────────────────────────────────────

    def table(self) -> tuple[MemberState, ...]:
        """All other members, by id."""
        return tuple(entry.state() for entry in sorted(self._table, key=lambda entry: entry.rumor.member))

    def member(self, member: NodeId) -> MemberState | None:
        """One row of the table."""
        entry = self._table.get(member)
        return None if entry is None else entry.state()

    def rumors(self) -> tuple[Rumor, ...]:
        """The table as an exchange carries it: this node itself, and everybody of whom anything was heard."""
        known = [entry.rumor for entry in self._table if entry.status != Status.UNKNOWN]
        return (self.own, *sorted(known, key=lambda rumor: rumor.member))

    def merge_table(self, rumors: Iterable[Rumor], now_ms: int) -> None:
        """Push-pull: a table that came by an exchange. The living first, so that accusers are known."""
        self._hear(sorted(rumors, key=lambda rumor: (rumor.status, rumor.member)), now_ms)
        self._promise(now_ms)

    # ── inputs ──────────────────────────────────────────────────────────────────────────────────────

    def step(self, now_ms: int, cause: GossipInput) -> None:
        """One input of the network."""
        self._lived(now_ms)
        match cause:
            case Received(sender=sender, packet=packet):
                self._on_packet(sender, packet, now_ms, is_fallback=False)
            case Answered(sender=sender, packet=packet):
                self._on_packet(sender, packet, now_ms, is_fallback=True)
            case _:
                assert_never(cause)
        self._start_pulls(now_ms)
        self._promise(now_ms)

    def answer(self, now_ms: int, sender: NodeId, packet: Packet) -> Packet:
        """A packet came by HTTP: what goes back the same way. An ack that it asked for leaves by no other."""
        first = len(self._outbox.output.packets)
        self.step(now_ms, Received(sender, packet))
        for place in range(first, len(self._outbox.output.packets)):
            send = self._outbox.output.packets[place]
            if send.to == sender and any(isinstance(message, Ack) for message in send.packet.messages):
                del self._outbox.output.packets[place]
                return send.packet
        return Packet(self._outbox.summary)

    def pulled(
        self, member: NodeId, ok: bool, now_ms: int, *, summary: Summary | None = None, more: bool = False
    ) -> None:
        """A pull is over. With `ok`: all of the page is merged and `set_summary` knows; both are of its reply."""
        now = self._lived(now_ms)
        had_table, failures = self._pulls.pulled(member, ok, now, summary=summary, more=more)
        if had_table and not ok:
            wait_ms = min(self._settings.probe_interval_ms << min(failures, 10), self._settings.push_pull_ms)
            self._next_push_pull_ms = min(self._next_push_pull_ms, now + wait_ms)
        self._start_pulls(now_ms)
        self._promise(now_ms)

    def want_events(self, members: Iterable[NodeId], now_ms: int) -> None:
        """Pull events from these, whatever their digests say. Who is not in the table, or gone, is left out."""
        self._lived(now_ms)
        for member in members:
            entry = self._table.get(member)
            if entry is not None and entry.is_here:
                self._pulls.want_events(member)
        self._start_pulls(now_ms)
        self._promise(now_ms)

    def on_tick(self, now_ms: int) -> None:
        """Time has passed."""
        now = self._lived(now_ms)
        first = len(self._outbox.output.facts)
        self._hearsay.end_suspicions(now, now_ms)
        self._heed(self._outbox.output.facts[first:])
        self._detector.on_tick(now, now_ms)
        if now >= self._next_contact_ms:
            self._contact_dead(now)
        if now >= self._next_push_pull_ms:
            self._push_pull(now)
        if now >= self._next_gossip_ms:
            self._gossip(now)
        for member in self._table.forget_gone(now_ms, self._settings.forget_ms):
            self._forget(member)
            self._outbox.output.facts.append(MemberForgotten(member))
        self._start_pulls(now_ms)
        self._promise(now_ms)

    def next_deadline_ms(self) -> int:
        """When to call `on_tick`, at the latest."""
        if self._leave_by_ms is not None:
            return self._next_gossip_ms + self._stood_ms
        times = [self._detector.deadline_ms, self._next_push_pull_ms, self._next_contact_ms]
        if len(self._hearsay.queue) or self._rounds_to_tell:
            times.append(self._next_gossip_ms)
        times += [suspicion.deadline_ms for suspicion in self._hearsay.suspicions.values()]
        pull_ms = self._pulls.deadline_ms()
        if pull_ms is not None:
            times.append(pull_ms)
        return min(times) + self._stood_ms

    def take_output(self) -> GossipOutput:
        """Everything decided since it was last taken."""
        return self._outbox.take()

    # ── leaving ─────────────────────────────────────────────────────────────────────────────────────

    def leave(self, now_ms: int) -> None:
        """Graceful: tell others that this node left, until `has_left`."""
        now = self._lived(now_ms)
        if self._leave_by_ms is None:
            self._hearsay.tell(msgspec.structs.replace(self.own, status=Status.LEFT))
            self._leave_by_ms = now + self._settings.leave_ms_max
            self._next_gossip_ms = now
            self._detector.stop()
            self._hearsay.suspicions.clear()
        self._promise(now_ms)

    def has_left(self, now_ms: int) -> bool:
        """As many as are told in one round have acknowledged it, or the time for it is over."""
        if self._leave_by_ms is None:
            return False
        wanted = min(self._settings.fanout, len(self._table.alive()))
        return len(self._leave_told) >= wanted or self._lived(now_ms) >= self._leave_by_ms

    # ── packets ─────────────────────────────────────────────────────────────────────────────────────

    def _on_packet(self, sender: NodeId, packet: Packet, now_ms: int, *, is_fallback: bool) -> None:
        self._hear((message for message in packet.messages if isinstance(message, Rumor)), now_ms)
        entry = self._table.get(sender)
        if entry is None:  # nobody names it, and it has not named itself
            return
        entry.last_heard_ms = now_ms
        is_behind = self._pulls.on_summary(sender, packet.summary, self._outbox.summary)
        answered = len(self._outbox.output.packets)
        for message in packet.messages:
            match message:
                case Ping(target=target, seq=seq):
                    if target == self._node:
                        self._outbox.send(sender, Ack(self._node, seq))
                case PingReq(target=target, seq=seq):
                    if target == self._node:
                        self._outbox.send(sender, Ack(self._node, seq))
                    else:
                        self._detector.on_request(sender, target, seq, self._lived(now_ms))
                case Ack():
                    is_own = self._detector.on_ack(sender, message, self._lived(now_ms), is_fallback=is_fallback)
                    if is_own and self._leave_by_ms is not None:
                        self._leave_told[sender] = None
                case Nack():
                    self._detector.on_nack(sender, message)
                case Rumor():
                    pass
                case _:
                    assert_never(message)
        if is_behind and len(self._outbox.output.packets) == answered:
            self._outbox.nudge(sender, self._lived(now_ms))

    def _hear(self, rumors: Iterable[Rumor], now_ms: int) -> None:
        now, facts = self._lived(now_ms), self._outbox.output.facts
        first = len(facts)
        for rumor in rumors:
            self._hearsay.hear(rumor, now, now_ms)
        self._heed(facts[first:])

    def _heed(self, facts: Sequence[GossipFact]) -> None:
        """Who was just learnt is probed, from who is gone nothing is pulled."""
        for fact in facts:
            match fact:
                case MemberLearned(member=member):
                    self._detector.on_added(member)
                case MemberDead(member=member) | MemberLeft(member=member):
                    self._pulls.forget(member)
                case _:
                    pass

    def _forget(self, member: NodeId) -> None:
        self._detector.forget(member)
        self._hearsay.forget(member)
        self._pulls.forget(member)
        self._outbox.forget(member)
        self._leave_told.pop(member, None)

    # ── time ────────────────────────────────────────────────────────────────────────────────────────

    def _lived(self, now_ms: int) -> int:
        """The time this node has lived: what it was late for, it was not there to observe."""
        late_ms = now_ms - self._promised_ms
        if late_ms > self._settings.probe_timeout_ms // 4:
            self._stood_ms += late_ms
            self._promised_ms = now_ms
            self._health.change(1)
            self._outbox.output.facts.append(StoodStill(late_ms))
        return now_ms - self._stood_ms

    def _promise(self, now_ms: int) -> None:
        """Until when the shell may leave this node alone, by what it knows now."""
        self._promised_ms = max(self.next_deadline_ms(), now_ms)

    def _contact_dead(self, now: int) -> None:
        self._next_contact_ms = now + self._settings.dead_contact_ms
        dead = [entry.rumor.member for entry in self._table if entry.status == Status.DEAD]
        if dead and self._leave_by_ms is None:
            member = self._rng.choice(dead)
            self._outbox.send(member, Ping(member, self._detector.next_seq()))

    def _push_pull(self, now: int) -> None:
        count = len(self._table) + 1
        times = ceil(log2(count / PUSH_PULL_MEMBERS)) + 1 if count > PUSH_PULL_MEMBERS else 1
        self._next_push_pull_ms = now + self._settings.push_pull_ms * times
        chosen = self._table.alive() or [entry.rumor.member for entry in self._table if entry.is_here]
        if chosen and self._leave_by_ms is None:
            self._pulls.want_table(self._rng.choice(chosen))

    def _start_pulls(self, now_ms: int) -> None:
        if self._leave_by_ms is None:
            for member, keyspace, events, table in self._pulls.take_due(self._outbox.summary, now_ms - self._stood_ms):
                rumors = self.rumors() if table else ()
                self._outbox.output.pulls.append(Pull(member, keyspace, events, rumors))

    def _gossip(self, now: int) -> None:
        """One round: a few others hear what is new."""
        self._next_gossip_ms = now + self._settings.gossip_interval_ms
        is_leaving = self._leave_by_ms is not None
        if not (len(self._hearsay.queue) or self._rounds_to_tell or is_leaving):
            return
        self._gossiped_ms = now
        is_changed = self._rounds_to_tell > 0
        listeners = [entry.rumor.member for entry in self._table if self._hearsay.listens(entry, now)]
        if not listeners:
            self._hearsay.queue.clear()  # whoever comes later exchanges tables
        if not len(self._hearsay.queue) and not is_leaving:
            listeners = [member for member in listeners if not self._pulls.knows_all(member, self._outbox.summary)]
        self._rounds_to_tell = max(self._rounds_to_tell - 1, 0)
        if is_leaving:
            listeners = [member for member in self._table.alive() if member not in self._leave_told]
        for member in self._rng.sample(listeners, min(self._settings.fanout, len(listeners))):
            if is_leaving:
                self._outbox.send(member, Ping(member, self._detector.next_seq()))
            else:
                self._outbox.send(member, even_empty=is_changed)
