"""Two logs to damage, a start that may salvage them, and the judge of what it left."""

from __future__ import annotations

import random
from functools import partial

from kvnode.ids import Index
from kvnode.raft.messages import LogPosition
from kvnode.sim.disk import FakeDisk
from kvnode.storage.log_place import LogPlace
from kvnode.storage.wal import Recovered, Wal
from kvnode.storage.wal_salvage import Salvaged, open_log
from tests.storage.wal_world import HOME, STAMP, LogView, Step, entry, persist

SHORT: list[Step] = [
    [persist(1, state=(1, 2))],
    [persist(2, entry(1), entry(2))],
    [persist(3, entry(3), commit=2)],
    [persist(4, entry(3, 2), entry(4, 2), cut=3, state=(2, 1), commit=2)],
    [persist(5, entry(5, 2), commit=4)],
    "close",
]

LONG: list[Step] = [
    [persist(1, state=(1, 2))],
    *[[persist(i + 1, entry(i, text=bytes([60 + i]) * 900), commit=i - 1)] for i in range(1, 13)],
    [persist(14, entry(13, 3), state=(3, 2), commit=12)],
    "close",
]

TRUE_COMMIT = {id(SHORT): 4, id(LONG): 12}
VOTES = f"{HOME}/votes"


def start(
    disk: FakeDisk, *, applied: int = 0, may_salvage: bool = True, installed: LogPosition | None = None
) -> tuple[Wal, Recovered, Salvaged | None]:
    place = LogPlace(disk, HOME, STAMP, 8192, 4096, partial(random.Random(11).getrandbits, 64))
    return open_log(
        place,
        applied_index=Index(applied),
        create=False,
        may_salvage=may_salvage,
        installed=installed,
        installed_time=1,
    )


def written(steps: list[Step]) -> set[tuple[int, int]]:
    """(index, term) of everything that was ever in the log."""
    return {
        (one.index, one.term) for step in steps if not isinstance(step, str) for each in step for one in each.entries
    }


def scrub(wal: Wal) -> None:
    """One whole pass."""
    for _ in range(1_000):
        if wal.scrub(1_000):
            return
    raise AssertionError("the pass never ends")


def judge(steps: list[Step], before: LogView, wal: Wal, found: Recovered, what: object) -> str:
    """ "same" or "quarantine"; anything else fails."""
    entries = wal.read(Index(1), Index(1 << 40), 1 << 40)
    assert (found.hard_state.term, found.hard_state.vote) == before[1:], what
    if found.quarantine is None:
        assert tuple(entries) == before[0], what
        return "same"
    assert [one.index for one in entries] == list(range(1, len(entries) + 1)), what
    assert all((one.index, one.term) in written(steps) for one in entries), what
    assert found.committed <= TRUE_COMMIT[id(steps)], what
    assert tuple(entries[: found.committed]) == before[0][: found.committed], what
    return "quarantine"
