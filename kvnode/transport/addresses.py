"""Addresses of members for datagrams: host names become figures beside the loop, so that no datagram waits for a name.

An address in figures is ready at once. A name is looked up when it is first wanted, and again after `FRESH_MS`: what
was found before serves meanwhile, as it does when a look-up fails. At most `LOOKUPS_MAX` run at once.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping

from kvnode.clocks.clock import Clock
from kvnode.config import parse_address
from kvnode.ids import NodeId
from kvnode.transport.datagrams import SocketAddress

FRESH_MS = 10_000
AGAIN_MS = 1_000
"""After a look-up that failed."""
LOOKUPS_MAX = 4
_PATIENCE_S = 5.0


class Addresses:
    """Member → where its datagrams go. Lives on one loop. `family`: of the socket; others cannot be reached by it."""

    def __init__(self, *, clock: Clock, family: int = socket.AF_INET) -> None:
        self.family = family
        self._clock = clock
        self._members: dict[NodeId, _Known] = {}
        self._lookups: dict[asyncio.Task[None], None] = {}

    def set(self, members: Mapping[NodeId, str]) -> None:
        """All of them, as host:port. What is known of an address that stays is kept."""
        old = self._members
        self._members = {}
        for member, text in sorted(members.items()):
            known = old.get(member)
            self._members[member] = known if known is not None and known.text == text else _Known(text)

    def text(self, member: NodeId) -> str:
        """host:port as it was set; "" for whom nothing is known of."""
        known = self._members.get(member)
        return known.text if known is not None else ""

    def find(self, member: NodeId) -> SocketAddress | None:
        """None: not known, or not looked up yet; then a look-up is on its way."""
        known = self._members.get(member)
        if known is None:
            return None
        if known.due_ms <= (now_ms := self._clock.monotonic_ms()):
            self._look_up(known, now_ms)
        return known.found

    async def close(self) -> None:
        self._members = {}
        for task in self._lookups:
            task.cancel()
        await asyncio.gather(*self._lookups, return_exceptions=True)

    def _look_up(self, known: _Known, now_ms: int) -> None:
        try:
            host, port = parse_address(known.text)
            found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
        except socket.gaierror:
            if len(self._lookups) >= LOOKUPS_MAX:
                return
            task = asyncio.create_task(self._ask(known, host, port), name=f"look-up-{host}")
            self._lookups[task] = None
            task.add_done_callback(lambda done: self._lookups.pop(done, None))
        except ValueError:
            pass  # no address: somebody else's mistake
        else:
            known.found = next((address for family, *_, address in found if family == self.family), None)
        known.due_ms = _NEVER  # or until the look-up is back

    async def _ask(self, known: _Known, host: str, port: int) -> None:
        again_ms = AGAIN_MS
        try:
            async with asyncio.timeout(_PATIENCE_S):
                found = await asyncio.get_running_loop().getaddrinfo(
                    host, port, family=self.family, type=socket.SOCK_DGRAM
                )
            known.found = found[0][4]
            again_ms = FRESH_MS
        except (OSError, UnicodeError, IndexError):
            return
        finally:
            known.due_ms = self._clock.monotonic_ms() + again_ms


class _Known:
    """One member's address, and when it is to be looked up next."""

    __slots__ = ("due_ms", "found", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.found: SocketAddress | None = None
        self.due_ms = 0


_NEVER = 1 << 62
