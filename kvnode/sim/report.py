"""What one seed's run amounted to: the verdict, what really happened in it, and the proof that it was the same run."""

from __future__ import annotations

from typing import Literal

import msgspec

Tier = Literal["core", "runtime"]
TIERS: tuple[Tier, ...] = ("core", "runtime")

Verdict = Literal["passed", "failed", "useless"]


class SeedReport(msgspec.Struct, kw_only=True):
    """One run. `useless`: nothing was violated, but clients got almost nothing done, so it proves nothing."""

    tier: Tier
    seed: int
    verdict: Verdict
    virtual_ms: int  # simulated time
    real_s: float = 0.0  # processor time of the run, checks included
    steps: int = 0
    trace: str = ""  # hash of the event trace: equal seeds give equal traces, whatever PYTHONHASHSEED is
    counts: dict[str, int] = {}  # what happened: operations, faults that really struck, leaders, rolls, truncations …
    marks: dict[str, int] = {}  # coverage marks: named situations, how often each came about
    states: list[int] = []  # hashes of the abstract states met, for counting how many different ones there are
    failure: str = ""  # which invariant, and what was seen
    detail: str = ""  # last events and a line of state for each node
