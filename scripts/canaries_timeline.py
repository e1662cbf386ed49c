"""Canaries of the timeline: Lamport times, finality, cursors and rings."""

from __future__ import annotations

from canary import Canary

_CLOCK = "kvnode/clocks/lamport.py"
_FINALITY = "kvnode/gossip/finality.py"
_TIMELINE = "kvnode/gossip/timeline.py"
_BY_HAND = ("tests/gossip/test_timeline.py",)
_FINAL = ("tests/gossip/test_finality.py",)
_WORLDS = ("tests/gossip/test_timeline_worlds.py",)

CANARIES = (
    Canary(
        "lamport-not-persisted",
        "a restart stamps from the beginning, below what it stamped before",
        _CLOCK,
        "        self._time = ceiling",
        "        self._time = 0",
        _WORLDS,
    ),
    Canary(
        "promise-above-the-ceiling",
        "a node promises up to a time that a crash would make it forget",
        _CLOCK,
        "        return min(self._time, self._ceiling)",
        "        return self._time",
        ("tests/clocks/test_lamport.py",),
    ),
    Canary(
        "watermark-over-the-connected",
        "the watermark is taken over the voters that have been heard",
        _FINALITY,
        "min(self._time_of(voter, origins) for voter in electorate.voters)",
        "min((t for v in electorate.voters if (t := self._time_of(v, origins))), default=0)",
        _WORLDS,
    ),
    Canary(
        "report-before-its-events",
        "a report counts before the events that it speaks of are held",
        _FINALITY,
        " and held(origin) >= report.seq:",
        ":",
        _FINAL,
    ),
    Canary(
        "report-of-a-newer-configuration",
        "a node counts reports made under a configuration that it does not know, and hands out a time without a voter",
        _FINALITY,
        "report.configuration <= electorate.configuration and ",
        "",
        _FINAL,
    ),
    Canary(
        "newcomer-promises-at-once",
        "a new voter gives its events places at or below times that others have handed out as final",
        _FINALITY,
        "        if self._is_founder or electorate.voters == (me,):",
        "        if True:",
        _FINAL,
    ),
    Canary(
        "lost-store-promises-at-once",
        "a member whose store was lost goes on as if nothing had been",
        _FINALITY,
        "        if self._is_renewed:\n",
        "        if False:\n",
        _WORLDS,
    ),
    Canary(
        "newcomer-taken-for-a-lost-store",
        "a new voter that has started before promises without being known to those who hand out what is final",
        _FINALITY,
        "            return self._is_founder or all(self._seen_at(voter)",
        "            return True or all(self._seen_at(voter)",
        _FINAL,
    ),
    Canary(
        "silent-before-the-first-promise",
        "voters that have all joined, and lost their stores, wait for each other for ever",
        _FINALITY,
        "            if self._origin.member not in electorate.voters:\n",
        "            if True:\n",
        _FINAL,
    ),
    Canary(
        "former-incarnation-left-open",
        "what a lost store had told is never closed, and the watermark stands still for ever",
        _FINALITY,
        "for origin in known if self._is_former(origin)]",
        "for origin in known if False]",
        _WORLDS,
    ),
    Canary(
        "closed-before-durable",
        "a closing speaks of events that the next crash takes away",
        _FINALITY,
        "            if not is_saved or not all(",
        "            if not all(",
        _FINAL,
    ),
    Canary(
        "reports-with-every-page",
        "a report comes with a page before the last, and events of a removed voter after it",
        _TIMELINE,
        "VersionVector(starts).to_row(), more=True)",
        "VersionVector(starts).to_row(), self._finality.reports(), more=True)",
        _FINAL,
    ),
    Canary(
        "shown-before-durable",
        "an own event is shown with the commit before its own",
        _TIMELINE,
        "self._being_written or 0, None",
        "1 << 62, None",
        _BY_HAND,
    ),
    Canary(
        "promise-over-what-is-pending",
        "a report covers the time of an own event that nobody has been shown",
        _TIMELINE,
        "            lamport = min(lamport, self._pending[0].lamport - 1)",
        "            pass",
        _WORLDS,
    ),
    Canary(
        "late-not-marked",
        "what comes at or below the watermark is slipped into the final order",
        _TIMELINE,
        "            elif origin in broken or not self._fits(event, starts, time):",
        "            elif event.lamport <= self._finality.watermark and self._fits(event, starts, time):\n"
        "                self._append(event)\n"
        "            elif origin in broken or not self._fits(event, starts, time):",
        _BY_HAND,
    ),
    Canary(
        "learners-in-the-final-order",
        "events that no promise covers are given a place in the final order",
        _TIMELINE,
        "(is_late or not event.is_ranked)",
        "is_late",
        _WORLDS,
    ),
    Canary(
        "cursor-by-lamport-time",
        "a reader goes on after the greatest time it has seen, and misses what arrives late",
        _TIMELINE,
        "        for event in self._beyond(cursor):",
        "        read_up_to = [(self._logs[o], n) for o, n in cursor.entries() if self.vector.get(o) >= n]\n"
        "        seen = [next(log.after(n - 1)).lamport for log, n in read_up_to]\n"
        "        for event in (e for e in self._beyond(cursor) if e.lamport > max(seen, default=0)):",
        _WORLDS,
    ),
    Canary(
        "ring-without-gaps",
        "events that a ring dropped are passed over in silence",
        _TIMELINE,
        "max(0, log.first - 1 - cursor.get(event.origin))",
        "0",
        _BY_HAND,
    ),
)
