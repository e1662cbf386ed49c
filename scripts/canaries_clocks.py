"""Canaries of time: hybrid stamps and wall clocks that disagree."""

from __future__ import annotations

from canary import Canary

_CORE = ("core", 300)
_DRIFT = ("tests/raft/test_clock_drift.py",)

CANARIES = (
    Canary(
        "adopt-any-stamp",
        "a follower takes whatever its leader stamps, and the cluster's time with it",
        "kvnode/raft/clock_drift.py",
        "    if entries[-1].time <= bound:",
        "    if True:",
        _DRIFT,
    ),
    Canary(
        "stamp-refused-though-committed",
        "a follower whose clock is behind refuses what is committed",
        "kvnode/raft/clock_drift.py",
        "        is_settled = entry.index <= message.commit_index or log.term_at(entry.index) == entry.term",
        "        is_settled = log.term_at(entry.index) == entry.term",
        _DRIFT,
    ),
    Canary(
        "tolerant-at-once",
        "a stamp beyond the limit is taken the second time it is offered",
        "kvnode/raft/clock_drift.py",
        "    if state.now_ms - watch.refusing_since_ms >= PATIENCE * state.settings.election_timeout_ms:",
        "    if watch.refusals:",
        _DRIFT,
    ),
    Canary(
        "refused-for-ever",
        "a majority that cannot agree on the time never serves again",
        "kvnode/raft/clock_drift.py",
        "    if state.now_ms - watch.refusing_since_ms >= PATIENCE * state.settings.election_timeout_ms:",
        "    if False:",
        _DRIFT,
        _CORE,
    ),
    Canary(
        "refused-leader-stays",
        "a leader whose stamps a majority refuses goes on, as its heartbeats are answered",
        "kvnode/raft/clock_drift.py",
        "    if quorum.has_majority(state.configuration, [voter for voter in state.configuration.voters"
        " if may_agree(voter)]):",
        "    if True:",
        _DRIFT,
    ),
    Canary(
        "out-of-line-campaigns",
        "a node that knows its clock to be wrong stands for election",
        "kvnode/raft/clock_drift.py",
        "    return until_ms is not None and state.now_ms < until_ms and not is_alone",
        "    return False",
        _DRIFT,
    ),
    Canary(
        "cut-stamps-remembered",
        "a clock keeps to what it stamped in entries that were cut",
        "kvnode/raft/replication.py",
        "    state.clock.rewind(state.log.last_time)",
        "    pass",
        _DRIFT,
    ),
    Canary(
        "restart-below-the-log",
        "a start begins with the wall clock, whatever its log says",
        "kvnode/raft/state.py",
        "        clock=HybridClock(max(log.last_time, restored.applied_time)),",
        "        clock=HybridClock(0),",
        ("tests/node/test_hybrid_clock.py",),
        _CORE,
    ),
    Canary(
        "token-from-tomorrow-waited-for",
        "a token from the future is taken as it comes",
        "kvnode/node/request_path.py",
        "        if options.seen_time > self._machine.applied_time:",
        "        if False:",
        ("tests/node/test_hybrid_clock.py",),
    ),
    Canary(
        "future-marked-at-once",
        "a time that is still to come by this node's clock is marked instead of waited for",
        "kvnode/node/request_path.py",
        "            await self._be_past(time, deadline_ms)",
        "            pass",
        ("tests/node/test_at_time.py",),
    ),
)
