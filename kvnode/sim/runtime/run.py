"""Tier 2, one seed: the real runtime of a whole cluster on virtual time, under every fault; what came of it."""

from __future__ import annotations

import time
import traceback
from unittest.mock import patch

from kvnode import perturb
from kvnode.machine import snapshot
from kvnode.sim.guard import nothing_real
from kvnode.sim.loop import run_virtual
from kvnode.sim.report import SeedReport
from kvnode.sim.runtime.life import Life
from kvnode.sim.trace import LAST_EVENTS, Trace
from kvnode.transport import snapshots

USEFUL_OPERATIONS = 10
"""A run in which fewer requests were answered proves nothing."""

MARKS = {
    "torn_tail_cut": "a start found the beginning of a write that a power loss had cut, and cut it off",
    "unacknowledged_tail_survived": "a start found more than had been acknowledged, and kept it",
    "read_round_lost": "the leader changed while a read waited for its confirmation",
    "forwarded_unknown": "the connection to the leader was lost after a proposal had been handed to it",
    "answer_given_again": "a named write was answered after an answer to it, or the write, had been lost",
    "hung_disk_step_down": "a node whose disk hung gave up its office",
    "stamp_refused": "a follower did not take what was stamped too far ahead of its clock",
    "clock_ahead_step_down": "a leader was left without a majority by that, and went",
    "stamp_tolerated": "… was taken after all, as nothing had been committed without that leader",
    "exited_after_fsync_clean-new": "a node ended after a failed fsync that left the new bytes in memory",
    "exited_after_fsync_clean-old": "… that showed the old bytes again",
    "exited_after_fsync_once-per-fd": "… that every open handle heard of once",
    "exited_after_fsync_late": "… that was told one fsync too late",
    "quarantine_entered": "a start found a damaged log and set it aside",
    "quarantine_left": "peers had restored everything, and the member voted again",
    "log_trimmed": "the store had durably what the oldest segments held, and they went",
    "snapshot_installed": "a follower took the leader's state instead of entries that nobody has any more",
    "snapshot_resumed": "a snapshot went on where its connection, or the process, had ended",
    "install_finished_at_start": "a start found the store of a snapshot, and the log before it",
    "plane_store_damaged": "a start found the store of the plane that needs no quorum damaged, and began a new one",
    "state_checked": "the members compared their states",
    "learner_promoted": "a machine that had joined caught up and got its vote",
    "member_replaced": "… and the member that it replaces went",
    "member_removed": "a member was taken out",
    "leader_removed": "… who led at that time",
    "removed_told": "a member that was removed heard of it, and ended",
    "removed_refused": "… that was started again was told so",
    "feature_level_raised": "all members knew what some had not known",
    "new_form_applied": "… and a write was applied that those had not known",
    "refused_wiped": "a member came back with an empty directory, and was refused",
    "refused_foreign": "… with the directory of another cluster's member",
    "refused_old_backup": "… with an old copy of its directory, started a few times since",
    "refused_other_limits": "… with another setting of cluster scope",
    "refused_copy": "such an old copy was started beside its member",
    **{f"perturbed_{point}": what for point, what in perturb.POINTS.items()},
}
"""Situations that runs must bring about, with their meaning."""

RARE_MARKS = ("install_finished_at_start",)
"""Those of them that one of several hundred runs meets: a process has to end between two steps of its last commit."""


def run_seed(seed: int, trace: Trace | None = None) -> SeedReport:
    """Live one seed's life. A violated invariant is reported, not raised."""
    started = time.process_time()
    life = Life(seed, trace)
    failure = detail = ""
    try:
        run_virtual(_guarded(life), rng=life.fork("turns") if life.world.shuffles else None)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this seed's failure, and the runner goes on
        failure = f"{type(error).__name__}: {error}"
        events = "\n".join(life.trace.lines(LAST_EVENTS))
        detail = f"{life.world}\n{events}\n{life.describe()}\n{traceback.format_exc()}"
    counts = life.counts()
    useful = counts.get("operations_ok", 0) >= USEFUL_OPERATIONS
    return SeedReport(
        tier="runtime",
        seed=seed,
        verdict="failed" if failure else "passed" if useful else "useless",
        virtual_ms=life.virtual_ms,
        real_s=time.process_time() - started,
        steps=life.steps,
        trace=life.trace.hash(),
        counts=counts,
        marks=life.marks(),
        failure=failure,
        detail=detail,
    )


async def _guarded(life: Life) -> None:
    """Not around the loop, whose making needs a pair of sockets to wake it up."""
    blocks = life.world.block_bytes
    small = (patch.object(snapshot, "BLOCK_BYTES", blocks), patch.object(snapshots, "PIECE_BYTES", blocks))
    with nothing_real(), perturb.listening(life.perturbs), small[0], small[1]:
        await life.run()
