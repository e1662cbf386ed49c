"""What gossip sends: datagrams (`Packet`), and one exchange by which a node pulls what it lacks from another.

All are MessagePack arrays (append fields with defaults, never reorder, never reuse a tag). The transport has proven
the sender, and that it is of this cluster, before the core sees anything. What the keyspace and the timeline put into
an exchange is opaque here: bytes that their owners encode and decode.

Precedence of two rumors about one member is that of (number, status); see `kvnode.gossip.membership`.
Source: Das, Gupta, Motivala: SWIM (2002), §4; hashicorp/memberlist for the shape of packets.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from kvnode.clocks.version_vector import VectorRow
from kvnode.ids import NOBODY, NodeId

PACKET_BYTES_MAX = 1_200
"""Most bytes of an encoded packet. Its seal adds 80: at most 1 280 bytes of UDP payload, 1 328 with the heads of UDP
and IPv6. That goes in one piece where a path takes 1 500 bytes, and through most tunnels; IPv6's least is 1 280."""

PACKET_MESSAGES_MAX = 128
"""Most messages in a packet; bytes run out before, but for a sender that wants to cost."""

MEMBERS_MAX = 1_000
"""Most members in a table, and most rumors in an exchange. Further ones are refused, and told as a fact."""

ADDRESS_CHARS_MAX = 260
TAG_CHARS_MAX = 64
"""Longest address or URL, and longest other text of a rumor, in characters."""

NUMBER_MAX = (1 << 43) - 1
"""Highest number of a member: 2²³ boots of 2²⁰ refutations each; its beats, 2²⁰ a number, then fit into 63 bits."""


class Status(IntEnum):
    """What is held of a member. Of two rumors with one number the higher status wins."""

    UNKNOWN = 0  # never heard of; only in tables, in no message
    ALIVE = 1
    SUSPECT = 2
    DEAD = 3
    LEFT = 4


class Summary(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the sender holds, so short that every packet carries it. Who holds something else pulls."""

    keyspace: int = 0  # 64-bit digest of the vector of the keyspace
    events: int = 0  # 64-bit digest of the vector of the timeline
    lamport: int = 0  # newest Lamport time issued or seen


NO_SUMMARY = Summary()


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Are you there? Whoever is not `target` says nothing: an address may have passed to another."""

    target: NodeId
    seq: int  # the sender's, never used again in its life; echoed


class Ack(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """`member` is there: it answers a ping itself, or a helper has its answer."""

    member: NodeId
    seq: int  # of the `Ping` or `PingReq` that is answered


class PingReq(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """To a helper: ping `target` for me. Answered by `Ack`, or by `Nack` when there is none in time."""

    target: NodeId
    seq: int


class Nack(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """From a helper: `target` has not answered me in time, but you and I can hear each other (Lifeguard)."""

    target: NodeId
    seq: int


class Rumor(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """What is said of a member. The first four fields say whether it lives; the rest is what it tells of itself.

    An accusation leaves the rest out (`beat` 0), and then nothing of it is overwritten.
    """

    member: NodeId
    number: int  # the member's own: boot counter × 2²⁰, +1 for each refutation; only itself raises it
    status: int  # Status
    by: NodeId = NOBODY  # who accuses, or has found it dead; NOBODY where it speaks for itself
    incarnation: int = 0  # of its available store
    address: str = ""  # host:port of its peer listener
    beat: int = 0  # orders what it tells of itself: the higher is the newer; 0: tells nothing
    client_url: str = ""
    role: str = ""  # voter, learner, observer
    version: str = ""
    applied_index: int = 0


SwimMessage = Ping | Ack | PingReq | Nack | Rumor


class Packet(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """One datagram, at most PACKET_BYTES_MAX encoded. Goes by HTTP where datagrams do not get through."""

    summary: Summary
    messages: tuple[SwimMessage, ...] = ()


class PullRequest(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """By HTTP: this is what I have, send what I lack. With `members` the tables are exchanged, too (push-pull)."""

    summary: Summary
    keyspace: VectorRow = ()
    events: VectorRow = ()
    members: tuple[Rumor, ...] = ()  # the sender's table with itself, or nothing
    want_keyspace: bool = False
    want_events: bool = False
    keyspace_after: bytes = b""  # the keyspace's own place in a catching up that takes several pages


class PullReply(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """One page. `summary` is of when it was made: without `more`, whoever merges it holds all that lies behind it."""

    summary: Summary
    members: tuple[Rumor, ...] = ()  # the table, if the request brought one
    keyspace: bytes = b""  # an encoded KeyspaceDelta; empty: none
    events: bytes = b""  # an encoded EventsDelta; empty: none
    more: bool = False


ExchangeRequest = Packet | PullRequest
ExchangeReply = Packet | PullReply
"""What an HTTP exchange carries: a packet is answered by a packet (`Gossip.answer`), a pull by a page."""
