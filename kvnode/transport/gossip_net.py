"""GossipNet: sealed datagrams and exchanges between members. Satisfies `kvnode.node.ports.GossipTransport` by shape.

Whatever arrives passes three questions before the receiver sees a byte of it. Is it sealed for this node, in this
cluster, by somebody with the secret (`kvnode.wire.gossip_seal`)? Does the roster know the sender, on that directory and
in no earlier start than it has met? And is that start no earlier than the newest one heard here, and the number one
that has not come yet? What fails is dropped and counted; nothing is recorded but what a proven member's start was, in
memory.

Datagrams go out at once or not at all. Exchanges are few, bounded in size and in time, and share the peer listener
with Raft's connections, but nothing else. It works whether Raft's links are up or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import aiohttp

from kvnode.clocks.clock import Clock
from kvnode.config import parse_address
from kvnode.ids import NodeId
from kvnode.observe.log import Logger, get_logger
from kvnode.transport.addresses import Addresses
from kvnode.transport.channel import Counters
from kvnode.transport.datagrams import COUNTERS as DATAGRAM_COUNTERS
from kvnode.transport.datagrams import Datagrams
from kvnode.transport.exchanges import Answer
from kvnode.transport.peers import SECRET_BYTES_MIN
from kvnode.wire.frames import Refusal
from kvnode.wire.gossip_seal import ReplayWindow, Sealed, Sealer, SealKind
from kvnode.wire.limits import CodecError

EXCHANGES_MAX = 16
"""Exchanges this node may have begun and not ended; a further one fails at once. One to each peer at a time."""
EXCHANGE_TIMEOUT_MS = 5_000
"""From the dial to the last byte of the answer."""
_REFUSAL_LOG_MS = 1_000

COUNTERS = (
    *DATAGRAM_COUNTERS,
    "gossip_bad",  # not sealed for this node with the cluster's secret, or not to be read
    "gossip_refused",  # proven, but not of a member in its newest start
    "gossip_replayed",  # proven, but it has come before
    "exchanges_sent",
    "exchanges_failed",
    "exchange_bytes_sent",
    "exchange_bytes_received",
)


class Roster(Protocol):
    """What gossip asks about identities; `kvnode.node.roster.Roster` by shape."""

    @property
    def cluster_id(self) -> int: ...

    def judge_gossip(self, sender: NodeId, incarnation: int, boot_counter: int, boot_nonce: int) -> Refusal | None: ...


class Receiver(Protocol):
    """Where proven gossip goes (`kvnode.node.ports.GossipReceiver`)."""

    def on_packet(self, sender: NodeId, packet: bytes) -> None: ...

    def on_exchange(self, sender: NodeId, request: bytes) -> bytes: ...


class PeerListener(Protocol):
    """The peer listener, and the client of others'; `kvnode.transport.peers.PeerTransport` by shape."""

    @property
    def address(self) -> str: ...

    def serve_exchanges(self, answer: Answer | None) -> None: ...

    def post_exchange(self, address: str, body: bytes) -> Awaitable[bytes]: ...


