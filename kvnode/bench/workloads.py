"""Workloads: which requests, how many in flight, against what was put before.

A row of the table is one workload through each front that has its kind.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kvnode.bench.fronts import Front
from kvnode.bench.load import Address, ClosedLoop, Connect
from kvnode.bench.turns import Turns

VALUE_BYTES = 256
KEYS = 100_000
RANGE_KEYS = 10_000
_RANGE_PREFIX = b"bench/00"  # of the first RANGE_KEYS keys, and of no others
_PREPARED = 16_384  # requests prepared per measurement and sent in turn


@dataclass(frozen=True)
class Scene:
    """What a workload meets. `keys`: so many exist; `past`: a point in time when they did, in the front's words."""

    front: Front
    address: Address
    keys: int
    past: str
    client_numbers: Iterator[int]
    rng: random.Random


@dataclass(frozen=True)
class Workload:
    """One row of the table. `kind`: of a front's call or talk; `beside`: what is measured at the same time."""

    name: str
    kind: str
    in_flight: int
    title: str
    beside: Workload | None = None
    compact_every_s: float = 0.0  # all history is given up so often meanwhile; 0: never

    def load(self, scene: Scene) -> ClosedLoop:
        """Ready to start."""
        if self.kind not in scene.front.talks:
            return ClosedLoop(self.requests(scene))
        begin = scene.front.talks[self.kind].begin
        return Turns(lambda: begin(scene.address, next(scene.client_numbers)))

    def requests(self, scene: Scene) -> Iterator[bytes]:
        """Of a call: endless."""
        write, arguments = scene.front.calls[self.kind].write, _ARGUMENTS[self.kind]
        if self.kind in _ENDLESS:
            return (write(scene.address, *arguments(scene)) for _ in itertools.count())
        return itertools.cycle([write(scene.address, *arguments(scene)) for _ in range(_PREPARED)])

    def connect(self, front: Front) -> Connect:
        return (front.talks if self.kind in front.talks else front.calls)[self.kind].connect

    def connections(self, front: Front) -> tuple[int, int]:
        """(connections, requests in flight on each)."""
        return (self.in_flight, 1) if self.kind in front.talks else front.connections(self.in_flight)


def key(number: int) -> bytes:
    return b"bench/%06d" % number


def value(rng: random.Random) -> bytes:
    return rng.randbytes(VALUE_BYTES)


def _some_key(scene: Scene) -> bytes:
    return key(scene.rng.randrange(scene.keys))


_ARGUMENTS: dict[str, Callable[[Scene], tuple[object, ...]]] = {
    "put": lambda scene: (key(scene.rng.randrange(KEYS)), value(scene.rng)),
    "get": lambda scene: (_some_key(scene),),
    "get_past": lambda scene: (_some_key(scene), scene.past),
    "range": lambda _: (_RANGE_PREFIX, RANGE_KEYS),
    "ap_put": lambda scene: (b"bench/%08d" % next(scene.client_numbers), value(scene.rng)),
}
_ENDLESS = frozenset({"ap_put"})  # each request is another one: keys that are written again without a context keep all

PUT1 = Workload("put1", "put", 1, "put, 1 in flight")
WORKLOADS = (
    PUT1,
    Workload("put64", "put", 64, "put, 64 in flight"),
    Workload("put256", "put", 256, "put, 256 in flight"),
    Workload("get64", "get", 64, "linearizable get, 64 in flight"),
    Workload("past64", "get_past", 64, "get of a key at a past time (etcd: revision), 64 in flight"),
    Workload(
        "range10k",
        "range",
        2,
        f"linearizable range of {RANGE_KEYS:,} keys, 2 in flight",
        beside=Workload("range10k_put1", "put", 1, "put, 1 in flight, beside those ranges"),
    ),
    Workload("lease64", "lease", 64, "lease granted and revoked, 64 clients"),
    Workload("keepalive64", "keepalive", 64, "lease renewed, 64 clients"),
    Workload("lock16", "lock", 16, "lock taken and released, 16 clients, a name each"),
    # The last: no row after it may ask for the past.
    Workload("compact64", "put", 64, "put, 64 in flight, history given up every half second", compact_every_s=0.5),
)


AVAILABLE = (
    Workload("ap_put1", "ap_put", 1, "put without a quorum, new keys, 1 in flight"),
    Workload("ap_put32", "ap_put", 32, "put without a quorum, new keys, 32 in flight"),
)
"""Of the plane that only kvnode has."""


@dataclass(frozen=True)
class WatchWorkload:
    """Watchers of one prefix on one node, and puts below it."""

    name: str
    watchers: int
    puts_per_s: int
    title: str


WATCHES = (
    WatchWorkload("watch10", 1_000, 10, "events to 1,000 watchers of a prefix, 10 puts/s"),
    WatchWorkload("watch100", 1_000, 100, "events to 1,000 watchers of a prefix, 100 puts/s"),
)
