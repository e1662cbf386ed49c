"""Client: the `KV` interface over HTTP, for asyncio programs, against several nodes at once.

Any node takes any request, so which one is asked matters for speed only (`endpoints`). The deadline of a call is its
only budget: within it, what certainly had no effect is tried again elsewhere, after a jittered pause.

What may have had an effect is never sent twice, unless it is named (`Command`): then it takes effect once however often
it is sent, and is asked for again elsewhere until the deadline. Outcomes are never guessed:

* writes travel as ``POST`` (a single one as a batch of one). aiohttp resends a GET, PUT or DELETE by itself when a
  reused connection dies; a compare-and-set sent twice would refuse its own success. POST it sends once;
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
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
import msgspec
from yarl import URL

from kvnode.client import bodies, named
from kvnode.client.endpoints import Endpoints, RetryPolicy
from kvnode.client.http import error_from, key_path, parse_endpoints, settles
from kvnode.client.session import TTL_MS_DEFAULT, Session
from kvnode.client.watch import ClientStream, Connection
from kvnode.clocks import hybrid
from kvnode.errors import (
    CompareFailed,
    ConnectionLost,
    KeyNotFound,
    KvnodeError,
    NoLeader,
    NoSpace,
    NotReady,
    Timeout,
    TryAgain,
    Unknown,
)
from kvnode.kv.interface import DEFAULT_OPTIONS, KV, Options
from kvnode.kv.keys import ONE_KEY
from kvnode.kv.requests import (
    MUST_EXIST,
    NEWEST,
    Await,
    Command,
    Compact,
    CompactReply,
    Compare,
    Delete,
    History,
    KeyValue,
    Put,
    Range,
    RangeReply,
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
from kvnode.wire.token import encode_token

_CONNECT_MS_MAX = 2_000
_GRACE_MS = 1_000  # the node answers 504 at the deadline; its answer gets this long to arrive
_KEEPALIVE_S = 30  # below the server's 75 s: the server never closes a connection we are about to use

RETRY_DEFAULT = RetryPolicy()


class Client(KV):
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
        if self._closed:
            raise NotReady("this client is closed")
        if isinstance(request, Put | Delete) and request.if_revision == MUST_EXIST:
            return await self._execute_if_exists(request, options)
        deadline_ms = _now_ms() + options.timeout_ms
        attempt = 0
        doubt: Unknown | None = None  # an earlier sending may have taken effect
        while True:
            address = self._endpoints.choose(_now_ms())
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
                self._endpoints.on_answer(address)
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
            sender = _Exchange(self._open_session(), address, options, left_ms)
            connection = await sender.stream("/v1/watch", {**_how(options), **query}, silence_ms)
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
            self._endpoints.on_leader_hint(leader_url.removeprefix("http://").rstrip("/"), now_ms)

    def _pause_ms(self, error: KvnodeError, attempt: int, *, repeatable: bool) -> int | None:
        """How long to wait before trying again; None = report the error."""
        again = isinstance(error, TryAgain) or (repeatable and isinstance(error, Unknown))
        if self._retry is None or not again or isinstance(error, NoSpace):  # space does not come back by asking
            return None
        wanted = error.detail.get("retry_after_ms", 0)
        return max(self._retry.delay_ms(attempt, self._rng), wanted if isinstance(wanted, int) else 0)

    async def _attempt(self, address: str, request: Request, options: Options, deadline_ms: int) -> Reply:
        left_ms = deadline_ms - _now_ms()
        if left_ms <= 0:
            raise NotReady("the deadline passed before the request could be sent")
        sender = _Exchange(self._open_session(), address, options, left_ms)
        match request:
            case Range():
                return await _read(sender, request, options)
            case History():
                return await _read_history(sender, request, options)
            case Await():
                return await _await(sender, request, options)
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
            case _:
                raise NotImplementedError(request)

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
        return self._session


def connect(endpoints: str | Sequence[str], *, retry: RetryPolicy | None = RETRY_DEFAULT) -> Client:
    """A client of the cluster behind `endpoints` (``"n1:7401,n2:7401"``); use it with ``async with``."""
    return Client(endpoints, retry=retry)


class _Exchange:
    """One attempt at one node: sends, reads the whole answer, and turns every failure into the error that is true."""

    def __init__(self, session: aiohttp.ClientSession, address: str, options: Options, left_ms: int) -> None:
        self._session = session
        self._address = address
        self._left_ms = left_ms
        self._query: dict[str, str | bytes] = {"timeout": f"{left_ms}ms"}
        self._headers = {"Accept-Encoding": "identity"}
        if options.request_id:
            self._headers["X-Request-Id"] = options.request_id
        if options.least_revision:
            self._headers["Kv-Token"] = encode_token(options.least_revision, 0)
        if not options.forward:
            self._headers["Kv-No-Forward"] = "1"

    async def get(
        self, path: str, query: Mapping[str, bytes], *, wait_ms: int = 0
    ) -> tuple[int, Mapping[str, str], bytes]:
        """`wait_ms`: how much longer than its deadline the request was told to take."""
        return await self._send("GET", path, {**self._query, **query}, None, wait_ms=wait_ms)

    async def post(
        self, path: str, body: Any, query: Mapping[str, bytes] | None = None
    ) -> tuple[int, Mapping[str, str], bytes]:
        """A body of None is none at all."""
        return await self._send(
            "POST", path, {**self._query, **(query or {})}, None if body is None else bodies.encode(body)
        )

    async def send(
        self, method: str, path: str, query: Mapping[str, bytes], body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Any call, with headers of its own."""
        return await self._send(method, path, {**self._query, **query}, body, headers=headers)

    async def stream(self, path: str, query: Mapping[str, bytes], silence_ms: int) -> Connection:
        """GET whose answer goes on for ever; each of its parts must come within `silence_ms`."""
        url = self._url(path, {**self._query, **query})
        connect_s = min(self._left_ms, _CONNECT_MS_MAX) / 1000
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=silence_ms / 1000)
        async with self._failures_named(self._left_ms), asyncio.timeout(connect_s + (self._left_ms + _GRACE_MS) / 1000):
            response = await self._session.get(url, headers=self._headers, timeout=timeout, allow_redirects=False)
            try:
                if response.status != HTTPStatus.OK:
                    self._check(response, await response.read(), write=False)
                revision = int(response.headers["Kv-Revision"])
            except BaseException:
                response.close()
                raise

        async def read() -> bytes:
            async with self._failures_named(silence_ms):
                return await response.content.readany()

        return Connection(revision, read, response.close)

    def _url(self, path: str, query: Mapping[str, str | bytes]) -> URL:
        # The path and query are bytes percent-encoded by us; yarl must not touch them. A plus is a plus, not a space.
        return URL(f"http://{self._address}{path}?{urlencode(query, quote_via=quote)}", encoded=True)

    @asynccontextmanager
    async def _failures_named(self, within_ms: int) -> AsyncIterator[None]:
        """Turn what goes wrong on the way into the error that is true."""
        try:
            yield
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:  # nothing was sent
            raise NotReady(f"{self._address}: cannot connect ({error})") from error
        except KvnodeError:
            raise
        except TimeoutError as error:
            raise Timeout(f"{self._address}: no answer within {within_ms} ms") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ConnectionLost(f"{self._address}: connection lost before the answer ({error!r})") from error

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | bytes],
        body: bytes | None,
        *,
        wait_ms: int = 0,
        headers: Mapping[str, str] = {},
    ) -> tuple[int, Mapping[str, str], bytes]:
        url = self._url(path, query)
        connect_s = min(self._left_ms, _CONNECT_MS_MAX) / 1000
        answer_s = (self._left_ms + wait_ms + _GRACE_MS) / 1000
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=answer_s)
        async with (
            self._failures_named(self._left_ms),
            asyncio.timeout(connect_s + answer_s),
            self._session.request(
                method, url, data=body, headers={**self._headers, **headers}, timeout=timeout, allow_redirects=False
            ) as response,
        ):
            data = await response.read()
        self._check(response, data, write=method != "GET")
        return response.status, response.headers, data

    def _check(self, response: aiohttp.ClientResponse, data: bytes, *, write: bool) -> None:
        """Raises: the error that an answer stands for."""
        if response.status == 307:
            leader = urlsplit(response.headers.get("Location", "")).netloc
            raise NoLeader(f"{self._address} is not the leader", leader_url=leader)
        if response.status >= 400:
            refusal = error_from(response.status, response.headers.get("Kv-Outcome", ""), data, write=write)
            if isinstance(refusal, KeyNotFound):  # an answer, too: absent at this revision
                refusal.detail["revision"] = int(response.headers.get("Kv-Revision", "0"))
                refusal.detail["mod_revision"] = int(response.headers.get("Kv-Mod-Revision", "0"))
            raise refusal


