"""Ranges over HTTP: paging at a pinned revision, order, counting, deleting, and cursors from strangers."""

from __future__ import annotations

import base64
import random
from typing import Any

import msgspec
import pytest

from kvnode.errors import BadEncoding
from kvnode.kv.requests import KeyValue
from kvnode.wire.token import Cursor, decode_cursor, decode_token, encode_cursor, encode_token
from tests.api.fake import FakeKV
from tests.api.raw import Door


async def fill(door: Door, *keys: str) -> None:
    for key in keys:
        assert (await door.ask("PUT", f"/v1/kv/{key}", key.encode())).status == 200


def names(listing: Any) -> list[str]:
    return [item["key"] for item in listing["items"]]


async def test_a_page_has_the_shape_of_the_contract(door: Door) -> None:
    await fill(door, "a/1", "a/2", "b")
    page = await door.ask("GET", "/v1/kv?prefix=a/")
    assert page.json["items"][0] == {
        "key": "a/1",
        "value": "a/1",
        "create_revision": 2,
        "mod_revision": 2,
        "version": 1,
        "lease": 0,
        "time": "2026-11-22T10:00:00.002Z.0000",
    }
    assert {name: page.json[name] for name in ("revision", "count", "more", "cursor")} == {
        "revision": 4,
        "count": 2,
        "more": False,
        "cursor": None,
    }
    assert page.headers["kv-revision"] == "4"


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("?prefix=b", ["b", "ba"]),
        ("?prefix=", ["a", "b", "ba", "c"]),
        ("", ["a", "b", "ba", "c"]),
        ("?start=b", ["b", "ba", "c"]),
        ("?end=b", ["a"]),
        ("?start=b&end=c", ["b", "ba"]),
        ("?start=c&end=b", []),
        ("?start=b&end=%00", ["b", "ba", "c"]),
        ("?prefix=b&order=desc", ["ba", "b"]),
        ("?prefix=%62", ["b", "ba"]),
    ],
)
async def test_ranges(door: Door, query: str, found: list[str]) -> None:
    await fill(door, "a", "b", "ba", "c")
    assert names((await door.ask("GET", f"/v1/kv{query}")).json) == found


async def test_keys_only_and_count_only(door: Door) -> None:
    await fill(door, "a", "b")
    assert "value" not in (await door.ask("GET", "/v1/kv?prefix=&keys_only=1")).json["items"][0]
    counted = (await door.ask("GET", "/v1/kv?prefix=&count_only=1")).json
    assert (counted["count"], counted["items"], counted["more"]) == (2, [], False)


async def test_keys_that_are_no_text_are_base64(door: Door) -> None:
    await fill(door, "%FF%FE")
    [item] = (await door.ask("GET", "/v1/kv?prefix=%FF")).json["items"]
    assert (item["key"], item["key_encoding"]) == ("//4=", "base64")
    assert (item["value"], "encoding" in item) == ("%FF%FE", False)


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_a_cursor_pins_the_revision_of_the_first_page(door: Door, order: str) -> None:
    wanted = [f"k{n}" for n in range(7)]
    await fill(door, *wanted)
    base = f"/v1/kv?prefix=k&limit=3&order={order}"
    page = (await door.ask("GET", base)).json
    found, revision = names(page), page["revision"]
    await fill(door, "k25", "k9")
    await door.ask("DELETE", "/v1/kv/k3")
    while page["more"]:
        page = (await door.ask("GET", f"{base}&cursor={page['cursor']}")).json
        assert page["revision"] == revision
        found += names(page)
    assert found == (wanted if order == "asc" else wanted[::-1])
    assert page["cursor"] is None


