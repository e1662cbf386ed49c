"""Membership: who votes and who listens, by the newest configuration entry in the log.

A configuration takes effect when it is appended, not when it is committed, and is rolled back when its entry is
truncated (Raft thesis §4.1). Before the first such entry the restored configuration is in force: the initial one, or
that of the store. Learners receive appends and are never counted; nor is a node that stands in no configuration.
Which changes may be made is `reconfiguration`'s business.

Invariants: indexes in the history ascend; the oldest is in force at the log's base (or later, after a start from a
store that is ahead of it), so the one in force at the commit index is always known.
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


def highest_id(configuration: Configuration) -> NodeId:
    """The highest member id ever given, as this configuration knows."""
    return max(configuration.last_id, *configuration.voters, *configuration.learners)


def is_member(configuration: Configuration, node: NodeId) -> bool:
    return node in configuration.voters or node in configuration.learners


def is_removed(configuration: Configuration, node: NodeId) -> bool:
    """Whether `node` was a member and is none any more. A higher id belongs to one who is added later."""
    return node <= highest_id(configuration) and not is_member(configuration, node)


class Membership:
    """The configurations in the log, oldest first; the last one is in force."""

    __slots__ = ("_history", "configuration", "index", "members")

    def __init__(self, first: Configuration, index: Index = _INITIAL) -> None:
        """`first` was made by the entry at `index`; 0: it is the initial one."""
        self._history: list[tuple[Index, Configuration]] = [(index, first)]
        self._use_newest()

    def _use_newest(self) -> None:
        self.index, self.configuration = self._history[-1]
        self.members: tuple[NodeId, ...] = tuple(sorted(self.configuration.voters + self.configuration.learners))

    def on_appended(self, index: Index, payload: bytes) -> None:
        if index <= self.index:
            return  # replayed on top of a store that has it
        self._history.append((index, _decoder.decode(payload)))
        self._use_newest()

    def on_truncated(self, first: Index) -> None:
        """Entries at and above `first` are gone, and with them their configurations."""
        while len(self._history) > 1 and self._history[-1][0] >= first:
            self._history.pop()
        self._use_newest()

    def on_trimmed(self, base: Index) -> None:
        """Nothing is asked of the time before `base` any more."""
        while len(self._history) > 1 and self._history[1][0] <= base:
            del self._history[0]

    def at(self, index: Index) -> tuple[Index, Configuration]:
        """The configuration in force at `index`, and which entry made it; of the oldest known, if that is later."""
        for made_at, configuration in reversed(self._history):
            if made_at <= index:
                return made_at, configuration
        return self._history[0]

    def is_voter(self, node: NodeId) -> bool:
        return node in self.configuration.voters
