"""A simulated network behind the node's `Transport` port: delay, loss, cuts and refused ports, from one generator.

Messages of a lane keep their order unless `reorder` is set. A cut between two nodes closes their link (both are
told); `silence` drops messages without telling anybody. A crashed node's port refuses connections.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping

from kvnode.ids import NodeId
from kvnode.node.ports import LinkInfo, Receiver
from kvnode.raft.messages import ForwardProposals, PeerMessage, lane
from kvnode.wire.codec import decode_message, encode_message


class Network:
    """All links of one simulated cluster."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rng: random.Random) -> None:
        self._loop = loop
        self._rng = rng
        self.delay_s = (0.0002, 0.001)  # uniform, each way
        self.loss = 0.0
        self.duplication = 0.0
        self.reorder = False
        self._up: dict[NodeId, VirtualTransport] = {}
        self._cut: dict[frozenset[NodeId], bool] = {}
        self._silenced: dict[tuple[NodeId, NodeId], bool] = {}
        self._arrives_s: dict[tuple[NodeId, NodeId, str], float] = {}
        self.delivered = 0

    def transport(self, node: NodeId) -> VirtualTransport:
        """The port of `node`; a restarted node asks for a new one."""
        return VirtualTransport(self, node)

    # ── faults ──────────────────────────────────────────────────────────────────────────────────────

    def cut(self, one: NodeId, other: NodeId) -> None:
        """Close the link and keep it closed."""
        self._cut[frozenset({one, other})] = True
        self._disconnect(one, other)

    def silence(self, sender: NodeId, receiver: NodeId) -> None:
        """Drop everything in one direction; the link looks alive."""
        self._silenced[sender, receiver] = True

    def isolate(self, node: NodeId) -> None:
        for other in list(self._up):
            if other != node:
                self.cut(node, other)

    def heal(self) -> None:
        """Undo all cuts and silences; links come up again."""
        self._cut.clear()
        self._silenced.clear()
        for one in sorted(self._up):
            for other in sorted(self._up):
                if one < other:
                    self._connect(one, other)

    # ── links ───────────────────────────────────────────────────────────────────────────────────────

    def join(self, transport: VirtualTransport) -> None:
        self._up[transport.node] = transport
        for other in sorted(self._up):
            if other != transport.node:
                self._connect(transport.node, other)

    def leave(self, transport: VirtualTransport) -> None:
        """The process ended: links close, and the port refuses new ones."""
        if self._up.get(transport.node) is not transport:
            return
        for other in sorted(self._up):
            if other != transport.node:
                self._disconnect(transport.node, other)
                peer = self._up[other].receiver
                if peer is not None:
                    self._loop.call_later(0.001, peer.on_refused, transport.node)
        del self._up[transport.node]

    def _connect(self, one: NodeId, other: NodeId) -> None:
        if frozenset({one, other}) in self._cut:
            return
        for here, there in ((one, other), (other, one)):
            transport = self._up[here]
            if there not in transport.connected and transport.receiver is not None:
                transport.connected[there] = transport.connected.get(there, 0) + 1
                transport.receiver.on_connected(there)

    def _disconnect(self, one: NodeId, other: NodeId) -> None:
        for here, there in ((one, other), (other, one)):
            transport = self._up.get(here)
            if transport is not None and transport.connected.pop(there, None) is not None:
                assert transport.receiver is not None
                transport.receiver.on_disconnected(there)

    def carry(self, sender: VirtualTransport, to: NodeId, message: PeerMessage) -> None:
        if to not in sender.connected or (sender.node, to) in self._silenced or self._rng.random() < self.loss:
            return
        data = encode_message(message)
        target = self._up[to]
        # A connection never delivers twice. Raft proper must bear it all the same; proposals are counted on it.
        may_double = not isinstance(message, ForwardProposals)
        for _ in range(2 if may_double and self._rng.random() < self.duplication else 1):
            due = self._loop.time() + self._rng.uniform(*self.delay_s)
            if not self.reorder:
                key = (sender.node, to, lane(message))
                due = self._arrives_s[key] = max(due, self._arrives_s.get(key, 0.0))
            self._loop.call_at(due, self._deliver, sender.node, target, data)

    def _deliver(self, sender: NodeId, target: VirtualTransport, data: bytes) -> None:
        if target.closed or sender not in target.connected:
            return
        assert target.receiver is not None
        self.delivered += 1
        target.receiver.on_message(decode_message(data), len(data))


class VirtualTransport:
    """One node's end of the network; satisfies `kvnode.node.ports.Transport`."""

    def __init__(self, network: Network, node: NodeId) -> None:
        self._network = network
        self.node = node
        self.receiver: Receiver | None = None
        self.connected: dict[NodeId, int] = {}
        self.closed = False
        self.counters: dict[str, int] = {}

    async def start(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self._network.join(self)

    def send(self, to: NodeId, message: PeerMessage) -> None:
        if not self.closed:
            self._network.carry(self, to, message)

    def links(self) -> Mapping[NodeId, LinkInfo]:
        return {
            peer: LinkInfo(peer=peer, connected=True, epoch=epoch, client_url=f"http://node-{peer}")
            for peer, epoch in self.connected.items()
        }

    async def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._network.leave(self)
