"""Every error kvnode reports, in one tree. The family tells a caller what to do next.

KvnodeError
├── Rejected            a deterministic answer: the request itself cannot succeed as it stands
│   ├── BadRequest      bad_request
│   │   ├── BadKey              bad_key
│   │   ├── BadEncoding         bad_encoding
│   │   ├── BadContext          bad_context
│   │   ├── UnknownParameter    unknown_parameter
│   │   ├── FutureRevision      future_revision
│   │   └── ClockDrift          clock_drift
│   ├── NotFound        not_found
│   │   ├── KeyNotFound         key_not_found
│   │   ├── LeaseNotFound       lease_not_found
│   │   └── MemberNotFound      member_not_found
│   ├── PermissionDenied        permission_denied
│   ├── MethodNotAllowed        method_not_allowed
│   ├── UnsupportedMediaType    unsupported_media_type
│   ├── Conflict                conflict
│   │   └── LockHeld            lock_held
│   ├── Compacted               compacted
│   ├── SequenceTooOld          sequence_too_old
│   ├── SessionExpired          session_expired
│   ├── CompareFailed           compare_failed
│   ├── Fenced                  fenced
│   ├── SnapshotRefused         snapshot_refused
│   └── TooLarge                too_large
├── TryAgain            certainly not applied, now and for ever; the same request may succeed later
│   ├── NoLeader                no_leader
│   ├── NotReady                not_ready
│   ├── Overloaded              overloaded
│   ├── NotApplied              not_applied
│   └── NoSpace                 no_space
├── Unknown             may or may not have been applied; only a request id makes a retry safe
│   ├── Timeout                 timeout
│   ├── LeadershipLost          leadership_lost
│   └── ConnectionLost          connection_lost
└── Fatal               this node must stop
    ├── StorageFailed           storage_failed      an operation of the disk failed; never retried
    ├── LogCorrupted            log_corrupted       damage in what may have been acknowledged
    ├── StateDiverged           state_diverged      its store is not what the other members' are
    ├── DataDirLocked           data_dir_locked
    ├── MemberRemoved           member_removed      it is no member any more
    ├── IdentityRefused         identity_refused    wiped, cloned or foreign data directory
    └── ConfigInvalid           config_invalid

A read never has an effect, so a read that fails with ``Timeout`` is simply "no answer"; the outcome of a
*write* is what the families Rejected, TryAgain (not applied) and Unknown tell apart. One table in
``kvnode/api/errors.py`` maps codes to HTTP; a test keeps the two equal.
"""

from __future__ import annotations

from typing import Any, ClassVar

Detail = dict[str, Any]


class KvnodeError(Exception):
    """Base of all errors of this package. `code` is stable; `message` is a sentence for people."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False
    may_have_applied: ClassVar[bool] = False

    def __init__(self, message: str, **detail: Any) -> None:
        super().__init__(message)
        self.message = message
        self.detail: Detail = detail


class Rejected(KvnodeError):
    """A deterministic refusal; the same on every node. Not applied."""

    code = "rejected"


class TryAgain(KvnodeError):
    """Certainly not applied, now and for ever. The same request may succeed later."""

    code = "try_again"
    retryable = True


class Unknown(KvnodeError):
    """May or may not have been applied. Retry only what carries a request id of its own."""

    code = "unknown"
    may_have_applied = True


class Fatal(KvnodeError):
    """This node must stop."""

    code = "fatal"


class BadRequest(Rejected):
    code = "bad_request"


class BadKey(BadRequest):
    code = "bad_key"


class BadEncoding(BadRequest):
    code = "bad_encoding"


class BadContext(BadRequest):
    """A context of the always-writable keyspace that no answer of this cluster can have given."""

    code = "bad_context"


class UnknownParameter(BadRequest):
    code = "unknown_parameter"


class FutureRevision(BadRequest):
    """The revision asked for lies above the store's current one. Detail: revision."""

    code = "future_revision"


class ClockDrift(BadRequest):
    """A time or token of the caller lies further ahead of this node's clock than clocks may. Detail: ahead_ms."""

    code = "clock_drift"


