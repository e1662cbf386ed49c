"""Client: the `KV` interface over HTTP, for asyncio programs, against several nodes at once.

Any node takes any request, so which one is asked matters for speed only (`endpoints`). The deadline of a call is its
only budget: within it, what certainly had no effect is tried again elsewhere, after a jittered pause.

What may have had an effect is never sent twice, unless it is named (`Command`): then it takes effect once however often
it is sent, and is asked for again elsewhere until the deadline. Outcomes are never guessed:

* writes travel as ``POST`` (a single one as a batch of one), those about leases as what they are. aiohttp would resend
  a GET, PUT or DELETE by itself when a connection dies, and is kept from it: a compare-and-set sent twice would refuse
  its own success;
* the node's word decides: an answer that says ``not-applied`` is a `TryAgain` or a `Rejected`, one that says
  ``unknown`` is an `Unknown`, and a request that left without a complete answer is an `Unknown`, too;
* only `TryAgain`, failures of reads, and what is named are retried; once one sending may have had an effect, what
  another is told at the door says nothing about it: the outcome stays unknown until a kept answer comes.

Nothing happens at construction; connections open at the first call, and `close` ends them.
"""

from __future__ import annotations

import asyncio
import random
import time
import warnings
from collections.abc import Awaitable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Self

import aiohttp
import msgspec

from kvnode.client import available, bodies, leases, locks, members, named, reads
from kvnode.client.endpoints import Endpoints, RetryPolicy
from kvnode.client.exchange import Exchange
from kvnode.client.http import error_from, parse_endpoints, settles
from kvnode.client.locks import Acquire
from kvnode.client.members import MemberRequest, MembersRead, Transfer
from kvnode.client.session import TTL_MS_DEFAULT, Session
from kvnode.client.watch import ClientStream, Connection
from kvnode.errors import (
    BadRequest,
    CompareFailed,
    ConnectionLost,
    KvnodeError,
    NoLeader,
    NoSpace,
    NotReady,
    TryAgain,
    Unknown,
)
from kvnode.ids import NOBODY, NodeId
from kvnode.kv.available_calls import AvailableCalls, AvailableRequest
from kvnode.kv.interface import DEFAULT_OPTIONS, KV, Members, MembersChanged, Options, as_bytes
from kvnode.kv.members import MemberChange
from kvnode.kv.requests import (
    MUST_EXIST,
    Await,
    Command,
    Compact,
    CompactReply,
    Compare,
    Delete,
    History,
    LeaseGrant,
    LeaseKeepAlive,
    LeaseList,
    LeaseRead,
    LeaseRevoke,
    Put,
    Range,
    ReadRequest,
    Reply,
    Request,
    SessionEnd,
    SessionOpen,
    SessionReply,
    SessionsEnded,
    Txn,
    Watch,
)
from kvnode.recipes import hold
from kvnode.recipes.hold import TTL_MS_DEFAULT as HOLD_MS_DEFAULT
from kvnode.recipes.hold import Held
from kvnode.recipes.lock import Place

_KEEPALIVE_S = 30  # below the server's 75 s: the server never closes a connection we are about to use

RETRY_DEFAULT = RetryPolicy()

_json = bodies.json_of

AnyRequest = Request | Acquire | MemberRequest | AvailableRequest


