"""Gossip driver: the loop of the gossip core; packets in and out, and the pulls that bring one node level with another.

A transition of the core never awaits (GO5): a packet, an answer, a timer is stepped, and what comes out is carried out,
on one turn of the loop. A pull is a conversation of its own, page by page, over the peer port's HTTP: each page is
merged in one go, and refused as long as the disk does not keep up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import msgspec

from kvnode.clocks.clock import Clock
from kvnode.clocks.version_vector import VersionVector
from kvnode.errors import TryAgain
from kvnode.gossip.anti_entropy import MISSES_MAX
from kvnode.gossip.core import Gossip
from kvnode.gossip.messages import (
    Ack,
    ExchangeReply,
    ExchangeRequest,
    Packet,
    Ping,
    PullReply,
    PullRequest,
    Rumor,
    Summary,
)
from kvnode.gossip.output import Answered, GossipFact, Pull, Received, Send
from kvnode.gossip.timeline_rows import encode_delta
from kvnode.ids import NodeId
from kvnode.node.eventual import Eventual
from kvnode.node.ports import GossipTransport
from kvnode.node.story import Story
from kvnode.observe.log import get_logger
from kvnode.wire.gossip_tags import (
    decode_answer,
    decode_exchange,
    decode_packet,
    encode_answer,
    encode_exchange,
    encode_packet,
)
from kvnode.wire.limits import CodecError

PAGE_BYTES = 64 << 10
"""Of each plane, in one page of a pull: what is made, and merged, in one turn of the loop that others have to wait for.

