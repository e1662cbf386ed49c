"""One simulated process's end of the network, behind the node's `Transport` port.

It carries real frames, so that what a flipped bit does is decided by production code.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from kvnode.config import PeerSection
from kvnode.ids import NodeId
from kvnode.node.ports import LinkInfo, Receiver, SnapshotSource
from kvnode.raft.messages import PeerMessage
from kvnode.transport.handshake import Roster
from kvnode.transport.pace import Pace
from kvnode.transport.peers import LamportHook
from kvnode.transport.snapshots import COUNTERS, Incoming
from kvnode.wire.codec import decode_message
from kvnode.wire.frames import FEATURE_LEVEL_TIMES, FrameKind, decode_time, encode_time, split_frames
from kvnode.wire.limits import CodecError

if TYPE_CHECKING:
    from kvnode.sim.runtime.network import Network

SECRET = b"simulated secret of 32 bytes ..."
MESSAGE_BYTES_MAX = 8 << 20
SETTINGS = PeerSection()


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
        on_left: Callable[[NodeId, NodeId, PeerMessage], None] | None = None,
        on_come_up: Callable[[NodeId, NodeId], None] | None = None,
        secret: bytes = SECRET,
        settings: PeerSection = SETTINGS,
    ) -> None:
        self.node = node
        self.roster = roster
        self.secret = secret
        self.loop = loop  # None: everything is told at once
        self.on_failed = on_failed
        self.on_left = on_left  # told of each message, with its sender and receiver, before it leaves
        self.on_come_up = on_come_up  # told of each connection, with this node and the peer
        self.lamport: LamportHook | None = None  # as production's
        self.receiver: Receiver | None = None
        self.connected: dict[NodeId, int] = {}
        self.refusals: dict[NodeId, str] = {}  # peer → code of the newest refusal, either side's
        self.closed = False
        self.counters: dict[str, int] = dict.fromkeys(COUNTERS, 0)
        self.settings = settings  # of snapshots and their handshakes
        self.pace = Pace(settings.snapshot_bytes_per_s)
        self.incoming = Incoming(lambda: self.receiver.snapshot_sink if self.receiver is not None else None)
        self._members: dict[NodeId, str] = {}
        self._levels: dict[NodeId, int] = {}
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._network = network
        self._epochs: dict[NodeId, int] = {}

    async def start(self, receiver: Receiver) -> None:
        self.open(receiver)

    def open(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.roster.begin()
        self._members = dict(self.roster.members)
        self._network.join(self)

    def knows(self, peer: NodeId) -> bool:
        """Whether it dials `peer`, as far as that depends on the members it was told."""
        return peer in self._members

    def set_members(self, members: Mapping[NodeId, str]) -> None:
        gone = [peer for peer in self._members if peer not in members]
        self._members = dict(members)
        for peer in gone:
            self._network.part(self.node, peer)
        self._network.reconsider(self)

    async def send_snapshot(self, to: NodeId, source: SnapshotSource) -> None:
        await self._network.send_snapshot(self, to, source)

    def own(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begin something that ends with this process, on its loop."""
        task = asyncio.get_running_loop().create_task(work())
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

    def tell(self, callback: Callable[..., Any], *args: Any) -> None:
        """Something happens to this process: on its own loop, when that runs."""
        if self.closed:
            return
        if self.loop is None:
            callback(*args)
        else:
            self.loop.call_soon(callback, *args)

    def come_up(self, peer: NodeId, feature_level: int) -> None:
        self._levels[peer] = feature_level
        self._epochs[peer] = self._epochs.get(peer, 0) + 1
        self.connected[peer] = self._epochs[peer]
        self.refusals.pop(peer, None)
        if address := self.roster.members.get(peer):
            self._members.setdefault(peer, address)  # a newcomer
        if self.on_come_up is not None:
            self.on_come_up(self.node, peer)
        assert self.receiver is not None
        self.tell(self.receiver.on_connected, peer)

    def go_down(self, peer: NodeId) -> None:
        self.connected.pop(peer, None)
        assert self.receiver is not None
        self.tell(self.receiver.on_disconnected, peer)

    def receive(self, sender: NodeId, data: bytes) -> bool:
        """Take one message off the wire. False: it cannot be believed, the connection must go."""
        time = 0
        messages = []
        try:
            for kind, payload in split_frames(data, MESSAGE_BYTES_MAX):
                if kind == FrameKind.TIME:
                    time = decode_time(payload)
                else:
                    messages.append(_message(kind, payload, sender))
        except CodecError:
            return False
        if time and self.lamport is not None:
            self.lamport.observe(time)
        assert self.receiver is not None
        for message in messages:
            self.receiver.on_message(message, len(data))
        return True

    def send(self, to: NodeId, message: PeerMessage) -> None:
        if not self.closed:
            if self.on_left is not None:
                self.on_left(self.node, to, message)
            self._network.carry(self, to, message)

    def stamped(self, to: NodeId) -> bytes:
        """The frame that goes before each message: here every one carries the time, as some of them get lost."""
        if self.lamport is None or min(self._levels.get(to, 0), self.roster.feature_level) < FEATURE_LEVEL_TIMES:
            return b""
        return encode_time(self.lamport.time(), 0)

    def links(self) -> Mapping[NodeId, LinkInfo]:
        return {
            peer: LinkInfo(
                peer=peer,
                connected=True,
                epoch=epoch,
                client_url=f"http://node-{peer}",
                feature_level=self._levels.get(peer, 0),
            )
            for peer, epoch in self.connected.items()
        }

    async def close(self) -> None:
        if not self.closed:
            self._network.leave(self)
            self.closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _message(kind: int, payload: memoryview, sender: NodeId) -> PeerMessage:
    if kind != FrameKind.MESSAGE:
        raise CodecError(f"a frame of kind {kind} where messages are")
    message = decode_message(payload, MESSAGE_BYTES_MAX)
    if message.sender != sender:
        raise CodecError(f"a message signed {message.sender} from member {sender}")
    return message
