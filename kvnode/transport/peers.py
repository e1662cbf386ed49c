"""PeerTransport: messages to and from all peers. Satisfies `kvnode.node.ports.Transport` by shape.

One task tends each link, apart from all others (`kvnode.transport.tending`). A connection counts from the moment both
lanes are proven; when either lane ends, both are cut. A newer connection of a peer replaces the older one.

Members come and go (`set_members`). A peer that the roster admits and that has no link gets one when it dials.

What breaks a peer's connection (damage, silence, a lie about the sender) is that peer's affair: it is counted and the
connection closed. What breaks *this* node (a full identity disk, a bug) goes to `on_failed`, once.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Protocol

import aiohttp

from kvnode.clocks.clock import Clock
from kvnode.config import PeerSection
from kvnode.errors import ConfigInvalid
from kvnode.ids import NodeId
from kvnode.observe.log import Logger, get_logger
from kvnode.raft.messages import Lane, PeerMessage, lane
from kvnode.transport.channel import Channel, Counters, WebSocket
from kvnode.transport.dialler import Dialler
from kvnode.transport.exchanges import COUNTERS as EXCHANGE_COUNTERS
from kvnode.transport.exchanges import EXCHANGE_PATH, Answer
from kvnode.transport.handshake import Handshake, Role, Roster
from kvnode.transport.link import Dial, Link
from kvnode.transport.peer_server import ROUTES, PeerServer
from kvnode.transport.snapshot_connections import SnapshotConnections
from kvnode.transport.snapshots import COUNTERS as SNAPSHOT_COUNTERS
from kvnode.transport.snapshots import Sink, Source
from kvnode.transport.tending import Tending
from kvnode.wire.codec import decode_message, encode_message
from kvnode.wire.frames import FEATURE_LEVEL_TIMES, NONCE_BYTES, FrameKind, Hello
from kvnode.wire.gossip_seal import REPLY_BYTES_MAX
from kvnode.wire.limits import CodecError
from kvnode.wire.links import LinkInfo

LANES: tuple[Lane, Lane] = ("control", "data")
SECRET_BYTES_MIN = 16
_DRAIN_MS = 200
_REFUSAL_LOG_MS = 1_000
LINKS_MAX = 128
"""So many peers at most have a link; the rest of a larger cluster is not connected to."""
_CONNECTION_ENDED = (OSError, TimeoutError, aiohttp.ClientError, CodecError)

COUNTERS = (
    *(f"{what}_{name}" for what in ("messages_sent", "messages_received", "messages_dropped") for name in LANES),
    *(f"{what}_{name}" for what in ("bytes_sent", "bytes_received") for name in LANES),
    "connects",  # pairs that came up
    "reconnects",  # … other than the first with each peer
    "frames_bad",  # connections closed because something on them could not be believed
    "handshakes_refused",  # by either side
    "handshakes_unfinished",  # connections to the listener that ended or stayed silent before they were proven
    "connections_turned_away",  # one too many
    "ports_refused",  # a lost peer's port was probed and refused
    "silences",  # connections closed because nothing arrived any more
    "times_refused",  # Lamport times too far ahead to be believed
    *EXCHANGE_COUNTERS,
    *SNAPSHOT_COUNTERS,
)


class Receiver(Protocol):
    """Where messages and connection changes go (`kvnode.node.ports.Receiver`)."""

    def on_message(self, message: PeerMessage, size: int) -> None: ...

    def on_connected(self, peer: NodeId) -> None: ...

    def on_disconnected(self, peer: NodeId) -> None: ...

    def on_refused(self, peer: NodeId) -> None: ...

    @property
    def snapshot_sink(self) -> Sink | None: ...


class LamportHook(Protocol):
    """The node's Lamport clock, as far as every message between nodes carries it (patterns.md 4.7, LC3)."""

    def time(self) -> int:
        """The newest time issued or seen here, 0 … 2⁶³ - 1; called for every message sent."""
        ...

    def observe(self, seen: int) -> bool:
        """A peer's time, before the messages that follow it are delivered. False: it is too far ahead, and refused."""
        ...


