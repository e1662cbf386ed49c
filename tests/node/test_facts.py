"""The operator's log of the core's facts: what is said once is not said again until something has changed."""

from __future__ import annotations

import logging

import pytest

from kvnode.ids import NodeId, Term
from kvnode.node.facts import FactLog
from kvnode.raft.output import BecameCandidate, BecamePreCandidate, LeaderKnown


def test_a_node_that_is_cut_off_says_once_that_it_asks_for_votes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kvnode.raft")
    facts = FactLog(NodeId(1))
    asks = BecamePreCandidate(Term(3), "election timeout")

    def said() -> int:
        return sum("election.started" in record.message for record in caplog.records)

    for _ in range(50):
        facts.record(asks)
    assert said() == 1
    facts.record(LeaderKnown(Term(3), NodeId(2)))
    for _ in range(50):
        facts.record(asks)
    assert said() == 2
    facts.record(BecameCandidate(Term(4), "pre-vote won"))
    facts.record(asks)
    assert said() == 4
