"""Outbox: what goes into a packet, and what was decided since the shell last took it.

A packet begins with what this node holds against its receiver, so that the accused hears it first; then come the
messages, what this node tells of itself, and as many rumors as fit.
"""

from __future__ import annotations

from kvnode.gossip.hearsay import ACCUSED, Hearsay
from kvnode.gossip.membership import MemberTable, accusation
from kvnode.gossip.messages import NO_SUMMARY, Packet, SwimMessage
from kvnode.gossip.output import GossipOutput, Send
from kvnode.gossip.settings import GossipSettings
from kvnode.ids import NodeId


class Outbox:
    """Where all of the core puts what is to be sent, and its facts."""

    def __init__(self, settings: GossipSettings, table: MemberTable, hearsay: Hearsay) -> None:
        self.summary = NO_SUMMARY  # goes into every packet
        self.output = GossipOutput(facts=hearsay.facts)
        self._settings = settings
        self._table = table
        self._hearsay = hearsay
        self._nudged_ms: dict[NodeId, int] = {}

    def take(self) -> GossipOutput:
        """Everything decided since it was last taken."""
        output, self.output = self.output, GossipOutput()
        self._hearsay.facts = self.output.facts
        return output

    def send(self, to: NodeId, *messages: SwimMessage, is_fallback: bool = False, even_empty: bool = True) -> None:
        """One packet."""
        head: list[SwimMessage] = []
        entry = self._table.get(to)
        if entry is not None and entry.status in ACCUSED:
            head.append(accusation(entry.rumor))
        head += messages
        if messages:
            head.append(self._hearsay.own)
        filled = self._hearsay.queue.fill(
            self.summary, head, len(self._table) + 1, self._settings.retransmit_factor, to=to
        )
        if not filled and not even_empty:
            return
        where = self.output.fallbacks if is_fallback else self.output.packets
        where.append(Send(to, Packet(self.summary, filled)))

    def nudge(self, member: NodeId, now: int) -> None:
        """It lacks something and does not know: show it our summary, at most once in a gossip interval."""
        gap_ms = self._settings.gossip_interval_ms
        if now - self._nudged_ms.get(member, now - gap_ms) >= gap_ms:
            self._nudged_ms[member] = now
            self.send(member)

    def forget(self, member: NodeId) -> None:
        """It is no member any more."""
        self._nudged_ms.pop(member, None)