class GossipNet:
    """Lives on one loop. One for each start of a node: its numbers begin at 1, which a start does once."""

    def __init__(
        self,
        *,
        node: NodeId,
        incarnation: int,
        boot_counter: int,
        boot_nonce: int,
        roster: Roster,
        secret: bytes,
        peers: PeerListener,
        clock: Clock,
        log: Logger | None = None,
        on_failed: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.counters: Counters = dict.fromkeys(COUNTERS, 0)
        self._node = node
        self._start = (incarnation, boot_counter, boot_nonce)
        self._roster = roster
        self._secret = secret
        self._peers = peers
        self._clock = clock
        self._log = log or get_logger("gossip")
        self._on_failed = on_failed
        self._datagrams = Datagrams(self._on_datagram, self.counters)
        self._addresses = Addresses(clock=clock)
        self._numbers: dict[tuple[NodeId, SealKind], int] = {}  # the last one sent; kept for whoever goes and comes
        self._senders: dict[NodeId, _Sender] = {}
        self._exchanges: dict[NodeId, asyncio.Task[bytes]] = {}
        self._sealer: Sealer | None = None  # from `start` on, with a secret
        self._receiver: Receiver | None = None
        self._is_closing = False
        self._refusal_logged_ms = -_REFUSAL_LOG_MS
        self._refusal_logged = ""

    async def start(self, receiver: Receiver) -> None:
        """Open the socket and serve. The bootstrap has finished, and the peer listener has its port.

        Without a secret (a cluster of one) it stays shut. Raises OSError if the port is taken.
        """
        assert self._receiver is None, "its numbers begin at 1 once"
        self._receiver = receiver
        if len(self._secret) < SECRET_BYTES_MIN:
            return
        incarnation, boot_counter, boot_nonce = self._start
        self._sealer = Sealer(
            secret=self._secret,
            cluster_id=self._roster.cluster_id,
            node=self._node,
            incarnation=incarnation,
            boot_counter=boot_counter,
            boot_nonce=boot_nonce,
        )
        await self._datagrams.open(*parse_address(self._peers.address, "peer.listen"))
        self._addresses.family = self._datagrams.family
        self._peers.serve_exchanges(self._answer)

    def set_addresses(self, members: Mapping[NodeId, str]) -> None:
        """Whom datagrams and exchanges may be sent to, this node or not, and the addresses of their peer listeners."""
        self._addresses.set({member: address for member, address in members.items() if member != self._node})
        self._senders = {member: sender for member, sender in self._senders.items() if member in members}

    def send(self, to: NodeId, packet: bytes) -> None:
        """One datagram; dropped, and counted, if it is too large, `to` has no address yet or the socket is full."""
        address = self._addresses.find(to)
        if address is None or self._sealer is None:
            self.counters["datagrams_dropped"] += 1
            return
        try:
            sealed = self._sealer.seal(SealKind.DATAGRAM, to, packet, number=self._number(to, SealKind.DATAGRAM))
        except CodecError:
            self.counters["datagrams_dropped"] += 1
            return
        self._datagrams.send(sealed, address)

    async def exchange(self, to: NodeId, request: bytes) -> bytes:
        """The proven answer of `to`. Never waits without bound. Raises OSError for whatever comes between."""
        address = self._addresses.text(to)
        if self._sealer is None or self._is_closing or not address:
            raise ConnectionAbortedError(f"there is no way to member {to}")
        if to in self._exchanges or len(self._exchanges) >= EXCHANGES_MAX:
            raise ConnectionAbortedError(f"too many exchanges with member {to}, or in all")
        task = self._exchanges[to] = asyncio.create_task(self._exchange(to, address, request), name=f"gossip-{to}")
        task.add_done_callback(lambda _: self._exchanges.pop(to))
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
        if task.cancelled():
            raise ConnectionAbortedError("gossip is closed")
        return task.result()

    async def close(self) -> None:
        """Take no more, give the port up. On return nothing of it runs any more."""
        self._is_closing = True
        self._peers.serve_exchanges(None)
        exchanges = list(self._exchanges.values())
        for task in exchanges:
            task.cancel()
        await asyncio.gather(*exchanges, return_exceptions=True)
        await self._addresses.close()
        await self._datagrams.close()

    # ── out ─────────────────────────────────────────────────────────────────────────────────────────

    async def _exchange(self, to: NodeId, address: str, request: bytes) -> bytes:
        try:
            async with asyncio.timeout(EXCHANGE_TIMEOUT_MS / 1e3):
                return await self._ask(to, address, request)
        except (aiohttp.ClientError, CodecError, OSError) as error:
            self.counters["exchanges_failed"] += 1
            raise ConnectionAbortedError(
                f"an exchange with member {to}: {str(error) or type(error).__name__}"
            ) from error

    async def _ask(self, to: NodeId, address: str, request: bytes) -> bytes:
        assert self._sealer is not None
        sealed = self._sealer.seal(SealKind.REQUEST, to, request, number=self._number(to, SealKind.REQUEST))
        self.counters["exchanges_sent"] += 1
        self.counters["exchange_bytes_sent"] += len(sealed)
        answer = await self._peers.post_exchange(address, sealed)
        self.counters["exchange_bytes_received"] += len(answer)
        reply = self._open(SealKind.REPLY, answer, request_mac=self._sealer.mac_of(sealed))
        if reply.sender != to:
            raise CodecError(f"member {reply.sender} answers where member {to} was asked")
        return reply.body

    def _number(self, to: NodeId, kind: SealKind) -> int:
        number = self._numbers[to, kind] = self._numbers.get((to, kind), 0) + 1
        return number

    # ── in ──────────────────────────────────────────────────────────────────────────────────────────

    def _on_datagram(self, data: bytes) -> None:
        assert self._receiver is not None
        if self._is_closing:
            return
        try:
            sealed = self._open(SealKind.DATAGRAM, data)
            self._receiver.on_packet(sealed.sender, sealed.body)
        except _Refused:
            return
        except CodecError:
            self.counters["gossip_bad"] += 1
        except Exception as error:  # noqa: BLE001 (a bug of the receiver must not pass unseen in asyncio's log)
            self._fail(error)

    def _answer(self, data: bytes) -> bytes:
        """A sealed request, answered. Raises CodecError."""
        assert self._receiver is not None
        assert self._sealer is not None
        try:
            request = self._open(SealKind.REQUEST, data)
            answer = self._receiver.on_exchange(request.sender, request.body)
        except _Refused:
            raise
        except CodecError:
            self.counters["gossip_bad"] += 1
            raise
        sealed = self._sealer.seal(SealKind.REPLY, request.sender, answer, request_mac=request.mac)
        self.counters["exchange_bytes_received"] += len(data)
        self.counters["exchange_bytes_sent"] += len(sealed)
        return sealed

    def _open(self, kind: SealKind, data: bytes, *, request_mac: bytes = b"") -> Sealed:
        """What a member has sealed for this node, for the first time. Raises CodecError."""
        assert self._sealer is not None
        sealed = self._sealer.open(kind, data, request_mac=request_mac)
        refusal = self._roster.judge_gossip(
            sealed.sender, sealed.incarnation, sealed.boot_counter, sealed.boot_nonce
        ) or self._judge_start(sealed)
        if refusal is not None:
            self.counters["gossip_refused"] += 1
            self._log_refusal(sealed.sender, refusal)
            raise _Refused(refusal.sentence)
        if kind != SealKind.REPLY and not self._senders[sealed.sender].windows[kind].take(sealed.number):
            self.counters["gossip_replayed"] += 1
            raise _Refused(f"number {sealed.number} of member {sealed.sender} has come before")
        return sealed

    def _judge_start(self, sealed: Sealed) -> Refusal | None:
        """No start before the newest one heard; one that is newer begins to count anew."""
        boot = (sealed.boot_counter, sealed.boot_nonce)
        known = self._senders.get(sealed.sender)
        if known is None or boot[0] > known.boot[0]:
            self._senders[sealed.sender] = _Sender(boot)
        elif boot != known.boot:
            return Refusal(
                "stale_boot", f"gossip of start {boot[0]} of member {sealed.sender}, whose {known.boot[0]}. was heard"
            )
        return None

    def _log_refusal(self, peer: NodeId, refusal: Refusal) -> None:
        now_ms = self._clock.monotonic_ms()
        if refusal.sentence != self._refusal_logged and now_ms - self._refusal_logged_ms >= _REFUSAL_LOG_MS:
            self._refusal_logged, self._refusal_logged_ms = refusal.sentence, now_ms
            self._log.warning("peer.refused", peer=peer, code=refusal.code, reason=refusal.sentence, by="this node")

    def _fail(self, error: BaseException) -> None:
        if self._on_failed is not None:
            self._on_failed(error)
        else:
            self._log.error("node.failed", code=getattr(error, "code", type(error).__name__), message=str(error))


class _Refused(CodecError):
    """Proven, but not to be believed; counted already."""


class _Sender:
    """One member's newest start that was heard, and what has come of it."""

    __slots__ = ("boot", "windows")

    def __init__(self, boot: tuple[int, int]) -> None:
        self.boot = boot
        self.windows = {SealKind.DATAGRAM: ReplayWindow(), SealKind.REQUEST: ReplayWindow()}
