"""Link: what this node knows about its connections to one peer. Both lanes together, or nothing.

The smaller member id dials; the larger does too, once the link has been down for long, for the smaller may not know
where it is. Each dial has a number, equal on both lanes and growing within one start of the dialler, so that both
sides agree which of two connections is the right one: of one dialler's the newer replaces the older, a latecomer of an
older dial is turned away, and two lanes of different dials never make a pair. Of two dials that cross, the one of the
smaller id wins, on both sides: the other's is turned away while it is there, and goes when it comes.
`epoch` counts the pairs on this side.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from kvnode.ids import NodeId
from kvnode.raft.messages import Lane
from kvnode.transport.channel import Channel
from kvnode.wire.frames import Hello


class Dial(NamedTuple):
    """One attempt of a dialler: its boot counter, and a number that grows within that start."""

    dialler: NodeId
    boot: int
    number: int


class Link:
    """State of one peer's connections; changed by `kvnode.transport.peers` only, on one loop, without awaiting."""

    def __init__(self, peer: NodeId, address: str, *, now_ms: int) -> None:
        self.peer = peer
        self.address = address
        self.epoch = 0
        self.is_connected = False
        self.is_gone = False  # the peer is no member any more: nothing is attached
        self.down_since_ms = now_ms  # while it is not connected
        self.hello: Hello | None = None  # the peer's, from the newest pair
        self.takes_times = False  # both ends of the newest pair claim to know TIME frames
        self.refused = ""  # why the last handshake failed for good, "" once one succeeded
        self.lanes: dict[Lane, Channel] = {}
        self.went_down = asyncio.Event()  # set by every loss: wakes the task that tends this link
        self.settled = asyncio.Event()  # the pair in place is complete, or gone
        self.task: asyncio.Task[None] | None = None  # tends it
        self._current: Dial | None = None  # whose lanes are in place
        self._newest: dict[NodeId, Dial] = {}  # dialler → the newest of its dials seen

    def is_stale(self, lane: Lane, dial: Dial) -> bool:
        """A latecomer of an older dial, a lane that is there already, or a dial that crossed a better one."""
        if dial == self._current:
            return lane in self.lanes
        if self.is_gone or dial <= self._newest.get(dial.dialler, Dial(dial.dialler, 0, -1)):
            return True
        return self._current is not None and self._current.dialler < dial.dialler

    def attach(self, channel: Channel, dial: Dial) -> bool:
        """Take a proven channel that is not stale; True if the pair is now complete.

        The caller has taken down what another dial left (`is_newer`).
        """
        assert not self.is_stale(channel.lane, dial), (channel.lane, dial, self._current)
        assert dial == self._current or not self.lanes, (dial, self._current)
        self._current = self._newest[dial.dialler] = dial
        self.lanes[channel.lane] = channel
        if len(self.lanes) < 2:
            self.settled = asyncio.Event()
            return False
        self.is_connected = True
        self.settled.set()
        self.epoch += 1
        self.refused = ""
        return True

    def is_newer(self, dial: Dial) -> bool:
        """Whether `dial`, which is not stale, replaces what is in place."""
        return self._current is not None and dial != self._current

    def is_of(self, dialler: NodeId, number: int) -> bool:
        """Whether the lanes in place are of this dial."""
        return self._current is not None and (self._current.dialler, self._current.number) == (dialler, number)

    def owns(self, channel: Channel) -> bool:
        return self.lanes.get(channel.lane) is channel

    def take_down(self, now_ms: int) -> None:
        """Cut what there is. Idempotent."""
        if self.is_connected:
            self.down_since_ms = now_ms
        self.is_connected = False
        self._current = None
        for channel in self.lanes.values():
            channel.abort()
        self.lanes.clear()
        self.settled.set()
        self.went_down.set()