class Client(KV, AvailableCalls):
    """A cluster seen from outside. Use as ``async with Client("n1:7401,n2:7401") as kv``, on one event loop."""

    def __init__(
        self,
        endpoints: str | Sequence[str],
        *,
        retry: RetryPolicy | None = RETRY_DEFAULT,
        rng: random.Random | None = None,
    ) -> None:
        """`retry=None` reports the first failure. Raises: BadRequest for a malformed endpoint."""
        addresses = parse_endpoints(endpoints if isinstance(endpoints, str) else ",".join(endpoints))
        self._retry = retry
        self._rng = rng or random.Random()
        self._endpoints = Endpoints(addresses, self._rng, retry or RETRY_DEFAULT)
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._session else "new"
        return f"<kvnode.Client {','.join(self._endpoints.addresses)} {state}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __del__(self) -> None:
        if getattr(self, "_session", None) is not None and not self._closed:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=2)

    async def close(self) -> None:
        """End all connections. Calls in flight fail as if the connection broke."""
        self._closed = True
        if self._session is not None:
            await self._session.close()

    async def execute(self, request: Request, options: Options = DEFAULT_OPTIONS) -> Any:
        """Carry out one request. Raises: a `KvnodeError`; see `kvnode.errors` for what its family promises."""
        if isinstance(request, Put | Delete) and request.if_revision == MUST_EXIST:
            return await self._execute_if_exists(request, options)
        return await self._carry_out(request, options)

    async def acquire(self, request: Acquire, options: Options = DEFAULT_OPTIONS) -> Place:
        """Take a lock or be elected, or wait for that up to ten minutes; to hold it use `lock` or `elect`.

        Raises: LockHeld after `wait_ms`. Sent once: where the outcome is not known (`Unknown`) the lock may have been
        taken, and comes free by itself after its TTL.
        """
        if self._closed:
            raise ConnectionLost("this client is closed")
        place: Place = await self._carry_out(request, options)
        return place

    def lock(
        self, name: str | bytes, *, ttl_ms: int = HOLD_MS_DEFAULT, wait_ms: int = 0, owner: str | bytes = b""
    ) -> AbstractAsyncContextManager[Held]:
        """Hold a lock while a block runs: ``async with client.lock("deploy") as held``. See `kvnode.recipes.hold`."""
        return self.hold(Acquire("locks", as_bytes(name), ttl_ms, wait_ms, as_bytes(owner)))

    def elect(
        self, name: str | bytes, *, ttl_ms: int = HOLD_MS_DEFAULT, wait_ms: int = 0, value: str | bytes = b""
    ) -> AbstractAsyncContextManager[Held]:
        """Lead while a block runs, announcing `value`; like `lock`."""
        return self.hold(Acquire("elections", as_bytes(name), ttl_ms, wait_ms, as_bytes(value)))

    def hold(self, request: Acquire) -> AbstractAsyncContextManager[Held]:
        """What `lock` and `elect` do."""

        def acquire() -> Awaitable[Place]:
            return locks.wait_in_turns(self.acquire, request, now_ms=_now_ms)

        return hold.holding(self, acquire, request.ttl_ms)

    async def ask_available(self, request: AvailableRequest, options: Options) -> Any:
        """What `ap_get` and the others do."""
        return await self._carry_out(request, options)

    async def _carry_out(self, request: AnyRequest, options: Options) -> Any:
        """At the nodes in turn, until one answers or the deadline passes."""
        if self._closed:
            raise NotReady("this client is closed")
        deadline_ms = _now_ms() + options.timeout_ms
        attempt = 0
        endpoints = self._endpoints
        is_local = isinstance(request, AvailableRequest) or (
            isinstance(request, ReadRequest) and options.consistency != "linearizable"
        )
        doubt: Unknown | None = None  # an earlier sending may have taken effect
        while True:
            began_s = time.monotonic()
            address = endpoints.choose_nearest(_now_ms()) if is_local else endpoints.choose(_now_ms())
            try:
                reply = await self._attempt(address, request, options, deadline_ms)
            except KvnodeError as error:
                self._learn(address, error)
                attempt += 1
                pause_ms = self._pause_ms(error, attempt, repeatable=_is_repeatable(request))
                if pause_ms is None or _now_ms() + pause_ms >= deadline_ms:
                    if doubt is not None and not settles(error):
                        raise doubt from error
                    raise
                if isinstance(error, Unknown) and isinstance(request, Command):
                    doubt = error
                await asyncio.sleep(pause_ms / 1000)
            else:
                endpoints.on_answer(address)
                if is_local:
                    endpoints.on_round_trip(address, (time.monotonic() - began_s) * 1e3)
                return reply

    def watch(self, request: Watch, options: Options = DEFAULT_OPTIONS) -> ClientStream:
        """Stream changes; see `KV.watch`. Goes on at another node when one goes away, or leaves too much unread.

        Fails when no node has served it for the time that `options` give it.
        """
        began_ms = _now_ms()
        address = ""

        async def open_(query: dict[str, bytes], silence_ms: int) -> Connection:
            nonlocal address
            if self._closed:
                raise NotReady("this client is closed")
            address = self._endpoints.choose(_now_ms())
            left_ms = max(1, min(options.timeout_ms, began_ms + options.timeout_ms - _now_ms()))
            sender = Exchange(self._open_session(), address, options, left_ms)
            connection = await sender.stream("/v1/watch", {**reads.read_query(options), **query}, silence_ms)
            self._endpoints.on_answer(address)
            return connection

        async def pause(error: KvnodeError, failures: int) -> bool:
            nonlocal began_ms
            self._learn(address, error)
            if failures == 1:
                began_ms = _now_ms()
            pause_ms = self._pause_ms(error, failures, repeatable=True)
            if pause_ms is None or self._closed or _now_ms() + pause_ms >= began_ms + options.timeout_ms:
                return False
            await asyncio.sleep(pause_ms / 1000)
            return True

        return ClientStream(request, open_, pause)

    async def _execute_if_exists(self, request: Put | Delete, options: Options) -> Reply:
        """The condition "must exist, at whatever revision" has no JSON form of its own; a transaction says it."""
        key = request.key if isinstance(request, Put) else request.start
        plain = msgspec.structs.replace(request, if_revision=-1)
        reply = await self.execute(Txn((Compare(key, "exists", "=", 1),), (plain,)), options)
        if not reply.succeeded:
            raise CompareFailed("the key does not exist", revision=0)
        found: Reply = reply.results[0]
        return found

    def _learn(self, address: str, error: KvnodeError) -> None:
        now_ms = _now_ms()
        if isinstance(error, TryAgain | Unknown):
            self._endpoints.on_failure(address, now_ms)
        else:
            self._endpoints.on_answer(address)
        leader_url = error.detail.get("leader_url")
        if isinstance(error, NoLeader) and isinstance(leader_url, str):
            self._endpoints.on_leader_hint(_address(leader_url), now_ms)

    def _pause_ms(self, error: KvnodeError, attempt: int, *, repeatable: bool) -> int | None:
        """How long to wait before trying again; None = report the error."""
        again = isinstance(error, TryAgain) or (repeatable and isinstance(error, Unknown))
        if self._retry is None or not again or isinstance(error, NoSpace):  # space does not come back by asking
            return None
        wanted = error.detail.get("retry_after_ms", 0)
        return max(self._retry.delay_ms(attempt, self._rng), wanted if isinstance(wanted, int) else 0)

    async def _attempt(self, address: str, request: AnyRequest, options: Options, deadline_ms: int) -> Any:
        left_ms = deadline_ms - _now_ms()
        if left_ms <= 0:
            raise NotReady("the deadline passed before the request could be sent")
        sender = Exchange(self._open_session(), address, options, left_ms)
        if isinstance(request, MemberRequest):
            return await members.execute(sender.call, request)
        if isinstance(request, AvailableRequest):
            return await available.execute(sender, request)
        match request:
            case Range() | History() | Await():
                return await reads.execute(sender, request, options)
            case Command():
                return await named.execute(sender.send, request)
            case SessionOpen():
                status, _, body = await sender.send("POST", "/v1/sessions", {"ttl": b"%dms" % request.ttl_ms}, None, {})
                answer = _json(status, body)
                return SessionReply(answer["session"], answer["ttl_ms"])
            case SessionEnd():
                [(session, _)] = request.sessions
                status, _, body = await sender.send("DELETE", f"/v1/sessions/{session}", {}, None, {})
                return SessionsEnded(_json(status, body)["ended"], 0)
            case Txn():
                status, _, body = await sender.post("/v1/txn", bodies.txn_body(request))
                return bodies.txn_reply(request, _json(status, body))
            case Compact():
                status, _, body = await sender.post("/v1/admin/compact", None, {"rev": b"%d" % request.revision})
                answer = _json(status, body)
                return CompactReply(answer["revision"], answer["compact_revision"])
            case Put() | Delete():
                operation = bodies.operation_body(request, condition=True)
                status, _, body = await sender.post("/v1/batch", [operation])
                [result] = _json(status, body)["results"]
                if "error" in result:
                    raise error_from(result["status"], result.get("outcome", ""), bodies.encode(result), write=True)
                return bodies.operation_reply(request, result)
            case LeaseGrant() | LeaseRevoke() | LeaseKeepAlive() | LeaseRead() | LeaseList():
                return await leases.execute(sender.call, request)
            case Acquire():
                return await locks.acquire(sender.call, request)
            case _:
                raise BadRequest(f"{type(request).__name__} has no form over HTTP; see Client.lock and Client.elect")

    async def members(self, options: Options = DEFAULT_OPTIONS, *, settings: bool = False) -> Members:
        """The members as one of the nodes sees them; `settings`: with those that all of them must agree on.

        Whom gossip takes for dead or gone is asked after the others from then on, until it has answered again.
        """
        found: Members = await self._carry_out(MembersRead(settings), options)
        for member in found.members:
            if member.status in {"dead", "left"}:
                self._endpoints.on_hearsay(_address(member.client_url), _now_ms())
        return found

    async def change_members(self, change: MemberChange, options: Options = DEFAULT_OPTIONS) -> MembersChanged:
        """Add, promote, move or remove a member; see `Admin.change_members`."""
        changed: MembersChanged = await self._carry_out(change, options)
        return changed

    async def transfer_leadership(self, to: int = NOBODY, options: Options = DEFAULT_OPTIONS) -> NodeId:
        """Hand leadership to member `to`, or to the best one; returns who leads then."""
        leader: NodeId = await self._carry_out(Transfer(NodeId(to)), options)
        return leader

    def session(self, *, ttl_ms: int = TTL_MS_DEFAULT) -> Session:
        """Writes that take effect once, also where an answer is lost: ``async with client.session() as kv``."""
        return Session(self, ttl_ms)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=10, keepalive_timeout=_KEEPALIVE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
            self._session._retry_connection = False  # it sends each request once, whatever the method
        return self._session


def connect(endpoints: str | Sequence[str], *, retry: RetryPolicy | None = RETRY_DEFAULT) -> Client:
    """A client of the cluster behind `endpoints` (``"n1:7401,n2:7401"``); use it with ``async with``."""
    return Client(endpoints, retry=retry)


def _is_repeatable(request: AnyRequest) -> bool:
    """Sending it twice does what sending it once does. (A session that nobody heard of ends by itself.)"""
    if isinstance(request, MemberRequest):
        return members.is_repeatable(request)
    if isinstance(request, AvailableRequest):
        return available.is_repeatable(request)
    if isinstance(request, Txn):
        return all(isinstance(operation, Range) for operation in (*request.success, *request.failure))
    if isinstance(request, Command):
        return bool(request.session or request.key)
    only_reads = ReadRequest | Await | LeaseRead | LeaseList
    return isinstance(request, only_reads | LeaseKeepAlive | Compact | SessionOpen | SessionEnd)


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def _address(url: str) -> str:
    """Of a node's `client_url`, as endpoints are written."""
    return url.removeprefix("http://").rstrip("/")
