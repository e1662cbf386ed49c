"""A simulated network behind the node's `Transport` port: delay, loss, cuts, damage, old messages, from one generator.

A connection of two processes begins with the real handshake (`kvnode.transport.handshake`), bytes in and bytes out, and
then carries real frames, so that who may talk to whom, and what a flipped bit does, is decided by production code.
Messages of a lane keep their order unless `reorder` is set. `cut` closes a link (both are told) and keeps it closed;
`silence` and `clog` say nothing to anybody. A killed process's port refuses connections, one that lost its power is
only silent.

In a cluster without process loops everything that is not a message happens at once.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any
from zlib import crc32

from kvnode.ids import NodeId
from kvnode.node.ports import LinkInfo, Receiver
from kvnode.raft.messages import ForwardProposals, PeerMessage, lane
from kvnode.sim.runtime.observer import Observer
from kvnode.transport.handshake import Handshake, Role, Roster
from kvnode.wire.codec import decode_message, encode_message
from kvnode.wire.frames import NONCE_BYTES, FrameKind, encode_frame, split_frames
from kvnode.wire.limits import CodecError

SECRET = b"simulated secret of 32 bytes ..."
MESSAGE_BYTES_MAX = 8 << 20
GRAVES_MAX = 64
SILENCE_S = 3.0
"""A connection to a host that lost its power is given up after this, as `peer.silence_ms_max` does."""
REFUSED_AFTER_S = 0.001
REDIAL_S = (0.02, 0.5)


class Network:
    """All links of one simulated cluster."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, rng: random.Random, observer: Observer, note: Callable[..., None]
    ) -> None:
        self._loop = loop
        self._rng = rng
        self.observer = observer
        self.note = note
        self.delay_s = (0.0002, 0.001)  # uniform, each way
        self.loss = 0.0
        self.duplication = 0.0
        self.corruption = 0.0
        self.burial = 0.0  # share of messages of which a copy is kept, to be delivered who knows when
        self.reorder = False
        self.counts: dict[str, int] = {}
        self.delivered = 0
        self._up: dict[NodeId, VirtualTransport] = {}
        self._links: dict[frozenset[NodeId], Link] = {}
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
                if link is not None:
                    self._loop.call_later(SILENCE_S, self._give_up, pair, link)
                continue
            if link is not None:
                self._close(pair, link)
            self._loop.call_later(REFUSED_AFTER_S, self._refuse, peer, transport.node)

    def _refuse(self, peer: VirtualTransport, gone: NodeId) -> None:
        if not peer.closed and gone not in self._up and peer.receiver is not None:
            peer.tell(peer.receiver.on_refused, gone)

    def _give_up(self, pair: frozenset[NodeId], link: Link) -> None:
        if self._links.get(pair) is link:
            self._close(pair, link)

    def _connect(self, one: NodeId, other: NodeId) -> None:
        pair = frozenset({one, other})
        dialler, acceptor = self._up.get(min(one, other)), self._up.get(max(one, other))
        if pair in self._cut or dialler is None or acceptor is None:
            return
        old = self._links.get(pair)
        if old is not None and old.ends == (dialler, acceptor):
            return
        link = Link(self, dialler, acceptor, replaces=old)
        self._links[pair] = link
        link.begin()

    def _redial(self, one: NodeId, other: NodeId) -> None:
        self._loop.call_later(self._rng.uniform(*REDIAL_S), self._connect, one, other)

    def _disconnect(self, one: NodeId, other: NodeId) -> bool:
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
        data = encode_frame(FrameKind.MESSAGE, encode_message(message))
        # A connection never delivers twice. Raft proper must bear it all the same; proposals are counted on it.
        may_double = not isinstance(message, ForwardProposals)
        rng = self._rng
        if self.burial and may_double and rng.random() < self.burial:
            self._bury(sender.node, to, data)
        if (sender.node, to) in self._silenced or (self.loss and rng.random() < self.loss):
            self.count("lost")
            return
        for _ in range(2 if may_double and self.duplication and rng.random() < self.duplication else 1):
            link.send(sender, lane(message), self._damaged(data))

    def _damaged(self, data: bytes) -> bytes:
        if not self.corruption or self._rng.random() >= self.corruption:
            return data
        self.count("corrupted")
        at = self._rng.randrange(len(data))
        return data[:at] + bytes([data[at] ^ (1 << self._rng.randrange(8))]) + data[at + 1 :]

    def _bury(self, sender: NodeId, to: NodeId, data: bytes) -> None:
        if len(self._graves) >= GRAVES_MAX:
            self._graves.pop(self._rng.randrange(GRAVES_MAX))
        self._graves.append((sender, to, data))

    def later(self, delay_s: float, callback: Callable[..., None], *args: Any) -> None:
        self._loop.call_later(delay_s, callback, *args)

    def now_s(self) -> float:
        return self._loop.time()


