"""Canaries of time: hybrid stamps and wall clocks that disagree; leader leases."""

from __future__ import annotations

from canary import Canary

_CORE = ("core", 300)
_DRIFT = ("tests/raft/test_clock_drift.py",)
_LEASE = ("tests/raft/test_leader_lease.py",)

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
        "kvnode/node/freshness.py",
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
    Canary(
        "lease-check-before-snapshot",
        "a lease read checks its lease before it takes its view, and not after",
        "kvnode/node/request_path.py",
        "        if not self._raft.has_lease(self._clock.monotonic_ms()):",
        "        if False:",
        ("tests/node/test_lease_reads.py",),
        number=31,
    ),
    Canary(
        "lease-not-cleared-on-transfer",
        "a leader counts on its lease again as soon as a transfer is given up, while its order may still be under way",
        "kvnode/raft/transfer.py",
        "        leader_lease.on_order(state, leadership)",
        "        pass",
        _LEASE,
        number=32,
    ),
    Canary(
        "voter-votes-right-after-restart",
        "a voter that has just started helps to unseat a leader that it cannot remember having heard",
        "kvnode/raft/state.py",
        "        promised_ms=now_ms,",
        "        promised_ms=now_ms - (1 << 40),",
        _LEASE,
        number=33,
    ),
    Canary(
        "lease-outlasts-the-promise",
        "a lease is longer than its voters' clocks may take for an election timeout",
        "kvnode/raft/leader_lease.py",
        "    return settings.election_timeout_ms * (100 - RATE_BOUND) // (100 + RATE_BOUND) - TICK_MS",
        "    return settings.election_timeout_ms * 2",
        _LEASE,
        _CORE,
    ),
    Canary(
        "promise-forgotten-with-the-term",
        "a voter that hears of a newer term forgets that a leader relies on it",
        "kvnode/raft/leader_lease.py",
        "    return state.now_ms - state.promised_ms < state.settings.election_timeout_ms",
        "    return (state.leader_contact_ms or 0) + state.settings.election_timeout_ms > state.now_ms",
        _LEASE,
    ),
    Canary(
        "lease-before-own-term",
        "a leader answers by its lease before it has committed anything in its term",
        "kvnode/raft/leader_lease.py",
        "    if leadership.transfer_to != NOBODY or state.commit_index < leadership.lease_index:",
        "    if leadership.transfer_to != NOBODY:",
        _LEASE,
        _CORE,
    ),
)
