"""The one table from errors to HTTP, and the truth about a failed write.

*Outcome*: ``not-applied`` is said only where it is certain for ever (the families Rejected and TryAgain, and
every read). Everything else, a bug included, may have happened: ``unknown``.
"""

from __future__ import annotations

from http import HTTPStatus

import msgspec

from kvnode.errors import Detail, KvnodeError, Rejected, TryAgain

NOT_APPLIED = "not-applied"
UNKNOWN = "unknown"

STATUS: dict[str, HTTPStatus] = {
    "internal": HTTPStatus.INTERNAL_SERVER_ERROR,
    "rejected": HTTPStatus.BAD_REQUEST,
    "bad_request": HTTPStatus.BAD_REQUEST,
    "bad_key": HTTPStatus.BAD_REQUEST,
    "bad_encoding": HTTPStatus.BAD_REQUEST,
    "bad_context": HTTPStatus.BAD_REQUEST,
    "unknown_parameter": HTTPStatus.BAD_REQUEST,
    "future_revision": HTTPStatus.BAD_REQUEST,
    "clock_drift": HTTPStatus.BAD_REQUEST,
    "permission_denied": HTTPStatus.FORBIDDEN,
    "not_found": HTTPStatus.NOT_FOUND,
    "key_not_found": HTTPStatus.NOT_FOUND,
    "lease_not_found": HTTPStatus.NOT_FOUND,
    "member_not_found": HTTPStatus.NOT_FOUND,
    "method_not_allowed": HTTPStatus.METHOD_NOT_ALLOWED,
    "conflict": HTTPStatus.CONFLICT,
    "lock_held": HTTPStatus.CONFLICT,
    "compacted": HTTPStatus.GONE,
    "sequence_too_old": HTTPStatus.CONFLICT,
    "session_expired": HTTPStatus.GONE,
    "compare_failed": HTTPStatus.PRECONDITION_FAILED,
    "fenced": HTTPStatus.PRECONDITION_FAILED,
    "snapshot_refused": HTTPStatus.BAD_REQUEST,
    "too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "unsupported_media_type": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "overloaded": HTTPStatus.TOO_MANY_REQUESTS,
    "try_again": HTTPStatus.SERVICE_UNAVAILABLE,
    "no_leader": HTTPStatus.SERVICE_UNAVAILABLE,
    "not_ready": HTTPStatus.SERVICE_UNAVAILABLE,
    "stale_bound_unmet": HTTPStatus.SERVICE_UNAVAILABLE,
    "not_applied": HTTPStatus.SERVICE_UNAVAILABLE,
    "no_space": HTTPStatus.INSUFFICIENT_STORAGE,
    "unknown": HTTPStatus.GATEWAY_TIMEOUT,
    "timeout": HTTPStatus.GATEWAY_TIMEOUT,
    "leadership_lost": HTTPStatus.GATEWAY_TIMEOUT,
    "connection_lost": HTTPStatus.GATEWAY_TIMEOUT,
    "fatal": HTTPStatus.INTERNAL_SERVER_ERROR,
    "storage_failed": HTTPStatus.INTERNAL_SERVER_ERROR,
    "log_corrupted": HTTPStatus.INTERNAL_SERVER_ERROR,
    "state_diverged": HTTPStatus.INTERNAL_SERVER_ERROR,
    "data_dir_locked": HTTPStatus.INTERNAL_SERVER_ERROR,
    "identity_refused": HTTPStatus.INTERNAL_SERVER_ERROR,
    "member_removed": HTTPStatus.INTERNAL_SERVER_ERROR,
    "config_invalid": HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""HTTP status by error code; a test holds it equal to `kvnode.errors.by_code()`."""


class ErrorWords(msgspec.Struct, frozen=True):
    """What went wrong: a stable code for programs, a sentence for people, details by code."""

    code: str
    message: str
    detail: Detail


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every refusal."""

    error: ErrorWords
    outcome: str  # not-applied | unknown


def status_of(error: KvnodeError) -> HTTPStatus:
    return STATUS[error.code]


def outcome_of(error: KvnodeError, *, has_effect: bool) -> str:
    """Whether the failed request may have happened; a request without effects never has."""
    if has_effect and not isinstance(error, Rejected | TryAgain):
        return UNKNOWN
    return NOT_APPLIED


def body_of(error: KvnodeError, outcome: str) -> ErrorBody:
    detail = {name: _sayable(value) if isinstance(value, str) else value for name, value in error.detail.items()}
    return ErrorBody(ErrorWords(error.code, _sayable(error.message), detail), outcome)


def _sayable(text: str) -> str:
    """Words may quote the caller, and a caller's text may hold lone surrogates, which JSON cannot carry."""
    return text.encode("utf-8", "backslashreplace").decode()


def encode(error: KvnodeError, outcome: str) -> bytes:
    """The JSON body of a refusal."""
    return msgspec.json.encode(body_of(error, outcome), enc_hook=repr) + b"\n"


def retry_after_seconds(error: KvnodeError) -> int | None:
    """When to come back, in whole seconds, for errors that pass by themselves."""
    if not isinstance(error, TryAgain):
        return None
    wait_ms = int(error.detail.get("retry_after_ms", 1_000))
    return max(1, -(-wait_ms // 1_000))
