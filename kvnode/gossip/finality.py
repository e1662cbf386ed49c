"""Finality: up to which Lamport time the timeline can no longer change, said by the voters themselves.

Each voter *reports*, even when idle: of this origin nothing will follow beyond `seq` with a time up to `lamport`. A
report counts once everything up to `seq` is held. The least time that counts among the configured voters is the
*watermark*: nothing that has a place in the final order can still appear at or below it. It is taken over the
configured voters, never over those that can be reached: a partition stops it and cannot fork it. It never falls.

Who may promise, so that no promise comes too late:

- A voter of the cluster's first configuration, at once.
- A member that became a voter later: once it holds a report of another voter made under a configuration that names
  it, and its clock is past that. Reports made under a configuration newer than one's own do not count; so nobody that
  still leaves the newcomer out can have handed out a watermark above that time.
- A member whose store was lost (it has run before, its incarnation is new): once it holds, durably, everything that
  each other member holds, and its clock is past theirs. Then it *closes* its former incarnations: nothing of them
  follows beyond what is held. What only the lost store held is lost. If it became a voter later, it has to know
  besides, of every other voter, that it goes by a configuration that names this one, and so for ever. Until then its
  member's old reports keep the watermark where it is, and a node that has no report of it at all has no watermark;
  reports are exchanged as a whole, so that whoever gets the new one gets the closing, too.

A voter that may not promise reports all the same, up to time 0: so others learn which configuration it goes by. Were
it silent, voters that have all joined, or lost their stores, would wait for each other.

The configuration goes by what is known to be committed, and never goes back, across restarts either: a log that is read
again from an older state on must not make a voter of yesterday's configuration hand out a watermark of today's.

Events that a member records while it may not promise (those of learners, too) have no place in the final order. They
are seen at once by those who read everything, and by those who read the final order and allow late ones.

A removed voter is not waited for. What is held of it keeps its place; what arrives of it later, at or below the
watermark, is late. That is the one way in which two nodes can differ: by the last events of a removed voter that had
not reached all of them.

Requirement: LC7. Source of the idea: stability in Lamport's total order (1978), closed timestamps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from kvnode.clocks.lamport import TIME_MAX
from kvnode.clocks.version_vector import COUNTER_MAX, INCARNATION_MAX, Origin, VersionVector
from kvnode.ids import NodeId

CLOSED = TIME_MAX + 1
"""The time of a report that closes its origin: nothing will ever follow."""


class Electorate(msgspec.Struct, frozen=True):
    """Who has to agree, by the newest configuration applied here."""

    configuration: int  # index of its log entry; grows with each change
    voters: tuple[NodeId, ...]
    members: tuple[NodeId, ...]  # voters and learners


class Report(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Nothing of this origin will follow beyond `seq` with a Lamport time up to `lamport`. Only ever grows."""

    member: NodeId
    incarnation: int
    lamport: int
    seq: int  # 0: it has recorded nothing
    configuration: int  # index of the one it was made under

    @property
    def origin(self) -> Origin:
        """Whose report it is."""
        return Origin(self.member, self.incarnation)


def check_report(report: Report) -> None:
    """Raises ValueError for numbers out of range."""
    if not (1 <= report.member <= COUNTER_MAX and 0 <= report.incarnation <= INCARNATION_MAX):
        raise ValueError("the origin of a report is out of range")
    numbers = (report.lamport, report.seq, report.configuration)
    if min(numbers) < 0 or max(numbers) > COUNTER_MAX:
        raise ValueError("a number of a report is out of range")


