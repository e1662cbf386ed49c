"""Majority quorum: how many of the configured voters decide, so that two decisions always share a voter.

Every counted decision (votes, commits, read rounds, check-quorum) goes through the functions below. They take
the configuration, never "the nodes that answered", so learners, strangers and duplicates cannot count.
A majority of n is n//2 + 1: 3 → 2, 4 → 3, 5 → 3; an even size buys no tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Container

from kvnode.ids import NodeId
from kvnode.raft.messages import Configuration


def majority(voters: int) -> int:
    """Votes needed among `voters` configured voters."""
    assert voters > 0, voters
    return voters // 2 + 1


def has_majority(configuration: Configuration, agreeing: Container[NodeId]) -> bool:
    """Whether a majority of the configured voters is among `agreeing`."""
    voters = configuration.voters
    return sum(voter in agreeing for voter in voters) >= majority(len(voters))


def is_lost(configuration: Configuration, refusing: Container[NodeId]) -> bool:
    """Whether so many voters refuse that no majority can agree any more."""
    voters = configuration.voters
    return sum(voter in refusing for voter in voters) > len(voters) - majority(len(voters))


def majority_value(configuration: Configuration, value_of: Callable[[NodeId], int]) -> int:
    """The greatest value that a majority of the voters has reached."""
    values = sorted([value_of(voter) for voter in configuration.voters], reverse=True)
    return values[majority(len(values)) - 1]
