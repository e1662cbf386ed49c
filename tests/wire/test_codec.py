"""Golden bytes of every message and payload, read back by the independent `msgpack` package; refusals; fuzz."""

from __future__ import annotations

import random
import typing
from typing import Any

import msgpack
import msgspec
import pytest

from kvnode.ids import Index, NodeId, RequestId, Term
from kvnode.kv.members import RaiseFeatureLevel
from kvnode.kv.requests import (
    TXN_DEPTH_MAX,
    Campaign,
    Command,
    Compare,
    Delete,
    Fence,
    LeaseGrant,
    LeaseRenew,
    LeaseRevoke,
    LeaseUpkeep,
    Put,
    Range,
    SessionEnd,
    SessionOpen,
    StateCheck,
    Txn,
    WriteRequest,
)
from kvnode.raft.messages import (
    AppendEntries,
    AppendReply,
    Configuration,
    Entry,
    ForwardProposals,
    ForwardReply,
    KeepAlive,
    KeepAliveReply,
    PeerMessage,
    Proposed,
    ReadIndexReply,
    ReadIndexRequest,
    StateHash,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from kvnode.wire.codec import (
    CodecError,
    decode_configuration,
    decode_message,
    decode_request,
    encode_change,
    encode_configuration,
    encode_message,
    encode_request,
)
from kvnode.wire.kv_tags import REQUESTS
from kvnode.wire.raft_tags import PEER_MESSAGES

ONE, TWO = NodeId(1), NodeId(2)
BIG = (1 << 63) - 1


def entry(index: int, term: int = 2, **changes: Any) -> Entry:
    return msgspec.structs.replace(Entry(Term(term), Index(index), 100 + index, 2, b"p"), **changes)


A_PUT = bytes.fromhex("9601c4016bc4017600ffc2")

MESSAGES: list[tuple[PeerMessage, str, list[Any]]] = [
    (
        AppendEntries(Term(3), ONE, Index(4), Term(2), (entry(5), entry(6, 3)), Index(4), 9, False, 7),
        "9a010301040292970205690 2c4017000009703066a02c40170000004 09c207",
        [1, 3, 1, 4, 2, [[2, 5, 105, 2, b"p", 0, 0], [3, 6, 106, 2, b"p", 0, 0]], 4, 9, False, 7],
    ),
    (
        AppendReply(Term(3), TWO, False, Index(4), Term(2), Index(3), Index(7), 9, 5, True, 600),
        "9c020302c2040203 070905c3 cd0258",
        [2, 3, 2, False, 4, 2, 3, 7, 9, 5, True, 600],
    ),
    (VoteRequest(Term(4), TWO, Term(3), Index(7), True, False), "97030402 0307c3c2", [3, 4, 2, 3, 7, True, False]),
    (VoteReply(Term(4), ONE, True, True), "95040401c3c3", [4, 4, 1, True, True]),
    (TimeoutNow(Term(4), ONE, Index(8)), "9405040108", [5, 4, 1, 8]),
    (
        ForwardProposals(Term(4), TWO, (Proposed(RequestId(300), A_PUT, 1, 2),)),
        "94060402 9195cd012c c40b 9601c4016bc4017600ffc2 0102 02",
        [6, 4, 2, [[300, A_PUT, 1, 2, 2]]],
    ),
    (
        ForwardReply(Term(4), ONE, ((RequestId(300), Index(8)),), ((RequestId(301), "overloaded", "why"),)),
        "95070401 9192cd012c08 9193cd012daa6f7665726c6f61646564a3776879",
        [7, 4, 1, [[300, 8]], [[301, "overloaded", "why"]]],
    ),
    (ReadIndexRequest(Term(4), TWO, 70_000), "94080402ce00011170", [8, 4, 2, 70_000]),
    (ReadIndexReply(Term(4), ONE, 70_000, Index(8)), "95090401ce0001117008", [9, 4, 1, 70_000, 8]),
    (KeepAlive(Term(4), TWO, 70_000, 12, True), "960a0402ce000111700cc3", [10, 4, 2, 70_000, 12, True]),
    (
        KeepAliveReply(Term(4), ONE, 70_000, 300, 1_000, "overloaded"),
        "970b0401ce00011170cd012ccd03e8aa6f7665726c6f61646564",
        [11, 4, 1, 70_000, 300, 1_000, "overloaded"],
    ),
    (StateHash(Term(4), ONE, Index(9), b"d" * 16), "950c040109c410" + "64" * 16, [12, 4, 1, 9, b"d" * 16]),
]

REQUEST_CASES: list[tuple[WriteRequest, str, list[Any]]] = [
    (SessionOpen(1_000), "920fcd03e8", [15, 1_000]),
    (StateCheck(), "9112", [18]),
    (SessionEnd(((7, 9),), 5), "93109192070905", [16, [[7, 9]], 5]),
    (
        Command(Put(b"k", b"v"), 7, 2, 1),
        "97119601c4016bc4017600ffc2070201c400c0",
        [17, [1, b"k", b"v", 0, -1, False], 7, 2, 1, b"", None],
    ),
    (
        Command(Delete(b"k"), key=b"once", fence=Fence(b"l", 3)),
        "97119502c4016bc400ffc2000000c4046f6e636592c4016c03",
        [17, [2, b"k", b"", -1, False], 0, 0, 0, b"once", [b"l", 3]],
    ),
    (Put(b"k", b"v"), "9601c4016bc4017600ffc2", [1, b"k", b"v", 0, -1, False]),
    (Delete(b"a", b"b", return_previous=True), "9502c40161c40162ffc3", [2, b"a", b"b", -1, True]),
    (
        LeaseGrant(1_000, put=Put(b"k", b"v")),
        "9409cd03e8009601c4016bc4017600ffc2",
        [9, 1_000, 0, [1, b"k", b"v", 0, -1, False]],
    ),
    (LeaseRevoke(12), "920a0c", [10, 12]),
    (
        LeaseUpkeep(((12, 1),), ((13, 2, 500),)),
        "930b9192 0c01 9193 0d02cd01f4".replace(" ", ""),
        [11, [[12, 1]], [[13, 2, 500]]],
    ),
    (LeaseRenew(12), "920c0c", [12, 12]),
    (Campaign(b"n", 1_000, b"me"), "940ec4016ecd03e8c4026d65", [14, b"n", 1_000, b"me"]),
    (
        Txn(
            (Compare(b"k", "version", "=", 3), Compare(b"k", "value", "!=", b"v")),
            (Put(b"k", b"w", if_revision=-2),),
            (Range(b"k"),),
        ),
        "94049294c4016ba776657273696f6ea13d0394c4016ba576616c7565a2213dc40176919601c4016bc4017700fec2919803c4016bc4000000c2c2c2",
        [
            4,
            [[b"k", "version", "=", 3], [b"k", "value", "!=", b"v"]],
            [[1, b"k", b"w", 0, -2, False]],
            [[3, b"k", b"", 0, 0, False, False, False]],
        ],
    ),
    (Put(b"k", b"", keep_value=True), "9801c4016bc40000ffc2c3c2", [1, b"k", b"", 0, -1, False, True, False]),
    (
        Txn(
            (Compare(b"k", "lease", "<", 3, b"l"),),
            (Txn((), (Put(b"k", b"w", keep_lease=True), Put(b"l", b""))),),
            (Range(b"k", limit=1, counted=True), Range(b"k")),
        ),
        (
            "94049195c4016ba56c65617365a13c03c4016c91940490929801c4016bc4017700ffc2c2c39601c4016cc40000ffc290"
            "929903c4016bc4000100c2c2c2c39803c4016bc4000000c2c2c2"
        ),
        [
            4,
            [[b"k", "lease", "<", 3, b"l"]],
            [[4, [], [[1, b"k", b"w", 0, -1, False, False, True], [1, b"l", b"", 0, -1, False]], []]],
            [[3, b"k", b"", 1, 0, False, False, False, True], [3, b"k", b"", 0, 0, False, False, False]],
        ],
    ),
]


@pytest.mark.parametrize(("message", "golden", "plain"), MESSAGES, ids=lambda value: type(value).__name__)
def test_message_bytes_are_fixed_and_plain_messagepack(message: PeerMessage, golden: str, plain: list[Any]) -> None:
    data = encode_message(message)
    assert data.hex() == golden.replace(" ", "")
    assert msgpack.unpackb(data, raw=False, strict_map_key=True) == plain
    assert decode_message(data) == decode_message(memoryview(data)) == message


@pytest.mark.parametrize(("request_", "golden", "plain"), REQUEST_CASES, ids=lambda value: type(value).__name__)
def test_request_bytes_are_fixed_and_plain_messagepack(request_: WriteRequest, golden: str, plain: list[Any]) -> None:
    data = encode_request(request_)
    assert data.hex() == golden
    assert msgpack.unpackb(data, raw=False) == plain
    assert decode_request(data) == request_


def test_configuration_bytes_are_fixed() -> None:
    configuration = Configuration((ONE, TWO), (NodeId(300),))
    data = encode_configuration(configuration)
    assert data.hex() == "9692010291cd012c90000190"
    assert msgpack.unpackb(data) == [[1, 2], [300], [], 0, 1, []]
    assert decode_configuration(data) == configuration
    assert decode_configuration(bytes.fromhex("9592010291cd012c900001")) == configuration, "of an earlier version"


def test_the_tables_name_every_type_under_its_own_tag() -> None:
    assert {found for found, _ in PEER_MESSAGES.values()} == set(typing.get_args(PeerMessage))
    assert set(REQUESTS.values()) == {*typing.get_args(WriteRequest), Range}  # a range in transactions only
    for tag, found in [*((tag, found) for tag, (found, _) in PEER_MESSAGES.items()), *REQUESTS.items()]:
        assert found.__struct_config__.tag == tag
    assert {type(message) for message, _, _ in MESSAGES} == set(typing.get_args(PeerMessage))


def test_fields_appended_by_a_newer_version_are_skipped() -> None:
    for message, _, plain in MESSAGES:
        assert decode_message(msgpack.packb([*plain, "new", [1, {"x": 2}]])) == message


def test_fields_an_older_version_does_not_send_have_their_defaults() -> None:
    assert decode_message(msgpack.packb([1, 3, 1, 0, 0, [], 4])) == AppendEntries(
        Term(3), ONE, Index(0), Term(0), (), Index(4), 0
    )


def changed(message: PeerMessage, **changes: Any) -> bytes:
    return encode_message(msgspec.structs.replace(message, **changes))


APPEND = MESSAGES[0][0]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(changed(APPEND, term=-1), id="negative term"),
        pytest.param(changed(APPEND, term=BIG + 1), id="term over 63 bits"),
        pytest.param(changed(APPEND, sender=0), id="nobody sends"),
        pytest.param(changed(APPEND, commit_index=-5), id="negative index"),
        pytest.param(changed(APPEND, read_round=1 << 63), id="round over 63 bits"),
        pytest.param(changed(APPEND, prev_index=5), id="entries do not follow prev"),
        pytest.param(changed(APPEND, prev_index=0), id="prev index 0 with a term"),
        pytest.param(changed(APPEND, prev_term=0), id="prev term 0 with an index"),
        pytest.param(changed(APPEND, prev_term=3), id="term falls at the first entry"),
        pytest.param(changed(APPEND, entries=(entry(5), entry(7))), id="a gap between entries"),
        pytest.param(changed(APPEND, entries=(entry(5), entry(5))), id="an entry twice"),
        pytest.param(changed(APPEND, entries=(entry(5, 3), entry(6, 2))), id="term falls along the entries"),
        pytest.param(changed(APPEND, entries=(entry(5, 4),)), id="an entry of a later term than the sender's"),
        pytest.param(changed(APPEND, entries=(entry(5, kind=4),)), id="an unknown kind of entry"),
        pytest.param(changed(APPEND, entries=(entry(5, time=-1),)), id="negative time"),
        pytest.param(changed(APPEND, entries=(entry(5, session=-1),)), id="negative session"),
        pytest.param(changed(APPEND, entries=(entry(5, sequence=1 << 63),)), id="sequence over 63 bits"),
        pytest.param(changed(APPEND, prev_index=0, prev_term=0, entries=(entry(1, 0),)), id="an entry of term 0"),
        pytest.param(changed(APPEND, prev_index=BIG, entries=(entry(BIG + 1),)), id="index runs over"),
        pytest.param(changed(MESSAGES[2][0], last_term=5), id="a log from the future campaigns"),
        pytest.param(changed(MESSAGES[4][0], last_index=-1), id="transfer at a negative index"),
        pytest.param(changed(MESSAGES[5][0], batch=(Proposed(RequestId(-1), b""),)), id="negative request id"),
        pytest.param(changed(MESSAGES[5][0], batch=(Proposed(RequestId(1), b"", kind=7),)), id="unknown proposal kind"),
        pytest.param(changed(MESSAGES[5][0], batch=(Proposed(RequestId(1), b"2", kind=1),)), id="a no-op forwarded"),
        pytest.param(
            changed(MESSAGES[5][0], batch=(Proposed(RequestId(1), A_PUT, kind=3),)),
            id="a command called a change",
        ),
        pytest.param(
            changed(MESSAGES[5][0], batch=(Proposed(RequestId(1), encode_change(RaiseFeatureLevel(2)), kind=3),)),
            id="a feature level forwarded",
        ),
        pytest.param(changed(MESSAGES[6][0], placed=((RequestId(1), Index(-1)),)), id="placed nowhere"),
        pytest.param(msgpack.packb([10, 1, 1]), id="unknown tag"),
        pytest.param(msgpack.packb([5, 1]), id="too few fields"),
        pytest.param(msgpack.packb([5, "1", 1]), id="text for a number"),
        pytest.param(msgpack.packb([5, 1.5, 1]), id="fraction for a number"),
        pytest.param(msgpack.packb([4, 1, 1, 1]), id="number for a truth"),
        pytest.param(msgpack.packb([6, 1, 1, [[1, "text"]]]), id="text for bytes"),
        pytest.param(msgpack.packb({"term": 1}), id="a map"),
        pytest.param(encode_message(APPEND) + b"\0", id="a byte too many"),
        pytest.param(encode_message(APPEND)[:-1], id="a byte too few"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x93\x05\x01\xcf" + b"\xff" * 8, id="64-bit sender"),
        pytest.param(b"\x94\x05\x01\x01" + b"\x91" * 100_000 + b"\x01", id="nested a hundred thousand deep"),
        pytest.param(b"\x94\x06\x01\x01\xdd\xff\xff\xff\xff", id="four thousand million elements announced"),
        pytest.param(b"\x95\x07\x01\x01\x90\x91\x92\x01\xa1\xff", id="a code that is no UTF-8"),
        pytest.param(b"\x94\x05\x01\x01\xc1", id="a byte that starts nothing"),
    ],
)
def test_a_malformed_message_is_refused(data: bytes) -> None:
    """P7, F39: refused by one exception type, before the core could see it."""
    with pytest.raises(CodecError):
        decode_message(data)


