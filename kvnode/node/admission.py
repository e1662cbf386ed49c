"""Admission: what is refused at the door, before it can reach the log. The limits are equal on all members."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import assert_never, get_args

from kvnode.clocks import hybrid
from kvnode.clocks.clock import Clock
from kvnode.config import LimitsSection, StorageSection, check_told_address
from kvnode.errors import BadKey, BadRequest, ClockDrift, NoSpace, TooLarge
from kvnode.ids import RequestId, Revision
from kvnode.kv import keys
from kvnode.kv.interface import Consistency, Options
from kvnode.kv.members import AddMember, MemberChange, RaiseFeatureLevel, UpdateMember
from kvnode.kv.requests import (
    ANY_REVISION,
    LEASE_IDS,
    LEASE_TTL_MS_MAX,
    NEWEST,
    PROGRESS_MS_MAX,
    PROGRESS_MS_MIN,
    TTL_MS_MAX,
    TTL_MS_MIN,
    WAIT_MS_MAX,
    Await,
    Campaign,
    Command,
    Compact,
    Compare,
    Delete,
    History,
    LeaseGrant,
    LeaseRenew,
    LeaseRevoke,
    LeaseUpkeep,
    Operation,
    Put,
    QueueRead,
    ReadRequest,
    SessionEnd,
    SessionOpen,
    StateCheck,
    Sweep,
    TableRequest,
    Txn,
    Watch,
    WriteRequest,
)
from kvnode.machine.machine import StateMachine
from kvnode.machine.txn import check_shape
from kvnode.node.soft_limit import SoftLimit, shortage
from kvnode.raft.messages import EntryKind, Proposed
from kvnode.wire.codec import decode_change, decode_request, encode_change, encode_request
from kvnode.wire.limits import CodecError

QUEUE_TAIL_BYTES = 17
INTEGER_MAX = (1 << 63) - 1
SESSIONS_ENDED_MAX = 1_000
IDEMPOTENCY_KEY_BYTES_MAX = 255
CONSISTENCIES = get_args(Consistency)
TIME_MAX = (1 << 64) - 1
PAYLOAD_SLACK_BYTES = 60 << 10
"""What a payload may take beyond `limits.request_bytes_max`; less than peer messages have room for beyond it."""


def check_write(request: WriteRequest, limits: LimitsSection) -> None:
    """Raises: BadKey, BadRequest, TooLarge; nothing has reached the log then."""
    match request:
        case Put():
            _check_put(request, limits)
        case Delete():
            _check_delete(request, limits)
        case Txn():
            _check_txn(request, limits)
        case Compact():
            if not 1 <= request.revision <= INTEGER_MAX:
                raise BadRequest("compaction names the oldest revision to keep, a positive 64-bit integer")
        case LeaseGrant(put=put):
            _check_ttl(request.ttl_ms, LEASE_TTL_MS_MAX)
            check_lease_id(request.id, or_none=True)
            if put is not None:
                _check_put(put, limits)
                if put.keep_lease:
                    raise BadRequest("a put that comes with a lease cannot keep another")
        case Campaign():
            _check_ttl(request.ttl_ms)
            _check_name(request.name, limits)
            _check_put(Put(request.name, request.value), limits)
        case LeaseRevoke() | LeaseRenew():
            check_lease_id(request.id)
        case LeaseUpkeep():
            raise BadRequest("only the leader decides which leases are over")
        case SessionOpen():
            _check_ttl(request.ttl_ms)
        case SessionEnd():
            if request.keys_through or len(request.sessions) > SESSIONS_ENDED_MAX:
                raise BadRequest(f"a caller ends sessions, at most {SESSIONS_ENDED_MAX} at a time, and nothing else")
        case Command():
            _check_command(request, limits)
            check_write(request.request, limits)
        case Sweep():
            raise BadRequest("only the leader sweeps")
        case StateCheck():
            raise BadRequest("only the leader has states compared")
        case _:
            assert_never(request)


def _check_command(command: Command, limits: LimitsSection) -> None:
    if command.session and command.key:
        raise BadRequest("give a session and a sequence, or an Idempotency-Key, not both")
    if command.session and not 0 <= command.acknowledged < command.sequence:
        raise BadRequest("a session's writes are numbered from 1, and acknowledge only numbers below their own")
    if not command.session and (command.sequence or command.acknowledged):
        raise BadRequest("a sequence belongs to a session")
    if len(command.key) > IDEMPOTENCY_KEY_BYTES_MAX:
        raise BadRequest(f"an Idempotency-Key has at most {IDEMPOTENCY_KEY_BYTES_MAX} bytes")
    if command.fence is not None:
        _check_name(command.fence.name, limits)
        if not 1 <= command.fence.token <= INTEGER_MAX:
            raise BadRequest("a token is a positive 64-bit integer")


def payload_of(request: WriteRequest, limits: LimitsSection) -> bytes:
    """The request as the log stores it. Raises: BadRequest, TooLarge.

    Read back before anybody else sees it: an entry that cannot be read ends every node that applies it, at every start
    again. Types of a program's own making (a text where bytes belong, an unknown operator) get no further than this.
    """
    try:
        payload = encode_request(request)
        decode_request(payload)
    except (CodecError, TypeError, OverflowError) as error:
        raise BadRequest(f"the request cannot be stored: {error}") from error
    most = limits.request_bytes_max + PAYLOAD_SLACK_BYTES
    if len(payload) > most:
        raise TooLarge(f"the request takes {len(payload)} bytes in the log, more than {most}", limit=most)
    return payload


def payload_of_change(change: MemberChange) -> bytes:
    """The change as it is proposed, read back like a request: what follows from it no node may stumble over.

    Raises: BadRequest, also for a feature level: one that a member does not know would part all of them for ever.
    """
    if isinstance(change, RaiseFeatureLevel):
        raise BadRequest("the leader raises the feature level by itself, once all members know it")
    try:
        payload = encode_change(change)
        decode_change(payload)
        if isinstance(change, AddMember | UpdateMember):
            check_told_address(change.address, "the peer address")
    except (CodecError, TypeError, ValueError, OverflowError) as error:
        raise BadRequest(f"the members cannot be changed like that: {error}") from error
    return payload


def check_read(request: ReadRequest, limits: LimitsSection) -> None:
    """Raises: BadKey, BadRequest, TooLarge."""
    if isinstance(request, History):
        _check_key(request.key, limits)
        if not 0 <= request.before <= INTEGER_MAX:
            raise BadRequest("before is a positive 64-bit integer")
    elif request.end == keys.ONE_KEY:
        _check_key(request.start, limits)
    else:
        _check_bounds(request.start, request.end, limits)
    if not 0 <= request.limit <= limits.page_items_max:
        raise BadRequest(f"limit must be between 0 and {limits.page_items_max}", limit=limits.page_items_max)
    if not 0 <= request.revision <= INTEGER_MAX:
        raise BadRequest("a revision is a positive 64-bit integer")


def check_await(request: Await, options: Options, limits: LimitsSection) -> None:
    """Raises: BadKey, BadRequest, TooLarge."""
    _check_key(request.key, limits)
    if not NEWEST <= request.after_revision <= INTEGER_MAX:
        raise BadRequest("after_revision is a mod revision, 0 or NEWEST")
    if not 0 <= request.wait_ms <= WAIT_MS_MAX:
        raise BadRequest(f"a request waits for at most {WAIT_MS_MAX} ms", limit=WAIT_MS_MAX)
    if options.at_time:
        raise BadRequest("the past does not change: at_time cannot be waited for")


def check_watch(request: Watch, options: Options, limits: LimitsSection) -> None:
    """Raises: BadKey, BadRequest, TooLarge."""
    if request.end == keys.ONE_KEY:
        _check_key(request.start, limits)
    else:
        _check_bounds(request.start, request.end, limits)
    if not 0 <= request.from_revision <= INTEGER_MAX:
        raise BadRequest("a revision is a positive 64-bit integer")
    if request.list_first and request.from_revision:
        raise BadRequest("list what is there now, or begin at a revision, not both")
    if not (request.puts or request.deletes):
        raise BadRequest("neither puts nor deletions are watched")
    if request.progress_ms and not PROGRESS_MS_MIN <= request.progress_ms <= PROGRESS_MS_MAX:
        raise BadRequest(f"progress is told every {PROGRESS_MS_MIN} to {PROGRESS_MS_MAX} ms, or not at all")
    if options.at_time:
        raise BadRequest("a watch begins at a revision, not at a time")


def check_past(request: ReadRequest, at_time: int) -> None:
    """Raises: BadRequest."""
    if at_time and request.revision:
        raise BadRequest("give a revision, or a time, not both")
    if not 0 <= at_time <= TIME_MAX:
        raise BadRequest("at_time is a hybrid timestamp: an unsigned 64-bit integer")


def check_ahead(what: str, time: int, wall_ms: int, limit_ms: int) -> int:
    """How many milliseconds hybrid `time` lies ahead of a clock. Raises: ClockDrift."""
    ahead_ms = hybrid.wall_part_ms(time) - wall_ms
    if ahead_ms > limit_ms:
        raise ClockDrift(
            f"{what} lies {ahead_ms} ms in the future of this node's clock; clocks may differ by {limit_ms} ms",
            ahead_ms=ahead_ms,
        )
    return ahead_ms


def check_consistency(options: Options) -> None:
    """Raises: BadRequest."""
    if options.consistency not in CONSISTENCIES:
        raise BadRequest(f"consistency is one of {', '.join(CONSISTENCIES)}, not {options.consistency!r}")
    if options.consistency == "bounded" and options.max_staleness_ms < 1:
        raise BadRequest("a bounded read names a bound of at least 1 ms")
    if options.consistency == "causal" and not 1 <= options.least_revision <= INTEGER_MAX:
        raise BadRequest("a causal read names the revision it must not miss")
    if not 0 <= options.seen_time <= TIME_MAX:
        raise BadRequest("the time of a token is an unsigned 64-bit integer")


def _check_key(key: bytes, limits: LimitsSection) -> None:
    if not key:
        raise BadKey("the key is empty")
    if len(key) > limits.key_bytes_max:
        raise TooLarge(f"the key has {len(key)} bytes, more than {limits.key_bytes_max}", limit=limits.key_bytes_max)


def check_lease_id(lease: int, *, or_none: bool = False) -> None:
    """Raises: BadRequest."""
    if lease not in LEASE_IDS or not (lease or or_none):
        raise BadRequest("a lease is a 64-bit integer other than 0")


def check_table(request: TableRequest, limits: LimitsSection) -> None:
    """Raises: BadKey, BadRequest, TooLarge."""
    if isinstance(request, QueueRead):
        _check_name(request.name, limits)
        check_lease_id(request.lease, or_none=True)
        if not 0 <= request.token <= INTEGER_MAX:
            raise BadRequest("a token is a positive 64-bit integer")
    else:
        check_lease_id(request.after, or_none=True)
    if not 0 <= request.limit <= limits.page_items_max:
        raise BadRequest(f"limit must be between 0 and {limits.page_items_max}", limit=limits.page_items_max)


def _check_ttl(ttl_ms: int, most_ms: int = TTL_MS_MAX) -> None:
    if not TTL_MS_MIN <= ttl_ms <= most_ms:
        raise BadRequest(f"a time to live lies between {TTL_MS_MIN} and {most_ms} ms", limit=most_ms)


def _check_name(name: bytes, limits: LimitsSection) -> None:
    """The keys of its queue are longer than a name by a slash and up to 16 hex digits."""
    if not name:
        raise BadKey("the name is empty")
    most = limits.key_bytes_max - QUEUE_TAIL_BYTES
    if len(name) > most:
        raise TooLarge(f"the name has {len(name)} bytes, more than {most}", limit=most)


def _check_bounds(start: bytes, end: bytes, limits: LimitsSection) -> None:
    longest = max(len(start), len(end))
    if longest > limits.key_bytes_max:
        raise TooLarge(
            f"a range bound has {longest} bytes, more than {limits.key_bytes_max}", limit=limits.key_bytes_max
        )


def _check_put(put: Put, limits: LimitsSection) -> None:
    _check_key(put.key, limits)
    if len(put.value) > limits.value_bytes_max:
        raise TooLarge(
            f"the value has {len(put.value)} bytes, more than {limits.value_bytes_max}", limit=limits.value_bytes_max
        )
    check_lease_id(put.lease, or_none=True)
    _check_condition(put.if_revision)
    if (put.keep_value and put.value) or (put.keep_lease and put.lease):
        raise BadRequest("a put that keeps the value or the lease gives none")


def _check_delete(delete: Delete, limits: LimitsSection) -> None:
    if delete.end == keys.ONE_KEY:
        _check_key(delete.start, limits)
    else:
        _check_bounds(delete.start, delete.end, limits)
        if delete.if_revision != ANY_REVISION:
            raise BadRequest("a condition on the revision goes with a single key")
    _check_condition(delete.if_revision)


def _check_condition(revision: int) -> None:
    if not -2 <= revision <= INTEGER_MAX:
        raise BadRequest("a revision is a positive 64-bit integer")


def _check_txn(txn: Txn, limits: LimitsSection) -> None:
    refusal = check_shape(txn, limits, Revision(0))  # before anything follows it down
    if refusal is not None:
        raise TooLarge(refusal.message, limit=limits.txn_operations_max)
    size = _check_parts(txn, limits)
    if size > limits.request_bytes_max:
        raise TooLarge(f"the transaction has {size} bytes", limit=limits.request_bytes_max)


def _check_parts(txn: Txn, limits: LimitsSection) -> int:
    for compare in txn.compare:
        _check_compare(compare, limits)
    return sum(_check_operation(operation, limits) for operation in (*txn.success, *txn.failure))


def _check_compare(compare: Compare, limits: LimitsSection) -> None:
    if compare.end == keys.ONE_KEY:
        _check_key(compare.key, limits)
    else:
        _check_bounds(compare.key, compare.end, limits)
    if isinstance(compare.value, bytes) != (compare.target == "value"):
        raise BadRequest(f"compare of {compare.target}: the value has the wrong type")


def _check_operation(operation: Operation, limits: LimitsSection) -> int:
    if isinstance(operation, Put):
        _check_put(operation, limits)
        return len(operation.key) + len(operation.value)
    if isinstance(operation, Txn):
        return _check_parts(operation, limits)
    if isinstance(operation, Delete):
        _check_delete(operation, limits)
    else:
        check_read(operation, limits)
    return len(operation.start) + len(operation.end)


def _grows(request: WriteRequest) -> bool:
    write = request.request if isinstance(request, Command) else request
    if isinstance(write, Txn):
        return _puts(write)
    return not isinstance(write, Delete | Compact | LeaseRevoke | LeaseRenew | SessionEnd)


def _puts(txn: Txn) -> bool:
    return any(
        isinstance(operation, Put) or (isinstance(operation, Txn) and _puts(operation))
        for operation in (*txn.success, *txn.failure)
    )


def _payload_grows(payload: bytes) -> bool:
    try:
        return _grows(decode_request(payload))
    except CodecError:  # of a version that knows more: whoever is short of room does not guess
        return True


class SpaceGuard:
    """Refuses what would grow the store once a soft limit is reached; reads, deletes and compaction go on.

    Asked by the node that takes a request and by the leader that it is forwarded to: each has a disk of its own, and
    it is the leader's log that everybody else's follows.
    """

    def __init__(
        self, settings: StorageSection, machine: StateMachine, free_bytes: Callable[[], int], clock: Clock
    ) -> None:
        self._settings = settings
        self._machine = machine
        self._free_bytes = free_bytes
        self._limit = SoftLimit(self._look, clock)

    @property
    def alarm(self) -> str:
        """What is over its limit, in words; "" if nothing is."""
        return self._limit.alarm if self._limit.is_reached() else ""

    def check(self, request: WriteRequest) -> None:
        """Raises: NoSpace (certainly not applied)."""
        if self._limit.is_reached() and _grows(request):
            raise NoSpace(self.alarm)

    def refused(self, batch: Iterable[Proposed]) -> frozenset[RequestId]:
        """Those that would grow the store, if it may not grow."""
        if not self._limit.is_reached():
            return frozenset()
        return frozenset(
            proposed.id for proposed in batch if proposed.kind == EntryKind.COMMAND and _payload_grows(proposed.payload)
        )

    def _look(self) -> str:
        if self._machine.logical_bytes >= self._settings.quota_bytes:
            return f"the store holds {self._machine.logical_bytes} bytes, its quota is {self._settings.quota_bytes}"
        return shortage(self._free_bytes(), self._settings.free_bytes_min)
