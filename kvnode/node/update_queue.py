"""Singular update queue: every cause enters here, one consumer takes them out, in batches.

Two lanes. *Control* holds what consensus itself needs: peer messages, finished writes, connections, time.
*Proposals* holds clients' commands, of this node or forwarded here. A batch takes all of control first, so a
flood of proposals costs a 429 and never an election. Proposals are bounded by count and by bytes.

The queue is not awaited: `wake` is called when it stops being empty, and the driver drains it in the same turn
of the event loop that brought everything else that had arrived by then. That is the request batch.

Source: Fowler/Joshi, "Singular Update Queue" and "Request Batch".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from kvnode import perturb
from kvnode.errors import Overloaded
from kvnode.raft.messages import ENTRY_OVERHEAD_BYTES, AppendEntries, ForwardProposals, Input, Proposed

RETRY_AFTER_MS = 200
BATCH_PROPOSALS_MAX = 1_024
"""Proposals taken at once: bounds the time between two looks at the control lane."""

PEER_BYTES_MAX = 64 << 20
"""Undelivered append bytes; beyond it appends are dropped, and the leader sends them again."""


class Batch(msgspec.Struct):
    """What one drain took: control inputs in order of arrival, then proposals."""

    control: list[Input]
    forwarded: list[ForwardProposals]
    proposals: tuple[Proposed, ...]


class UpdateQueue:
    """Bounded queue of causes with one consumer. Lives on the node's loop; not thread-safe."""

    def __init__(self, *, items_max: int, bytes_max: int, wake: Callable[[], None]) -> None:
        self._items_max = items_max
        self._bytes_max = bytes_max
        self._wake = wake
        self._control: list[Input] = []
        self._append_bytes = 0
        self._proposals: deque[Proposed] = deque()
        self._forwarded: deque[ForwardProposals] = deque()
        self._forwarded_items = 0
        self._bytes = 0
        self.appends_dropped = 0

    @property
    def length(self) -> int:
        """Proposals waiting, forwarded ones included."""
        return len(self._proposals) + self._forwarded_items

    @property
    def bytes_used(self) -> int:
        """Bytes of the proposals waiting."""
        return self._bytes

    def put_control(self, cause: Input) -> None:
        """Never refused: what it holds is bounded by the peers' windows and by writes in flight."""
        self._control.append(cause)
        self._wake()

    def put_append(self, message: AppendEntries, size: int) -> None:
        """An append of a peer: control, but counted; dropped beyond `PEER_BYTES_MAX` (the leader sends it again)."""
        if self._append_bytes + size > PEER_BYTES_MAX or perturb.at("append-dropped"):
            self.appends_dropped += 1
            return
        self._append_bytes += size
        self._control.append(message)
        self._wake()

    def put_proposal(self, proposal: Proposed) -> None:
        """Raises: Overloaded (certainly not applied) when the count or the byte bound is reached."""
        size = len(proposal.payload) + ENTRY_OVERHEAD_BYTES
        if self.length >= self._items_max or self._bytes + size > self._bytes_max or perturb.at("queue-full"):
            raise Overloaded("the update queue is full", retry_after_ms=RETRY_AFTER_MS)
        self._bytes += size
        self._proposals.append(proposal)
        self._wake()

    def put_forwarded(self, message: ForwardProposals, size: int) -> bool:
        """A follower's proposals; False when a bound is reached (the caller answers `overloaded`)."""
        is_full = self.length + len(message.batch) > self._items_max or self._bytes + size > self._bytes_max
        if is_full or perturb.at("queue-full"):
            return False
        self._bytes += _forwarded_bytes(message)
        self._forwarded_items += len(message.batch)
        self._forwarded.append(message)
        self._wake()
        return True

    def drain(self) -> Batch:
        """All of control, then at most `BATCH_PROPOSALS_MAX` proposals. Wakes again if some remain."""
        control, self._control = self._control, []
        if len(control) > 1 and perturb.at("drain-one"):
            control, self._control = control[:1], control[1:]
            self._wake()
        else:
            self._append_bytes = 0
        forwarded: list[ForwardProposals] = []
        taken = 0
        while self._forwarded and taken < BATCH_PROPOSALS_MAX:
            message = self._forwarded.popleft()
            forwarded.append(message)
            taken += len(message.batch)
            self._forwarded_items -= len(message.batch)
            self._bytes -= _forwarded_bytes(message)
        own: tuple[Proposed, ...] = ()
        if self._proposals:
            if len(self._proposals) <= BATCH_PROPOSALS_MAX:
                own = tuple(self._proposals)
                self._proposals.clear()
            else:
                own = tuple(self._proposals.popleft() for _ in range(BATCH_PROPOSALS_MAX))
            self._bytes -= sum(len(p.payload) + ENTRY_OVERHEAD_BYTES for p in own)
        if self._proposals or self._forwarded:
            self._wake()
        return Batch(control, forwarded, own)


def _forwarded_bytes(message: ForwardProposals) -> int:
    return sum(len(p.payload) + ENTRY_OVERHEAD_BYTES for p in message.batch)