Some hundred small keys, 10 to 20 ms."""

PAGES_MAX = 10_000
"""In one pull; the next one goes on."""

REPEATED_MAX = 2 * MISSES_MAX
"""Pages in a row that left this node where it was; more than a catch-up that has to begin anew may take."""

log = get_logger("gossip")


class GossipDriver:
    """Lives on the node's loop. Satisfies `kvnode.node.ports.GossipReceiver` by shape."""

    def __init__(
        self,
        *,
        node: NodeId,
        gossip: Gossip,
        transport: GossipTransport,
        eventual: Eventual,
        story: Story,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        on_fact: Callable[[GossipFact], None],
        on_failed: Callable[[BaseException], None],
    ) -> None:
        self.gossip = gossip
        self.probes_by_http = self.pulls = self.pulls_failed = self.pages = 0  # for metrics
        self.facts: dict[str, int] = {}  # how often each kind of fact came, by its class
        self._node = node
        self._transport = transport
        self._eventual = eventual
        self._story = story
        self._clock = clock
        self._loop = loop
        self._on_fact = on_fact
        self._on_failed = on_failed
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._lines: dict[NodeId, asyncio.Lock] = {}  # one exchange at a time with each member, in turn
        self._pinged: dict[NodeId, Send] = {}  # the newest ping that waits for the answer to what is under way
        self._is_closed = True

    @property
    def traffic(self) -> Mapping[str, int]:
        """What the transport counts."""
        return self._transport.counters

    async def start(self) -> None:
        """Listen and begin to probe. Raises OSError if the port of datagrams is taken."""
        await self._transport.start(self)
        self._is_closed = False
        self.gossip.set_summary(self.summary())
        self._flush()

    async def leave(self, within_ms: int) -> None:
        """Tell the others that this node leaves, for a bounded time."""
        self._step(self.gossip.leave)
        deadline_ms = self._now_ms() + within_ms
        # Polled: the core has no events, and this is the end of it.
        while not (self._is_closed or self._has_left(deadline_ms)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    def _has_left(self, deadline_ms: int) -> bool:
        now_ms = self._now_ms()
        return now_ms >= deadline_ms or self.gossip.has_left(now_ms)

    def halt(self) -> None:
        """Nothing more is sent, answered or merged. Idempotent."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()

    async def close(self) -> None:
        """`halt`, and give the socket back."""
        self.halt()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._transport.close()

    def set_members(self, members: Mapping[NodeId, str]) -> None:
        """Whom the configuration names, this node among them, and where they are."""
        self._transport.set_addresses(members)
        others = {member: address for member, address in members.items() if member != self._node}
        self._lines = {member: self._lines.get(member) or asyncio.Lock() for member in others}
        self.gossip.set_members(others, self._now_ms())
        if not self._is_closed:
            self._flush()

    def describe(self, told: dict[str, Any]) -> None:
        """What this node tells of itself."""
        self.gossip.describe(**told)
        if not self._is_closed:
            self._flush()

    def catch_up(self) -> None:
        """Pull from everybody whose holdings this node must have before it may promise anything."""
        unheard = self._story.unheard()
        if unheard:
            self._step(lambda now_ms: self.gossip.want_events(unheard, now_ms))

    def changed(self) -> None:
        """This node holds something new that it may show: let others know soon."""
        self.gossip.set_summary(self.summary())
        self._step(self.gossip.changed)

    def summary(self) -> Summary:
        """What this node holds; of the keyspace, durably."""
        story = self._story
        return Summary(keyspace=self._eventual.keyspace.digest(), events=story.timeline.digest(), lamport=story.time())

    # ── the receiver ────────────────────────────────────────────────────────────────────────────────

    def on_packet(self, sender: NodeId, data: bytes) -> None:
        """One datagram of a proven member. Raises: CodecError."""
        if self._is_closed:
            return
        packet = decode_packet(data)
        self._note(sender, packet.summary)
        self._step(lambda now_ms: self.gossip.step(now_ms, Received(sender, packet)))

    def _note(self, sender: NodeId, summary: Summary) -> None:
        """What every message of a peer tells beside its contents."""
        if self._story.observe(summary.lamport):
            self._story.heard(sender, summary.events, summary.lamport)
        if summary.keyspace == self._eventual.keyspace.digest():
            self._eventual.learn(sender, self._eventual.keyspace.vector)

    def on_exchange(self, sender: NodeId, data: bytes) -> bytes:
        """A request of a proven member; its answer. Raises: CodecError."""
        if self._is_closed:
            raise CodecError("the node is stopping")
        request = decode_exchange(data)
        self._note(sender, request.summary)
        if isinstance(request, Packet):
            return encode_answer(self._answer_probe(sender, request))
        self._eventual.learn(sender, VersionVector.from_row(request.keyspace))
        members: tuple[Rumor, ...] = ()
        if request.members:
            self._step(lambda now_ms: self.gossip.merge_table(request.members, now_ms))
            members = self.gossip.rumors()
        return encode_answer(self._page(request, members))

    def _page(self, request: PullRequest, members: tuple[Rumor, ...]) -> PullReply:
        keyspace = events = b""
        more = False
        if request.want_keyspace:
            since = VersionVector.from_row(request.keyspace)
            keyspace, more = self._eventual.page(since, request.keyspace_after, PAGE_BYTES)
        if request.want_events:
            page = self._story.timeline.delta(VersionVector.from_row(request.events), PAGE_BYTES)
            events, more = encode_delta(page), more or page.more
        return PullReply(self.summary(), members, keyspace, events, more=more)

    def _answer_probe(self, sender: NodeId, packet: Packet) -> Packet:
        """A ping that came by HTTP is answered the same way."""
        found: list[Packet] = []
        self._step(lambda now_ms: found.append(self.gossip.answer(now_ms, sender, packet)))
        if not found:
            raise CodecError("the node is stopping")
        return self._timed(found[0])

    # ── the core ────────────────────────────────────────────────────────────────────────────────────

    def _step(self, transition: Callable[[int], object]) -> None:
        if self._is_closed:
            return
        try:
            transition(self._now_ms())
            self._flush()
        except BaseException as error:  # noqa: BLE001 - a bug must end the node, not go unseen
            self._on_failed(error)

    def _flush(self) -> None:
        """Carry out what the core decided, and set its timer."""
        output = self.gossip.take_output()
        for fact in output.facts:  # first: what goes out tells of it, and comes after it by the clock
            kind = type(fact).__name__
            self.facts[kind] = self.facts.get(kind, 0) + 1
            self._on_fact(fact)
        for send in output.packets:
            self._transport.send(send.to, encode_packet(self._timed(send.packet)))
        for send in output.fallbacks:
            self._own(self._probe(send), f"gossip-probe-{send.to}")
        for pull in output.pulls:
            self._own(self._pull(pull), f"gossip-pull-{pull.to}")
        if self._timer is not None:
            self._timer.cancel()
        delay_ms = max(0, self.gossip.next_deadline_ms() - self._now_ms())
        self._timer = self._loop.call_later(delay_ms / 1e3, self._step, self.gossip.on_tick)

    def _timed(self, packet: Packet) -> Packet:
        """As it leaves: the time is that of now (LC3), and so is what is held."""
        return msgspec.structs.replace(packet, summary=self.summary())

    def _now_ms(self) -> int:
        return self._clock.monotonic_ms()

    # ── conversations ───────────────────────────────────────────────────────────────────────────────

    async def _probe(self, send: Send) -> None:
        """A ping by HTTP, for networks that drop datagrams. Where a page is on its way already, it is the answer."""
        self.probes_by_http += 1
        line = self._lines.get(send.to)
        if line is not None and line.locked():
            self._pinged[send.to] = send
            return
        try:
            answer = await self._exchange(send.to, self._timed(send.packet))
            if not isinstance(answer, Packet):
                raise CodecError("a ping was answered by a page")
        except (OSError, CodecError):
            return  # the end of the probe decides
        self._note(send.to, answer.summary)
        self._step(lambda now_ms: self.gossip.step(now_ms, Answered(send.to, answer)))

    async def _pull(self, pull: Pull) -> None:
        """Bring this node level with a peer."""
        is_level = False
        summary: Summary | None = None
        members = pull.members
        before: object = None
        repeated = 0
        self.pulls += 1
        try:
            for _ in range(PAGES_MAX):
                want = self._eventual.keyspace.want()
                events = self._story.timeline.vector.to_row()
                place = want, events
                before, repeated = place, repeated + 1 if place == before else 0
                if repeated > REPEATED_MAX:
                    raise CodecError(f"member {pull.to} has more and more, but not what it was asked for")
                request = PullRequest(
                    self.summary(),
                    want.since,
                    events,
                    members,
                    want_keyspace=pull.want_keyspace,
                    want_events=pull.want_events,
                    keyspace_after=want.after,
                )
                reply = await self._exchange(pull.to, request)
                if not isinstance(reply, PullReply):
                    raise CodecError("a pull was answered by a packet")
                self._merge(pull.to, reply)
                self.pages += 1
                members, summary = (), reply.summary
                if not reply.more:
                    is_level = True
                    break
        except (OSError, CodecError, TryAgain) as error:
            self.pulls_failed += 1
            log.debug("gossip.pull_failed", node=self._node, peer=pull.to, reason=str(error))
        self.gossip.set_summary(self.summary())
        self._step(lambda now_ms: self.gossip.pulled(pull.to, is_level, now_ms, summary=summary))

    async def _exchange(self, to: NodeId, asked: ExchangeRequest) -> ExchangeReply:
        """In turn. Raises: OSError, CodecError."""
        line = self._lines.get(to)
        if line is None:
            raise ConnectionAbortedError(f"member {to} is none any more")
        try:
            async with line:
                answer = decode_answer(await self._transport.exchange(to, encode_exchange(asked)))
        finally:
            ping = self._pinged.pop(to, None)
        if ping is not None:
            acks = tuple(Ack(to, found.seq) for found in ping.packet.messages if isinstance(found, Ping))
            self._step(lambda now_ms: self.gossip.step(now_ms, Answered(to, Packet(answer.summary, acks))))
        return answer

    def _merge(self, peer: NodeId, reply: PullReply) -> None:
        """A page, in one go. Raises: CodecError; Overloaded when the disk does not keep up."""
        if reply.members:
            self._step(lambda now_ms: self.gossip.merge_table(reply.members, now_ms))
        self._story.observe(reply.summary.lamport)
        if reply.events:
            self._story.merge(reply.events, peer, reply.summary.lamport)
        if reply.keyspace:
            self._eventual.merge(reply.keyspace)
        self._note(peer, reply.summary)

    def _own(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._loop.create_task(work, name=name)
        self._tasks[task] = None
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None and not self._is_closed:
            self._on_failed(error)
