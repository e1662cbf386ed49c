"""Gossip of one cluster in one process, on loopback: a `GossipNet` beside the transport of each node."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from kvnode.clocks.system import SystemClock
from kvnode.ids import NodeId
from kvnode.node.ports import GossipReceiver, GossipTransport
from kvnode.transport.gossip_net import GossipNet
from kvnode.wire.limits import CodecError
from tests.transport.cluster import SECRET, SETTINGS, Cluster


class Heard:
    """A receiver: what it was told, in order. Answers a request with the request, twice."""

    def __init__(self) -> None:
        self.packets: list[tuple[int, bytes]] = []
        self.requests: list[tuple[int, bytes]] = []

    def on_packet(self, sender: NodeId, packet: bytes) -> None:
        if packet == b"unreadable":
            raise CodecError("no packet")
        self.packets.append((sender, packet))

    def on_exchange(self, sender: NodeId, request: bytes) -> bytes:
        if request == b"unreadable":
            raise CodecError("no request")
        if request == b"bug":
            raise ZeroDivisionError
        self.requests.append((sender, request))
        return request * 2


class Gossips(Cluster):
    """`nets` and `heard` by member, once their transports have met."""

    def __init__(self, *members: int, settings: Any = SETTINGS) -> None:
        super().__init__(*members, settings=settings)
        self.nets: dict[int, GossipNet] = {}
        self.heard: dict[int, Heard] = {}
        self.sent: list[tuple[int, bytes]] = []  # every datagram that left, as it left

    async def __aenter__(self) -> Gossips:
        await super().__aenter__()
        await self.connected()
        for member in self.members:
            await self.join(member)
        return self

    async def __aexit__(self, *_: object) -> None:
        for net in self.nets.values():
            await net.close()
        await super().__aexit__()

    def make_net(self, member: int, *, secret: bytes = SECRET, **changes: int) -> GossipNet:
        identity, boot = self.directories[member].identity, self.directories[member].boot
        start = {"incarnation": identity.incarnation, "boot_counter": boot.counter, "boot_nonce": boot.nonce}
        net = GossipNet(
            node=NodeId(member),
            roster=self.rosters[member],
            secret=secret,
            peers=self.nodes[member],
            clock=SystemClock(),
            on_failed=self.failures.append,
            **{**start, **changes},
        )
        net.set_addresses({NodeId(peer): self.ports[peer] for peer in self.members})
        return net

    async def join(self, member: int, **how: Any) -> GossipNet:
        net, heard = self.make_net(member, **how), Heard()
        transport: GossipTransport = net  # by shape
        receiver: GossipReceiver = heard
        await transport.start(receiver)
        real = net._datagrams.send

        def send(data: bytes, to: Any) -> bool:
            self.sent.append((member, data))
            return real(data, to)

        net._datagrams.send = send  # type: ignore[method-assign]
        self.nets[member], self.heard[member] = net, heard
        return net

    async def reboot(self, member: int) -> None:
        """Another start of it, met by the others."""
        await self.nets[member].close()
        await self.restart(member)
        await self.connected()
        await self.join(member)

    def counters(self, member: int, *names: str) -> Mapping[str, int]:
        """Those that are not 0, of the ones named, or of all that tell of something refused."""
        counters = self.nets[member].counters
        chosen = names or ("gossip_bad", "gossip_refused", "gossip_replayed")
        return {name: counters[name] for name in chosen if counters[name]}


@asynccontextmanager
async def stranger(address: str) -> Any:
    """A socket that sends what it is told to that port."""
    host, port = address.rsplit(":", 1)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=(host, int(port)))
    try:
        yield transport.sendto
    finally:
        with suppress(OSError):
            transport.close()
