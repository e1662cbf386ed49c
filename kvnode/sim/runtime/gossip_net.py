"""Gossip over the simulated network: production's `GossipNet`, on datagrams and exchanges that virtual time carries.

What is sealed, believed and counted is production code. Here is what a network makes of it: datagrams are lost,
doubled, damaged, overtaken, held back, and dug out again long after; exchanges take their time, break off with the
process that was asked, or never come to an end. Who is cut off, silenced or clogged is so for gossip, too (`Network`).
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING
from zlib import crc32

from kvnode.clocks.clock import Clock
from kvnode.ids import NodeId
from kvnode.node.roster import Roster
from kvnode.sim.runtime.transport import SECRET
from kvnode.storage.datadir import DataDir
from kvnode.transport.exchanges import Answer
from kvnode.transport.gossip_net import GossipNet
from kvnode.wire.limits import CodecError

if TYPE_CHECKING:
    from kvnode.sim.runtime.network import Network

GRAVES_MAX = 32
WAITING_MAX = 256
"""Datagrams that a process has not read yet; as a socket's buffer does, further ones are dropped."""

REFUSED_AFTER_S = 0.001
UNCLOGGED_S = 0.05
CLOGGED_TURNS_MAX = 100
"""What is held back tries again after the one, and is given up after so many times."""

SENT_AGAIN_S = (0.2, 1.0)
"""What a loss costs an exchange: its connection sends again."""

OVERTAKEN = 0.1
OVERTAKEN_S = (0.0, 0.05)
"""Share of datagrams that take a longer way, and how much longer."""


class GossipWays:
    """All of gossip's ways in one simulated cluster."""

    def __init__(self, network: Network, rng: random.Random) -> None:
        self.network = network
        self.is_mute = False  # nothing of gossip arrives anywhere
        self._rng = rng
        self._ends: dict[NodeId, GossipEnd] = {}
        self._gone_silently: dict[NodeId, bool] = {}
        self._open: dict[asyncio.Future[bytes], tuple[GossipEnd, NodeId]] = {}
        self._graves: list[tuple[NodeId, NodeId, bytes]] = []

    # ── processes ───────────────────────────────────────────────────────────────────────────────────

    def join(self, end: GossipEnd) -> None:
        self._ends[end.node] = end
        self._gone_silently.pop(end.node, None)

    def leave(self, end: GossipEnd, *, silently: bool = False) -> None:
        """The process ended, or its end of gossip did; `silently`: nobody is told."""
        if self._ends.get(end.node) is not end:
            return
        del self._ends[end.node]
        if silently:
            self._gone_silently[end.node] = True
        for answer, (caller, to) in list(self._open.items()):
            if caller is end:
                del self._open[answer]
            elif to == end.node and not silently:
                self._fail(answer, "the connection was reset")

    # ── datagrams ───────────────────────────────────────────────────────────────────────────────────

    def send(self, sender: NodeId, to: NodeId, data: bytes) -> None:
        """One datagram on its way, or lost."""
        network, rng = self.network, self._rng
        if network.burial and rng.random() < network.burial:
            if len(self._graves) >= GRAVES_MAX:
                self._graves.pop(rng.randrange(GRAVES_MAX))
            self._graves.append((sender, to, data))
        if self.is_mute or not network.is_open(sender, to) or (network.loss and rng.random() < network.loss):
            network.count("datagrams_lost")
            return
        for _ in range(2 if network.duplication and rng.random() < network.duplication else 1):
            delay_s = rng.uniform(*network.delay_s)
            if rng.random() < OVERTAKEN:
                delay_s += rng.uniform(*OVERTAKEN_S)
            network.later(delay_s, self._arrive, sender, to, self._damaged(data), 0)

    def resurrect(self) -> bool:
        """Deliver a datagram of long ago to whoever has its receiver's name now."""
        if not self._graves:
            return False
        sender, to, data = self._graves.pop(self._rng.randrange(len(self._graves)))
        self.network.later(self._rng.uniform(*self.network.delay_s), self._arrive, sender, to, data, 0)
        return True

    def _arrive(self, sender: NodeId, to: NodeId, data: bytes, turns: int) -> None:
        target = self._ends.get(to)
        if target is None:
            return
        if self.network.is_clogged(sender, to):
            if turns < CLOGGED_TURNS_MAX:
                self.network.later(UNCLOGGED_S, self._arrive, sender, to, data, turns + 1)
            return
        if target.waiting >= WAITING_MAX:
            self.network.count("datagrams_unread")
            return
        self.network.count("datagrams")
        self.network.note(sender, to, "gossip", crc32(data))
        target.waiting += 1
        target.tell(target.receive, data)

    def _damaged(self, data: bytes) -> bytes:
        if not self.network.corruption or self._rng.random() >= self.network.corruption:
            return data
        at = self._rng.randrange(len(data))
        return data[:at] + bytes([data[at] ^ (1 << self._rng.randrange(8))]) + data[at + 1 :]

    # ── exchanges ───────────────────────────────────────────────────────────────────────────────────

    def ask(self, caller: GossipEnd, to: NodeId, body: bytes, answer: asyncio.Future[bytes]) -> None:
        """A request on its way. Where nothing ever comes back the caller's own patience ends it."""
        self._open[answer] = (caller, to)
        answer.add_done_callback(lambda done: self._open.pop(done, None))
        if not self._can_talk(caller.node, to) or to in self._gone_silently:
            return
        self.network.later(self._way_s(), self._come, caller, to, self._damaged(body), answer)

    def _come(self, caller: GossipEnd, to: NodeId, body: bytes, answer: asyncio.Future[bytes]) -> None:
        if answer not in self._open or not self._can_talk(caller.node, to):
            return
        target = self._ends.get(to)
        if target is None:
            if to not in self._gone_silently:
                self._fail(answer, "the connection was refused")
            return
        self.network.count("exchanges")
        self.network.note(caller.node, to, "exchange", crc32(body))
        target.tell(self._serve, target, caller, body, answer)

    def _serve(self, target: GossipEnd, caller: GossipEnd, body: bytes, answer: asyncio.Future[bytes]) -> None:
        """In the process that is asked."""
        try:
            reply = target.serve(body)
        except OSError as error:
            self.network.later(self._way_s(), self._fail, answer, str(error))
            return
        self.network.later(self._way_s(), self._return, target.node, caller, self._damaged(reply), answer)

    def _return(self, sender: NodeId, caller: GossipEnd, reply: bytes, answer: asyncio.Future[bytes]) -> None:
        if answer in self._open and self._can_talk(sender, caller.node):
            caller.tell(_resolve, answer, reply)

    def _fail(self, answer: asyncio.Future[bytes], why: str) -> None:
        found = self._open.pop(answer, None)
        if found is not None:
            self.network.later(REFUSED_AFTER_S, found[0].tell, _refuse, answer, why)

    def _can_talk(self, one: NodeId, other: NodeId) -> bool:
        return not self.is_mute and self.network.is_open(one, other) and self.network.is_open(other, one)

    def _way_s(self) -> float:
        delay_s = self._rng.uniform(*self.network.delay_s)
        if self.network.loss and self._rng.random() < self.network.loss:
            delay_s += self._rng.uniform(*SENT_AGAIN_S)
        return delay_s


