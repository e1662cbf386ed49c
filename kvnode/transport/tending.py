"""Tending: what keeps one link up, or waits for the peer to bring it up; one task for each link.

The smaller id dials, the larger waits, and both look, the moment a link is lost and then again and again with growing,
jittered pauses, whether the peer's port refuses connections: its process is gone, and this is what makes failover fast.
The larger waits for `LATE_MS`, then it dials too: the smaller may not know yet that it is a member, or where it moved.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from kvnode.clocks.clock import Clock
from kvnode.config import PeerSection, parse_address
from kvnode.ids import NodeId
from kvnode.transport.link import Link
from kvnode.transport.probe import Probed, probe

LATE_MS = 1_000
"""A link that was down for so long, and up to half of it more, is dialled by the larger id as well."""

_LOOKS_AFTER_LOSS = 3
_LOOK_AGAIN_MS = 2


class Tending:
    """Of all links of one node. `dial`: a connection from its dial to its end, for how many ms it was up."""

    def __init__(
        self,
        *,
        node: NodeId,
        settings: PeerSection,
        clock: Clock,
        rng: random.Random,
        dial: Callable[[Link], Awaitable[int]],
        on_port_refused: Callable[[Link], None],
    ) -> None:
        self._node = node
        self._settings = settings
        self._clock = clock
        self._rng = rng
        self._dial = dial
        self._on_port_refused = on_port_refused

    async def tend(self, link: Link) -> None:
        """Keep `link` up (or wait for the peer to), and report a port that refuses, until cancelled."""
        attempt = 0
        late_ms = LATE_MS * self._rng.uniform(1.0, 1.5)
        while True:
            link.went_down.clear()
            if link.is_connected:
                await link.went_down.wait()
                await self._look_after_loss(link)
                attempt = 0
                link.went_down.clear()
            elif await self._look(link) == "open" and self._is_our_turn(link, late_ms):
                lived_ms = await self._dial(link)
                if lived_ms:
                    await self._look_after_loss(link)
                if lived_ms >= self._settings.reconnect_ms_max:
                    attempt = 0
                link.went_down.clear()
            await self._pause(link, attempt)
            attempt += 1

    def _is_our_turn(self, link: Link, late_ms: float) -> bool:
        """Whether this node dials now; not while a connection of the peer is there, or on its way."""
        if link.lanes:
            return False
        return self._node < link.peer or self._clock.monotonic_ms() - link.down_since_ms > late_ms

    async def _look(self, link: Link) -> Probed:
        """Is the peer's process there? A refused port is reported, unless the link has come up meanwhile."""
        try:
            host, port = parse_address(link.address, f"address of member {link.peer}")
            found = await probe(host, port, self._settings.handshake_timeout_ms / 1_000)
        except ValueError as error:  # no address, or no host name: somebody else's mistake must not end this node
            link.refused = str(error)
            return "unreachable"
        if found == "refused" and not link.is_connected:
            self._on_port_refused(link)
        return found

    async def _look_after_loss(self, link: Link) -> None:
        """A process that is killed closes its descriptors one by one: its port may outlive the connection a little."""
        for _ in range(_LOOKS_AFTER_LOSS):
            if await self._look(link) != "open":
                return
            await asyncio.sleep(_LOOK_AGAIN_MS / 1_000)

    async def _pause(self, link: Link, attempt: int) -> None:
        """Exponential, jittered; ends early when a connection that came up meanwhile is lost."""
        longest_ms = min(self._settings.reconnect_ms_max, self._settings.reconnect_ms_min << min(attempt, 20))
        try:
            async with asyncio.timeout(longest_ms * self._rng.uniform(0.5, 1.0) / 1_000):
                await link.went_down.wait()
        except TimeoutError:
            return
