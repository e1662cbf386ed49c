"""Membership: who belongs to the cluster, as far as this node knows, once its bootstrap has finished.

Two configurations count: the newest one known to be *committed* (this node has applied it, or its answer to a join
carried it), and the one *in force* in its log, which may be newer, or older while the log catches up. Ids are never
given twice, once that is committed; so an id up to the committed `last_id` that stands for no member was removed, for
ever, whatever an old log says. An id above it is a *newcomer's*: it was added since, and is believed if it lists this
node as a member. Each member knows at least the entry that made it one; of two members the later one therefore knows
the other.

Pure; the rules about who may be talked to are `kvnode.node.roster`'s.
"""

from __future__ import annotations

from kvnode.ids import Index, NodeId
from kvnode.raft.messages import Configuration, Member


class Membership:
    """Lives as long as its node. `index`: of the entry that `committed` came with; 0: the initial one."""

    def __init__(self, committed: Configuration, index: Index) -> None:
        self.committed = committed
        self.index = index
        self._in_force = committed
        self._is_catching_up = False  # what is in force here may be older than `committed`

    def is_news(self, applied: Configuration, applied_index: Index) -> bool:
        """Whether it tells more than `committed`. What the log says at its index wins over what this node was told."""
        return applied_index > self.index or (applied_index == self.index and applied != self.committed)

    def on_configuration(self, applied: Configuration, applied_index: Index, in_force: Configuration) -> None:
        """What this node has applied, with the entry at `applied_index`, and what its log ends with."""
        for configuration in (applied, in_force):
            assert len(configuration.members) == len(configuration.voters) + len(configuration.learners), configuration
        self._in_force = in_force
        self._is_catching_up = applied_index < self.index
        if self.is_news(applied, applied_index):
            self.committed, self.index = applied, applied_index

    def is_removed(self, id_: NodeId) -> bool:
        """It was a member, and is none any more."""
        return id_ <= self.committed.last_id and not _find(self.committed, id_)

    def find(self, id_: NodeId) -> Member | None:
        """A member of either configuration, as the newer one of them has it; None: removed, or a newcomer."""
        if self.is_removed(id_):
            return None
        newest, other = (_find(configuration, id_) for configuration in self._newest_first())
        return newest or other

    def find_committed(self, id_: NodeId) -> Member | None:
        """A member for certain: nothing can take its id away but its removal."""
        return _find(self.committed, id_)

    @property
    def members(self) -> dict[NodeId, Member]:
        """Of both configurations, by id."""
        ids = sorted({member.id for configuration in self._newest_first() for member in configuration.members})
        return {id_: member for id_ in ids if (member := self.find(id_))}

    @property
    def last_id(self) -> NodeId:
        return max(self.committed.last_id, self._in_force.last_id)

    @property
    def feature_level(self) -> int:
        """What a member must know."""
        return max(self.committed.feature_level, self._in_force.feature_level)

    def _newest_first(self) -> tuple[Configuration, Configuration]:
        both = (self._in_force, self.committed)
        return both[::-1] if self._is_catching_up else both


def _find(configuration: Configuration, id_: NodeId) -> Member | None:
    return next((member for member in configuration.members if member.id == id_), None)
