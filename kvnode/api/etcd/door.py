"""The door of the etcd API: finds the method that a path names, reads its request, writes its answer or its stream.

Paths are `/v3/` and what `METHODS` lists; `/v3beta/` and `/v3alpha/` are the same. Requests are read by their bodies
alone: the content type does not matter. Each message of a stream is one HTTP chunk, `{"result":…}` and a line feed.
A stream does not announce that its connection ends with it: Python's `http.client` would take the socket away from
clients such as Patroni, which end a watch by shutting that down.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import hdrs

from kvnode.api.answer import KIND_JSON, Answer
from kvnode.api.call import Call
from kvnode.api.etcd import (
    alarms,
    auth,
    cluster,
    elections,
    kv,
    leases,
    locks,
    maintenance,
    snapshot,
    txn,
    watch,
    watch_socket,
)
from kvnode.api.etcd.context import Context, Gateway
from kvnode.api.etcd.errors import (
    Code,
    EtcdError,
    UnreadableRequest,
    invalid,
    stream_body,
    translated,
    unary_body,
)
from kvnode.api.etcd.method import Carriage, Duplex, Method, Stream, Unary
from kvnode.api.etcd.proto_json import check_extent, decode, decode_stream, in_turns
from kvnode.api.streaming import Outlet, TooSlow, while_connected
from kvnode.errors import KvnodeError, Overloaded, TooLarge
from kvnode.kv.requests import TXN_TOTAL_FACTOR
from kvnode.observe.log import get_logger
from kvnode.version import ETCD_CLUSTER_VERSION, ETCD_SERVER_VERSION

if TYPE_CHECKING:
    from kvnode.api.app import App

log = get_logger("etcd")

PREFIXES = ("/v3/", "/v3beta/", "/v3alpha/")
"""Clients choose one by the version that `/version` tells; all are served alike."""

METHODS: Mapping[str, Method] = {
    **kv.METHODS,
    **txn.METHODS,
    **maintenance.METHODS,
    **alarms.METHODS,
    **snapshot.METHODS,
    **cluster.METHODS,
    **auth.METHODS,
    **watch.METHODS,
    **leases.METHODS,
    **locks.METHODS,
    **elections.METHODS,
}
"""By path, without its prefix."""

BODY_FACTOR = 2
"""A body may be so many times `limits.request_bytes_max`: base64 takes a third more, and names their part."""


class EtcdDoor:
    """The etcd API of one node. Lives on one event loop."""

    def __init__(self, app: App) -> None:
        self._app = app
        # A transaction is the longest request: each of its operations is an object that holds another.
        self._objects_max = 1 + 2 * TXN_TOTAL_FACTOR * app.config.limits.txn_operations_max
        self._health = {True: 0, False: 0}  # answers of /health: good ones, others
        self.gateway = Gateway(app.kv, app.admin, app.config, app.available)

    def takes(self, path: str) -> bool:
        return path.startswith("/v3") and path.startswith(PREFIXES)

    def count_health(self, *, is_good: bool) -> None:
        self._health[is_good] += 1

    def numbers(self) -> dict[str, Any]:
        """What `kvnode.observe.etcd_metrics` has beside aliases, by name."""
        admin = self._app.admin
        return {
            "etcd_server_id": {f"{admin.id:x}": 1},
            "etcd_server_version": {ETCD_SERVER_VERSION: 1},
            "etcd_cluster_version": {ETCD_CLUSTER_VERSION.rpartition(".")[0]: 1},
            "etcd_server_is_learner": int(admin.status().role == "learner"),
            "etcd_server_quota_backend_bytes": self._app.config.storage.quota_bytes,
            "etcd_server_health_success": self._health[True],
            "etcd_server_health_failures": self._health[False],
            "etcd_debugging_mvcc_watch_stream_total": len(self.gateway.open_streams),
        }

    async def handle(self, call: Call, path: str) -> Answer:
        """Answer one request; every refusal is told in etcd's form. Raises nothing but cancellation."""
        method: Method | None = None
        try:
            upgrades = self._upgrades(call, path)
            self._app.guard.check(call.request, changes_state=call.may_write, upgrades=upgrades)
            method = self._find(call, path, "GET" if upgrades else "POST")
            if self._app.in_flight > self._app.config.client.in_flight_max:
                raise Overloaded("this node serves as many requests as it may")
            context = Context(
                self.gateway,
                request_id=call.request_id,
                headers=call.headers,
                is_wanted=lambda: call.request.transport is not None,
            )
            if upgrades:
                assert isinstance(method, Duplex), method
                context.check_leader()
                return await watch_socket.answer(call, context, method)
            body = await self._body(call)
            check_extent(body, self._objects_max if isinstance(method, Unary) else 0)
            context.check_leader()
            if isinstance(method, Duplex):
                return await self._converse(call, context, method, body)
            if isinstance(method, Unary):
                answering = method.handler(context, decode(method.request, body))
                response = await (while_connected(call.request, answering) if method.waits else answering)
                return call.answer(200, msgspec.json.encode(response))
            return await self._stream(call, context, method, body)
        except Exception as error:  # noqa: BLE001 - told by kind
            refused = told(error, call)
            is_unary = isinstance(method, Unary | None) or isinstance(error, UnreadableRequest)
            words = unary_body(refused) if is_unary else stream_body(refused) + b"\n"
            extra = "Allow: POST\r\n" if refused.status == 405 else ""
            return call.answer(refused.status.value, words, extra=extra)

    def close(self) -> None:
        """The node stops: streams that would go on for ever end."""
        self.gateway.close()

    def _upgrades(self, call: Call, path: str) -> bool:
        """Whether it opens a WebSocket, where there is one."""
        if hdrs.UPGRADE not in call.headers or call.request.method != "GET":
            return False
        return isinstance(_method_at(path), Duplex)

    def _find(self, call: Call, path: str, verb: str) -> Method:
        method = _method_at(path)
        if method is None:
            raise EtcdError(Code.NOT_FOUND, "Not Found")
        if call.request.method != verb:
            raise EtcdError(Code.UNIMPLEMENTED, "Method Not Allowed", status=HTTPStatus.METHOD_NOT_ALLOWED)
        return method

    async def _body(self, call: Call) -> bytes:
        try:
            return await call.body(BODY_FACTOR * self._app.config.limits.request_bytes_max)
        except TooLarge as error:
            raise invalid("request is too large") from error

    async def _stream(self, call: Call, context: Context, method: Stream, body: bytes) -> Answer:
        messages = method.handler(context, in_turns(decode_stream(method.request, body)))
        try:
            first = await anext(messages, None)  # what is refused before anything was said is refused with a status
        except BaseException:
            await messages.aclose()
            raise

        async def produce(outlet: Outlet) -> None:
            async with aclosing(messages):
                await _tell(call, outlet, first, messages)

        return call.stream(produce, kind=KIND_JSON, revision=0, keep_alive=True)

    async def _converse(self, call: Call, context: Context, method: Duplex, body: bytes) -> Answer:
        requests = decode_stream(method.request, body)
        conversation = method.conversation(context)
        first = next(requests, None)
        if first is not None:
            await conversation.begin(first)
        if call.request.transport is None:  # from here to `produce` nobody else has a turn
            await conversation.aclose()
            raise ConnectionResetError("the client has left")

        async def produce(outlet: Outlet) -> None:
            with _told_to(outlet, call):
                await conversation.run(in_turns(requests), _Chunks(outlet), ends=False)

        return call.stream(produce, kind=KIND_JSON, revision=0, keep_alive=True)


