"""Hearsay: what a node makes of rumors, those of others and its own suspicions, and what it tells on.

- Nobody is believed about this node itself: an accusation, from whomever, is answered by a higher number.
- An accusation counts only if its accuser is neither accused nor gone in this table: one that hears nothing suspects
  everybody.
- A suspicion that is not refuted in its time makes the suspect dead.
- What is news in the table is told on, once; another accuser of a suspect too, while it still shortens the wait.

Each change is one transition of the table, from one rumor; nothing is held across steps (S50).
"""

from __future__ import annotations

import msgspec

from kvnode.gossip.dissemination import RumorQueue
from kvnode.gossip.local_health import LocalHealth
from kvnode.gossip.membership import Entry, MemberTable, accusation
from kvnode.gossip.messages import NUMBER_MAX, Rumor, Status
from kvnode.gossip.output import (
    GossipFact,
    MemberAlive,
    MemberDead,
    MemberLearned,
    MemberLeft,
    MemberRefused,
    MemberSuspected,
    Refuted,
)
from kvnode.gossip.settings import GossipSettings
from kvnode.gossip.suspicion import Suspicion
from kvnode.ids import NOBODY, NodeId

RUMOR_TEXT_BYTES_MAX = 700
"""Texts of one rumor together: with it, an accusation and two probes a packet still holds. Longer: refused."""

ACCUSED = frozenset({Status.SUSPECT, Status.DEAD})


def text_bytes(rumor: Rumor) -> int:
    """Of what a member tells of itself, as UTF-8."""
    return sum(len(text.encode()) for text in (rumor.address, rumor.client_url, rumor.role, rumor.version))


class Hearsay:
    """Table, suspicions and rumors to tell. `now` is the node's lived time, `now_ms` the instant shown to others."""

    def __init__(self, own: Rumor, settings: GossipSettings, table: MemberTable, health: LocalHealth) -> None:
        self.own = own  # what this node tells of itself
        self.table = table
        self.queue = RumorQueue()
        self.suspicions: dict[NodeId, Suspicion] = {}
        self.facts: list[GossipFact] = []  # where new ones go; replaced whenever the output is taken
        self._settings = settings
        self._health = health
        self._died_ms: dict[NodeId, int] = {}  # when this node learnt that they are dead; lived time
        self.tell(own)

    def tell(self, own: Rumor) -> None:
        """Something new of this node, for others."""
        if text_bytes(own) > RUMOR_TEXT_BYTES_MAX:
            raise ValueError(f"addresses, role and version of this node are over {RUMOR_TEXT_BYTES_MAX} bytes together")
        self.own = own
        self.queue.put(own)

    # ── rumors ──────────────────────────────────────────────────────────────────────────────────────

    def hear(self, rumor: Rumor, now: int, now_ms: int) -> None:
        """A rumor of somebody else."""
        if rumor.number >= NUMBER_MAX or not Status.ALIVE <= rumor.status <= Status.LEFT:
            return
        if rumor.member == self.own.member:
            self._hear_of_self(rumor)
            return
        entry = self.table.get(rumor.member)
        if entry is None:
            entry = self._learn(rumor, now_ms)
        if entry is None or rumor == entry.rumor or text_bytes(rumor) > RUMOR_TEXT_BYTES_MAX:
            return
        if rumor.status not in ACCUSED or self._is_credible(rumor):
            self._take(entry, rumor, now, now_ms)

    def _hear_of_self(self, rumor: Rumor) -> None:
        own = self.own
        if rumor.number < own.number:
            if rumor.status != Status.ALIVE:
                self.queue.put(own)  # an old accusation is about still
            return
        if own.status == Status.LEFT or (rumor.number == own.number and rumor.status == Status.ALIVE):
            return
        self.tell(msgspec.structs.replace(own, number=rumor.number + 1))
        if rumor.status != Status.ALIVE:
            self._health.change(1)  # whoever is accused may be slow
            self.facts.append(Refuted(self.own.number, rumor.status, rumor.by))

    def _is_credible(self, rumor: Rumor) -> bool:
        if rumor.by == self.own.member:
            return True
        if rumor.by in (NOBODY, rumor.member):
            return False
        accuser = self.table.get(rumor.by)
        return accuser is not None and accuser.status in (Status.UNKNOWN, Status.ALIVE)

    def _learn(self, rumor: Rumor, now_ms: int) -> Entry | None:
        if rumor.status != Status.ALIVE or not self.table.can_learn(rumor):
            return None
        if self.table.is_full:
            self.facts.append(MemberRefused(rumor.member))
            return None
        self.facts.append(MemberLearned(rumor.member, rumor.address))
        return self.table.learn(rumor, now_ms)

    # ── own judgement ───────────────────────────────────────────────────────────────────────────────

    def accuse(self, member: NodeId, number: int, now: int, now_ms: int) -> None:
        """A probe of `member` in its life `number` has failed. It may have begun another since."""
        entry = self.table.get(member)
        if entry is not None:
            self._take(entry, Rumor(member, number, Status.SUSPECT, self.own.member), now, now_ms)

    def end_suspicions(self, now: int, now_ms: int) -> None:
        """Those that had their time to refute are dead."""
        for member in [member for member, suspicion in self.suspicions.items() if now >= suspicion.deadline_ms]:
            entry = self.table.get(member)
            assert entry is not None, member
            self._take(entry, Rumor(member, entry.rumor.number, Status.DEAD, self.own.member), now, now_ms)

    def listens(self, entry: Entry, now: int) -> bool:
        """The living, and the dead for a while: they may be alive, and have to hear it to refute."""
        if entry.status != Status.DEAD:
            return entry.is_here
        return now - self._died_ms[entry.rumor.member] < self._settings.dead_gossip_ms

    def forget(self, member: NodeId) -> None:
        """It is no member any more."""
        self.queue.drop(member)
        self.suspicions.pop(member, None)
        self._died_ms.pop(member, None)

    # ── transitions ─────────────────────────────────────────────────────────────────────────────────

    def _take(self, entry: Entry, rumor: Rumor, now: int, now_ms: int) -> None:
        """A rumor into the table; what is news goes on to others."""
        was = entry.rumor
        is_news, is_told = self.table.absorb(entry, rumor, now_ms)
        if is_news:
            self._on_news(entry.rumor, was, now)
        elif rumor.status == Status.SUSPECT and (rumor.number, rumor.status) == (was.number, was.status):
            suspicion = self.suspicions.get(rumor.member)
            if suspicion is not None and suspicion.confirm(rumor.by):
                self.queue.put(accusation(rumor))
        elif is_told and entry.status == Status.ALIVE:
            self.queue.put(entry.rumor)

    def _on_news(self, rumor: Rumor, was: Rumor, now: int) -> None:
        member, number, by = rumor.member, rumor.number, rumor.by
        self.suspicions.pop(member, None)
        self._died_ms.pop(member, None)
        self.queue.put(accusation(rumor) if rumor.status in ACCUSED else rumor)
        match Status(rumor.status):
            case Status.ALIVE:
                self.facts.append(MemberAlive(member, number, was.status))
            case Status.SUSPECT:
                self.suspicions[member] = Suspicion(by, self.table.here(), self._settings, now)
                self.facts.append(MemberSuspected(member, number, by))
            case Status.DEAD:
                self._died_ms[member] = now
                self.facts.append(MemberDead(member, number, by))
            case Status.LEFT:
                self.facts.append(MemberLeft(member, number))
            case Status.UNKNOWN:
                raise AssertionError(rumor)
