"""The client listener: aiohttp's connection handling with our limits and our words for what is not HTTP.

Accepts at most `client.connections_max` connections; further ones get one 503 and are closed. What the parser
cannot read is answered 400 (413 if a line is too long) in JSON and logged as one line at most every ten seconds,
never as a traceback with a stranger's bytes in it. An incomplete or idle head ends with `client.head_timeout_ms`;
bodies have a deadline of their own (`Call.body`). Handlers go on when their client leaves: a proposal, once made,
completes; an answer that streams ends (`Connection.when_lost`).
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aiohttp.http_parser
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler

from kvnode.api import errors
from kvnode.api.answer import ALWAYS, KIND_JSON, STATUS_LINE, Answer
from kvnode.config import KIB, Config, parse_address
from kvnode.errors import BadRequest, ConfigInvalid, KvnodeError, NotReady, TooLarge
from kvnode.observe.log import get_logger

if TYPE_CHECKING:
    from kvnode.api.app import App

BACKLOG = 1_024
LINE_BYTES_MAX = 32 * KIB  # a 4 KiB key is 12 KiB percent-encoded, a range holds two
FIELD_BYTES_MAX = 8 * KIB
HEADERS_MAX = 64
LINGER_S = 2.0  # how long an unwanted body is read and dropped, so that the refusal arrives
_LOG_EVERY_MS = 10_000

log = get_logger("api")


class ClientServer:
    """Listens where `client.listen` says, or on a socket that was bound before."""

    def __init__(self, app: App, config: Config) -> None:
        self._app = app
        self._config = config
        self._runner: web.ServerRunner | None = None
        self._address = ""

    async def start(self, bound: socket.socket | None = None) -> None:
        """Raises: ConfigInvalid (no compiled parser), OSError (address in use)."""
        _require_compiled_parser()
        self._runner = web.ServerRunner(
            _Front(self._app, self._config), shutdown_timeout=self._config.limits.shutdown_ms / 1_000
        )
        await self._runner.setup()
        if bound is not None:
            await web.SockSite(self._runner, bound, backlog=BACKLOG).start()
        else:
            host, port = parse_address(self._config.client.listen, "client.listen")
            await web.TCPSite(self._runner, host, port, backlog=BACKLOG).start()
        host, port = self._runner.addresses[0][:2]
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def address(self) -> str:
        """host:port that is listened on; the port is the real one if 0 was asked for."""
        assert self._address, "not started"
        return self._address

    async def drain(self) -> None:
        """Accept no more connections; those there are get one more answer each, which says that it is the last."""
        self._app.is_draining = True
        self._app.etcd.close()
        if self._runner is not None:
            for site in self._runner.sites:
                await site.stop()

    async def close(self) -> None:
        """Accept no more, give requests in flight a little time, then close every connection."""
        if self._runner is not None:
            await self._runner.cleanup()


def _require_compiled_parser() -> None:
    # aiohttp's pure-Python parser has a history of request smuggling.
    if aiohttp.http_parser.HttpRequestParser.__module__ != "aiohttp._http_parser":
        raise ConfigInvalid("aiohttp runs without its compiled parser; unset AIOHTTP_NO_EXTENSIONS or install a wheel")


class _Front(web.Server):
    """Makes a `Connection` for each client."""

    def __init__(self, app: App, config: Config) -> None:
        super().__init__(app.handle)
        self.app = app
        self.connections_max = config.client.connections_max
        self._settings: dict[str, Any] = {
            "access_log": None,
            "keepalive_timeout": config.client.head_timeout_ms / 1_000,
            "max_line_size": LINE_BYTES_MAX,
            "max_field_size": FIELD_BYTES_MAX,
            "max_headers": HEADERS_MAX,
            "lingering_time": LINGER_S,
            "auto_decompress": False,
        }
        self.inline_tasks = _InlineTasks(self._loop) if sys.version_info < (3, 12) else None
        self._next_line_at_ms = 0
        self._unlogged = 0

    def __call__(self) -> RequestHandler:
        return Connection(self, self._loop, self._settings)

    def note_malformed(self, reason: str) -> None:
        """One line for many: what strangers send must not fill the log."""
        self.app.malformed += 1
        now_ms = self.app.clock.monotonic_ms()
        if now_ms < self._next_line_at_ms:
            self._unlogged += 1
            return
        log.warning("request.malformed", reason=reason[:120], unlogged=self._unlogged)
        self._next_line_at_ms = now_ms + _LOG_EVERY_MS
        self._unlogged = 0


class _InlineTasks:
    """The event loop, as aiohttp's connection loop sees it: `create_task` hands the coroutine back to be awaited.

    aiohttp runs each request in a task of its own and awaits that at once. From Python 3.12 on the task starts
    eagerly; before, it costs a task and two turns of the loop a request. Nothing here relies on the task.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.create_future = loop.create_future
        self.call_at = loop.call_at
        self.time = loop.time

    def create_task(self, coroutine: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
        return coroutine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


class Connection(RequestHandler):
    """One client connection."""

    __slots__ = ("_admitted", "_front", "when_lost")

    def __init__(self, front: _Front, loop: asyncio.AbstractEventLoop, settings: dict[str, Any]) -> None:
        super().__init__(front, loop=loop, **settings)
        self._front = front
        self._admitted = False
        self.when_lost: Callable[[], None] | None = None  # called when the client has left

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        app = self._front.app
        self._admitted = app.connections < self._front.connections_max
        app.connections += 1
        super().connection_made(transport)
        if self._front.inline_tasks is not None:
            self._loop = self._front.inline_tasks  # type: ignore[assignment] # by shape
        if not self._admitted:
            assert isinstance(transport, asyncio.WriteTransport), transport
            refusal = NotReady("this node has as many connections as it may")
            transport.write(_last_words(app, refusal, errors.NOT_APPLIED).wire())
            transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._front.app.connections -= 1
        super().connection_lost(exc)
        if self.when_lost is not None:
            self.when_lost()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what never became a request, or (a bug) to one whose answer could not be made."""
        app = self._front.app
        if status != HTTPStatus.BAD_REQUEST:
            log.error("request.failed", exc_info=exc)
            return _last_words(app, KvnodeError("an unexpected error"), errors.UNKNOWN)
        reason = ascii(" ".join(str(message or exc or "").split())).strip("'\"")
        self._front.note_malformed(reason)
        if isinstance(exc, LineTooLong):  # a key far over its limit, most likely
            words = f"the request line is over the limit of {LINE_BYTES_MAX} bytes, or a header over {FIELD_BYTES_MAX}"
            return _last_words(app, TooLarge(words, limit=LINE_BYTES_MAX), errors.NOT_APPLIED)
        return _last_words(app, BadRequest("the request is not well-formed HTTP"), errors.NOT_APPLIED)


def _last_words(app: App, error: KvnodeError, outcome: str) -> Answer:
    """A refusal without a `Call`: before a request was understood, or after its answer failed."""
    status = errors.status_of(error).value
    body = errors.encode(error, outcome)
    head = (
        f"{STATUS_LINE[status]}{app.node_line}Kv-Outcome: {outcome}\r\nKv-Term: {app.admin.term}\r\n"
        f"Kv-Revision: {app.admin.revision}\r\nKv-Token: {app.token(app.admin.revision)}\r\n"
        f"X-Request-Id: {app.guard.new_request_id()}\r\n{app.date.line()}{ALWAYS}"
        f"{KIND_JSON}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return Answer(status, head, body, keep_alive=False)
