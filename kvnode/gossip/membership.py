"""Membership: what this node holds of every member, and which of two rumors about one member counts.

A member's number is its own incarnation count: only itself raises it. Rumors are ordered by (number, status), and of
one number LEFT beats DEAD beats SUSPECT beats ALIVE. So an accusation holds against the life in which it was made, and
nothing but the accused, with a higher number, takes it back. What a member tells of itself (address, role …) is
ordered by its beat, apart from that. Both are maxima of total orders, so tables merge in any order, any number of
times, to the same (S47, S48).

Who is a member, the configuration says: `set_members`. A rumor about anybody else is refused, unless `learn` is on.
Members are keyed by id, never by address (C16).

Source: SWIM §4.2, with dead bound to a number as in memberlist.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec

from kvnode.gossip.messages import MEMBERS_MAX, Rumor, Status
from kvnode.ids import NodeId

RTT_WEIGHT = 0.25
"""Of the newest sample in the smoothed round trip."""


def precedence(rumor: Rumor) -> tuple[int, int, int]:
    """The higher counts. Accusers of equal accusations are ordered only so that all tables agree: lower ids first."""
    return (rumor.number, rumor.status, -rumor.by)


def told(rumor: Rumor) -> tuple[int, int, str, str, str, str, int]:
    """Order of what members tell of themselves: by beat; the rest only so that a tie has one outcome (S47)."""
    return (
        rumor.beat,
        rumor.incarnation,
        rumor.address,
        rumor.client_url,
        rumor.role,
        rumor.version,
        rumor.applied_index,
    )


def merge(ours: Rumor, theirs: Rumor) -> Rumor:
    """The join of two rumors about one member: commutative, associative, idempotent."""
    assert ours.member == theirs.member, (ours.member, theirs.member)
    life = ours if precedence(ours) >= precedence(theirs) else theirs
    tale = ours if told(ours) >= told(theirs) else theirs
    if life is tale:
        return life
    return msgspec.structs.replace(tale, number=life.number, status=life.status, by=life.by)


def accusation(rumor: Rumor) -> Rumor:
    """The short form: says whether the member lives and nothing else."""
    return Rumor(rumor.member, rumor.number, rumor.status, rumor.by)


class MemberState(msgspec.Struct, frozen=True, gc=False):
    """One row of the table, for those who ask. Instants are `now_ms`; -1: never."""

    rumor: Rumor
    address: str
    since_ms: int  # of this status
    last_heard_ms: int  # last packet of its own
    rtt_ms: float | None

    @property
    def member(self) -> NodeId:
        return self.rumor.member

    @property
    def status(self) -> Status:
        return Status(self.rumor.status)


@dataclass(slots=True)
class Entry:
    """One member other than this node."""

    rumor: Rumor
    address: str
    is_configured: bool
    since_ms: int
    last_heard_ms: int = -1
    rtt_ms: float | None = None
    is_blocked: bool = False  # it answers exchanges, but datagrams between it and this node do not get through

    @property
    def status(self) -> int:
        return self.rumor.status

    @property
    def is_here(self) -> bool:
        """Not known to be gone: it is probed and may help."""
        return self.rumor.status <= Status.SUSPECT

    def on_rtt(self, ms: float) -> None:
        self.rtt_ms = ms if self.rtt_ms is None else self.rtt_ms + RTT_WEIGHT * (ms - self.rtt_ms)

    def state(self) -> MemberState:
        return MemberState(self.rumor, self.address, self.since_ms, self.last_heard_ms, self.rtt_ms)


class MemberTable:
    """All members but this node, by id. At most MEMBERS_MAX."""

    def __init__(self, node: NodeId, *, learn: bool = False) -> None:
        self._node = node
        self._learn = learn
        self._entries: dict[NodeId, Entry] = {}
        self._removed: dict[NodeId, None] = {}  # once configured, no more: never learnt again; ids are not reused

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def get(self, member: NodeId) -> Entry | None:
        return self._entries.get(member)

    def here(self) -> int:
        """How many are not known to be gone, this node included."""
        return 1 + sum(entry.is_here for entry in self._entries.values())

    def alive(self) -> list[NodeId]:
        """Those believed alive."""
        return [entry.rumor.member for entry in self if entry.status == Status.ALIVE]

    def set_members(
        self, members: Mapping[NodeId, str], now_ms: int
    ) -> tuple[list[NodeId], list[NodeId], list[NodeId]]:
        """The configuration's members with their addresses → (new, removed, refused as there is no room).

        A new one is UNKNOWN until it is heard of. One that is no longer named goes, and what is said of it is refused.
        """
        removed = [id_ for id_, entry in self._entries.items() if entry.is_configured and id_ not in members]
        for id_ in removed:
            del self._entries[id_]
            self._removed[id_] = None
        while len(self._removed) > MEMBERS_MAX:
            del self._removed[next(iter(self._removed))]
        added: list[NodeId] = []
        refused: list[NodeId] = []
        for id_ in sorted(members):
            if id_ == self._node:
                continue
            entry = self._entries.get(id_)
            if entry is not None:
                entry.is_configured, entry.address = True, members[id_]
            elif len(self._entries) >= MEMBERS_MAX:
                refused.append(id_)
            else:
                self._removed.pop(id_, None)
                self._entries[id_] = Entry(Rumor(id_, 0, Status.UNKNOWN), members[id_], True, now_ms)
                added.append(id_)
        return added, removed, refused

    def can_learn(self, rumor: Rumor) -> bool:
        """A member that nobody named may come in by hearsay: a table from a seed, or its own packet."""
        return (
            self._learn
            and rumor.member not in self._entries
            and rumor.member not in self._removed
            and rumor.member != self._node
            and bool(rumor.address)
        )

    @property
    def is_full(self) -> bool:
        return len(self._entries) >= MEMBERS_MAX

    def learn(self, rumor: Rumor, now_ms: int) -> Entry:
        assert self.can_learn(rumor), rumor
        assert not self.is_full
        entry = Entry(Rumor(rumor.member, 0, Status.UNKNOWN), rumor.address, False, now_ms)
        self._entries[rumor.member] = entry
        return entry

    def absorb(self, entry: Entry, rumor: Rumor, now_ms: int) -> tuple[bool, bool]:
        """Take a rumor in → (whether it lives is news, what it tells of itself is news)."""
        before, after = entry.rumor, merge(entry.rumor, rumor)
        if after is before:
            return False, False
        is_news = (after.number, after.status) != (before.number, before.status)
        if after.status != before.status:
            entry.since_ms = now_ms
        is_told = told(after)[1:-1] != told(before)[1:-1]  # not for an applied index alone
        entry.rumor = after
        if not entry.is_configured and after.address:
            entry.address = after.address
        return is_news, is_told

    def forget_gone(self, now_ms: int, forget_ms: int) -> list[NodeId]:
        """Dead and left members that no configuration names, for so long that nobody holds them alive any more.

        Forgotten earlier, an old rumor of somebody cut off would bring them back (S49).
        """
        gone = [
            id_
            for id_, entry in self._entries.items()
            if not entry.is_configured and not entry.is_here and now_ms - entry.since_ms >= forget_ms
        ]
        for id_ in gone:
            del self._entries[id_]
        return gone
