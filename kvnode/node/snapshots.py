"""Snapshots of one node: what it sends, what it takes in, and the moment in which one takes the state's place."""

from __future__ import annotations

from collections.abc import Callable

from kvnode.node.applier import Applier
from kvnode.node.changes import Changes
from kvnode.node.snapshot_receiver import SnapshotReceiver
from kvnode.node.snapshot_sender import SnapshotSender
from kvnode.node.state_checks import StateChecks
from kvnode.node.watches import Watches
from kvnode.node.worker import Worker
from kvnode.raft.messages import LogPosition
from kvnode.raft.output import SendSnapshot


class Snapshots:
    """The driver's side of it: executes what the core's output says. Lives on the node's loop."""

    def __init__(
        self,
        *,
        sender: SnapshotSender,
        receiver: SnapshotReceiver,
        applier: Applier,
        end_duties: Callable[[], None],
        state_checks: StateChecks,
        changes: Changes,
        watches: Watches,
        flusher: Worker,
        on_failed: Callable[[BaseException], None],
    ) -> None:
        self.sender = sender
        self.receiver = receiver
        self._applier = applier
        self._end_duties = end_duties
        self._state_checks = state_checks
        self._changes = changes
        self._watches = watches
        self._flusher = flusher
        self._on_failed = on_failed
        self.on_installing: Callable[[], None] = lambda: None
        """The state goes: who reads the old store must let go of it."""

    def send(self, wanted: SendSnapshot) -> None:
        self.sender.send(wanted)

    def accepted(self) -> None:
        """The core installs the snapshot that stands ready; the write is on its way."""
        self.receiver.accepted()

    def installed(self, position: LogPosition) -> None:
        """It is durable: all at once nothing of the old state is read, applied or flushed any more.

        Reads between two slices begin again; what a revision shows is the same in every store.
        """
        self.on_installing()
        self._end_duties()  # none goes on in the old state
        old = self.receiver.installed(position)
        self._applier.replaced()
        self._watches.on_store_replaced()
        self._changes.on_store_replaced()
        self._state_checks.on_store_replaced()
        # After the flush that may still be writing to it, in the same thread.
        self._flusher.submit(old.close, lambda _: None, self._on_failed)

    def stop(self) -> None:
        """The node stops."""
        self.sender.stop()
        self.receiver.stop()
