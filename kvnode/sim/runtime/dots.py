"""Every write of the always-writable keyspace as its node made it, and what nodes show of them: judged at each read.

A write is seen where it is made: its dot, its key, and which writes it replaces (what the context covers that came with
it). From these alone follows what any replica may show that has a given set of writes: the values that none of them
replaces. So each read is judged by the context it came with, and the end by the vector that all have reached.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kvnode.clocks.version_vector import Dot, Origin, VersionVector
from kvnode.gossip.key_state import BLIND, Context
from kvnode.gossip.keyspace import Written
from kvnode.ids import NodeId
from kvnode.kv.available import DotRow
from kvnode.node.available import AvailablePlane


@dataclass
class Write:
    """One write, made in memory; only what was acknowledged or shown must stay."""

    dot: Dot
    key: bytes
    value: bytes | None  # None: a deletion
    replaces: Context
    is_acknowledged: bool = False
    is_shown: bool = False


class Dots:
    """All writes of a run, on all members but those that run on what is not theirs."""

    def __init__(self) -> None:
        self.by_key: dict[bytes, dict[Dot, Write]] = {}
        self.lost: dict[Origin, bool] = {}  # origins whose store is gone, and what only that held
        self._all: dict[Dot, Write] = {}
        self._origins: dict[NodeId, Origin] = {}
        self.siblings_most = 0
        self.reads = 0

    def watch(self, plane: AvailablePlane, member: NodeId, *, was_lied_to: bool) -> None:
        """See what this process writes from now on. `was_lied_to`: its disk may have lost what it said was durable."""
        keyspace = plane._eventual.keyspace
        before, now = self._origins.get(member), keyspace.origin
        assert now not in self.lost, ("V1: a store that was lost goes on counting under its old name", now)
        if before != now and was_lied_to:
            self.damaged(member)
        assert before in (None, now) or was_lied_to, ("V1: another store without a loss", before, now)
        self._origins[member] = now
        put, delete = keyspace.put, keyspace.delete

        def watched_put(key: bytes, value: bytes, *, context: Context | None, time: int) -> Written:
            written = put(key, value, context=context, time=time)
            self._made(member, written.dot, key, value, BLIND if context is None else context)
            return written

        def watched_delete(key: bytes, *, context: Context | None, time: int) -> Written:
            before = Context(keyspace._newest(key).context)
            written = delete(key, context=context, time=time)
            self._made(member, written.dot, key, None, before if context is None else context)
            return written

        keyspace.put = watched_put  # type: ignore[method-assign]
        keyspace.delete = watched_delete  # type: ignore[method-assign]

    def damaged(self, member: NodeId) -> None:
        """Its store is gone: what only that held is lost, and must not come under the same name again."""
        before = self._origins.pop(member, None)
        if before is not None:
            self.lost[before] = True

    def _made(self, member: NodeId, dot: Dot | None, key: bytes, value: bytes | None, replaces: Context) -> None:
        if dot is None:
            return
        assert dot.origin.member == member, (dot, member)
        before = self._all.get(dot)
        if before is not None:  # its process ended before the disk had it
            assert not before.is_acknowledged, (
                "V1: a dot is used twice, after it was acknowledged",
                before,
                key,
                value,
            )
            assert not before.is_shown, ("V1: a dot is used twice, after it was shown", before, key, value)
            del self.by_key[before.key][dot]
        self._all[dot] = self.by_key.setdefault(key, {})[dot] = Write(dot, key, value, replaces)

    def acknowledged(self, row: DotRow, key: bytes) -> None:
        """The node said so, with this token."""
        write = self._all[dot_of(row)]
        assert write.key == key, ("V1: the dot of an answer is another write's", write, key)
        write.is_acknowledged = True

    @property
    def acknowledged_count(self) -> int:
        return sum(write.is_acknowledged for write in self._all.values())

    def judge_read(self, key: bytes, shown: Iterable[tuple[Dot, bytes]], known: VersionVector) -> None:
        """What a node showed that has all writes of `key` up to `known`: its vector, and the context it gave."""
        self.reads += 1
        values = dict(shown)
        self.siblings_most = max(self.siblings_most, len(values))
        writes = self.by_key.get(key, {})
        for dot, value in values.items():
            write = writes.get(dot)
            assert write is not None, ("V2: a value that nobody wrote", key, dot, value)
            assert write.value == value, ("V1: two values of one dot", write, value)
            assert known.covers(dot), ("V2: a value comes without a context that covers it", key, dot, known)
        there = [write for dot, write in writes.items() if known.covers(dot)]
        for write in there:
            write.is_shown = True
        expected = _unreplaced(there)
        assert values == expected, (
            "V3: a value is gone that no write known here replaces, or one is back",
            key,
            {"shown": values, "expected": expected, "known": known},
            list(writes.values()),
        )

    def missing(self, vector: VersionVector, members: Iterable[NodeId]) -> list[Write]:
        """Acknowledged writes of these members that a replica with this vector lacks, but for stores that were lost."""
        good = set(members)  # asked for membership only
        return [
            write
            for dot, write in self._all.items()
            if write.is_acknowledged
            and dot.origin.member in good
            and dot.origin not in self.lost
            and not vector.covers(dot)
        ]


def _unreplaced(writes: list[Write]) -> dict[Dot, bytes]:
    """What a replica shows that has these writes of one key."""
    return {
        write.dot: write.value
        for write in writes
        if write.value is not None and not any(other.replaces.covers(write.dot) for other in writes)
    }


def dot_of(row: DotRow) -> Dot:
    member, incarnation, n = row
    return Dot(Origin(NodeId(member), incarnation), n)
