"""The client front door: one function between aiohttp's connection handling and the handlers of `routes`.

`App.handle` runs once per request: name it, check its head, find its route, call the handler, and turn
whatever is raised into the answer the contract names. It stands directly behind `aiohttp.web.Server`, without
`web.Application`: that one's dispatcher and response objects cost as much again as everything else together,
and nothing of theirs is needed (`docs/http-api.md` has the numbers). `ClientServer` is the listener.
"""

from __future__ import annotations

import os
from typing import Any

from aiohttp import web

from kvnode.api import openapi, query
from kvnode.api.answer import Answer, DateHeader
from kvnode.api.call import Call, staleness_line
from kvnode.api.etcd.door import EtcdDoor
from kvnode.api.guard import Guard
from kvnode.api.http.sessions import is_named, refuse_names
from kvnode.api.listener import ClientServer
from kvnode.api.routes import Router
from kvnode.clocks import hybrid
from kvnode.clocks.system import SystemClock
from kvnode.config import Config
from kvnode.errors import BadRequest, KvnodeError, Overloaded
from kvnode.kv.available import AvailableNode
from kvnode.kv.interface import KV, Admin, Options
from kvnode.observe.log import get_logger
from kvnode.observe.metrics import Histogram
from kvnode.wire.token import encode_token

__all__ = ["App", "ClientServer", "build_app"]

log = get_logger("api")


def build_app(kv: KV, admin: Admin, config: Config, available: AvailableNode) -> App:
    """The front door of one node, ready for `ClientServer`."""
    return App(kv, admin, config, available)


class App:
    """What all requests of one node share. Lives on one event loop."""

    def __init__(self, kv: KV, admin: Admin, config: Config, available: AvailableNode) -> None:
        self.kv = kv
        self.admin = admin
        self.available = available
        self.config = config
        self.node_line = f"Kv-Node: {admin.id}\r\n"
        self.clock = SystemClock()
        self.date = DateHeader(self.clock)
        self.router = Router()
        self.etcd = EtcdDoor(self)
        self.openapi = openapi.build()
        self.guard = Guard(config, os.urandom(4).hex())
        self._in_flight_max = config.client.in_flight_max
        self._token_of: tuple[int, int] = (-1, -1)
        self._token = ""
        self.is_draining = False  # the node stops: every answer is the last on its connection
        self.in_flight = 0
        self.connections = 0
        self.malformed = 0
        self._answered = [0] * 6  # by status class; 0 unused
        self._seconds = Histogram()

    async def handle(self, request: web.BaseRequest) -> Answer:
        """Answer one request. Raises nothing but cancellation."""
        started_ns = self.clock.elapsed_ns()
        self.in_flight += 1
        call = Call(self, request)
        try:
            answer = await self._dispatch(call)
        except KvnodeError as error:
            answer = call.refuse(error)
        except Exception:
            log.exception("request.failed", request_id=call.request_id)
            answer = call.refuse(KvnodeError("an unexpected error, logged under this answer's X-Request-Id"))
        finally:
            self.in_flight -= 1
        took_ns = self.clock.elapsed_ns() - started_ns
        self._answered[answer.status // 100] += 1
        self._seconds.observe(took_ns / 1e9)
        log.debug(
            "request.answered",
            request_id=call.request_id,
            method=request.method,
            status=answer.status,
            took_ms=took_ns / 1e6,
        )
        return answer

    async def _dispatch(self, call: Call) -> Answer:
        request = call.request
        call.request_id = self.guard.request_id(request)
        target = request.raw_path
        if not target.startswith("/") or "#" in target:
            call.closes = True
            raise BadRequest("the request target is a path, as in GET /v1/kv/key")
        path, _, text = target.partition("?")
        if self.etcd.takes(path):
            return await self.etcd.handle(call, path)
        self.guard.check(request, changes_state=call.may_write)
        handler, known, call.rest = self.router.find(request.method, path)
        if self.in_flight > self._in_flight_max and path.startswith("/v1/"):  # a busy node is still alive
            raise Overloaded("this node serves as many requests as it may", retry_after_ms=1_000)
        if is_named(call):
            call.is_named = True
            if handler not in self.router.takes_names:
                refuse_names(call)
        if text:
            call.parameters = query.parse(text, known)
        return await handler(call)

    def token(self, revision: int) -> str:
        """`Kv-Token` of an answer given now; rendered anew only when something has changed."""
        wanted = (revision, self.admin.applied_time)
        if wanted != self._token_of:
            self._token_of = wanted
            self._token = encode_token(*wanted)
        return self._token

    def staleness_line(self, options: Options) -> str:
        """How old the answer to a read may be; nothing for reads that miss nothing their caller knows of."""
        if options.consistency not in ("stale", "bounded"):
            return ""
        return staleness_line(
            self.admin.staleness_ms, self.clock.wall_ms(), hybrid.wall_part_ms(self.admin.applied_time)
        )

    def counters(self) -> dict[str, Any]:
        """The front door's own metrics, by name."""
        return {
            "kvnode_http_requests_total": {f"{n}xx": self._answered[n] for n in range(2, 6)},
            "kvnode_http_request_seconds": self._seconds,
            "kvnode_http_requests_in_flight": self.in_flight,
            "kvnode_http_connections": self.connections,
            "kvnode_http_malformed_total": self.malformed,
        }
