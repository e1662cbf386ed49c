"""What an etcd client is told when something is refused: gRPC's code, etcd's own words, the gateway's HTTP status.

Clients tell errors apart by the exact text, by the code, or by the HTTP status, each client in its own way; so all
three are etcd's. Bodies carry the names of all versions of etcd at once: `error`, `message` and `code`; in streams
`grpc_code`, `http_code` and `http_status` too.
"""

from __future__ import annotations

from enum import IntEnum
from http import HTTPStatus

import msgspec

from kvnode.errors import KvnodeError


class Code(IntEnum):
    """gRPC status codes."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


HTTP_STATUS: dict[Code, HTTPStatus] = {
    Code.CANCELLED: HTTPStatus.REQUEST_TIMEOUT,
    Code.UNKNOWN: HTTPStatus.INTERNAL_SERVER_ERROR,
    Code.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    Code.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
    Code.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Code.ALREADY_EXISTS: HTTPStatus.CONFLICT,
    Code.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    Code.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    Code.FAILED_PRECONDITION: HTTPStatus.BAD_REQUEST,
    Code.ABORTED: HTTPStatus.CONFLICT,
    Code.OUT_OF_RANGE: HTTPStatus.BAD_REQUEST,
    Code.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
    Code.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
    Code.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.DATA_LOSS: HTTPStatus.INTERNAL_SERVER_ERROR,
    Code.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
}


class EtcdError(Exception):
    """A refusal in etcd's words. `status`: the HTTP status where it is not the one of the code."""

    def __init__(self, code: Code, message: str, *, status: HTTPStatus | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status or HTTP_STATUS[code]


class UnreadableRequest(EtcdError):
    """The first request of a stream cannot be read: there is no stream, and the refusal has the form of a unary one."""

    def __init__(self, message: str) -> None:
        super().__init__(Code.UNKNOWN, message)


def invalid(message: str) -> EtcdError:
    """A request that is wrong in itself; `message` without the prefix that etcd puts before its own."""
    return EtcdError(Code.INVALID_ARGUMENT, f"etcdserver: {message}")


class UnaryError(msgspec.Struct):
    """The body of a refusal."""

    error: str
    code: int
    message: str


class StreamErrorWords(msgspec.Struct):
    code: int
    grpc_code: int
    http_code: int
    message: str
    http_status: str


class StreamError(msgspec.Struct):
    """The last message of a stream that ends in a refusal."""

    error: StreamErrorWords


def unary_body(error: EtcdError) -> bytes:
    return msgspec.json.encode(UnaryError(error.message, int(error.code), error.message))


def stream_body(error: EtcdError) -> bytes:
    status = error.status
    words = StreamErrorWords(int(error.code), int(error.code), status.value, error.message, status.phrase)
    return msgspec.json.encode(StreamError(words))


COMPACTED = "etcdserver: mvcc: required revision has been compacted"
LEASE_NOT_FOUND = "etcdserver: requested lease not found"
REQUEST_TIMED_OUT = "etcdserver: request timed out"

KEY_NOT_PROVIDED = "key is not provided"
KEY_NOT_FOUND = "key not found"

_BY_CODE: dict[str, tuple[Code, str]] = {
    "key_not_found": (Code.INVALID_ARGUMENT, "etcdserver: key not found"),
    "lease_not_found": (Code.NOT_FOUND, LEASE_NOT_FOUND),
    "member_not_found": (Code.NOT_FOUND, "etcdserver: member not found"),
    "permission_denied": (Code.PERMISSION_DENIED, "etcdserver: permission denied"),
    "compacted": (Code.OUT_OF_RANGE, COMPACTED),
    "future_revision": (Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision"),
    "too_large": (Code.INVALID_ARGUMENT, "etcdserver: request is too large"),
    "overloaded": (Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests"),
    "no_space": (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded"),
    "no_leader": (Code.UNAVAILABLE, "etcdserver: no leader"),
    "not_ready": (Code.UNAVAILABLE, "etcdserver: server stopped"),
    "not_applied": (Code.UNAVAILABLE, "etcdserver: leader changed"),
    "leadership_lost": (Code.UNAVAILABLE, "etcdserver: leader changed"),
    "timeout": (Code.UNAVAILABLE, REQUEST_TIMED_OUT),
    "connection_lost": (Code.UNAVAILABLE, "etcdserver: request timed out, possibly due to connection lost"),
    "log_corrupted": (Code.DATA_LOSS, "etcdserver: corrupt cluster"),
    "state_diverged": (Code.DATA_LOSS, "etcdserver: corrupt cluster"),
    "storage_failed": (Code.UNAVAILABLE, "etcdserver: server stopped"),
    "member_removed": (Code.UNAVAILABLE, "etcdserver: server stopped"),
    "internal": (Code.INTERNAL, "etcdserver: internal error"),
}


def translated(error: KvnodeError) -> EtcdError:
    """A refusal of the store in etcd's words. What etcd has no words for is said in ours, as an invalid argument."""
    if "feature_level" in error.detail:
        return EtcdError(Code.FAILED_PRECONDITION, "etcdserver: not capable")
    code, message = _BY_CODE.get(error.code, (Code.INVALID_ARGUMENT, f"etcdserver: {error.message}"))
    return EtcdError(code, message)