class Link:
    """A connection of two process lives, from its handshake to its end."""

    def __init__(
        self, network: Network, dialler: VirtualTransport, acceptor: VirtualTransport, *, replaces: Link | None
    ) -> None:
        self.ends = (dialler, acceptor)
        self._network = network
        self._replaces = replaces
        self._is_closed = False
        self._is_up = False
        self._handshakes: dict[NodeId, Handshake] = {}
        self._lanes: dict[tuple[NodeId, str], deque[bytes]] = {}
        self._due_s: dict[tuple[NodeId, str], float] = {}

    def other(self, end: VirtualTransport) -> VirtualTransport:
        return self.ends[1] if end is self.ends[0] else self.ends[0]

    # the handshake

    def begin(self) -> None:
        dialler, acceptor = self.ends
        for end, role in ((dialler, "dialler"), (acceptor, "acceptor")):
            hello = end.roster.hello("control", link=1, nonce=self._network.random_bytes(NONCE_BYTES))
            side: Role = "dialler" if role == "dialler" else "acceptor"
            expected = acceptor.node if side == "dialler" else None
            self._handshakes[end.node] = Handshake(
                side, secret=end.secret, hello=hello, roster=end.roster, expected=expected
            )
        self._pass(dialler, self._handshakes[dialler.node].begin())

    def _pass(self, sender: VirtualTransport, data: bytes) -> None:
        """One message of the handshake; it may get lost, and then the two try again."""
        target = self.other(sender)
        network = self._network
        if sender.loop is None:
            self._prove(target, data)
        elif (sender.node, target.node) in network._silenced:
            network.later(REDIAL_S[1], network.drop, self, "handshakes_unfinished")
        else:
            network.later(network.draw_delay_s(), target.tell, self._prove, target, data)

    def _prove(self, end: VirtualTransport, data: bytes) -> None:
        if self._is_closed or end.closed:
            return
        handshake = self._handshakes[end.node]
        if handshake.outcome is not None:
            return
        try:
            answer = handshake.receive(data)
        except Exception as error:  # noqa: BLE001 - what breaks here breaks the node: its disk, or a bug
            end.on_failed(error)
            return
        network = self._network
        if handshake.refusal is not None:
            end.refusals[self.other(end).node] = handshake.refusal.code
            network.count(f"refused_{handshake.refusal.code}")
            if answer:
                self._pass(end, answer)
            if handshake.refused_by_peer or not answer:
                network.drop(self, "handshakes_refused")
            return
        if answer:
            self._pass(end, answer)
        if _is_accepted(handshake) and end is self.ends[0]:
            self._come_up()

    def _come_up(self) -> None:
        if self._replaces is not None:
            self._replaces.close()
            self._replaces = None
        if self._is_closed or any(end.closed for end in self.ends):
            return
        self._is_up = True
        for end in self.ends:
            end.come_up(self.other(end).node)

    def close(self) -> None:
        if self._replaces is not None:
            self._replaces.close()
            self._replaces = None
        self._is_closed = True
        self._lanes.clear()
        if self._is_up:
            self._is_up = False
            for end in self.ends:
                end.go_down(self.other(end).node)

    # messages

    def send(self, sender: VirtualTransport, lane_: str, data: bytes) -> None:
        if not self._is_up:
            return
        network, target = self._network, self.other(sender)
        due_s = network.now_s() + network.draw_delay_s()
        if network.reorder:
            network.later(due_s - network.now_s(), self._arrive, sender, target, data)
            return
        key = (sender.node, lane_)
        due_s = self._due_s[key] = max(due_s, self._due_s.get(key, 0.0))
        self._lanes.setdefault(key, deque()).append(data)
        network.later(due_s - network.now_s(), self._next, sender, key)

    def _next(self, sender: VirtualTransport, key: tuple[NodeId, str]) -> None:
        queue = self._lanes.get(key)
        target = self.other(sender)
        if queue and not self._network.is_clogged(sender.node, target.node):
            self._arrive(sender, target, queue.popleft())

    def flush(self, sender_node: NodeId) -> None:
        """What was held back arrives, lane by lane."""
        for key in sorted(key for key in self._lanes if key[0] == sender_node):
            queue = self._lanes[key]
            sender = next(end for end in self.ends if end.node == sender_node)
            while queue:
                self._arrive(sender, self.other(sender), queue.popleft())

    def _arrive(self, sender: VirtualTransport, target: VirtualTransport, data: bytes) -> None:
        if not self._is_up or target.closed:
            return
        network = self._network
        network.delivered += 1
        network.note(sender.node, target.node, crc32(data))
        target.tell(self._take, sender, target, data)

    def _take(self, sender: VirtualTransport, target: VirtualTransport, data: bytes) -> None:
        if not self._is_up or target.closed:
            return
        if not target.receive(sender.node, data):
            self._network.drop(self, "frames_refused")


