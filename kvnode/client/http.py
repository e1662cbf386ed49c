"""Plain one-shot requests with the standard library: what the command line speaks, and nothing that is slow to import.

Several endpoints are tried in order. The rule for going on to the next one is the rule for not lying about writes:

* a connection that was refused, or an answer that says ``not-applied`` and "try again": the next endpoint;
* a request that left completely or in part and got no complete answer: for a read the next endpoint, for a write
  *unknown*; it is never sent a second time, unless an `Idempotency-Key` names it.

`http.client` sends a request once; it never resends one by itself.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from email.message import Message
from typing import Any
from urllib.parse import quote, quote_from_bytes, urlencode

from kvnode.errors import (
    BadRequest,
    ConnectionLost,
    KvnodeError,
    NotReady,
    PermissionDenied,
    Rejected,
    SequenceTooOld,
    SessionExpired,
    Timeout,
    TryAgain,
    Unknown,
    by_code,
)

ENDPOINT_DEFAULT = "127.0.0.1:7401"
_GRACE_MS = 1_000  # the node answers 504 at the deadline; its answer gets this long to arrive
_CONNECT_MS_MAX = 2_000


class Answer:
    """One HTTP answer with its body read completely."""

    def __init__(self, endpoint: str, status: int, headers: Message, body: bytes) -> None:
        self.endpoint = endpoint
        self.status = status
        self.headers = headers
        self.body = body

    def json(self) -> Any:
        return json.loads(self.body)


def parse_endpoints(text: str) -> list[str]:
    """``"a:1, http://b:2/"`` → ``["a:1", "b:2"]``. Raises: BadRequest."""
    found = []
    for part in text.split(","):
        address = part.strip().removeprefix("http://").rstrip("/")
        if not address:
            continue
        match = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:/@?#\[\]]+):(\d{1,5})", address)
        if match is None or int(match[2]) > 65_535:
            raise BadRequest(f"endpoint {part.strip()!r} is not of the form host:port")
        found.append(address)
    if not found:
        raise BadRequest("no endpoint given")
    return found


def key_path(key: bytes, under: str = "kv") -> str:
    """The path of one key, ``/v1/kv/…`` or ``/v1/history/…``.

    Every byte that is not an unreserved character or a slash is percent-encoded. Segments of dots are encoded whole, or
    a client or proxy in between would resolve them away.
    """
    text = quote_from_bytes(key, safe="/")
    text = "/".join(segment.replace(".", "%2E") if segment in {".", ".."} else segment for segment in text.split("/"))
    return f"/v1/{under}/{text}"


def parse_duration_ms(text: str) -> int:
    """``500ms``, ``30s``, ``5m``, ``1h`` → milliseconds. Raises: ValueError."""
    match = re.fullmatch(r"(\d{1,9})(ms|s|m|h)", text)
    if match is None:
        raise ValueError(f"{text!r} is not a duration like 500ms, 30s, 5m or 1h")
    return int(match[1]) * {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}[match[2]]


def error_from(status: int, outcome: str, body: bytes, *, write: bool) -> KvnodeError:
    """The exception that an error answer stands for, found again by its `code`; `outcome` is the Kv-Outcome header.

    The outcome of a write is believed from the answer, not derived from the status: what the node calls unknown is
    an `Unknown`, whatever its code. A read has no outcome; its code alone counts.
    """
    try:
        data = json.loads(body)
        words = data["error"]
        outcome = outcome or str(data.get("outcome", ""))
        code, message, detail = str(words["code"]), str(words["message"]), dict(words.get("detail") or {})
    except (ValueError, KeyError, TypeError, AttributeError):
        code, detail = "", {}
        text = body[:200].decode("utf-8", "backslashreplace").strip()
        message = f"this answer {status} is not kvnode's (a peer port? a proxy?): {text!r}"
    cls = by_code().get(code)
    if write and outcome == "unknown" and (cls is None or not cls.may_have_applied):
        cls = Unknown
    elif write and outcome == "not-applied" and cls is not None and cls.may_have_applied:
        cls = TryAgain  # e.g. a timeout of which the node knows that nothing happened
    if cls is None:
        cls = Rejected if 400 <= status < 500 else TryAgain if outcome == "not-applied" else Unknown
    error = cls(message)
    error.detail = detail
    return error


def settles(error: KvnodeError) -> bool:
    """Whether it can be the kept answer of an earlier sending of a named write; what is refused at the door is none."""
    at_the_door = BadRequest | PermissionDenied | SequenceTooOld | SessionExpired
    return isinstance(error, Rejected) and not isinstance(error, at_the_door)


class Caller:
    """Sends single requests to the first endpoint that answers, within one deadline."""

    def __init__(self, endpoints: Iterable[str], timeout_ms: int) -> None:
        self.endpoints = list(endpoints)
        assert self.endpoints, "no endpoints"
        self._timeout_ms = timeout_ms

    def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | bytes] | None = None,
        body: bytes | None = None,
        *,
        idempotency_key: bytes = b"",
        headers: Mapping[str, bytes] = {},
        wait_ms: int = 0,
        accept: Callable[[int], bool] = lambda status: 200 <= status < 300,
    ) -> Answer:
        """One request; the first accepted answer. `wait_ms`: it may take so much longer, as the query asks for.

        Raises: a `KvnodeError` that says whether a write took effect.
        """
        write = method not in {"GET", "HEAD"}
        may_repeat = not write or bool(idempotency_key)
        if idempotency_key:
            headers = {**headers, "Idempotency-Key": idempotency_key}
        deadline_ms = _now_ms() + self._timeout_ms
        failure: KvnodeError = NotReady("no endpoint answered")
        doubt: KvnodeError | None = None  # a sending of the write may have taken effect
        for endpoint in self.endpoints:
            left_ms = deadline_ms - _now_ms()
            if left_ms <= 0:
                break
            try:
                target = _target(path, query or {}, left_ms)
                answer = _exchange(endpoint, method, target, body, left_ms, headers=headers, wait_ms=wait_ms)
                if accept(answer.status):
                    return answer
                failure = error_from(answer.status, answer.headers.get("Kv-Outcome", ""), answer.body, write=write)
            except (TryAgain, Unknown) as error:
                failure = error
            if isinstance(failure, Unknown) and write:
                doubt = failure
            if not (isinstance(failure, TryAgain) or (isinstance(failure, Unknown) and may_repeat)):
                break
        raise failure if doubt is None or settles(failure) else doubt


def fetch(endpoint: str, path: str, timeout_ms: int) -> Answer:
    """GET `path` from exactly this endpoint, whatever the status. Raises: TryAgain or Unknown when no answer came."""
    return _exchange(endpoint, "GET", path, None, timeout_ms)


def _target(path: str, query: Mapping[str, str | bytes], left_ms: int) -> str:
    return f"{path}?{urlencode({**query, 'timeout': f'{left_ms}ms'}, quote_via=quote)}"  # a plus is a plus


def _exchange(
    endpoint: str,
    method: str,
    path: str,
    body: bytes | None,
    left_ms: int,
    *,
    headers: Mapping[str, bytes] = {},
    wait_ms: int = 0,
) -> Answer:
    host, _, port = endpoint.rpartition(":")
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=min(left_ms, _CONNECT_MS_MAX) / 1000)
    try:
        try:
            connection.connect()
        except OSError as error:  # nothing was sent: certainly not applied
            raise NotReady(f"{endpoint}: cannot connect ({error})") from error
        assert isinstance(connection.sock, socket.socket)
        connection.sock.settimeout((left_ms + wait_ms + _GRACE_MS) / 1000)
        try:
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            data = response.read()
        except TimeoutError as error:
            raise Timeout(f"{endpoint}: no answer within {left_ms + wait_ms} ms") from error
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionLost(f"{endpoint}: connection lost before the answer ({error!r})") from error
        return Answer(endpoint, response.status, response.headers, data)
    finally:
        connection.close()


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
