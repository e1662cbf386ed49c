"""Target: one server that speaks the etcd v3 JSON API, whichever it is, and what any version of it may answer.

What differs between versions of etcd stands here: `refusal` knows the shapes of an error body, `stream_refusal` those
of a stream's error, `_STATUSES` the HTTP statuses.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvnode.bench.load import Address
from tests.etcd.connection import LIMIT_S, Answer, Connection, Stream

Body = dict[str, Any] | bytes

CANCELLED, UNKNOWN, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, ALREADY_EXISTS = 1, 2, 3, 4, 5, 6
PERMISSION_DENIED, RESOURCE_EXHAUSTED, FAILED_PRECONDITION, ABORTED, OUT_OF_RANGE = 7, 8, 9, 10, 11
UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS, UNAUTHENTICATED = 12, 13, 14, 15, 16

_STATUSES: dict[int, set[int]] = {
    CANCELLED: {408, 499},  # 499 from 3.6 on
    UNKNOWN: {500},
    INVALID_ARGUMENT: {400},
    DEADLINE_EXCEEDED: {504},
    NOT_FOUND: {404},
    ALREADY_EXISTS: {409},
    PERMISSION_DENIED: {403},
    RESOURCE_EXHAUSTED: {429},
    FAILED_PRECONDITION: {400, 412},  # 412 from some distributions' builds of 3.4
    ABORTED: {409},
    OUT_OF_RANGE: {400},
    UNIMPLEMENTED: {501},
    INTERNAL: {500},
    UNAVAILABLE: {503},
    DATA_LOSS: {500},
    UNAUTHENTICATED: {401},
}

_numbers = itertools.count(1)


def own_prefix() -> bytes:
    """For keys that nobody else uses."""
    return b"t%d/" % next(_numbers)


@dataclass(frozen=True)
class Refusal:
    """What an error says, in whichever shape."""

    code: int
    message: str


@dataclass
class Target:
    """A member of a cluster. One kept connection serves all unary calls: a target is one client."""

    name: str  # kvnode-leader, kvnode-follower or etcd
    address: Address
    version: tuple[int, ...]  # of the etcd it is, or claims to be
    first: list[dict[str, Any]] = field(default_factory=list, repr=False)  # answers to the store's first range and put
    _kept: Connection | None = field(default=None, repr=False)

    @property
    def is_kvnode(self) -> bool:
        return self.name.startswith("kvnode")

    def connect(self) -> Connection:
        """A connection of one's own, to be closed."""
        return Connection(self.address)

    def http(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        limit_s: float = LIMIT_S,
    ) -> Answer:
        """One call of any kind; `path` as it stands in the request line."""
        if self._kept is not None and self._kept.has_more():  # the server has closed it
            self.close()
        self._kept = self._kept or self.connect()
        try:
            self._kept.send(method, path, body, headers)
            answer = self._kept.answer(limit_s)
        except BaseException:
            self.close()
            raise
        if answer.headers.get("connection", "").lower() == "close":
            self.close()
        return answer

    def post(self, path: str, body: Body, *, under: str = "/v3/", limit_s: float = LIMIT_S) -> Answer:
        """`path` after the prefix. A dict is sent as JSON, bytes as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.http("POST", f"{under}{path}", content, {"Content-Type": "application/json"}, limit_s)

    def ok(self, path: str, body: Body) -> dict[str, Any]:
        """A call that succeeds → its message."""
        answer = self.post(path, body)
        assert answer.status == 200, (path, body, answer)
        assert answer.headers["content-type"] == "application/json", answer
        found = answer.json()
        assert isinstance(found, dict), answer
        return found

    def refused(self, path: str, body: Body, code: int, message: str | None = None) -> Refusal:
        """A unary call that is refused with this code, its status, and this very message if one is given."""
        answer = self.post(path, body)
        found = self.refusal(answer)
        assert found.code == code, (path, body, answer)
        assert message is None or found.message == message, (path, body, answer)
        return found

    def refusal(self, answer: Answer) -> Refusal:
        """Read an error body: 3.4 and 3.5 write `error` beside `code` and `message`, 3.6 only these two."""
        assert answer.status >= 400, answer
        assert answer.headers["content-type"] == "application/json", answer
        body = answer.json()
        assert set(body) <= {"error", "code", "message", "details"}, answer
        assert isinstance(body["code"], int), answer
        assert isinstance(body["message"], str), answer
        assert answer.status in _STATUSES[body["code"]], answer
        if "error" in body or self.version < (3, 6) or self.is_kvnode:
            assert body["error"] == body["message"], answer
        return Refusal(body["code"], body["message"])

    def stream_refusal(self, error: dict[str, Any]) -> Refusal:
        """Read the `error` of a stream: 3.4 and 3.5 write `grpc_code`, `http_code`, `http_status`; 3.6 `code`."""
        code = error.get("code", error.get("grpc_code"))
        assert isinstance(code, int), error
        if self.is_kvnode:
            assert {"code", "grpc_code", "http_code", "message", "http_status"} <= set(error), error
        if "grpc_code" in error:
            assert error["grpc_code"] == code, error
            assert error["http_code"] in _STATUSES[code], error
        return Refusal(code, error["message"])

    def stream(self, path: str, *objects: Body, under: str = "/v3/") -> Stream:
        """Open a streaming call on a connection of its own; the body holds `objects`, one after another."""
        content = b"".join(each if isinstance(each, bytes) else json.dumps(each).encode() for each in objects)
        connection = self.connect()
        connection.send("POST", f"{under}{path}", content, {"Content-Type": "application/json"})
        return Stream(connection, is_newline_apart=not self.is_kvnode)

    # The calls that nearly every test makes.

    def put(self, key: str, value: str = "", **more: Any) -> dict[str, Any]:
        """`key`, `value`: base64."""
        return self.ok("kv/put", {"key": key, "value": value, **more})

    def range(self, **request: Any) -> dict[str, Any]:
        return self.ok("kv/range", request)

    def delete(self, **request: Any) -> dict[str, Any]:
        return self.ok("kv/deleterange", request)

    def txn(self, **request: Any) -> dict[str, Any]:
        return self.ok("kv/txn", request)

    def revision(self) -> int:
        """The store's, now."""
        return int(self.range(key="AA==", count_only=True)["header"]["revision"])

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None