class NotFound(Rejected):
    code = "not_found"


class KeyNotFound(NotFound):
    code = "key_not_found"


class LeaseNotFound(NotFound):
    """The lease never was, was revoked or has expired."""

    code = "lease_not_found"


class MemberNotFound(NotFound):
    code = "member_not_found"


class PermissionDenied(Rejected):
    code = "permission_denied"


class MethodNotAllowed(Rejected):
    code = "method_not_allowed"


class UnsupportedMediaType(Rejected):
    """A compressed or otherwise transformed request body, which is not taken."""

    code = "unsupported_media_type"


class Conflict(Rejected):
    code = "conflict"


class LockHeld(Conflict):
    """Another holds the lock, or leads. Detail: owner, token, lease of who does."""

    code = "lock_held"


class Fenced(Rejected):
    """The lock or election is not held with that token (any more). Detail: token."""

    code = "fenced"


class Compacted(Rejected):
    """History below `compact_revision` has been dropped. Detail: compact_revision."""

    code = "compacted"


class SequenceTooOld(Rejected):
    """The answer of this number was acknowledged and is gone; the write is not executed again."""

    code = "sequence_too_old"


class SessionExpired(Rejected):
    """There is no such session any more. *This* sending is not executed; an earlier one may have been."""

    code = "session_expired"


class CompareFailed(Rejected):
    """A condition on the write did not hold. Detail: revision (the key's current mod revision, 0 = absent)."""

    code = "compare_failed"


class TooLarge(Rejected):
    """A key, value, request or transaction is over its limit. Detail: limit."""

    code = "too_large"


class SnapshotRefused(Rejected):
    """A snapshot that is damaged, cut off, of another cluster, or of a format this version does not know."""

    code = "snapshot_refused"


class NoLeader(TryAgain):
    code = "no_leader"


class NotReady(TryAgain):
    code = "not_ready"


class StaleBoundUnmet(TryAgain):
    """This node cannot show a state as new as was asked for. Detail: leader_url, where it is known."""

    code = "stale_bound_unmet"


class Overloaded(TryAgain):
    """A queue or byte budget is full. Detail: retry_after_ms."""

    code = "overloaded"


class NotApplied(TryAgain):
    """The write reached a log but a committed entry of another term stands in its place."""

    code = "not_applied"


class NoSpace(TryAgain):
    """The soft disk limit is reached; reads and deletes go on."""

    code = "no_space"


class Timeout(Unknown, TimeoutError):
    code = "timeout"


class LeadershipLost(Unknown):
    code = "leadership_lost"


class ConnectionLost(Unknown, ConnectionError):
    code = "connection_lost"


class StorageFailed(Fatal):
    code = "storage_failed"


class LogCorrupted(Fatal):
    """Damage in records that may have been acknowledged. Detail: file, offset.

    `repairable`: peers can restore what is lost, so a member of a cluster may go on in quarantine instead. Not so where
    the bytes are intact and mean something this version does not know. `what`: the damage alone, without the advice.
    """

    code = "log_corrupted"

    def __init__(self, message: str, *, what: str = "", repairable: bool = False, **detail: Any) -> None:
        super().__init__(message, **detail)
        self.what = what or message
        self.repairable = repairable


class StateDiverged(Fatal):
    """This node has applied the same entries as a majority, and has another state: nothing it says can be used."""

    code = "state_diverged"


class DataDirLocked(Fatal):
    code = "data_dir_locked"


class IdentityRefused(Fatal):
    code = "identity_refused"


class MemberRemoved(Fatal):
    """This node is no member of its cluster any more, for ever; its files stay."""

    code = "member_removed"


class ConfigInvalid(Fatal):
    code = "config_invalid"


def _walk(cls: type[KvnodeError]) -> list[type[KvnodeError]]:
    return [cls, *(found for sub in cls.__subclasses__() for found in _walk(sub))]


def by_code() -> dict[str, type[KvnodeError]]:
    """Every class of the tree by its code, for clients that turn an answer back into an exception."""
    return {cls.code: cls for cls in _walk(KvnodeError)}