def test_size_is_checked_before_anything_is_decoded() -> None:
    data = encode_message(APPEND)
    assert decode_message(data, len(data)) == APPEND
    with pytest.raises(CodecError, match="bytes"):
        decode_message(data, len(data) - 1)
    with pytest.raises(CodecError, match="bytes"):
        decode_request(bytes((64 << 20) + 1))


def nested(depth: int) -> list[Any]:
    """A transaction, `depth` - 1 more inside it."""
    return [4, [], [] if depth == 1 else [nested(depth - 1)]]


def test_transactions_are_as_deep_as_they_may_be() -> None:
    expected = Txn((), ())
    for _ in range(TXN_DEPTH_MAX - 1):
        expected = Txn((), (expected,))
    request = decode_request(msgpack.packb(nested(TXN_DEPTH_MAX)))
    assert request == decode_request(encode_request(request)) == expected


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(msgpack.packb([3, b"k"]), id="a read is not stored"),
        pytest.param(msgpack.packb([1, "k", b"v"]), id="text key"),
        pytest.param(msgpack.packb([1, b"k", b"v", 1 << 63]), id="lease over 63 bits"),
        pytest.param(msgpack.packb([1, b"k", b"v", 0, -3]), id="unknown condition"),
        pytest.param(msgpack.packb([2, b"k", b"", 1 << 63]), id="revision over 63 bits"),
        pytest.param(msgpack.packb(nested(TXN_DEPTH_MAX + 1)), id="transactions nested too deep"),
        pytest.param(msgpack.packb(nested(400)), id="transactions nested far too deep"),
        pytest.param(b"\x93\x04\x90\x91" * 100_000, id="transactions nested a hundred thousand deep"),
        pytest.param(msgpack.packb([4, [], [[4, [], [[1, b"k", b"v", 1 << 63]]]]]), id="lease over 63 bits inside"),
        pytest.param(msgpack.packb([1, b"k", b"", 0, -1, False, 1]), id="number for a truth in a put"),
        pytest.param(msgpack.packb([4, [[b"k", "version", "=", 1, "z"]], []]), id="text for the end of a range"),
        pytest.param(msgpack.packb([4, [[b"k", "colour", "=", 1]], []]), id="unknown compare target"),
        pytest.param(msgpack.packb([4, [[b"k", "version", "=", 1 << 63]], []]), id="compare value over 63 bits"),
        pytest.param(msgpack.packb([4, [], [], [[3, b"k", b"", -1]]]), id="negative limit"),
        pytest.param(msgpack.packb([17, [17, [1, b"k", b"v"]]]), id="command in a command"),
        pytest.param(msgpack.packb([17, [3, b"k"]]), id="a read under a name"),
        pytest.param(msgpack.packb([17, [1, b"k", b"v", 1 << 63], 1, 1]), id="lease over 63 bits under a name"),
        pytest.param(msgpack.packb([17, [1, b"k", b"v"], 1 << 63, 1]), id="session over 63 bits"),
        pytest.param(msgpack.packb([17, [1, b"k", b"v"], 1, 1, 0, b"", [b"l", -1]]), id="negative token"),
        pytest.param(msgpack.packb([15, -1]), id="negative ttl"),
        pytest.param(msgpack.packb([16, [[1, -1]]]), id="negative use"),
    ],
)
def test_a_malformed_request_is_refused(data: bytes) -> None:
    with pytest.raises(CodecError):
        decode_request(data)