def _method_at(path: str) -> Method | None:
    prefix = next(prefix for prefix in PREFIXES if path.startswith(prefix))
    return METHODS.get(path[len(prefix) :])


class _Chunks(Carriage):
    """Each message is one chunk of the body, and one line."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet

    def frame(self, message: bytes) -> bytes:
        return self._outlet.frame(message + b"\n")

    async def write(self, framed: bytes) -> None:
        await self._outlet.write(framed)


@contextmanager
def _told_to(outlet: Outlet, call: Call) -> Iterator[None]:
    """Ends the body, in the way that the block ends."""
    try:
        yield
    except TooSlow:
        outlet.cut()
    except (EtcdError, KvnodeError) as error:
        outlet.end(outlet.frame(stream_body(told(error, call)) + b"\n"))
    else:
        outlet.end()


async def _tell(call: Call, outlet: Outlet, first: Any, messages: AsyncIterator[Any]) -> None:
    with _told_to(outlet, call):
        if first is not None:
            await outlet.write(outlet.frame(message_line(first)))
        async for message in messages:
            await outlet.write(outlet.frame(message_line(message)))


def told(error: Exception, call: Call) -> EtcdError:
    """An error in etcd's words; one that nobody foresaw is logged."""
    if isinstance(error, EtcdError):
        return error
    if isinstance(error, KvnodeError):
        return translated(error)
    if isinstance(error, ConnectionError):  # nobody reads it
        return EtcdError(Code.CANCELLED, "etcdserver: request canceled")
    log.error("request.failed", request_id=call.request_id, exc_info=error)
    return EtcdError(Code.INTERNAL, "an unexpected error, logged under this answer's X-Request-Id")


def message_line(message: msgspec.Struct) -> bytes:
    """A message of a stream, as it is written."""
    return b'{"result":%b}\n' % msgspec.json.encode(message)
