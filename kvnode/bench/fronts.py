"""Fronts: the doors of both systems, and what is said at each: kvnode's HTTP, etcd's gRPC, etcd's JSON gateway.

A front writes requests as bytes and knows how to connect; the load generator knows nothing else. HTTP/1.1 fronts hold
one request per connection in flight, gRPC multiplexes over a few connections, as its clients do.

A *call* is one kind of request that stands alone. A *talk* is what one client says again and again where a request
follows from an answer (a lock is released by the token it was taken with): a generator that yields requests and is
sent their answers. A front lacks a kind where its system has no such thing.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from kvnode.bench.load import Address, Connect

GRPC_CONNECTIONS_MAX = 4
LEASE_S = 600  # nothing ends by itself while it is measured

Talk = Generator[tuple[bytes, bool], bytes, None]
"""Yields (request, whether its answer ends a turn), is sent the answer. Endless."""


@dataclass(frozen=True)
class Call:
    """`write`: (address, what the kind takes) → the request."""

    write: Callable[..., bytes]
    connect: Connect


@dataclass(frozen=True)
class Talks:
    """`begin`: (address, the client's number, from 1) → what it says. Numbers differ within a cluster's life."""

    begin: Callable[[Address, int], Talk]
    connect: Connect


class Lines:
    """What has come of a stream of lines: whole ones only."""

    def __init__(self) -> None:
        self._rest = b""

    def take(self, data: bytes) -> bytes:
        """→ what `data` has made whole, if anything."""
        if self._rest:
            data = self._rest + data
        if data.endswith(b"\n"):
            self._rest = b""
            return data
        whole, newline, self._rest = data.rpartition(b"\n")
        return whole + newline


class Parts(Protocol):
    """How a stream is taken apart, so that no key is cut: `Lines`, `h2.Messages`."""

    def take(self, data: bytes) -> bytes: ...


@dataclass(frozen=True)
class Watching:
    """Streams of the changes below a prefix. A watch has begun when `begun` stands in what its parts say."""

    write: Callable[[Address, bytes], bytes]
    parts: Callable[[], Parts]
    begun: bytes
    key: re.Pattern[bytes]  # group 1: a key as `spell` spells it
    spell: Callable[[bytes], bytes]


@dataclass(frozen=True)
class Front:
    """`now`: a point in time as `get_past` takes it."""

    name: str
    multiplexed: bool
    calls: Mapping[str, Call]
    now: Callable[[Address], Awaitable[str]]
    talks: Mapping[str, Talks] = field(default_factory=dict)
    watching: Watching | None = None

    def connections(self, in_flight: int) -> tuple[int, int]:
        """(connections, requests in flight on each)."""
        if not self.multiplexed:
            return in_flight, 1
        connections = min(in_flight, GRPC_CONNECTIONS_MAX)
        return connections, in_flight // connections

    def has(self, kind: str) -> bool:
        return kind in self.calls or kind in self.talks or (kind == "watch" and self.watching is not None)


def after_prefix(prefix: bytes) -> bytes:
    """The first key after all that start so; the last byte must not be 0xff."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
