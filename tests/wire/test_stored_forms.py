"""Two versions keep one log: what the older one can say has the bytes it always had, what it cannot has a level (S92).

The older version is written down here: the requests as they were before feature level 4, in that order of fields.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode.kv.requests import (
    LEASE_IDS,
    LEASE_TTL_MS_MAX,
    TTL_MS_MAX,
    Command,
    Compare,
    Delete,
    Fence,
    LeaseGrant,
    LeaseRenew,
    LeaseRevoke,
    Operation,
    Put,
    Range,
    Txn,
    WriteRequest,
)
from kvnode.kv.stored import NESTED_LEVEL, level_of
from kvnode.machine.answers import FINGERPRINT_BYTES, fingerprint_of
from kvnode.wire.codec import decode_request, encode_request
from kvnode.wire.frames import FEATURE_LEVEL


class OldPut(msgspec.Struct, frozen=True, array_like=True, tag=1):
    key: bytes
    value: bytes
    lease: int = 0
    if_revision: int = -1
    return_previous: bool = False


class OldDelete(msgspec.Struct, frozen=True, array_like=True, tag=2):
    start: bytes
    end: bytes = b""
    if_revision: int = -1
    return_previous: bool = False


class OldRange(msgspec.Struct, frozen=True, array_like=True, tag=3):
    start: bytes
    end: bytes = b""
    limit: int = 0
    revision: int = 0
    descending: bool = False
    keys_only: bool = False
    count_only: bool = False


class OldCompare(msgspec.Struct, frozen=True, array_like=True):
    key: bytes
    target: str
    op: str
    value: int | bytes


class OldTxn(msgspec.Struct, frozen=True, array_like=True, tag=4):
    compare: tuple[OldCompare, ...]
    success: tuple[OldPut | OldDelete | OldRange, ...]
    failure: tuple[OldPut | OldDelete | OldRange, ...] = ()


class OldLeaseGrant(msgspec.Struct, frozen=True, array_like=True, tag=9):
    ttl_ms: int
    id: int = 0
    put: OldPut | None = None


class OldFence(msgspec.Struct, frozen=True, array_like=True):
    name: bytes
    token: int


class OldCommand(msgspec.Struct, frozen=True, array_like=True, tag=17):
    request: OldPut | OldDelete | OldTxn | OldLeaseGrant
    session: int = 0
    sequence: int = 0
    acknowledged: int = 0
    key: bytes = b""
    fence: OldFence | None = None


old_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(
    OldPut | OldDelete | OldTxn | OldLeaseGrant | OldCommand
)
old_encode = msgspec.msgpack.Encoder().encode

some_bytes = st.binary(max_size=3)
numbers = st.integers(0, 1 << 40)
puts = st.builds(Put, some_bytes, some_bytes, numbers, st.integers(-2, 9), st.booleans())
deletes = st.builds(Delete, some_bytes, some_bytes, st.integers(-2, 9), st.booleans())
ranges = st.builds(Range, some_bytes, some_bytes, numbers, numbers, st.booleans(), st.booleans(), st.booleans())
compares = st.builds(
    Compare,
    some_bytes,
    st.sampled_from(["value", "version", "lease", "exists"]),
    st.sampled_from(["=", "!=", "<", ">"]),
    st.one_of(some_bytes, numbers),
)
operations = st.lists(st.one_of(puts, deletes, ranges), max_size=4).map(tuple)
txns = st.builds(Txn, st.lists(compares, max_size=3).map(tuple), operations, operations)
writes: st.SearchStrategy[Any] = st.one_of(
    puts, deletes, txns, st.builds(LeaseGrant, st.integers(0, TTL_MS_MAX), numbers, st.one_of(st.none(), puts))
)
commands = st.builds(
    Command, writes, numbers, numbers, numbers, some_bytes, st.one_of(st.none(), st.builds(Fence, some_bytes, numbers))
)


@settings(max_examples=300)
@given(st.one_of(writes, commands))
def test_s92_what_an_older_version_can_say_is_stored_in_its_bytes(request: WriteRequest) -> None:
    stored = encode_request(request)
    assert old_encode(old_decoder.decode(stored)) == stored
    assert decode_request(stored) == request
    assert level_of(request) < NESTED_LEVEL


@settings(max_examples=100)
@given(commands)
def test_s92_a_repeat_finds_its_answer_under_another_version(command: Command) -> None:
    """Members of both versions apply the repeat, some with an answer that another version of theirs has stored."""
    old = old_decoder.decode(encode_request(command))
    as_it_was = blake2b(old_encode((old.request, old.fence)), digest_size=FINGERPRINT_BYTES).digest()
    assert fingerprint_of(command) == as_it_was


PLAIN = Put(b"k", b"v")

NEW: list[WriteRequest | Operation] = [
    Put(b"k", b"", keep_value=True),
    Put(b"k", b"v", keep_lease=True),
    Txn((), (PLAIN, Txn((), ()))),
    Txn((), (), (Txn((), (PLAIN,)),)),
    Txn((Compare(b"k", "version", "=", 0), Compare(b"k", "version", "=", 0, b"l")), ()),
    Txn((), (), (Range(b"k", b"l", counted=True),)),
    Txn((), (PLAIN, Put(b"k", b"", keep_value=True))),
    LeaseGrant(1_000, put=Put(b"k", b"", keep_value=True)),
    Command(Txn((), (Txn((), ()),)), key=b"once"),
]

REFUSED: list[WriteRequest | Operation] = [
    Put(b"k", b"v", -1),
    Txn((Compare(b"k", "lease", "=", -1),), ()),
    LeaseGrant(1_000, LEASE_IDS[0]),
    LeaseGrant(LEASE_TTL_MS_MAX),
    LeaseRevoke(-1),
    LeaseRenew(-1),
]
"""What an older version does not take from the log, or answers otherwise."""


@pytest.mark.parametrize("request_", NEW)
def test_s92_what_it_would_misread_needs_the_level(request_: Any) -> None:
    assert level_of(request_) == NESTED_LEVEL <= FEATURE_LEVEL
    stored = encode_request(request_)
    assert decode_request(stored) == request_
    try:
        misread = old_encode(old_decoder.decode(stored))
    except msgspec.ValidationError:
        return  # a transaction inside another: whoever does not know it cannot apply it, and would end
    assert misread != stored, "an older version takes it for what it knows: nothing but the level keeps it from that"


@pytest.mark.parametrize("request_", REFUSED)
def test_s92_what_it_would_refuse_needs_the_level(request_: Any) -> None:
    assert level_of(request_) == level_of(Command(request_)) == NESTED_LEVEL
    assert decode_request(encode_request(request_)) == request_


@pytest.mark.parametrize("request_", [PLAIN, Delete(b"k"), Txn((), (PLAIN, Range(b"k"))), LeaseGrant(1_000, put=PLAIN)])
def test_what_needs_no_level_is_said_to_need_none(request_: Any) -> None:
    assert level_of(request_) == level_of(Command(request_)) == 1
