"""Membership: who votes and who listens, by the newest configuration entry in the log.

A configuration takes effect when it is appended, not when it is committed, and is rolled back when its entry is
truncated (Raft thesis §4.1). Before the first such entry the restored configuration is in force. Learners
receive appends and are never counted. Proposing changes is not this module's business.
"""

from __future__ import annotations

import msgspec

from kvnode.ids import Index, NodeId
from kvnode.raft.messages import Configuration

_INITIAL = Index(0)
_decoder = msgspec.msgpack.Decoder(Configuration)


def encode_configuration(configuration: Configuration) -> bytes:
    """Payload of a CONFIGURATION entry."""
    return msgspec.msgpack.encode(configuration)


class Membership:
    """The configurations in the log, oldest first; the last one is in force."""

    __slots__ = ("_history", "configuration", "index", "members")

    def __init__(self, first: Configuration, index: Index = _INITIAL) -> None:
        """`index`: of the entry that `first` came with; 0: it is the initial one."""
        self._history: list[tuple[Index, Configuration]] = [(index, first)]
        self._use_newest()

    def _use_newest(self) -> None:
        self.index, self.configuration = self._history[-1]
        self.members: tuple[NodeId, ...] = tuple(sorted(self.configuration.voters + self.configuration.learners))

    def on_appended(self, index: Index, payload: bytes) -> None:
        if index <= self.index:  # at a start: the store has applied it, so it is the one that was given
            return
        self._history.append((index, _decoder.decode(payload)))
        self._use_newest()

    def on_truncated(self, first: Index) -> None:
        """Entries at and above `first` are gone, and with them their configurations."""
        while len(self._history) > 1 and self._history[-1][0] >= first:
            self._history.pop()
        self._use_newest()

    def on_trimmed(self, base: Index) -> None:
        """Entries up to `base` are gone: of their configurations the newest is still in force there."""
        while len(self._history) > 1 and self._history[1][0] <= base:
            del self._history[0]

    def is_voter(self, node: NodeId) -> bool:
        return node in self.configuration.voters