class VirtualTransport:
    """One process's end of the network; satisfies `kvnode.node.ports.Transport`."""

    def __init__(
        self,
        network: Network,
        node: NodeId,
        *,
        roster: Roster,
        loop: asyncio.AbstractEventLoop | None = None,
        on_failed: Callable[[BaseException], None],
        secret: bytes = SECRET,
    ) -> None:
        self.node = node
        self.roster = roster
        self.secret = secret
        self.loop = loop  # None: everything is told at once
        self.on_failed = on_failed
        self.receiver: Receiver | None = None
        self.connected: dict[NodeId, int] = {}
        self.refusals: dict[NodeId, str] = {}  # peer → code of the newest refusal, either side's
        self.closed = False
        self.counters: dict[str, int] = {}
        self._network = network
        self._epochs: dict[NodeId, int] = {}

    async def start(self, receiver: Receiver) -> None:
        self.open(receiver)

    def open(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.roster.begin()
        self._network.join(self)

    def tell(self, callback: Callable[..., Any], *args: Any) -> None:
        """Something happens to this process: on its own loop, when that runs."""
        if self.closed:
            return
        if self.loop is None:
            callback(*args)
        else:
            self.loop.call_soon(callback, *args)

    def come_up(self, peer: NodeId) -> None:
        self._epochs[peer] = self._epochs.get(peer, 0) + 1
        self.connected[peer] = self._epochs[peer]
        self.refusals.pop(peer, None)
        assert self.receiver is not None
        self.tell(self.receiver.on_connected, peer)

    def go_down(self, peer: NodeId) -> None:
        self.connected.pop(peer, None)
        assert self.receiver is not None
        self.tell(self.receiver.on_disconnected, peer)

    def receive(self, sender: NodeId, data: bytes) -> bool:
        """Take one message off the wire. False: it cannot be believed, the connection must go."""
        try:
            messages = [_message(kind, payload, sender) for kind, payload in split_frames(data, MESSAGE_BYTES_MAX)]
        except CodecError:
            return False
        assert self.receiver is not None
        for message in messages:
            self.receiver.on_message(message, len(data))
        return True

    def send(self, to: NodeId, message: PeerMessage) -> None:
        if not self.closed:
            self._network.observer.on_left(self.node, to, message)
            self._network.carry(self, to, message)

    def links(self) -> Mapping[NodeId, LinkInfo]:
        return {
            peer: LinkInfo(peer=peer, connected=True, epoch=epoch, client_url=f"http://node-{peer}")
            for peer, epoch in self.connected.items()
        }

    async def close(self) -> None:
        if not self.closed:
            self._network.leave(self)
            self.closed = True


def _is_accepted(handshake: Handshake) -> bool:
    return handshake.outcome == "accepted"


def _message(kind: int, payload: memoryview, sender: NodeId) -> PeerMessage:
    if kind != FrameKind.MESSAGE:
        raise CodecError(f"a frame of kind {kind} where messages are")
    message = decode_message(payload, MESSAGE_BYTES_MAX)
    if message.sender != sender:
        raise CodecError(f"a message signed {message.sender} from member {sender}")
    return message
