"""Link: what this node knows about its connections to one peer. Both lanes together, or nothing.

The smaller member id dials. Each dial has a number, equal on both lanes and growing within one start of the
dialler, so that both sides agree which of two connections is the newer one: a newer one replaces an older one,
a latecomer of an older dial is turned away, and two lanes of different dials never make a pair.
`epoch` counts the pairs on this side.
"""

from __future__ import annotations

import asyncio

from kvnode.ids import NodeId
from kvnode.raft.messages import Lane
from kvnode.transport.channel import Channel

Dial = tuple[int, int]
"""(the dialler's boot counter, number of the dial): grows from one connection to the next."""

NEVER: Dial = (0, 0)


class Link:
    """State of one peer's connections; changed by `kvnode.transport.peers` only, on one loop, without awaiting."""

    def __init__(self, peer: NodeId, address: str) -> None:
        self.peer = peer
        self.address = address
        self.epoch = 0
        self.is_connected = False
        self.client_url = ""
        self.refused = ""  # why the last handshake failed for good, "" once one succeeded
        self.lanes: dict[Lane, Channel] = {}
        self.went_down = asyncio.Event()  # set by every loss: wakes the task that tends this link
        self.settled = asyncio.Event()  # the pair in place is complete, or gone
        self._dial: Dial = NEVER

    def is_stale(self, lane: Lane, dial: Dial) -> bool:
        """A latecomer of an older dial, or a lane that is there already."""
        return dial < self._dial or (dial == self._dial and lane in self.lanes)

    def attach(self, channel: Channel, dial: Dial) -> bool:
        """Take a proven channel that is not stale; True if the pair is now complete.

        The caller has taken down what an older dial left (`is_newer`).
        """
        assert not self.is_stale(channel.lane, dial), (channel.lane, dial, self._dial)
        assert dial == self._dial or not self.lanes, (dial, self._dial)
        self._dial = dial
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
        """Whether `dial` replaces what is in place."""
        return dial > self._dial

    def owns(self, channel: Channel) -> bool:
        return self.lanes.get(channel.lane) is channel

    def take_down(self) -> None:
        """Cut what there is. Idempotent."""
        self.is_connected = False
        for channel in self.lanes.values():
            channel.abort()
        self.lanes.clear()
        self.settled.set()
        self.went_down.set()