class PeerTransport:
    """All links of one node. Lives on one loop; nothing here may be called from another thread."""

    def __init__(
        self,
        *,
        node: NodeId,
        roster: Roster,
        secret: bytes,
        listen: str,
        members: Mapping[NodeId, str],
        settings: PeerSection,
        clock: Clock,
        rng: random.Random,
        log: Logger | None = None,
        on_failed: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.counters: Counters = dict.fromkeys(COUNTERS, 0)
        self.lamport: LamportHook | None = None  # None: peers are told no times, and theirs are not listened to
        self._node = node
        self._roster = roster
        self._secret = secret
        self._settings = settings
        self._clock = clock
        self._log = log or get_logger("peers")
        self._on_failed = on_failed
        self._links: dict[NodeId, Link] = {}
        self._receiver: Receiver
        self._dialler: Dialler | None = None  # from `start` on
        self._dials = 0
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._tending = Tending(
            node=node, settings=settings, clock=clock, rng=rng, dial=self._dial, on_port_refused=self._on_port_refused
        )
        self._snapshots = SnapshotConnections(
            settings=settings, clock=clock, counters=self.counters, sink=lambda: self._receiver.snapshot_sink
        )
        self._is_closing = False
        self._refusal_logged_ms = -_REFUSAL_LOG_MS
        self._stranger_refused = ""  # the newest sentence for somebody who has no link
        self._server = PeerServer(
            listen=listen,
            settings=settings,
            make_handshake=partial(self._make_handshake, "acceptor"),
            accept=self._accept,
            on_refused=self._note_refusal,
            on_crashed=self._fail,
            counters=self.counters,
        )
        if any(peer != node for peer in members) and not self._has_secret:
            raise ConfigInvalid(f"the cluster's secret has {len(secret)} bytes, at least {SECRET_BYTES_MIN} are needed")
        self.set_members(members)

    @property
    def _has_secret(self) -> bool:
        return len(self._secret) >= SECRET_BYTES_MIN

    @property
    def address(self) -> str:
        """Where peers reach this node: the real port if 0 was asked for. Needs `bind` or `start`."""
        return self._server.address

    def bind(self) -> None:
        """Take the listening address without serving yet; `start` does it if nobody has. Raises OSError."""
        self._server.bind()

    def set_members(self, members: Mapping[NodeId, str]) -> None:
        """Whom to be connected to, this node or not, and where: the roster's `members`.

        New ones are dialled at once, who is gone is cut, and so is whom the roster would not let in any more. An
        address that changed counts from the next attempt on.
        """
        for peer in [peer for peer in self._links if peer not in members]:
            self._remove_link(self._links[peer])
        for peer, address in sorted(members.items()):
            link = self._links.get(peer)
            if link is None:
                if peer != self._node:
                    self._add_link(peer, address)
                continue
            if link.address != address:
                link.address = address
                link.went_down.set()  # dialled there without waiting for the next attempt
            if link.is_connected and link.hello is not None and (refusal := self._roster.judge(link.hello)) is not None:
                self._take_down(link, refusal.sentence)
                link.refused = refusal.sentence

    async def start(self, receiver: Receiver) -> None:
        """Listen and dial. Raises OSError if the address cannot be bound."""
        self._receiver = receiver
        self._dialler = Dialler(self._settings)
        self._roster.begin()
        await self._server.start()
        for link in self._links.values():
            link.task = self._own(self._tending.tend(link), f"peer-{link.peer}")
        self._own(self._keep_alive(), "peers-keep-alive")

    def send(self, to: NodeId, message: PeerMessage) -> None:
        """Queue for `to` on the message's lane; dropped, and counted, if the link is down or its queue is full."""
        name = lane(message)
        link = self._links.get(to)
        if link is None or not link.is_connected:
            self.counters["messages_dropped_" + name] += 1
            return
        time = self.lamport.time() if self.lamport is not None and link.takes_times else 0
        if link.lanes[name].send(FrameKind.MESSAGE, encode_message(message), time):
            self.counters["messages_sent_" + name] += 1
        else:
            self.counters["messages_dropped_" + name] += 1

    async def send_snapshot(self, to: NodeId, source: Source) -> None:
        """Over a connection of its own; returns when the receiver has taken it over. See `kvnode.transport.snapshots`.

        Raises: OSError (TimeoutError among them), SnapshotRefused.
        """
        link = self._links.get(to)
        if link is None or self._dialler is None or self._is_closing:
            raise ConnectionAbortedError(f"there is no link to member {to}")
        handshake = self._make_handshake("dialler", "snapshot", expected=to)
        try:
            websocket = await self._dialler.open(link.address, _path("snapshot"), handshake)
            try:
                if handshake.outcome == "refused":
                    assert handshake.refusal is not None
                    self._note_refusal(handshake, link)
                    raise ConnectionAbortedError(handshake.refusal.sentence)
                await self._snapshots.send(websocket, to, source)
            finally:
                await websocket.close()
        except (aiohttp.ClientError, CodecError) as error:
            raise ConnectionAbortedError(f"sending a snapshot to member {to}: {error}") from error

    def serve_exchanges(self, answer: Answer | None) -> None:
        """Who answers gossip's exchanges on this node's peer listener from now on; None: nobody."""
        self._server.exchanges.answer = answer

    async def post_exchange(self, address: str, body: bytes) -> bytes:
        """One exchange with the peer listener at `address`. Raises: OSError, aiohttp.ClientError; CodecError: too long.

        Bounded in size, but not in time.
        """
        if self._dialler is None or self._is_closing:
            raise ConnectionAbortedError("the peer listener is not open")
        return await self._dialler.post(address, EXCHANGE_PATH, body, bytes_max=REPLY_BYTES_MAX)

    def links(self) -> Mapping[NodeId, LinkInfo]:
        """Every peer, connected or not."""
        return {
            peer: LinkInfo(
                peer,
                link.is_connected,
                link.epoch,
                client_url=link.hello.client_url if link.hello is not None else "",
                refused=link.refused,
                feature_level=link.hello.feature_level if link.hello is not None else 0,
                software=link.hello.software if link.hello is not None else "",
            )
            for peer, link in self._links.items()
        }

    async def close(self) -> None:
        """Stop listening, let queued frames leave for a moment, cut everything. Takes well under two seconds."""
        if self._is_closing:
            return
        self._is_closing = True
        self._server.stop_listening()
        await self._drain()
        for link in self._links.values():
            link.take_down(self._clock.monotonic_ms())
        self._snapshots.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.close()
        if self._dialler is not None:
            await self._dialler.close()

    # ── one link ────────────────────────────────────────────────────────────────────────────────────

    def _add_link(self, peer: NodeId, address: str) -> Link | None:
        if len(self._links) >= LINKS_MAX:
            self._log.warning("peer.refused", peer=peer, code="overloaded", reason=f"more than {LINKS_MAX} peers")
            return None
        link = self._links[peer] = Link(peer, address, now_ms=self._clock.monotonic_ms())
        if not self._has_secret:
            link.refused = "cluster.secret_file must be set: peers prove membership with it"
        elif self._dialler is not None:
            link.task = self._own(self._tending.tend(link), f"peer-{peer}")
        return link

    def _remove_link(self, link: Link) -> None:
        link.is_gone = True
        self._take_down(link, "no member any more")
        self._snapshots.abort(link.peer)
        if link.task is not None:
            link.task.cancel()
        del self._links[link.peer]

    def _on_port_refused(self, link: Link) -> None:
        if not self._is_closing:
            self.counters["ports_refused"] += 1
            self._receiver.on_refused(link.peer)

    async def _dial(self, link: Link) -> int:
        """One connection from dial to end. Returns for how many ms it was up, at least 1; 0 if it never was."""
        self._dials += 1
        epoch, started_ms, number = link.epoch, self._clock.monotonic_ms(), self._dials
        lanes = [asyncio.create_task(self._dial_lane(link, name, number)) for name in LANES]
        try:
            await asyncio.wait(lanes, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if link.is_of(self._node, number):  # the peer's own dial may have taken its place
                self._take_down(link, "closed")
            for task in lanes:
                task.cancel()
            ended = await asyncio.gather(*lanes, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception) and not isinstance(error, _CONNECTION_ENDED):
                raise error
        return 0 if link.epoch == epoch else max(1, self._clock.monotonic_ms() - started_ms)

    async def _dial_lane(self, link: Link, name: Lane, number: int) -> None:
        handshake = self._make_handshake("dialler", name, number=number, expected=link.peer)
        assert self._dialler is not None
        websocket = await self._dialler.open(link.address, _path(name), handshake)
        try:
            if handshake.outcome == "refused":
                self._note_refusal(handshake, link)
                return
            assert handshake.peer is not None
            await self._serve(
                websocket, link, name, Dial(self._node, handshake.own.boot_counter, number), handshake.peer
            )
        finally:
            await websocket.close()

    async def _accept(self, websocket: WebSocket, hello: Hello) -> None:
        """A proven connection of a peer that dialled us."""
        link = self._links.get(hello.member)
        if link is None and (address := self._roster.members.get(hello.member)) is not None and self._has_secret:
            link = self._add_link(hello.member, address)  # a newcomer, or this node has yet to be told its members
        if link is None or self._is_closing:
            return
        if hello.lane == "snapshot":
            await self._take_snapshot(websocket, hello.member)
        else:
            dial = Dial(hello.member, hello.boot_counter, hello.link)
            await self._serve(websocket, link, hello.lane, dial, hello)

    async def _serve(self, websocket: WebSocket, link: Link, name: Lane, dial: Dial, hello: Hello) -> None:
        """One proven lane, from its place in the pair to its end."""
        if link.is_stale(name, dial):
            return
        channel = Channel(
            websocket,
            peer=link.peer,
            lane=name,
            queue_bytes_max=self._settings.queue_bytes_max,
            message_bytes_max=self._settings.message_bytes_max,
            counters=self.counters,
            on_time=self._on_time,
        )
        reason = "closed"
        try:
            if link.is_newer(dial):
                self._take_down(link, "replaced")
            if link.attach(channel, dial):
                self._on_pair(link, hello)
            async with asyncio.timeout(self._settings.handshake_timeout_ms / 1_000):
                await link.settled.wait()  # what arrives before the pair is complete waits in the socket
            if link.owns(channel):
                await channel.run(partial(self._on_payload, link, name))
        except CodecError as error:
            self.counters["frames_bad"] += 1
            reason = f"refused to read on: {error}"
        except _CONNECTION_ENDED as error:
            reason = f"{type(error).__name__}: {error}"
        finally:
            channel.abort()
            if link.owns(channel):
                self._take_down(link, reason)

    async def _take_snapshot(self, websocket: WebSocket, peer: NodeId) -> None:
        try:
            await self._snapshots.take(websocket, peer)
        except CodecError:
            self.counters["frames_bad"] += 1
        finally:
            await websocket.close()

    def _on_payload(self, link: Link, name: Lane, payload: memoryview) -> None:
        message = decode_message(payload, self._settings.message_bytes_max)
        if message.sender != link.peer:
            raise CodecError(f"a message signed {message.sender} from member {link.peer}")
        self.counters["messages_received_" + name] += 1
        self._receiver.on_message(message, len(payload))

    def _on_time(self, time: int) -> None:
        if self.lamport is not None and not self.lamport.observe(time):
            self.counters["times_refused"] += 1

    def _on_pair(self, link: Link, hello: Hello) -> None:
        link.hello = hello
        link.takes_times = min(hello.feature_level, self._roster.feature_level) >= FEATURE_LEVEL_TIMES
        self.counters["connects"] += 1
        self.counters["reconnects"] += link.epoch > 1
        self._log.info("peer.connected", peer=link.peer, epoch=link.epoch)
        self._receiver.on_connected(link.peer)

    def _take_down(self, link: Link, reason: str) -> None:
        was_connected = link.is_connected
        link.take_down(self._clock.monotonic_ms())
        if was_connected and not self._is_closing:
            self._log.info("peer.lost", peer=link.peer, epoch=link.epoch, reason=reason)
            self._receiver.on_disconnected(link.peer)

    # ── handshakes ──────────────────────────────────────────────────────────────────────────────────

    def _make_handshake(self, role: Role, name: Lane, *, number: int = 0, expected: NodeId | None = None) -> Handshake:
        hello = self._roster.hello(name, link=number, nonce=secrets.token_bytes(NONCE_BYTES))
        return Handshake(role, secret=self._secret, hello=hello, roster=self._roster, expected=expected)

    def _note_refusal(self, handshake: Handshake, dialled: Link | None = None) -> None:
        """Show a refusal in `links` where it is known whom it concerns: who was dialled, or who proved to be a peer."""
        assert handshake.refusal is not None
        self.counters["handshakes_refused"] += 1
        sentence = handshake.refusal.sentence
        link = dialled
        if link is None and handshake.proven and handshake.peer is not None:
            link = self._links.get(handshake.peer.member)
        is_news = sentence != (link.refused if link is not None else self._stranger_refused)
        if link is None:
            self._stranger_refused = sentence
        if link is not None and not link.is_connected:
            link.refused = sentence
        now_ms = self._clock.monotonic_ms()
        if is_news and now_ms - self._refusal_logged_ms >= _REFUSAL_LOG_MS:
            self._refusal_logged_ms = now_ms
            self._log.warning(
                "peer.refused",
                peer=link.peer if link is not None else None,
                code=handshake.refusal.code,
                reason=sentence,
                by="peer" if handshake.refused_by_peer else "this node",
            )

    # ── tasks of the whole ──────────────────────────────────────────────────────────────────────────

    async def _keep_alive(self) -> None:
        """Ping every lane; cut a link on which nothing arrives any more. A late wake-up of ours accuses nobody."""
        interval_ms = self._settings.keepalive_ms
        last_ms = self._clock.monotonic_ms()
        while True:
            await asyncio.sleep(interval_ms / 1_000)
            now_ms = self._clock.monotonic_ms()
            slept = now_ms - last_ms > 2 * interval_ms
            last_ms = now_ms
            for link in self._links.values():
                silent_ms = [channel.keep_alive(now_ms, slept=slept) for channel in link.lanes.values()]
                if max(silent_ms, default=0) >= self._settings.silence_ms_max:
                    self.counters["silences"] += 1
                    self._take_down(link, "silent")

    async def _drain(self) -> None:
        deadline_ms = self._clock.monotonic_ms() + _DRAIN_MS
        while any(channel.queue_bytes for link in self._links.values() for channel in link.lanes.values()):
            if self._clock.monotonic_ms() >= deadline_ms:
                return
            await asyncio.sleep(0.001)

    def _own(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._on_task_done)
        self._tasks[task] = None
        return task

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """A task of the transport died: that is a bug or a failed disk, and the node must not go on half deaf."""
        if self._on_failed is not None:
            self._on_failed(error)
        else:
            self._log.error("node.failed", code=getattr(error, "code", type(error).__name__), message=str(error))


def _path(name: Lane) -> str:
    return next(path for path, served in ROUTES.items() if served == name)
