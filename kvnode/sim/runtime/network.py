"""A simulated network: which connections there are, and what delays, loses, damages and repeats what they carry.

All of it is drawn from one generator. A connection of two processes (`link`) begins with the real handshake and carries
real frames; `transport` is a process's end. Messages of a lane keep their order unless `reorder` is set. `cut` closes a
link (both are told) and keeps it closed; `silence` and `clog` say nothing to anybody. A killed process's port refuses
connections, one that lost its power is only silent.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from kvnode.ids import NodeId
from kvnode.raft.messages import ForwardProposals, PeerMessage, lane
from kvnode.sim.runtime.link import REDIAL_S, Link
from kvnode.sim.runtime.snapshot_link import SnapshotLink
from kvnode.sim.runtime.transport import VirtualTransport
from kvnode.transport.snapshots import Source
from kvnode.wire.codec import encode_message
from kvnode.wire.frames import FrameKind, encode_frame

GRAVES_MAX = 64
SILENCE_S = 3.0
"""A connection to a host that lost its power is given up after this, as `peer.silence_ms_max` does."""
REFUSED_AFTER_S = 0.001
LATE_S = (1.0, 1.5)
"""A larger id that the smaller does not know dials it after this."""


class Network:
    """All links of one simulated cluster."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rng: random.Random, note: Callable[..., None]) -> None:
        self._loop = loop
        self._rng = rng
        self.note = note
        self.delay_s = (0.0002, 0.001)  # uniform, each way
        self.loss = 0.0
        self.duplication = 0.0
        self.corruption = 0.0
        self.rot = 0.0  # share of a snapshot's blocks of which a bit flips before they are framed
        self.burial = 0.0  # share of messages of which a copy is kept, to be delivered who knows when
        self.reorder = False
        self.counts: dict[str, int] = {}
        self.delivered = 0
        self._up: dict[NodeId, VirtualTransport] = {}
        self._links: dict[frozenset[NodeId], Link] = {}
        self._snapshots: dict[SnapshotLink, None] = {}
        self._cut: dict[frozenset[NodeId], bool] = {}
        self._silenced: dict[tuple[NodeId, NodeId], bool] = {}
        self._clogged: dict[tuple[NodeId, NodeId], bool] = {}
        self._graves: list[tuple[NodeId, NodeId, bytes]] = []

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def random_bytes(self, count: int) -> bytes:
        return self._rng.randbytes(count)

    def draw_delay_s(self) -> float:
        return self._rng.uniform(*self.delay_s)

    def draw_loss(self) -> bool:
        return bool(self.loss) and self._rng.random() < self.loss

    # ── faults ──────────────────────────────────────────────────────────────────────────────────────

    def cut(self, one: NodeId, other: NodeId) -> None:
        """Close the link and keep it closed."""
        self._cut[frozenset({one, other})] = True
        self._disconnect(one, other)

    def flap(self, one: NodeId, other: NodeId) -> None:
        """Close the link; it is dialled again."""
        if self._disconnect(one, other):
            self._redial(one, other)

    def silence(self, sender: NodeId, receiver: NodeId) -> None:
        """Drop everything in one direction; the link looks alive."""
        self._silenced[sender, receiver] = True

    def clog(self, sender: NodeId, receiver: NodeId) -> None:
        """Hold everything in one direction back until `unclog`."""
        self._clogged[sender, receiver] = True

    def unclog(self, sender: NodeId, receiver: NodeId) -> None:
        self._clogged.pop((sender, receiver), None)
        link = self._links.get(frozenset({sender, receiver}))
        if link is not None:
            link.flush(sender)
        for snapshot in self._snapshots_between(sender, receiver):
            snapshot.flush(sender)

    def is_open(self, sender: NodeId, receiver: NodeId) -> bool:
        """Whether anything can get from one to the other, sooner or later."""
        return frozenset({sender, receiver}) not in self._cut and (sender, receiver) not in self._silenced

    def is_silenced(self, sender: NodeId, receiver: NodeId) -> bool:
        return (sender, receiver) in self._silenced

    def is_clogged(self, sender: NodeId, receiver: NodeId) -> bool:
        return (sender, receiver) in self._clogged

    def isolate(self, node: NodeId) -> None:
        for other in list(self._up):
            if other != node:
                self.cut(node, other)

    def separate(self, left: list[NodeId], right: list[NodeId]) -> None:
        for one in left:
            for other in right:
                if one != other:
                    self.cut(one, other)

    def heal(self, among: list[NodeId] | None = None) -> None:
        """Undo cuts, silences and clogs (`among` these members, or all); links come up again."""
        members = sorted(self._up) if among is None else among

        def heals(pair: frozenset[NodeId] | tuple[NodeId, NodeId]) -> bool:
            return among is None or all(member in among for member in pair)

        self._cut = {pair: True for pair in self._cut if not heals(pair)}
        self._silenced = {pair: True for pair in self._silenced if not heals(pair)}
        for sender, receiver in [pair for pair in self._clogged if heals(pair)]:
            self.unclog(sender, receiver)
        for one in members:
            for other in members:
                if one < other:
                    self._connect(one, other)

    def resurrect(self) -> bool:
        """Deliver a message of long ago to whoever has its receiver's name now."""
        if not self._graves:
            return False
        sender, to, data = self._graves.pop(self._rng.randrange(len(self._graves)))
        target = self._up.get(to)
        if target is None:
            return False
        self.note(f"resurrected {sender}>{to}")
        self._loop.call_later(self.draw_delay_s(), lambda: target.tell(target.receive, sender, data))
        return True

    # ── links ───────────────────────────────────────────────────────────────────────────────────────

    def join(self, transport: VirtualTransport) -> None:
        self._up[transport.node] = transport
        for other in sorted(self._up):
            if other != transport.node:
                self._connect(transport.node, other)

    def knock(self, stranger: VirtualTransport, at: NodeId) -> None:
        """Somebody who claims to be a member dials `at` beside the member itself: one handshake, if `at` is up."""
        if at in self._up and frozenset({stranger.node, at}) not in self._cut:
            Link(self, stranger, self._up[at], replaces=None).begin()

    def leave(self, transport: VirtualTransport, *, silently: bool = False) -> None:
        """The process ended: links close, and the port refuses new ones; `silently`: its machine went as well."""
        if self._up.get(transport.node) is not transport:
            return
        del self._up[transport.node]
        for other in sorted(self._up):
            pair = frozenset({transport.node, other})
            link = self._links.get(pair)
            peer = self._up[other]
            if silently:
                for snapshot in self._snapshots_between(transport.node, other):
                    self._loop.call_later(SILENCE_S, self.end_snapshot, snapshot)
                if link is not None:
                    self._loop.call_later(SILENCE_S, self._give_up, pair, link)
                continue
            for snapshot in self._snapshots_between(transport.node, other):
                self.end_snapshot(snapshot)
            if link is not None:
                self._close(pair, link)
            self._loop.call_later(REFUSED_AFTER_S, self._refuse, peer, transport.node)

    def _refuse(self, peer: VirtualTransport, gone: NodeId) -> None:
        if not peer.closed and gone not in self._up and peer.receiver is not None:
            peer.tell(peer.receiver.on_refused, gone)

    def _give_up(self, pair: frozenset[NodeId], link: Link) -> None:
        if self._links.get(pair) is link:
            self._close(pair, link)

    def _connect(self, one: NodeId, other: NodeId, *, is_late: bool = False) -> None:
        pair = frozenset({one, other})
        smaller, larger = self._up.get(min(one, other)), self._up.get(max(one, other))
        if pair in self._cut or smaller is None or larger is None:
            return
        old = self._links.get(pair)
        if old is not None and {*old.ends} == {smaller, larger}:
            return
        if smaller.knows(larger.node):
            dialler, acceptor = smaller, larger
        elif not larger.knows(smaller.node):
            return
        elif not is_late:
            self._loop.call_later(self._rng.uniform(*LATE_S), self._connect_late, one, other)
            return
        else:
            dialler, acceptor = larger, smaller
        link = Link(self, dialler, acceptor, replaces=old)
        self._links[pair] = link
        link.begin()

    def _connect_late(self, one: NodeId, other: NodeId) -> None:
        self._connect(one, other, is_late=True)

    def part(self, one: NodeId, other: NodeId) -> None:
        """One of them cuts the other for good, as it is no member any more."""
        self._disconnect(one, other)

    def reconsider(self, transport: VirtualTransport) -> None:
        """It was told other members: who is to be connected to now, and whom the roster lets in no longer."""
        for other in sorted(self._up):
            if other == transport.node:
                continue
            link = self._links.get(frozenset({transport.node, other}))
            if link is not None and link.is_refused_by(transport):
                self.drop(link, "members_changed")
            else:
                self._connect(transport.node, other)

    def _redial(self, one: NodeId, other: NodeId) -> None:
        self._loop.call_later(self._rng.uniform(*REDIAL_S), self._connect, one, other)

    def _disconnect(self, one: NodeId, other: NodeId) -> bool:
        for snapshot in self._snapshots_between(one, other):
            self.end_snapshot(snapshot)
        pair = frozenset({one, other})
        link = self._links.get(pair)
        if link is None:
            return False
        self._close(pair, link)
        return True

    def _close(self, pair: frozenset[NodeId], link: Link) -> None:
        del self._links[pair]
        link.close()

    def drop(self, link: Link, why: str) -> None:
        """What arrived on the link cannot be believed, or the two do not belong together: closed, and dialled again."""
        one, other = (end.node for end in link.ends)
        pair = frozenset({one, other})
        if self._links.get(pair) is link:
            self.count(why)
            self.note(f"link {one}-{other} closed: {why}")
            self._close(pair, link)
            self._redial(one, other)

    # ── messages ────────────────────────────────────────────────────────────────────────────────────

    def carry(self, sender: VirtualTransport, to: NodeId, message: PeerMessage) -> None:
        """One message on its way, or lost."""
        link = self._links.get(frozenset({sender.node, to}))
        if link is None or to not in sender.connected:
            return
        data = sender.stamped(to) + encode_frame(FrameKind.MESSAGE, encode_message(message))
        # A connection never delivers twice. Raft proper must bear it all the same; proposals are counted on it.
        may_double = not isinstance(message, ForwardProposals)
        rng = self._rng
        if self.burial and may_double and rng.random() < self.burial:
            self._bury(sender.node, to, data)
        if self.is_silenced(sender.node, to) or (self.loss and rng.random() < self.loss):
            self.count("lost")
            return
        for _ in range(2 if may_double and self.duplication and rng.random() < self.duplication else 1):
            link.send(sender, lane(message), self.damaged(data))

    def damaged(self, data: bytes) -> bytes:
        """What arrives of it."""
        if not self.corruption or self._rng.random() >= self.corruption:
            return data
        self.count("corrupted")
        return self._flipped(data)

    def rotten(self, block: bytes) -> bytes:
        """What a sender of a snapshot has read."""
        if not self.rot or self._rng.random() >= self.rot:
            return block
        self.count("blocks_rotten")
        return self._flipped(block)

    def _flipped(self, data: bytes) -> bytes:
        at = self._rng.randrange(len(data))
        return data[:at] + bytes([data[at] ^ (1 << self._rng.randrange(8))]) + data[at + 1 :]

    def _bury(self, sender: NodeId, to: NodeId, data: bytes) -> None:
        if len(self._graves) >= GRAVES_MAX:
            self._graves.pop(self._rng.randrange(GRAVES_MAX))
        self._graves.append((sender, to, data))

    # ── snapshots ───────────────────────────────────────────────────────────────────────────────────

    async def send_snapshot(self, sender: VirtualTransport, to: NodeId, source: Source) -> None:
        """A connection of its own, from the dial to its end, awaited by the sender. Raises as the port does."""
        receiver = self._up.get(to)
        if receiver is None or not sender.knows(to) or sender.closed:
            raise ConnectionRefusedError(f"nobody listens at member {to}")
        if frozenset({sender.node, to}) in self._cut:
            await asyncio.sleep(sender.settings.handshake_timeout_ms / 1e3)
            raise TimeoutError(f"member {to} cannot be reached")
        link = SnapshotLink(self, sender, receiver)
        self._snapshots[link] = None
        self.note(f"snapshot {sender.node}>{to}")
        await link.run(source)

    def end_snapshot(self, link: SnapshotLink) -> None:
        if link in self._snapshots:
            del self._snapshots[link]
            link.close()

    def _snapshots_between(self, one: NodeId, other: NodeId) -> list[SnapshotLink]:
        return [link for link in self._snapshots if link.joins(one, other)]

    def later(self, delay_s: float, callback: Callable[..., None], *args: Any) -> None:
        self._loop.call_later(delay_s, callback, *args)

    def now_s(self) -> float:
        return self._loop.time()
