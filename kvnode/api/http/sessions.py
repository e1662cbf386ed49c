"""Exactly once: ``/v1/sessions``, and headers that name a write, so that it takes effect once however often it comes.

``Kv-Session`` and ``Kv-Sequence`` (with ``Kv-Acknowledged``), or ``Idempotency-Key``. They go with the calls whose one
answer can be kept and given again, and are refused elsewhere: to ignore one would break what its sender counts on.
"""

from __future__ import annotations

from typing import Any, TypeVar

from multidict import istr

from kvnode.api import query, shapes
from kvnode.api.answer import Answer
from kvnode.api.call import Call
from kvnode.errors import BadRequest
from kvnode.kv.requests import TTL_MS_MAX, Command, Fence, SessionEnd, SessionOpen, StoreWrite

Write = TypeVar("Write", bound=StoreWrite)

KEY = istr("Idempotency-Key")
SESSION = istr("Kv-Session")
SEQUENCE = istr("Kv-Sequence")
ACKNOWLEDGED = istr("Kv-Acknowledged")
NAMING_HEADERS = (KEY, SESSION, SEQUENCE, ACKNOWLEDGED)


def is_named(call: Call) -> bool:
    """Whether the request carries one of these headers."""
    headers = call.headers
    return KEY in headers or SESSION in headers or SEQUENCE in headers or ACKNOWLEDGED in headers


def refuse_names(call: Call) -> None:
    """For calls that do not take them. Raises: BadRequest."""
    for name in NAMING_HEADERS:
        if name in call.headers:
            raise BadRequest(
                f"{name} is for single writes: PUT, DELETE, POST of a transaction, a lease, a lock", header=str(name)
            )


def once(call: Call, request: Write) -> Write:
    """The request under the name it was given, or as it is: either is answered as the request would be.

    Raises: BadRequest.
    """
    named: Any = command_of(call, request)
    found: Write = named or request
    return found


def command_of(call: Call, request: StoreWrite) -> Command | None:
    """The request under the name and behind the fence it was given; None: it has neither. Raises: BadRequest."""
    fence = fence_of(call) if call.parameters else None
    if not call.is_named:
        return None if fence is None else Command(request, fence=fence)
    key = _text(call, KEY)
    session, sequence, acknowledged = (_number(call, name) for name in (SESSION, SEQUENCE, ACKNOWLEDGED))
    if key is not None:
        if not key:
            raise BadRequest("Idempotency-Key is empty", header=str(KEY))
        if (session, sequence, acknowledged) != (None, None, None):
            raise BadRequest("give Kv-Session and Kv-Sequence, or Idempotency-Key, not both")
        return Command(request, key=key, fence=fence)
    if session is None or sequence is None:
        raise BadRequest("Kv-Session and Kv-Sequence go together")
    return Command(request, session, sequence, acknowledged or 0, fence=fence)


def fence_of(call: Call) -> Fence | None:
    """``fence=NAME:TOKEN``, split at the last colon: the write passes only while NAME is held under TOKEN."""
    value = call.parameters.get("fence")
    if value is None:
        return None
    name, colon, token = value.rpartition(b":")
    if not colon or not name:
        raise BadRequest("fence= takes NAME:TOKEN, the name of a lock or an election and its token", parameter="fence")
    return Fence(name, query.parse_integer(token, "the token in fence", least=1))


def _text(call: Call, name: istr) -> bytes | None:
    values = call.headers.getall(name, ())
    if len(values) > 1:
        raise BadRequest(f"{name} is given twice", header=str(name))
    return values[0].encode("utf-8", "surrogateescape") if values else None


def _number(call: Call, name: istr) -> int | None:
    text = _text(call, name)
    return None if text is None else query.parse_integer(text, name, least=0 if name is ACKNOWLEDGED else 1)


async def open_session(call: Call) -> Answer:
    ttl_ms = call.app.config.limits.session_ttl_ms
    if "ttl" in call.parameters:
        ttl_ms = query.parse_duration_ms(call.parameters["ttl"], "ttl", most_ms=TTL_MS_MAX)
    options = call.options()
    call.refuse_body()
    reply = await call.app.kv.execute(SessionOpen(ttl_ms), options)
    return call.json(200, shapes.SessionOpened(session=reply.session, ttl_ms=reply.ttl_ms))


async def end_session(call: Call) -> Answer:
    session = query.parse_integer(query.percent_decode(call.rest), "session", least=1)
    options = call.options()
    call.refuse_body()
    reply = await call.app.kv.execute(SessionEnd(((session, 0),)), options)
    return call.json(200, shapes.SessionEnded(session=session, ended=reply.sessions))
