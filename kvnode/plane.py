"""Builds a node's available plane from its parts: store, keyspace, timeline, gossip, and what joins them.

Used by `kvnode.server` on a real machine and by the simulator on its own disk and network.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from kvnode.clocks.clock import Clock
from kvnode.clocks.lamport import LamportClock
from kvnode.clocks.version_vector import Origin
from kvnode.config import Config
from kvnode.errors import StorageFailed
from kvnode.gossip.core import Gossip
from kvnode.gossip.event import TimelineLimits
from kvnode.gossip.keyspace import Keyspace
from kvnode.gossip.output import GossipFact
from kvnode.gossip.settings import GossipSettings
from kvnode.gossip.timeline import Timeline
from kvnode.gossip.timeline_rows import PREFIX as TIMELINE_PREFIX
from kvnode.ids import NodeId
from kvnode.machine.backend import Row
from kvnode.node.available import AvailablePlane
from kvnode.node.available_log import DurableRows
from kvnode.node.eventual import Eventual
from kvnode.node.gossip_driver import GossipDriver
from kvnode.node.node import Node
from kvnode.node.ports import GossipTransport
from kvnode.node.soft_limit import SoftLimit, shortage
from kvnode.node.story import Story
from kvnode.node.worker import Worker
from kvnode.observe.log import get_logger
from kvnode.storage.available_shelf import Shelf
from kvnode.storage.available_store import AvailableStore
from kvnode.storage.datadir import DataDir
from kvnode.version import __version__

NUMBERS_PER_BOOT = 1 << 20
"""A member's SWIM number begins anew, and higher, with each of its boots."""

TIMELINE_LIMITS = TimelineLimits()

log = get_logger("available")


def open_plane(
    *,
    config: Config,
    data: DataDir,
    shelf: Shelf,
    transport: GossipTransport,
    worker: Worker,
    clock: Clock,
    loop: asyncio.AbstractEventLoop,
    rng: random.Random,
    address: str,
    describe: Callable[[], dict[str, Any]],
    on_failed: Callable[[BaseException], None],
    free_bytes: Callable[[], int],
    feature_level: int,
    feature_levels: Callable[[], Mapping[NodeId, int]],
    reaches_quorum: Callable[[], bool],
) -> AvailablePlane:
    """The plane of the node that `data` belongs to, once the cluster's id is known. Raises: StorageFailed.

    `worker` is its own, for its disk; it stays the caller's if this raises. `describe`: what the node tells of itself,
    asked for once a second. `free_bytes`: of its disk. The rest: see `AvailablePlane`.
    """
    identity, member = data.identity, NodeId(data.identity.member)
    lamport = LamportClock(data.lamport_ceiling())
    held = _open_store(data, shelf, rng)
    plane: AvailablePlane

    def news() -> None:
        plane.changed()

    def tell(fact: GossipFact) -> None:
        plane.on_gossip_fact(fact)

    def failed(error: BaseException) -> None:
        """Nothing more is acknowledged, nothing more is shown: it is not durable."""
        plane.halt()
        on_failed(error)

    space = SoftLimit(lambda: shortage(free_bytes(), config.storage.free_bytes_min), clock)
    rows = DurableRows(worker, held.store, failed, space=space, clock=clock)

    def save_ceiling(ceiling: int, then: Callable[[], None]) -> None:
        worker.submit(lambda: data.save_lamport_ceiling(ceiling), lambda _: then(), failed)

    gossip = Gossip(
        node=member,
        number=data.boot.counter * NUMBERS_PER_BOOT,
        incarnation=identity.incarnation,
        address=address,
        settings=GossipSettings.of(config.gossip),
        rng=rng,
        now_ms=clock.monotonic_ms(),
    )
    eventual = Eventual(
        held.keyspace,
        rows,
        clock=clock,
        clock_drift_ms=config.raft.clock_drift_ms,
        loop=loop,
        on_news=news,
    )
    story = Story(
        held.timeline,
        lamport,
        rows,
        limits=TIMELINE_LIMITS,
        clock=clock,
        loop=loop,
        save_ceiling=save_ceiling,
        on_news=news,
    )
    driver = GossipDriver(
        node=member,
        gossip=gossip,
        transport=transport,
        eventual=eventual,
        story=story,
        clock=clock,
        loop=loop,
        on_fact=tell,
        on_failed=failed,
    )
    plane = AvailablePlane(
        node=member,
        cluster_id=identity.cluster_id,
        rows=rows,
        eventual=eventual,
        story=story,
        driver=driver,
        clock=clock,
        loop=loop,
        describe=describe,
        on_failed=failed,
        feature_level=feature_level,
        feature_levels=feature_levels,
        reaches_quorum=reaches_quorum,
    )
    if held.store.set_aside is not None:
        plane.record("available.damaged", {"what": held.store.set_aside.what})
    return plane


class _Held(NamedTuple):
    """What this node has on its disk, read."""

    store: AvailableStore
    keyspace: Keyspace
    timeline: Timeline


def _open_store(data: DataDir, shelf: Shelf, rng: random.Random) -> _Held:
    """Raises: StorageFailed."""
    identity = data.identity
    store = AvailableStore.open(
        shelf, member=identity.member, cluster_id=identity.cluster_id, random_u64=partial(rng.getrandbits, 64)
    )
    if store.set_aside is not None:
        log.error("available.damaged", node=identity.member, what=store.set_aside.what, set_aside=store.set_aside.name)
    origin = Origin(NodeId(identity.member), store.incarnation)
    events: list[Row] = []
    keys: list[Row] = []
    for row in store.rows():
        (events if row[0].startswith(TIMELINE_PREFIX) else keys).append(row)
    is_founder = identity.member in identity.members  # who joined has none
    try:
        timeline = Timeline(origin, data.boot.counter, TIMELINE_LIMITS, is_founder=is_founder, rows=events)
        return _Held(store, Keyspace.restore(origin, keys), timeline)
    except ValueError as error:
        store.close()
        raise StorageFailed(
            f"the rows of ap/ are whole and do not fit together ({error}). Move ap/ away and start again: what it held "
            "comes back from the other members"
        ) from error
    except BaseException:
        store.close()
        raise


def describe(node: Node, client_url: str) -> dict[str, Any]:
    """What a node tells of itself by gossip."""
    return {
        "client_url": client_url,
        "role": node.role,
        "version": __version__,
        "applied_index": node.applied_index,
    }