async def _read(sender: _Exchange, request: Range, options: Options) -> RangeReply:
    query = _how(options)
    if request.end != ONE_KEY or request.keys_only or request.count_only or request.revision:
        status, _, body = await sender.get("/v1/kv", {**query, **bodies.range_query(request)})
        return bodies.range_reply(_json(status, body))
    try:
        _, headers, body = await sender.get(key_path(request.start), query)
    except KeyNotFound as error:
        return RangeReply(error.detail["revision"], (), 0)
    item = bodies.key_value_from_headers(request.start, body, headers)
    return RangeReply(int(headers["Kv-Revision"]), (item,), 1)


async def _await(sender: _Exchange, request: Await, options: Options) -> RangeReply:
    query = {**_how(options), "wait": b"%dms" % max(1, request.wait_ms)}
    if request.after_revision != NEWEST:
        query["after_rev"] = b"%d" % request.after_revision
    try:
        status, headers, body = await sender.get(key_path(request.key), query, wait_ms=request.wait_ms)
    except KeyNotFound as error:
        tombstone = KeyValue(request.key, b"", 0, error.detail["mod_revision"], 0)
        return RangeReply(error.detail["revision"], (tombstone,), 1)
    revision = int(headers["Kv-Revision"])
    if status == HTTPStatus.NOT_MODIFIED:
        return RangeReply(revision, (), 0)
    return RangeReply(revision, (bodies.key_value_from_headers(request.key, body, headers),), 1)