@pytest.mark.parametrize("plain", [[[2, 1]], [[1, 1]], [[0, 1]], [[1], [1]], [[-1]], [1], []])
def test_a_malformed_configuration_is_refused(plain: list[Any]) -> None:
    with pytest.raises(CodecError):
        decode_configuration(msgpack.packb(plain))


def test_fuzz_damaged_messages_decode_to_something_sound_or_are_refused() -> None:
    """Whatever the bytes: a message that encodes back to itself, or `CodecError`. Never another exception."""
    rng = random.Random(20)
    originals = [encode_message(message) for message, _, _ in MESSAGES]
    accepted = 0
    for _ in range(30_000):
        data = bytearray(rng.choice(originals))
        for _ in range(rng.choice((1, 1, 2, 5))):
            match rng.randrange(4):
                case 0 if data:
                    data[rng.randrange(len(data))] = rng.randrange(256)
                case 1 if data:
                    del data[rng.randrange(len(data)) :]
                case 2:
                    data.insert(rng.randrange(len(data) + 1), rng.randrange(256))
                case _ if data:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            message = decode_message(bytes(data))
        except CodecError:
            continue
        accepted += 1
        assert decode_message(encode_message(message)) == message
    assert 500 < accepted < 15_000


def test_fuzz_random_bytes_are_refused() -> None:
    rng = random.Random(21)
    for decode in (decode_message, decode_request, decode_configuration):
        for _ in range(5_000):
            data = rng.randbytes(rng.randrange(40))
            try:
                decode(data)
            except CodecError:
                continue
