"""A snapshot's connection between two simulated process lives: real handshake, real frames, the real conversation.

Like TCP it keeps order and loses nothing while it stands: loss delays, a silence or a cut ends it sooner or later, a
flipped bit arrives. Each end runs on its own process' loop, so a process that is killed or paused takes its end along.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING
from zlib import crc32

from kvnode.errors import SnapshotRefused
from kvnode.ids import NodeId
from kvnode.transport.handshake import Handshake, Role
from kvnode.transport.snapshots import Sending, Source, Stream
from kvnode.wire.frames import NONCE_BYTES
from kvnode.wire.limits import CodecError

if TYPE_CHECKING:
    from kvnode.sim.runtime.network import Network
    from kvnode.sim.runtime.transport import VirtualTransport

LOSS_DELAY_S = 0.2
"""What a lost packet costs until it is sent again."""


class SnapshotLink:
    """From the dial to its end. `run` is awaited in the sender's process; the receiver's end begins with the dial."""

    def __init__(self, network: Network, sender: VirtualTransport, receiver: VirtualTransport) -> None:
        self.sender = sender
        self.receiver = receiver
        self._network = network
        self._is_closed = False
        self._is_served = False
        self._arrived: dict[NodeId, asyncio.Queue[bytes | None]] = {
            end.node: asyncio.Queue() for end in (sender, receiver)
        }
        self._due_s: dict[NodeId, float] = {}  # sending end → when its newest message arrives
        self._held: dict[NodeId, deque[bytes]] = {end.node: deque() for end in (sender, receiver)}  # by a clog
        self._is_mute: dict[NodeId, bool] = {}  # sending end → a silence has swallowed something

    def joins(self, one: NodeId, other: NodeId) -> bool:
        return {one, other} == {self.sender.node, self.receiver.node}

    async def run(self, source: Source) -> None:
        """The sender's end. Raises: OSError, SnapshotRefused."""
        sender = self.sender
        try:
            handshake = await self._shake_hands(sender, "dialler")
            if handshake.refusal is not None:
                raise ConnectionAbortedError(handshake.refusal.sentence)
            sending = Sending(
                self._stream(sender, self.receiver.node),
                _Rotting(source, self._network),
                settings=sender.settings,
                pace=sender.pace,
                now_ms=_now_ms,
            )
            await sending.run()
            self._network.count("snapshots_sent")
        except CodecError as error:
            raise ConnectionAbortedError(str(error)) from error
        except SnapshotRefused:
            self._network.count("snapshots_refused")
            raise
        finally:
            self._network.end_snapshot(self)

    async def _serve(self) -> None:
        """The receiver's end."""
        receiver = self.receiver
        try:
            handshake = await self._shake_hands(receiver, "acceptor")
            if handshake.refusal is None:
                await receiver.incoming.serve(self._stream(receiver, self.sender.node))
        except CodecError:
            self._network.count("snapshots_damaged")
        except OSError:
            self._network.count("snapshots_broken")
        except Exception as error:  # noqa: BLE001 - what breaks here breaks the node: its disk, or a bug
            receiver.on_failed(error)
        finally:
            self._hang_up(receiver)

    async def _shake_hands(self, end: VirtualTransport, role: Role) -> Handshake:
        hello = end.roster.hello("snapshot", link=0, nonce=self._network.random_bytes(NONCE_BYTES))
        expected = self.receiver.node if role == "dialler" else None
        handshake = Handshake(role, secret=end.secret, hello=hello, roster=end.roster, expected=expected)
        async with asyncio.timeout(end.settings.handshake_timeout_ms / 1e3):
            if role == "dialler":
                self._send(end, handshake.begin())
            while handshake.outcome is None:
                answer = handshake.receive(await self._receive(end))
                if answer:
                    self._send(end, answer)
        return handshake

    def _stream(self, end: VirtualTransport, peer: NodeId) -> Stream:
        async def put(message: bytes) -> None:
            self._send(end, self._network.damaged(message))

        async def take() -> bytes:
            return await self._receive(end)

        return Stream(peer, put=put, take=take, settings=end.settings, counters=end.counters)

    # ── the wire ────────────────────────────────────────────────────────────────────────────────────

    def _send(self, end: VirtualTransport, message: bytes) -> None:
        if self._is_closed:
            raise ConnectionResetError("the connection ended")
        network, to = self._network, self._other(end)
        if network.is_silenced(end.node, to.node):
            self._is_mute[end.node] = True
        if end.node in self._is_mute:
            return
        due_s = network.now_s() + network.draw_delay_s() + (LOSS_DELAY_S if network.draw_loss() else 0.0)
        due_s = self._due_s[end.node] = max(due_s, self._due_s.get(end.node, 0.0))
        self._held[end.node].append(message)
        network.later(due_s - network.now_s(), self._arrive, end)

    def _arrive(self, end: VirtualTransport) -> None:
        if self._held[end.node] and not self._network.is_clogged(end.node, self._other(end).node):
            self._hand_over(end)

    def flush(self, sender_node: NodeId) -> None:
        """What was held back arrives."""
        end = self.sender if self.sender.node == sender_node else self.receiver
        while self._held[end.node]:
            self._hand_over(end)

    def _hand_over(self, end: VirtualTransport) -> None:
        to, message = self._other(end), self._held[end.node].popleft()
        if self._is_closed:
            return
        self._network.note("snapshot", end.node, to.node, crc32(message))
        if to is self.receiver and not self._is_served:
            self._is_served = True
            to.tell(to.own, self._serve)
        to.tell(self._arrived[to.node].put_nowait, message)

    async def _receive(self, end: VirtualTransport) -> bytes:
        message = await self._arrived[end.node].get()
        if message is None:
            self._arrived[end.node].put_nowait(None)
            raise ConnectionResetError("the connection ended")
        return message

    def _hang_up(self, end: VirtualTransport) -> None:
        """`end` closes; the other hears of it after what was sent before."""
        to = self._other(end)
        delay_s = max(0.0, self._due_s.get(end.node, 0.0) - self._network.now_s())
        self._network.later(delay_s, to.tell, self._arrived[to.node].put_nowait, None)

    def close(self) -> None:
        """Both are told, now."""
        self._is_closed = True
        for end in (self.sender, self.receiver):
            end.tell(self._arrived[end.node].put_nowait, None)

    def _other(self, end: VirtualTransport) -> VirtualTransport:
        return self.receiver if end is self.sender else self.sender


class _Rotting:
    """A source of which a bit flips now and then before its block is framed: only the receiver's checks can tell."""

    def __init__(self, source: Source, network: Network) -> None:
        self.header = source.header
        self._source = source
        self._network = network

    async def block(self, number: int) -> bytes | None:
        block = await self._source.block(number)
        return self._network.rotten(block) if block else block


def _now_ms() -> int:
    return round(asyncio.get_running_loop().time() * 1e3)
