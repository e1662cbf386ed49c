"""One client request on its way through a handler: what was asked, and the words to answer it with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING
from urllib.parse import quote

from aiohttp import hdrs, web
from multidict import CIMultiDictProxy

from kvnode.api import errors, query, shapes
from kvnode.api.answer import ALWAYS, KIND_JSON, KIND_NONE, STATUS_LINE, Answer
from kvnode.api.streaming import Outlet, StreamingAnswer
from kvnode.errors import BadEncoding, BadRequest, KvnodeError, NoLeader, TooLarge, UnsupportedMediaType
from kvnode.kv.available import NOTHING_SEEN, DotRow, Seen, seen_also
from kvnode.kv.interface import Consistency, Options
from kvnode.kv.requests import KeyValue
from kvnode.wire.token import Token, decode_token, encode_token, read_token

if TYPE_CHECKING:
    from kvnode.api.app import App

_CONSISTENCY: dict[bytes, Consistency] = {
    b"linearizable": "linearizable",
    b"causal": "causal",
    b"bounded": "bounded",
    b"stale": "stale",
}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
STALENESS_MS_MAX = 3_600_000
_NO_FORWARD = {"0": True, "1": False}


class Call:
    """Lives as long as one request. `app` is what all requests share."""

    __slots__ = (
        "app",
        "closes",
        "has_effect",
        "headers",
        "is_head",
        "is_named",
        "may_write",
        "needs_leader",
        "parameters",
        "request",
        "request_id",
        "rest",
        "shown",
    )

    def __init__(self, app: App, request: web.BaseRequest) -> None:
        self.app = app
        self.request = request
        self.headers: CIMultiDictProxy[str] = request.headers
        method = request.method
        self.is_head = method == "HEAD"
        self.may_write = not self.is_head and method != "GET"
        self.has_effect = self.may_write  # a transaction that only reads takes it back
        self.needs_leader = False  # a call that nodes do not forward is redirected
        self.is_named = False  # it carries a name under which it takes effect once
        self.closes = not request.keep_alive
        self.shown: tuple[DotRow, ...] | None = None  # what it showed or wrote of the plane that needs no quorum
        self.rest = ""  # the still encoded key of a path that ends in one
        self.parameters: dict[str, bytes] = {}
        self.request_id = ""

    # What was asked.

    def options(self) -> Options:
        """Deadline, consistency and forwarding, from parameters and headers."""
        parameters = self.parameters
        limits = self.app.config.limits
        timeout_ms = limits.timeout_ms
        consistency: Consistency = "linearizable"
        at_time = least_revision = max_staleness_ms = seen_time = 0
        if parameters:
            if "timeout" in parameters:
                timeout_ms = query.parse_duration_ms(parameters["timeout"], "timeout", most_ms=limits.timeout_ms_max)
            if "consistency" in parameters:
                consistency = _parse_consistency(parameters["consistency"])
            if consistency == "bounded" or "max_staleness" in parameters:
                max_staleness_ms = self._max_staleness_ms(consistency)
            if consistency == "causal":
                least_revision, seen_time = self._seen()
            if "at_time" in parameters and "cursor" not in parameters:  # a cursor has pinned what the time has shown
                at_time = query.parse_time(parameters["at_time"], "at_time", self.app.clock.wall_ms())
        no_forward = self.headers.get("Kv-No-Forward", "0")
        if no_forward not in _NO_FORWARD:
            raise BadRequest("Kv-No-Forward takes 1 or 0")
        return Options(
            timeout_ms,
            consistency,
            self.request_id,
            at_time,
            least_revision,
            max_staleness_ms,
            _NO_FORWARD[no_forward],
            seen_time,
        )

    def _max_staleness_ms(self, consistency: Consistency) -> int:
        value = self.parameters.get("max_staleness")
        if value is None or consistency != "bounded":
            raise BadRequest("max_staleness=500ms and consistency=bounded go together", parameter="max_staleness")
        return query.parse_duration_ms(value, "max_staleness", most_ms=STALENESS_MS_MAX)

    def _seen(self) -> tuple[int, int]:
        """Revision and hybrid time that a causal read must not miss."""
        token = self.headers.get("Kv-Token")
        if token is None:
            raise BadRequest("consistency=causal needs the Kv-Token of an answer whose state must not be missed")
        return decode_token(token)

    def seen(self) -> Seen:
        """What the caller has seen of the plane that needs no quorum; for calls of that plane. Raises: BadEncoding."""
        self.shown = ()
        token = self.headers.get("Kv-Token")
        return NOTHING_SEEN if token is None else read_token(token).seen

    def revision_asked(self) -> int:
        """The revision that a read is to show; 0: the newest. Raises: BadRequest."""
        value = self.parameters.get("at_rev")
        if value is not None and "at_time" in self.parameters:
            raise BadRequest("give at_rev, or at_time, not both")
        return 0 if value is None else query.parse_integer(value, "at_rev", least=1)

    def flag(self, name: str) -> bool:
        value = self.parameters.get(name)
        return value is not None and query.parse_flag(value, name)

    def refuse_body(self) -> None:
        """For calls that take none: a body there is a misunderstanding."""
        if self.request.can_read_body:
            self.closes = True
            raise BadRequest("this call takes no body")

    async def body(self, size_max: int) -> bytes:
        """The whole request body. Raises: TooLarge, BadRequest (late or broken off), UnsupportedMediaType."""
        headers, content = self.headers, self.request.content
        if hdrs.CONTENT_ENCODING in headers:
            self.closes = True
            raise UnsupportedMediaType("request bodies must not be compressed: leave Content-Encoding out")
        length = headers.get(hdrs.CONTENT_LENGTH)
        if length is not None and int(length) > size_max:
            raise self._too_large(size_max)
        if content.is_eof():
            data = content.read_nowait(-1)
            if len(data) > size_max:
                raise self._too_large(size_max)
            return data
        if hdrs.EXPECT in headers:
            self._continue(headers[hdrs.EXPECT])
        return await self._read_slowly(size_max)

    async def _read_slowly(self, size_max: int) -> bytes:
        content = self.request.content
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.app.config.client.body_timeout_ms / 1_000):
                while part := await content.readany():
                    parts.append(part)
                    size += len(part)
                    if size > size_max:
                        raise self._too_large(size_max)
        except TimeoutError:
            self.closes = True
            raise BadRequest("the body did not arrive in time") from None
        except (web.RequestPayloadError, ConnectionError):
            self.closes = True
            raise BadRequest("the body broke off or is not framed as HTTP says") from None
        return b"".join(parts)

    def _continue(self, expected: str) -> None:
        if expected.lower() != "100-continue":
            self.closes = True
            raise BadRequest("Expect takes 100-continue only")
        transport = self.request.transport
        if transport is not None:
            transport.write(_CONTINUE)

    def _too_large(self, size_max: int) -> TooLarge:
        self.closes = True  # the rest of the body is not worth reading
        return TooLarge(f"the body is over the limit of {size_max} bytes", limit=size_max)

    # How it is answered.

    def answer(
        self,
        status: int,
        body: bytes,
        *,
        kind: str = KIND_JSON,
        revision: int = 0,
        extra: str = "",
        length: bool = True,
    ) -> Answer:
        """`revision`: what the answer reflects, 0 = this node's applied state. `extra`: header lines of this answer.

        `length=False`: for the head of an answer whose body would have had none.
        """
        app = self.app
        closing = self.closes or app.is_draining
        connection = "Connection: close\r\n" if closing else ""
        if not closing and self.request.version.minor == 0:
            connection = "Connection: keep-alive\r\n"
        sized = f"Content-Length: {len(body)}\r\n" if length and status != 304 else ""
        head = self._head(status, revision, f"{kind}{extra}{sized}{connection}")
        return Answer(status, head, b"" if self.is_head else body, not closing)

    def stream(
        self,
        produce: Callable[[Outlet], Awaitable[None]],
        *,
        kind: str,
        revision: int,
        extra: str = "",
        keep_alive: bool = False,
    ) -> StreamingAnswer:
        """A 200 whose body `produce` writes bit by bit; the last on its connection, unless that may be kept alive."""
        chunked = self.request.version.minor > 0
        stays = keep_alive and chunked and not self.closes and not self.app.is_draining
        framing = "Transfer-Encoding: chunked\r\n" if chunked else ""
        connection = "" if stays else "Connection: close\r\n"
        head = self._head(200, revision, f"{kind}{extra}{framing}{connection}")
        outlet = Outlet(self.request, self.app.config.limits, chunked=chunked)
        return StreamingAnswer(200, head, outlet, produce, keep_alive=stays)

    def _head(self, status: int, revision: int, rest: str) -> str:
        app = self.app
        revision = revision or app.admin.revision
        return (
            f"{STATUS_LINE[status]}{app.node_line}Kv-Term: {app.admin.term}\r\nKv-Revision: {revision}\r\n"
            f"Kv-Token: {self._token(revision)}\r\nX-Request-Id: {self.request_id}\r\n"
            f"{app.date.line()}{ALWAYS}{rest}\r\n"
        )

    def _token(self, revision: int) -> str:
        """Of this answer. What the caller has seen of one plane stays in it while it speaks to the other."""
        app = self.app
        given = self.headers.get("Kv-Token")
        if given is None and self.shown is None:
            return app.token(revision)
        brought = _brought(given)
        if self.shown is None and brought.seen is NOTHING_SEEN:
            return app.token(revision)
        seen = seen_also(brought.seen, app.available.lamport_time, self.shown or ())
        time = app.admin.applied_time
        if self.shown is not None:  # it says nothing of the store: what the caller knows of that stays as it is
            revision, time = max(revision, brought.revision), max(time, brought.time)
        return encode_token(revision, time, seen)

    def json(self, status: int, value: object, *, revision: int = 0, extra: str = "") -> Answer:
        return self.answer(status, shapes.encode(value) + b"\n", revision=revision, extra=extra)

    def not_modified(self, kv: KeyValue, revision: int, *, extra: str = "") -> Answer:
        return self.answer(304, b"", kind=KIND_NONE, revision=revision, extra=key_lines(kv) + extra)

    def refuse(self, error: KvnodeError, *, revision: int = 0, extra: str = "") -> Answer:
        """The answer to a request that failed. `revision`: what a read that found nothing reflects."""
        outcome = errors.outcome_of(error, has_effect=self.has_effect)
        status = errors.status_of(error).value
        extra += f"Kv-Outcome: {outcome}\r\n" if self.may_write else ""
        location = error.detail.get("leader_url") if isinstance(error, NoLeader) else None
        if location and (self.needs_leader or self.headers.get("Kv-No-Forward") == "1"):
            status = 307
            extra += f"Location: {_absolute(location)}{_target(self.request.raw_path)}\r\n"
        elif (seconds := errors.retry_after_seconds(error)) is not None:
            extra += f"Retry-After: {seconds}\r\n"
        if "allow" in error.detail:
            extra += f"Allow: {error.detail['allow']}\r\n"
        return self.answer(status, errors.encode(error, outcome), revision=revision, extra=extra)


def _brought(given: str | None) -> Token:
    """A token as far as it is one of ours: whoever must know refuses the others before."""
    try:
        return Token(0, 0) if given is None else read_token(given)
    except BadEncoding:
        return Token(0, 0)


def _target(raw_path: str) -> str:
    """The request target again, with nothing in it that may not stand in a header."""
    return quote(raw_path, safe="/%?&=:@!$'()*+,;~-._", errors="surrogateescape")


def _absolute(address: str) -> str:
    return address.rstrip("/") if "://" in address else f"http://{address}"


def _parse_consistency(value: bytes) -> Consistency:
    found = _CONSISTENCY.get(value)
    if found is None:
        raise BadRequest("consistency= takes linearizable, causal, bounded or stale", parameter="consistency")
    return found


def key_lines(kv: KeyValue) -> str:
    """The headers of an answer about one version of a key."""
    return version_lines(kv.mod_revision, kv.create_revision, kv.version, kv.time) + (
        f"Kv-Lease: {kv.lease}\r\n" if kv.lease else ""
    )


def version_lines(mod_revision: int, create_revision: int, version: int, time: int) -> str:
    return (
        f'ETag: "{mod_revision}"\r\nKv-Mod-Revision: {mod_revision}\r\nKv-Create-Revision: {create_revision}\r\n'
        f"Kv-Version: {version}\r\nKv-Time: {shapes.time_text(time)}\r\n"
    )


def staleness_line(staleness_ms: int, wall_ms: int, applied_ms: int) -> str:
    """`Kv-Staleness-Ms`, an upper bound: everything committed longer ago is there.

    By the last confirmation of a leader on our own clock (-1: there was none) or, if that says less, by the newest
    applied entry, as far as the clocks of the members agree: nothing older than that can be missing.
    """
    age_ms = max(0, wall_ms - applied_ms)
    return f"Kv-Staleness-Ms: {age_ms if staleness_ms < 0 else min(age_ms, staleness_ms)}\r\n"