class Finality:
    """The newest report of each origin, and the watermark that follows from them."""

    def __init__(self, origin: Origin, *, is_founder: bool, is_renewed: bool, origins_max: int) -> None:
        """`is_founder`: in the first configuration. `is_renewed`: it may have run before under another."""
        self._origin = origin
        self._is_founder = is_founder
        self._is_renewed = is_renewed
        self._origins_max = origins_max
        self._newest: dict[Origin, Report] = {}
        self._counted: dict[Origin, int] = {}  # the greatest time of a report whose events are all held
        self._heard: dict[NodeId, int] = {}  # since the start: whose holdings are all here, with its clock then
        self._voter_since: int | None = None  # a configuration that names this node as a voter
        self.watermark = 0  # the greatest handed out
        self.is_promising = False  # what is recorded here now has a place in the final order

    def reports(self) -> tuple[Report, ...]:
        """The newest of each origin, in order of origins."""
        return tuple(self._newest[origin] for origin in sorted(self._newest))

    def take(self, report: Report) -> bool:
        """A report came. True if it is news."""
        known = self._newest.get(report.origin)
        if known is None and len(self._newest) >= self._origins_max:
            return False
        if known is not None and not _replaces(report, known):
            return False
        self._newest[report.origin] = report
        return True

    def is_closed(self, origin: Origin, seq: int) -> bool:
        """Whether this origin's log is closed before `seq`: what comes of it now has lost its place."""
        report = self._newest.get(origin)
        return report is not None and report.lamport == CLOSED and seq > report.seq

    def heard(self, member: NodeId, time: int) -> None:
        """Everything that `member` held a moment ago, when its clock stood at `time`, is held here."""
        self._heard[member] = max(time, self._heard.get(member, 0))

    @property
    def _has_promised(self) -> bool:
        report = self._newest.get(self._origin)
        return report is not None and report.lamport > 0

    def unheard(self, electorate: Electorate) -> tuple[NodeId, ...]:
        """Of a member whose store was lost: whose holdings it still has to get."""
        if not self._is_renewed or self._has_promised:
            return ()
        me = self._origin.member
        return tuple(member for member in electorate.members if member != me and member not in self._heard)

    def promise(self, lamport: int, held: VersionVector, electorate: Electorate, *, is_saved: bool) -> list[Report]:
        """What this node now reports, if it may: its own, and those that close its former incarnations.

        `is_saved`: everything held is durable. What a closing speaks of must not be lost once more.
        """
        self.is_promising = self._may_promise(lamport, electorate, is_saved=is_saved)
        made = []
        if not self.is_promising:
            if self._origin.member not in electorate.voters:
                return []
            lamport = 0  # that promises nothing; it tells which configuration this voter has come to
        elif self._is_renewed and not self._has_promised:
            known = sorted({*(origin for origin, _ in held.entries()), *self._newest})
            former = [origin for origin in known if self._is_former(origin)]
            made = [Report(*origin, CLOSED, held.get(origin), electorate.configuration) for origin in former]
        made.append(Report(*self._origin, lamport, held.get(self._origin), electorate.configuration))
        return [report for report in made if self.take(report)]

    def advance(self, electorate: Electorate, held: Callable[[Origin], int], known: Iterable[Origin]) -> int:
        """The watermark, by what is `held` of each origin. `known`: all origins of which there are events."""
        for origin, report in self._newest.items():
            if report.configuration <= electorate.configuration and held(origin) >= report.seq:
                self._counted[origin] = max(report.lamport, self._counted.get(origin, 0))
        origins = sorted({*known, *self._newest})
        if electorate.voters:
            self.watermark = max(self.watermark, min(self._time_of(voter, origins) for voter in electorate.voters))
        return self.watermark

    def _time_of(self, voter: NodeId, origins: list[Origin]) -> int:
        """Up to which time nothing of this member can follow, in whichever of its incarnations."""
        times = [self._counted.get(origin, 0) for origin in origins if origin.member == voter]
        least = min(times, default=0)
        return least if least < CLOSED else 0  # all closed: of the one that lives now nothing is known

    def _may_promise(self, lamport: int, electorate: Electorate, *, is_saved: bool) -> bool:
        me = self._origin.member
        if me not in electorate.voters:
            self._voter_since = None
            return False
        if self._has_promised:
            return True
        if self._voter_since is None:
            self._voter_since = electorate.configuration
        if self._is_renewed:
            others = [member for member in electorate.members if member != me]
            if not is_saved or not all(lamport >= self._heard.get(member, CLOSED) for member in others):
                return False
            voters = [voter for voter in electorate.voters if voter != me]
            return self._is_founder or all(self._seen_at(voter) >= self._voter_since for voter in voters)
        if self._is_founder or electorate.voters == (me,):
            return True
        return any(
            report.member != me
            and report.member in electorate.voters
            and self._voter_since <= report.configuration
            and 0 < report.lamport <= lamport
            for report in self._newest.values()
        )

    def _seen_at(self, voter: NodeId) -> int:
        """The newest configuration that its reports tell of; -1: there is none."""
        return max((report.configuration for report in self._newest.values() if report.member == voter), default=-1)

    def _is_former(self, origin: Origin) -> bool:
        if origin.member != self._origin.member or origin == self._origin:
            return False
        report = self._newest.get(origin)
        return report is None or report.lamport != CLOSED


def _replaces(new: Report, known: Report) -> bool:
    """A closing replaces everything but a closing that says less."""
    if CLOSED in (new.lamport, known.lamport):
        return new.lamport == CLOSED and (known.lamport != CLOSED or new.seq < known.seq)
    return (new.lamport, new.seq, new.configuration) > (known.lamport, known.seq, known.configuration)
