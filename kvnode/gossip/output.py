"""What enters the gossip core, and what the shell has to do after a step.

Packets may be lost, repeated and overtaken: nothing of this has to be reliable. Pulls and fallbacks are HTTP
exchanges; each is answered by an input, or by none at all.
"""

from __future__ import annotations

import msgspec

from kvnode.gossip.messages import Packet, Rumor
from kvnode.ids import NodeId


class Received(msgspec.Struct, frozen=True, gc=False):
    """A datagram of a proven sender."""

    sender: NodeId
    packet: Packet


class Answered(msgspec.Struct, frozen=True, gc=False):
    """The answer to a fallback."""

    sender: NodeId
    packet: Packet


GossipInput = Received | Answered
"""A fallback without an answer is none: the probe's own deadline ends the wait."""


class Send(msgspec.Struct, frozen=True, gc=False):
    """One datagram; as a fallback, one exchange that carries it."""

    to: NodeId
    packet: Packet


class Pull(msgspec.Struct, frozen=True, gc=False):
    """Ask `to` for what this node lacks (`PullRequest`), then tell `Gossip.pulled`."""

    to: NodeId
    want_keyspace: bool
    want_events: bool
    members: tuple[Rumor, ...]  # the table as the request carries it; empty: tables are not exchanged this time


# ── facts: what happened, for the log, the metrics and the timeline ─────────────────────────────────


class MemberAlive(msgspec.Struct, frozen=True, gc=False):
    """Heard of for the first time, or refuted what was said of it, or started anew."""

    member: NodeId
    number: int
    was: int  # Status


class MemberSuspected(msgspec.Struct, frozen=True, gc=False):
    member: NodeId
    number: int
    by: NodeId


class MemberDead(msgspec.Struct, frozen=True, gc=False):
    member: NodeId
    number: int
    by: NodeId


class MemberLeft(msgspec.Struct, frozen=True, gc=False):
    member: NodeId
    number: int


class MemberLearned(msgspec.Struct, frozen=True, gc=False):
    """A member that no configuration names came in by hearsay; the transport needs its address."""

    member: NodeId
    address: str


class MemberForgotten(msgspec.Struct, frozen=True, gc=False):
    member: NodeId


class MemberRefused(msgspec.Struct, frozen=True, gc=False):
    """The table is full."""

    member: NodeId


class Refuted(msgspec.Struct, frozen=True, gc=False):
    """This node was accused and has taken a higher number."""

    number: int
    status: int  # what it was said to be
    by: NodeId


class DatagramsBlocked(msgspec.Struct, frozen=True, gc=False):
    """A member answered by HTTP only: datagrams between it and this node do not get through."""

    member: NodeId


class StoodStill(msgspec.Struct, frozen=True, gc=False):
    """This node was not run for so long; it does not hold that against others."""

    ms: int


GossipFact = (
    MemberAlive
    | MemberSuspected
    | MemberDead
    | MemberLeft
    | MemberLearned
    | MemberForgotten
    | MemberRefused
    | Refuted
    | DatagramsBlocked
    | StoodStill
)


class GossipOutput(msgspec.Struct):
    """Everything one or more steps decided. `Gossip.take_output` returns it and starts an empty one."""

    packets: list[Send] = msgspec.field(default_factory=list)
    fallbacks: list[Send] = msgspec.field(default_factory=list)
    pulls: list[Pull] = msgspec.field(default_factory=list)
    facts: list[GossipFact] = msgspec.field(default_factory=list)
