"""What the node needs from its neighbours, stated by the node; `storage` and `transport` satisfy it by shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from kvnode.errors import LogCorrupted
from kvnode.ids import Index, NodeId
from kvnode.machine.backend import Backend
from kvnode.raft.messages import Entry, LogPosition, PeerMessage
from kvnode.raft.output import Persist
from kvnode.wire.links import LinkInfo

__all__ = [
    "GossipReceiver",
    "GossipTransport",
    "LinkInfo",
    "LogStore",
    "Receiver",
    "SnapshotSink",
    "SnapshotSource",
    "SnapshotStore",
    "Transport",
]


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

    def trim(self, applied_index: Index, bytes_kept: int) -> LogPosition:
        """Remove whole segments of entries up to `applied_index`, the store's last durable commit, oldest first.

        Segments of `bytes_kept` at least stay, and the newest. Returns the position before the first entry left.
        Called as `write` is. Raises: StorageFailed.
        """
        ...

    def reset(self, position: LogPosition, time: int) -> None:
        """Begin anew behind `position`, where the snapshot that is the store now ends; term and vote stay.

        `time`: hybrid timestamp of that entry. Called as `write` is. Raises: StorageFailed.
        """
        ...

    @property
    def bytes_used(self) -> int:
        """Bytes of all segments on disk."""
        ...

    def close(self) -> None: ...


class SnapshotStore(Protocol):
    """A snapshot that comes from a leader, and the store it becomes. Every call blocks; one thread at a time.

    Blocks are `kvnode.machine.snapshot`'s; nothing of one is believed before its checksum and its place are right.
    """

    def begin(self, header: bytes) -> int:
        """Receive the snapshot that `header` describes, and drop any other. Returns how many of its blocks are here.

        Raises: SnapshotRefused (format, cluster, space), StorageFailed.
        """
        ...

    def append(self, first: int, blocks: Sequence[bytes]) -> None:
        """The next blocks, the first of which has number `first`; durable on return. SnapshotRefused if damaged."""
        ...

    def prepare(self) -> Backend:
        """All blocks are here: verify the whole and build a store of it aside, durably. SnapshotRefused if damaged."""
        ...

    def switch(self) -> None:
        """The prepared store is this node's from now on, durably and at once; the old one is removed. StorageFailed."""
        ...

    def discard(self) -> None:
        """Forget what was received or prepared."""
        ...


class SnapshotSource(Protocol):
    """A snapshot on its way out: a pinned view, read block by block. `read` and `close` run where the node says."""

    @property
    def header(self) -> bytes: ...

    async def block(self, number: int) -> bytes | None:
        """Block `number`, from 0; None after the last one. Blocks may be asked for again, in any order."""
        ...


class SnapshotSink(Protocol):
    """Where a transport delivers a snapshot that a peer sends. Raises SnapshotRefused: the connection is closed.

    One call at a time. `begin` and `write` may be cancelled, as another snapshot comes instead, and what they began may
    still go on then; the next `begin` must bear that. `finish` is never cancelled but when the transport closes.
    """

    async def begin(self, peer: NodeId, header: bytes) -> int | None:
        """The first block that is wanted; None: this node has everything that the snapshot has."""
        ...

    async def write(self, number: int, blocks: Sequence[bytes]) -> None:
        """The next blocks; durable on return."""
        ...

    async def finish(self) -> None:
        """That was the last block: verify, build the store, hand it to the core. Returns when that has decided."""
        ...


class Receiver(Protocol):
    """The node's side of the transport; called on the node's loop, never blocks, never raises."""

    def on_message(self, message: PeerMessage, size: int) -> None: ...

    def on_connected(self, peer: NodeId) -> None: ...

    def on_disconnected(self, peer: NodeId) -> None: ...

    def on_refused(self, peer: NodeId) -> None:
        """The link is down and the peer's port refuses connections (its process is gone)."""
        ...

    @property
    def snapshot_sink(self) -> SnapshotSink | None:
        """Where a snapshot goes that a peer sends; None: this node takes none now."""
        ...


class Transport(Protocol):
    """Messages to peers: ordered per lane, at most once, dropped rather than queued without bound."""

    async def start(self, receiver: Receiver) -> None: ...

    def send(self, to: NodeId, message: PeerMessage) -> None:
        """Queue for `to` on the message's lane; dropped if the link is down or its queue is full."""
        ...

    def links(self) -> Mapping[NodeId, LinkInfo]: ...

    def set_members(self, members: Mapping[NodeId, str]) -> None:
        """Whom to be connected to, this node or not, and where: the roster's `members`, after each change of them."""
        ...

    async def send_snapshot(self, to: NodeId, source: SnapshotSource) -> None:
        """Send it over a connection of its own; returns when the receiver has taken it over.

        Never waits without bound. Again after a failure, it goes on with the first block that the receiver lacks.
        Raises: OSError (TimeoutError among them), SnapshotRefused by the receiver, or of a block too large to send;
        StorageFailed, if it cannot be recorded who the peer is.
        """
        ...

    @property
    def counters(self) -> Mapping[str, int]:
        """Messages sent, received and dropped by lane, reconnects; names are the transport's."""
        ...

    async def close(self) -> None: ...


class GossipReceiver(Protocol):
    """The node's side of the gossip transport; called on the node's loop, never blocks.

    Whatever arrives is proven, of a member in its newest start, and comes once; its body is checked by nobody before.
    """

    def on_packet(self, sender: NodeId, packet: bytes) -> None:
        """A datagram's body. Raises: CodecError: it is dropped and counted."""
        ...

    def on_exchange(self, sender: NodeId, request: bytes) -> bytes:
        """The answer to an exchange, at once, at most `kvnode.wire.gossip_seal.body_bytes_max` of a REPLY.

        Raises: CodecError: the caller is refused.
        """
        ...


class GossipTransport(Protocol):
    """Datagrams and exchanges of the gossip plane: sealed, in any order, at most once, lost without a word."""

    async def start(self, receiver: GossipReceiver) -> None:
        """After the end of the bootstrap. Raises: OSError, if the port of the peer listener is taken for datagrams."""
        ...

    def send(self, to: NodeId, packet: bytes) -> None:
        """One datagram; dropped, and counted, if it is too large, `to` has no address yet or the socket is full."""
        ...

    async def exchange(self, to: NodeId, request: bytes) -> bytes:
        """A request to `to`, and its answer. One at a time to each member, bounded in time and size. Raises OSError."""
        ...

    def set_addresses(self, members: Mapping[NodeId, str]) -> None:
        """Whom to send to, this node or not, and where: peer addresses. Not members that claim less than level 3."""
        ...

    @property
    def counters(self) -> Mapping[str, int]:
        """Datagrams and exchanges sent, received, dropped, refused; names are the transport's."""
        ...

    async def close(self) -> None: ...
