"""What the node needs from its neighbours, stated by the node; `storage` and `transport` satisfy it by shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from kvnode.errors import LogCorrupted
from kvnode.ids import Index, NodeId
from kvnode.raft.messages import Entry, PeerMessage
from kvnode.raft.output import Persist
from kvnode.wire.links import LinkInfo

__all__ = ["LinkInfo", "LogStore", "Receiver", "Transport"]


class LogStore(Protocol):
    """The write-ahead log. `write` and `mark` are called from one thread only, never concurrently."""

    def write(self, batch: Sequence[Persist]) -> None:
        """Append all writes in order and make them durable with one fdatasync before returning.

        Raises: StorageFailed; after it the log must not be used any more (a failed fsync is final).
        """
        ...

    def mark(self) -> None:
        """Write one idle mark record: proof, for a later recovery, that everything before it was durable."""
        ...

    def read(self, first: Index, last: Index, bytes_max: int) -> list[Entry]:
        """Durable entries from `first` to at most `last`, checksums verified; at least one, unless none is there.

        May be called from another thread than `write`. Raises: LogCorrupted.
        """
        ...

    def scrub(self, bytes_max: int) -> bool:
        """Verify the next part of what is not written any more; True at the end of it, the next call begins anew.

        Called from one thread, not that of `write`. Raises: LogCorrupted, StorageFailed.
        """
        ...

    def note_damage(self, damage: LogCorrupted) -> None:
        """Make it durable that the log is damaged, so that the next start sets the damage aside. StorageFailed."""
        ...

    def lift_quarantine(self) -> None:
        """Make it durable that everything lost is there again. Called as `write` is. Raises: StorageFailed."""
        ...

    @property
    def bytes_used(self) -> int:
        """Bytes of all segments on disk."""
        ...

    def close(self) -> None: ...


class Receiver(Protocol):
    """The node's side of the transport; called on the node's loop, never blocks, never raises."""

    def on_message(self, message: PeerMessage, size: int) -> None: ...

    def on_connected(self, peer: NodeId) -> None: ...

    def on_disconnected(self, peer: NodeId) -> None: ...

    def on_refused(self, peer: NodeId) -> None:
        """The link is down and the peer's port refuses connections (its process is gone)."""
        ...


class Transport(Protocol):
    """Messages to peers: ordered per lane, at most once, dropped rather than queued without bound."""

    async def start(self, receiver: Receiver) -> None: ...

    def send(self, to: NodeId, message: PeerMessage) -> None:
        """Queue for `to` on the message's lane; dropped if the link is down or its queue is full."""
        ...

    def links(self) -> Mapping[NodeId, LinkInfo]: ...

    @property
    def counters(self) -> Mapping[str, int]:
        """Messages sent, received and dropped by lane, reconnects; names are the transport's."""
        ...

    async def close(self) -> None: ...