class GossipEnd:
    """One process's end: what `GossipNet` takes for its socket, its look-up of addresses and its peer listener."""

    family = socket.AF_INET
    address = "127.0.0.1:7500"  # of no meaning here: members are found by their ids

    def __init__(
        self,
        ways: GossipWays,
        node: NodeId,
        *,
        loop: asyncio.AbstractEventLoop,
        receive: Callable[[bytes], None],
        on_failed: Callable[[BaseException], None],
    ) -> None:
        self.node = node
        self.waiting = 0  # datagrams that are not read yet
        self._ways = ways
        self._loop = loop
        self._receive = receive
        self._on_failed = on_failed
        self._answer: Answer | None = None
        self._members: dict[NodeId, str] = {}
        self._is_closed = True

    def tell(self, callback: Callable[..., object], *args: object) -> None:
        """Something happens to this process, when it runs."""
        self._loop.call_soon(callback, *args)

    def receive(self, data: bytes) -> None:
        self.waiting -= 1
        if not self._is_closed:
            self._receive(data)

    def serve(self, body: bytes) -> bytes:
        """As the listener's route does: an error of the receiver's ends its node, the caller is refused."""
        if self._answer is None:
            raise ConnectionAbortedError("peers only")
        try:
            return self._answer(body)
        except CodecError as error:
            raise ConnectionAbortedError("refused") from error
        except Exception as error:
            self._on_failed(error)
            raise ConnectionAbortedError("the node failed") from error

    def end(self, *, silently: bool) -> None:
        """The process is gone."""
        self._is_closed = True
        self._ways.leave(self, silently=silently)

    # as a socket

    async def open(self, _host: str, _port: int) -> None:
        self._is_closed = False
        self._ways.join(self)

    def send(self, data: bytes, to: NodeId) -> bool:
        if not self._is_closed:
            self._ways.send(self.node, to, data)
        return not self._is_closed

    async def close(self) -> None:
        """Of the socket, or of the look-up."""
        self.end(silently=False)

    # as a look-up of addresses

    def set(self, members: Mapping[NodeId, str]) -> None:
        self._members = dict(members)

    def text(self, member: NodeId) -> str:
        return str(int(member)) if member in self._members else ""

    def find(self, member: NodeId) -> NodeId | None:
        return member if member in self._members else None

    # as a peer listener

    def serve_exchanges(self, answer: Answer | None) -> None:
        self._answer = answer

    async def post_exchange(self, address: str, body: bytes) -> bytes:
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._ways.ask(self, NodeId(int(address)), body, answer)
        return await answer


class VirtualGossipNet(GossipNet):
    """Production's, with a `GossipEnd` in place of all that is real."""

    def __init__(
        self,
        ways: GossipWays,
        *,
        node: NodeId,
        loop: asyncio.AbstractEventLoop,
        data: DataDir,
        roster: Roster,
        clock: Clock,
        on_failed: Callable[[BaseException], None],
        secret: bytes = SECRET,
    ) -> None:
        self.end = GossipEnd(ways, node, loop=loop, receive=self._on_datagram, on_failed=on_failed)
        super().__init__(
            node=node,
            incarnation=data.identity.incarnation,
            boot_counter=data.boot.counter,
            boot_nonce=data.boot.nonce,
            roster=roster,
            secret=secret,
            peers=self.end,
            clock=clock,
            on_failed=on_failed,
        )
        self._datagrams = self.end  # type: ignore[assignment]
        self._addresses = self.end  # type: ignore[assignment]


def _resolve(answer: asyncio.Future[bytes], reply: bytes) -> None:
    if not answer.done():
        answer.set_result(reply)


def _refuse(answer: asyncio.Future[bytes], why: str) -> None:
    if not answer.done():
        answer.set_exception(ConnectionAbortedError(why))
