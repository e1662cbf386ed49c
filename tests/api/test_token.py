"""Tokens that span both planes: their bytes, and how one answer's goes on into the next."""

from __future__ import annotations

import base64
import random

import pytest

from kvnode.errors import BadEncoding
from kvnode.kv.available import NOTHING_SEEN, SEEN_DOTS_MAX, DotRow, Seen, seen_also
from kvnode.wire.token import Token, decode_token, encode_token, read_token
from tests.api.fake import FakeKV
from tests.api.fake_available import INCARNATION, FakeAvailable
from tests.api.raw import Door, Reply

SEEN = Seen(9, ((1, (1 << 64) - 1, 3), (2, 0, (1 << 63) - 1)))


def seen_in(reply: Reply) -> Seen:
    return read_token(reply.headers["kv-token"]).seen


def test_version_one_is_written_while_nothing_was_seen() -> None:
    assert read_token(encode_token(7, 99)) == Token(7, 99, NOTHING_SEEN)
    assert encode_token(7, 99) == encode_token(7, 99, Seen()) == "AQAAAAAAAAAHAAAAAAAAAGPV"


@pytest.mark.parametrize("seen", [SEEN, Seen(1), Seen(0, ((1, 2, 3),)), Seen((1 << 63) - 1)])
def test_what_was_seen_comes_back(seen: Seen) -> None:
    token = encode_token(7, 99, seen)
    assert read_token(token) == Token(7, 99, seen)
    assert decode_token(token) == (7, 99)


def test_every_flipped_bit_is_refused() -> None:
    token = encode_token(7, 99, SEEN)
    raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    for bit in range(len(raw) * 8):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadEncoding):
            read_token(base64.urlsafe_b64encode(bytes(flipped)).rstrip(b"=").decode())
    for length in range(len(raw)):
        with pytest.raises(BadEncoding):
            read_token(base64.urlsafe_b64encode(raw[:length]).rstrip(b"=").decode())


@pytest.mark.parametrize(
    "seen",
    [
        Seen(1 << 63),
        Seen(1, ((1, 1, 0),)),
        Seen(1, ((1, 1, 1 << 63),)),
        Seen(1, ((1, 1, 1), (1, 1, 2))),
        Seen(1, tuple((n, 1, 1) for n in range(SEEN_DOTS_MAX + 1))),
    ],
)
def test_what_nobody_writes_is_refused(seen: Seen) -> None:
    with pytest.raises(BadEncoding):
        read_token(encode_token(1, 1, seen))


def test_one_dot_an_origin_and_the_newest_seen_stay() -> None:
    seen = seen_also(Seen(5, ((1, 1, 7), (2, 1, 3))), 4, ((1, 1, 6),))
    assert seen == Seen(5, ((2, 1, 3), (1, 1, 7)))
    assert seen_also(seen, 8, ((2, 1, 4), (2, 2, 1))) == Seen(8, ((1, 1, 7), (2, 1, 4), (2, 2, 1)))
    assert seen_also(NOTHING_SEEN, 0) == NOTHING_SEEN
    rng = random.Random(3)
    newest: dict[tuple[int, int], int] = {}
    so_far = NOTHING_SEEN
    for _ in range(300):
        dot: DotRow = (rng.randrange(12), 1, rng.randrange(1, 100))
        so_far = seen_also(so_far, 0, (dot,))
        newest[dot[:2]] = max(dot[2], newest.get(dot[:2], 0))
        assert len(so_far.dots) <= SEEN_DOTS_MAX
        assert so_far.dots[-1][:2] == dot[:2]
        assert all(n <= newest[member, incarnation] for member, incarnation, n in so_far.dots)


async def test_who_never_asks_the_other_plane_gets_version_one(door: Door, plane: FakeAvailable) -> None:
    plane.lamport = 77
    for answer in (await door.ask("PUT", "/v1/kv/k", b"v"), await door.ask("GET", "/v1/kv/k")):
        assert base64.urlsafe_b64decode(answer.headers["kv-token"])[0] == 1


async def test_a_token_goes_through_both_planes(door: Door, kv: FakeKV, plane: FakeAvailable) -> None:
    wrote = await door.ask("PUT", "/v1/kv/k", b"v")
    ap = await door.ask("PUT", "/v1/ap/a", b"1", Kv_Token=wrote.headers["kv-token"])
    assert seen_in(ap).dots == ((1, INCARNATION, 1),)
    read = await door.ask("GET", "/v1/kv/k?consistency=causal", Kv_Token=ap.headers["kv-token"])
    assert kv.seen[-1][1].least_revision == kv.revision
    assert seen_in(read).dots == ((1, INCARNATION, 1),), "it stays while the caller speaks to the store"
    missing = await door.ask("GET", "/v1/kv/none", Kv_Token=read.headers["kv-token"])
    assert (missing.status, seen_in(missing).dots) == (404, ((1, INCARNATION, 1),))
    again = await door.ask("GET", "/v1/ap/a", Kv_Token=missing.headers["kv-token"])
    assert again.body == b"1"
    assert plane.asked[-1][3] == Seen(1, ((1, INCARNATION, 1),))


async def test_an_answer_of_this_plane_takes_nothing_of_the_store_away(door: Door) -> None:
    ahead = encode_token(1_000, 1 << 62)
    for method, path in (("GET", "/v1/ap/none"), ("PUT", "/v1/ap/a"), ("GET", "/v1/events"), ("GET", "/v1/ap")):
        answer = await door.ask(method, path, Kv_Token=ahead)
        assert decode_token(answer.headers["kv-token"]) == (1_000, 1 << 62)


async def test_a_read_waits_for_what_its_token_has_seen(door: Door, plane: FakeAvailable) -> None:
    await door.ask("PUT", "/v1/ap/a", b"1")
    elsewhere = encode_token(1, 1, Seen(5, ((2, 0xB2, 1),)))
    refused = await door.ask("GET", "/v1/ap/a?timeout=70ms", Kv_Token=elsewhere)
    assert (refused.status, refused.code) == (503, "not_ready")
    assert (2, 0xB2, 1) in seen_in(refused).dots, "and asks again with the same"
    assert plane.asked[-1][4] == 70
    assert (await door.ask("GET", "/v1/ap", Kv_Token=elsewhere)).status == 503
    plane.arrived.add((2, 0xB2, 1))
    assert (await door.ask("GET", "/v1/ap/a", Kv_Token=elsewhere)).status == 200


async def test_a_posted_event_comes_after_what_its_token_has_seen(door: Door) -> None:
    token = encode_token(1, 1, Seen(500))
    posted = await door.ask("POST", "/v1/events", {"a": 1}, Kv_Token=token)
    assert posted.json["lamport"] == 501
    assert seen_in(posted).lamport == 501


async def test_damaged_tokens(door: Door) -> None:
    for path in ("/v1/ap/a", "/v1/ap", "/v1/events"):
        refused = await door.ask("GET", path, Kv_Token="AgAA")
        assert (refused.status, refused.code) == (400, "bad_encoding"), path
    assert (await door.ask("PUT", "/v1/kv/k", b"v", Kv_Token="AgAA")).status == 200, "a write of the store takes none"