def _how(options: Options) -> dict[str, bytes]:
    """The parameters of a read that come from its options."""
    query = {} if options.consistency == "linearizable" else {"consistency": options.consistency.encode()}
    if options.max_staleness_ms:
        query["max_staleness"] = b"%dms" % options.max_staleness_ms
    if options.at_time:
        query["at_time"] = hybrid.to_text(options.at_time).encode()
    return query


async def _read_history(sender: _Exchange, request: History, options: Options) -> RangeReply:
    query = _how(options)
    given = {"limit": request.limit, "at_rev": request.revision, "before": request.before}
    query |= {name: b"%d" % number for name, number in given.items() if number}
    try:
        status, _, body = await sender.get(key_path(request.key, "history"), query)
    except KeyNotFound as error:
        return RangeReply(error.detail["revision"], (), 0)
    return bodies.range_reply(_json(status, body))


def _json(status: int, body: bytes) -> Any:
    try:
        return bodies.decode(body)
    except msgspec.DecodeError as error:
        raise ConnectionLost(f"answer {status} is not JSON: {body[:200]!r}") from error


def _is_repeatable(request: Request) -> bool:
    """Sending it twice does what sending it once does. (A session that nobody heard of ends by itself.)"""
    if isinstance(request, Txn):
        return all(isinstance(operation, Range) for operation in (*request.success, *request.failure))
    if isinstance(request, Command):
        return bool(request.session or request.key)
    return isinstance(request, ReadRequest | Await | Compact | SessionOpen | SessionEnd)


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