async def test_cursors_from_strangers(door: Door) -> None:
    await fill(door, "ka", "kb", "kc")
    cursor = (await door.ask("GET", "/v1/kv?prefix=k&limit=1")).json["cursor"]
    for query in ("prefix=", "prefix=k&order=desc", "start=k", "prefix=kk"):
        refused = await door.ask("GET", f"/v1/kv?{query}&cursor={cursor}")
        assert (refused.status, refused.code) == (400, "bad_encoding"), query
    swapped = cursor.swapcase()
    for bad in ("", "AAAA", cursor[:-1], cursor + "A", cursor + "=", swapped, "%FF", "a b".replace(" ", "%20")):
        refused = await door.ask("GET", f"/v1/kv?prefix=k&cursor={bad}")
        assert (refused.status, refused.code) == (400, "bad_encoding"), bad
    assert (await door.ask("GET", f"/v1/kv?prefix=k&count_only=1&cursor={cursor}")).status == 400


async def test_a_forged_cursor_gets_what_a_revision_would_give(door: Door) -> None:
    await fill(door, "k")
    listing = msgspec.msgpack.encode((b"k", b"l", False))
    future = encode_cursor(Cursor(99, b"ka"), listing)
    assert (await door.ask("GET", f"/v1/kv?prefix=k&cursor={future}")).code == "future_revision"
    outside = encode_cursor(Cursor(2, b"z"), listing)
    assert (await door.ask("GET", f"/v1/kv?prefix=k&cursor={outside}")).code == "bad_request"


def test_cursor_and_token_refuse_every_single_flipped_bit() -> None:
    cursor = encode_cursor(Cursor(7, b"key"), b"listing")
    assert decode_cursor(cursor.encode(), b"listing") == Cursor(7, b"key")
    raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    for bit in range(len(raw) * 8):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadEncoding):
            decode_cursor(base64.urlsafe_b64encode(bytes(flipped)).rstrip(b"="), b"listing")
    token = encode_token(7, 99)
    assert decode_token(token) == (7, 99)
    rng = random.Random(1)
    for _ in range(300):
        noise = rng.randbytes(rng.randrange(40))
        with pytest.raises(BadEncoding):
            decode_cursor(noise, b"listing")
        with pytest.raises(BadEncoding):
            decode_token(noise.decode("latin-1"))


@pytest.mark.parametrize(
    "query",
    [
        "prefix=a&start=b",
        "prefix=a&end=b",
        "start=a&end=",
        "limit=0",
        "limit=10001",
        "limit=-1",
        "limit=1.0",
        "limit=",
        "limit=0x10",
        "order=up",
        "keys_only=yes",
        "prefix=a&prefix=a",
        "consistency=eventual",
        "consistency=causal",
        "consistency=bounded",
    ],
)
async def test_bad_listings_are_refused(door: Door, kv: FakeKV, query: str) -> None:
    refused = await door.ask("GET", f"/v1/kv?{query}")
    assert (refused.status, refused.code) == (400, "bad_request")
    assert refused.outcome is None
    if "causal" in query or "bounded" in query:
        assert query.split("=")[1] in refused.json["error"]["message"]
    assert not kv.seen


async def test_range_delete_takes_one_revision(door: Door) -> None:
    await fill(door, "a/1", "a/2", "b")
    gone = (await door.ask("DELETE", "/v1/kv?prefix=a/&prev=1")).json
    assert (gone["revision"], gone["deleted"], [item["key"] for item in gone["prev"]]) == (5, 2, ["a/1", "a/2"])
    assert (await door.ask("DELETE", "/v1/kv?start=a&end=b")).json == {"revision": 5, "deleted": 0}
    assert names((await door.ask("GET", "/v1/kv?prefix=")).json) == ["b"]


@pytest.mark.parametrize("query", ["", "?prev=1", "?timeout=1s"])
async def test_range_delete_must_name_its_range(door: Door, kv: FakeKV, query: str) -> None:
    refused = await door.ask("DELETE", f"/v1/kv{query}")
    assert (refused.status, refused.outcome) == (400, "not-applied")
    assert not kv.seen


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 2500])
async def test_big_pages_are_whole(door: Door, kv: FakeKV, count: int) -> None:
    state = {b"%06d" % n: KeyValue(b"%06d" % n, b"v", 2, 2, 1) for n in range(count)}
    kv.states[2] = state
    kv.revision = 2
    page = (await door.ask("GET", "/v1/kv?prefix=&limit=10000")).json
    assert names(page) == [f"{n:06d}" for n in range(count)]
    assert page["count"] == count
