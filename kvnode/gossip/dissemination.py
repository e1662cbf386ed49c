"""Dissemination: rumors travel on packets that go anyway, each a bounded number of times, the least sent first.

A rumor is sent at most `retransmit_factor` · ⌈log10(n + 1)⌉ times by one member, which reaches everybody with high
probability whatever the size of the group; what is missed, the exchange of tables brings. There is one rumor a
member, the newest; so the queue is bounded by the table.

Source: SWIM §4.1; hashicorp/memberlist `queue.go`.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from kvnode.gossip.messages import PACKET_BYTES_MAX, PACKET_MESSAGES_MAX, Rumor, Summary, SwimMessage
from kvnode.ids import NodeId

PACKET_FRAME_BYTES = 8
"""Of an encoded packet beside its summary and messages: array heads and the tag."""

_encoder = msgspec.msgpack.Encoder()


def retransmit_max(members: int, factor: int) -> int:
    """How often one member sends one rumor in a group of so many: factor · ⌈log10(members + 1)⌉."""
    return factor * len(str(members))  # ⌈log10(n + 1)⌉ is the number of digits of n


def message_bytes(message: SwimMessage | Summary) -> int:
    """What a message or summary adds to an encoded packet."""
    return len(_encoder.encode(message))


@dataclass(slots=True)
class _Queued:
    rumor: Rumor
    order: int
    sent: int = 0
    skipped: int = 0  # packets it could have gone with, had they not been for the member itself
    bytes: int = 0  # encoded, once it was about to be sent


class RumorQueue:
    """What is still to be told, a rumor a member."""

    def __init__(self) -> None:
        self._queue: dict[NodeId, _Queued] = {}
        self._order = 0

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, rumor: Rumor) -> None:
        """Replaces what was to be told of this member."""
        self._order += 1
        self._queue[rumor.member] = _Queued(rumor, self._order)

    def drop(self, member: NodeId) -> None:
        self._queue.pop(member, None)

    def clear(self) -> None:
        self._queue.clear()

    def fill(
        self, summary: Summary, messages: list[SwimMessage], members: int, factor: int, *, to: NodeId
    ) -> tuple[SwimMessage, ...]:
        """`messages`, and after them as many rumors as the packet still holds. Rumors of those in it are left out.

        What a member tells of itself is not told back to it; what others say of it, is: so it can refute.
        """
        room = PACKET_BYTES_MAX - PACKET_FRAME_BYTES - message_bytes(summary) - sum(map(message_bytes, messages))
        assert room >= 0, (room, messages)
        said = {message.member for message in messages if isinstance(message, Rumor)}
        limit = retransmit_max(members, factor)
        filled = list(messages)
        for queued in sorted(self._queue.values(), key=lambda queued: (queued.sent, -queued.order)):
            rumor = queued.rumor
            if rumor.member in said:
                continue
            if rumor.member == to and not rumor.by:
                queued.skipped += 1
                if queued.skipped >= limit:  # there is hardly anybody else
                    del self._queue[rumor.member]
                continue
            queued.bytes = queued.bytes or message_bytes(rumor)
            if queued.bytes > room or len(filled) >= PACKET_MESSAGES_MAX:
                continue
            filled.append(rumor)
            room -= queued.bytes
            queued.sent += 1
            if queued.sent >= limit:
                del self._queue[rumor.member]
        return tuple(filled)
