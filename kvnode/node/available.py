"""AvailablePlane: what a node offers without a leader and without a quorum, from its start to its end.

Owns the gossip driver, the keyspace, the timeline and their store from start to end; beside the consistent core, never
part of it. Of that core it takes three things, all of them hints or labels: who the configuration names, what happened
(facts become events), and how far this node has applied. It gives back none: gossip never changes voters, terms or
leases (GO6).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from kvnode.clocks.clock import Clock
from kvnode.errors import ConnectionLost
from kvnode.gossip.finality import Electorate
from kvnode.gossip.membership import MemberState
from kvnode.gossip.messages import Status
from kvnode.gossip.output import GossipFact
from kvnode.ids import Index, NodeId
from kvnode.kv.available import AliveMember
from kvnode.kv.interface import AliveStatus
from kvnode.node import available_counters
from kvnode.node.available_answers import AvailableAnswers
from kvnode.node.available_log import DurableRows
from kvnode.node.eventual import Eventual
from kvnode.node.gossip_driver import GossipDriver
from kvnode.node.own_events import OwnEvents
from kvnode.node.story import Story
from kvnode.observe.log import get_logger
from kvnode.raft.messages import Configuration
from kvnode.raft.output import Fact
from kvnode.wire.frames import FEATURE_LEVEL_TIMES

FORGET_S = 30.0
"""How often tombstones are looked for that every member has."""

DESCRIBE_S = 1.0
"""How often what this node tells of itself is brought up to date, and what it sees of others looked at."""

LEAVE_MS = 500
"""A clean stop spends so long at most on telling others."""

SETTLE_MS = 1_000
"""… and so long on what has still to reach the disk."""

_STATUS: dict[int, AliveStatus] = {
    Status.UNKNOWN: "unknown",
    Status.ALIVE: "alive",
    Status.SUSPECT: "suspect",
    Status.DEAD: "dead",
    Status.LEFT: "left",
}

log = get_logger("available")


class AvailablePlane(AvailableAnswers):
    """One node's part in it. Lives on the node's loop."""

    def __init__(
        self,
        *,
        node: NodeId,
        cluster_id: int,
        rows: DurableRows,
        eventual: Eventual,
        story: Story,
        driver: GossipDriver,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        describe: Callable[[], dict[str, Any]],
        on_failed: Callable[[BaseException], None],
        feature_level: int,
        feature_levels: Callable[[], Mapping[NodeId, int]],
        reaches_quorum: Callable[[], bool],
    ) -> None:
        """`describe`: what this node tells of itself (`Gossip.describe`), looked at once a second.

        `feature_level`: what this node claims to know; `feature_levels`: what others claim, 0 for who was not met yet.
        `reaches_quorum`: whether it sees a majority of the voters.
        """
        super().__init__(cluster_id=cluster_id, eventual=eventual, story=story, clock=clock)
        self._node = node
        self._rows = rows
        self._driver = driver
        self._loop = loop
        self._describe = describe
        self._on_failed = on_failed
        self._feature_level = feature_level
        self._feature_levels = feature_levels
        self._reaches_quorum = reaches_quorum
        self._own_events = OwnEvents()
        self._addresses: dict[NodeId, str] = {}
        self._gossiping: dict[NodeId, str] = {}  # those that the configuration names and that know gossip
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._is_started = False
        self._is_released = False  # holds nothing any more
        self._is_telling = False

    # ── life ────────────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Take part in gossip. Raises OSError if the port of datagrams is taken."""
        await self._driver.start()
        if self._is_closed:  # meanwhile
            return
        self._is_started = True
        self.record("node.started", {})
        self._tend_description()
        self._tend_tombstones()

    async def leave(self) -> None:
        """Tell the others that this node leaves on purpose, within `LEAVE_MS`."""
        if self._is_started and not self._is_closed:
            self.record("node.stopping", {})
            await self._driver.leave(LEAVE_MS)

    async def stop(self, *, abandon: bool = False) -> None:
        """End; what was written is made durable unless it is to be abandoned. Idempotent, and safe after `halt`."""
        abandon = abandon or self._is_closed
        self._end()
        if self._is_released:
            return
        self._is_released = True
        try:
            await self._driver.close()
            await self._story.settle(0 if abandon else SETTLE_MS)
        finally:
            await self._rows.close(abandon=abandon)
            self._refuse("the node is stopping")

    def halt(self) -> None:
        """Stop at once, as a killed process does, or one that failed. Port and store are `stop`'s to give back."""
        self._end()
        self._story.finish()
        self._driver.halt()
        self._refuse("the node was stopped")

    def _end(self) -> None:
        self._is_closed = True
        for timer in self._timers.values():
            timer.cancel()

    def _refuse(self, why: str) -> None:
        error = ConnectionLost(f"{why}; the request may have taken effect")
        self._story.close(error)
        self._eventual.close(error)

    def changed(self) -> None:
        """There is something new that others lack. They are told at the end of the turn, of all that it brought."""
        if not (self._is_closed or self._is_telling):
            self._is_telling = True
            self._loop.call_soon(self._guarded, self._tell)

    def _tell(self) -> None:
        self._is_telling = False
        if not self._is_closed:
            self._driver.changed()

    @property
    def clock_hook(self) -> Story:
        """The Lamport clock as messages between nodes carry it: `time` and `observe`."""
        return self._story

    # ── what the consistent core tells ──────────────────────────────────────────────────────────────

    def set_members(self, in_force: Configuration, committed: Configuration, index: Index) -> None:
        """Whom the configuration in force names, or the newest known to be `committed`, with the entry at `index`.

        Who has to agree is read off the latter, which never goes back: after a restart what is applied, and what is in
        force, are those of an older state until the log has been read again.
        """
        if self._is_closed:
            return
        named = {member.id: member for member in (*in_force.members, *committed.members)}
        self._names = {member.id: member.name for member in named.values()}
        self._addresses = {member.id: member.address for member in named.values()}
        self._own_events.removed(self._names)
        self._tell_driver()
        members = tuple(sorted(member.id for member in committed.members))
        self._story.set_electorate(Electorate(index, tuple(sorted(committed.voters)), members))

    def _tell_driver(self) -> None:
        """Gossip goes on between members that know of it; the others would only look dead.

        Who was not met yet is taken for one that does: if it is not there, that is what gossip has to find out.
        """
        levels, own = self._feature_levels(), self._feature_level
        known = {
            member: address
            for member, address in self._addresses.items()
            if member == self._node or min(own, levels.get(member) or FEATURE_LEVEL_TIMES) >= FEATURE_LEVEL_TIMES
        }
        if known != self._gossiping:
            self._gossiping = known
            self._driver.set_members(known)

    def on_raft_fact(self, fact: Fact) -> None:
        """Something happened in the consistent core."""
        told = self._own_events.of_raft(fact)
        if told is not None:
            self.record(*told)

    def on_gossip_fact(self, fact: GossipFact) -> None:
        """Something happened in gossip."""
        told = self._own_events.of_gossip(fact)
        if told is not None:
            log.info(told[0], node=self._node, **told[1])
            self.record(*told)

    def record(self, kind: str, fields: dict[str, Any]) -> None:
        """Something else happened that belongs into the timeline."""
        if not self._is_closed:
            self._story.record(kind, fields)

    # ── who is alive ────────────────────────────────────────────────────────────────────────────────

    def alive_members(self) -> tuple[AliveMember, ...]:
        now_ms = self._clock.monotonic_ms()
        gossip = self._driver.gossip
        own = gossip.own
        found = {
            member: AliveMember(id=member, status="unknown", peer_address=address)
            for member, address in self._addresses.items()
        }
        found |= {state.rumor.member: _as_heard_of(state, now_ms) for state in gossip.table()}
        found[self._node] = AliveMember(
            id=self._node,
            status="alive",
            number=own.number,
            incarnation=f"{own.incarnation:016x}",
            role=own.role,
            peer_address=own.address,
            client_url=own.client_url,
            version=own.version,
            applied_index=own.applied_index,
        )
        return tuple(found[member] for member in sorted(found))

    def available_counters(self) -> dict[str, Any]:
        return available_counters.collect(
            rows=self._rows,
            eventual=self._eventual,
            story=self._story,
            driver=self._driver,
            members=self.alive_members(),
        )

    # ── from time to time ───────────────────────────────────────────────────────────────────────────

    def _tend_description(self) -> None:
        self._timers["describe"] = self._loop.call_later(DESCRIBE_S, self._guarded, self._tend_description)
        self._driver.describe(self._describe())
        self._driver.catch_up()
        self._tell_driver()
        told = self._own_events.of_quorum(self._reaches_quorum())
        if told is not None:
            self.record(*told)

    def _tend_tombstones(self) -> None:
        self._timers["forget"] = self._loop.call_later(FORGET_S, self._guarded, self._tend_tombstones)
        self._eventual.forget(self._node, self._addresses)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - a bug must end the node, not go unseen in a timer
            self._on_failed(error)


def _as_heard_of(state: MemberState, now_ms: int) -> AliveMember:
    rumor = state.rumor
    return AliveMember(
        id=rumor.member,
        status=_STATUS[state.status],
        number=rumor.number,
        incarnation=f"{rumor.incarnation:016x}" if rumor.incarnation else "",
        rtt_ms=None if state.rtt_ms is None else round(state.rtt_ms, 3),
        since_ms=now_ms - state.since_ms,
        last_heard_ms=None if state.last_heard_ms < 0 else now_ms - state.last_heard_ms,
        role=rumor.role,
        peer_address=state.address,
        client_url=rumor.client_url,
        version=rumor.version,
        applied_index=rumor.applied_index or None,
    )
