"""LeaderLoss: tells streams that want a leader when this node has been without one for three election timeouts.

One look an election timeout for all of them together, and none while nobody asks.
"""

from __future__ import annotations

import asyncio

from kvnode.kv.interface import Admin

TIMEOUTS = 3
"""An election takes one or two. Source: etcd's `maxNoLeaderCnt`."""


class LeaderLoss:
    """Lives on one event loop."""

    def __init__(self, admin: Admin, election_timeout_s: float) -> None:
        self._admin = admin
        self._period_s = election_timeout_s
        self._waiting: set[asyncio.Future[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._leaderless = 0  # looks one after another that found no leader

    async def wait(self) -> None:
        """Return when there has been no leader for so long."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        if self._timer is None:
            self._leaderless = 0
            self._again()
        try:
            await future
        finally:
            self._waiting.discard(future)
            if not self._waiting and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _again(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._period_s, self._look)

    def _look(self) -> None:
        self._again()
        self._leaderless = self._leaderless + 1 if self._admin.members().leader is None else 0
        if self._leaderless > TIMEOUTS:  # the first look found it gone, and so many timeouts have passed since
            for future in self._waiting:
                if not future.done():
                    future.set_result(None)
