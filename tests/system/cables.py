"""Cables: every pair of nodes connected in each direction by a cable of its own that a test can cut. No privileges.

All nodes reach each other at the addresses of `cluster.members`; behind each stands a proxy of ours for connections
(`scripts.faults.proxy`) and a relay for datagrams. A datagram's sender is known by its port: nodes send from that of
their peer listener, and authenticate each other by what is inside, so that a relay may stand between.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from kvnode.bench.load import Address
from kvnode.bench.process import free_ports
from scripts.faults.proxy import Proxies, Treatment
from scripts.faults.shapes import Link
from tests.system.available import AvailableCluster, Json


class CableCluster(AvailableCluster):
    """`async with`: the cables exist; at its end the nodes have ended, too."""

    def __init__(self, home: Path, nodes: int = 3, settings: Json | None = None) -> None:
        super().__init__(home, nodes, settings)
        self.listen_at: dict[int, Address] = {
            node: ("127.0.0.1", port) for node, port in zip(self.ids, free_ports(nodes), strict=True)
        }
        for node in self.ids:
            self.write_config(node, peer__listen="{}:{}".format(*self.listen_at[node]))
        self.lost: Counter[Link] = Counter()  # datagrams
        self._cut: set[Link] = set()
        self._proxies = Proxies(self._pid_of, random.Random(0))
        self._relays: list[asyncio.DatagramTransport] = []

    async def __aenter__(self) -> CableCluster:
        loop = asyncio.get_running_loop()
        for node in self.ids:
            await self._proxies.listen(node, self.peers[node], self.listen_at[node])
            relay, _ = await loop.create_datagram_endpoint(partial(_Relay, self, node), local_addr=self.peers[node])  # type: ignore[misc]
            self._relays.append(relay)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.heal()
        self.stop()
        while self._proxies.open_connections:  # both ends are gone, and the proxies learn it
            await asyncio.sleep(0.01)
        for relay in self._relays:
            relay.close()
        await self._proxies.close()

    def cut(self, *links: Link) -> None:
        """What is sent on these from now on is lost."""
        self._cut.update(links)
        for link in links:
            self._proxies.treat(link, Treatment(swallow=True))

    def part(self, some: Iterable[int], others: Iterable[int]) -> None:
        """Nothing passes between the two groups."""
        others = list(others)
        self.cut(*(link for one in some for other in others for link in ((one, other), (other, one))))

    def heal(self) -> None:
        self._cut.clear()
        self._proxies.heal()

    def passes(self, address: Any, to: int) -> bool:
        """Whether a datagram that came from `address` reaches `to`."""
        link = next(((node, to) for node, listens in self.listen_at.items() if listens == address), None)
        assert link is not None, f"a datagram from {address}, where no node is"
        if link not in self._cut:
            return True
        self.lost[link] += 1
        return False

    def _pid_of(self, node: int) -> int:
        process = self.processes.get(node)
        return 0 if process is None or process.exit_code is not None else process.pid


class _Relay(asyncio.DatagramProtocol):
    """Stands at the address of one node."""

    def __init__(self, cluster: CableCluster, to: int) -> None:
        self._cluster = cluster
        self._to = to
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        assert self._transport is not None
        if self._cluster.passes(addr, self._to):
            self._transport.sendto(data, self._cluster.listen_at[self._to])

    def error_received(self, exc: Exception) -> None:
        """Nobody listens: the node is not running."""
