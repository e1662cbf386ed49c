"""Reading the past: `at_rev` and `at_time` on every GET of keys, and ``/v1/history/{key}``."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from kvnode.kv.requests import Await, History
from tests.api.fake import START_MS, FakeKV
from tests.api.raw import Door


async def live_through(door: Door) -> None:
    """Revisions 2 to 5: two versions, a deletion, another life."""
    for body in (b"one", b"two"):
        await door.ask("PUT", "/v1/kv/k", body)
    await door.ask("DELETE", "/v1/kv/k")
    await door.ask("PUT", "/v1/kv/k", b"three")


def revisions(listing: Any) -> list[int]:
    return [item["mod_revision"] for item in listing["items"]]


@pytest.mark.parametrize(("at", "value"), [(2, b"one"), (3, b"two"), (5, b"three")])
async def test_a_key_as_it_was(door: Door, at: int, value: bytes) -> None:
    await live_through(door)
    answer = await door.ask("GET", f"/v1/kv/k?at_rev={at}")
    assert (answer.status, answer.body) == (200, value)
    assert answer.headers["kv-revision"] == str(at)
    assert answer.headers["etag"] == f'"{at}"'
    head = await door.ask("HEAD", f"/v1/kv/k?at_rev={at}")
    assert (head.status, head.headers["etag"], head.body) == (200, f'"{at}"', b"")


async def test_a_key_that_was_not_there_then(door: Door) -> None:
    await live_through(door)
    for at in (1, 4):
        answer = await door.ask("GET", f"/v1/kv/k?at_rev={at}")
        assert (answer.status, answer.code) == (404, "key_not_found")
        assert f"at revision {at}" in answer.json["error"]["message"]


async def test_a_range_as_it_was_and_its_pages(door: Door) -> None:
    for name in "abc":
        await door.ask("PUT", f"/v1/kv/{name}", b"old")
    await door.ask("DELETE", "/v1/kv?prefix=")
    page = (await door.ask("GET", "/v1/kv?prefix=&at_rev=4&limit=2")).json
    assert ([item["key"] for item in page["items"]], page["revision"], page["more"]) == (["a", "b"], 4, True)
    for same in ("", "&at_rev=4"):
        rest = (await door.ask("GET", f"/v1/kv?prefix=&limit=2&cursor={page['cursor']}{same}")).json
        assert ([item["key"] for item in rest["items"]], rest["revision"]) == (["c"], 4)
    other = await door.ask("GET", f"/v1/kv?prefix=&cursor={page['cursor']}&at_rev=3")
    assert (other.status, other.code) == (400, "bad_request")
    count = await door.ask("GET", "/v1/kv?prefix=&at_rev=3&count_only=1")
    assert count.json["count"] == 2


@pytest.mark.parametrize("path", ["/v1/kv/k?", "/v1/kv?prefix=&", "/v1/history/k?"])
@pytest.mark.parametrize(
    ("at", "code"), [("9", "future_revision"), ("0", "bad_request"), ("-1", "bad_request"), ("x", "bad_request")]
)
async def test_revisions_that_are_none(door: Door, path: str, at: str, code: str) -> None:
    await live_through(door)
    answer = await door.ask("GET", f"{path}at_rev={at}")
    assert (answer.status, answer.code) == (400, code)


async def test_a_history_has_the_shape_of_a_listing(door: Door) -> None:
    await live_through(door)
    answer = await door.ask("GET", "/v1/history/k")
    assert answer.status == 200
    listing = answer.json
    assert {name: listing[name] for name in ("revision", "count", "more", "cursor")} == {
        "revision": 5,
        "count": 4,
        "more": False,
        "cursor": None,
    }
    assert [(item["mod_revision"], item.get("value"), item.get("deleted")) for item in listing["items"]] == [
        (5, "three", None),
        (4, None, True),
        (3, "two", None),
        (2, "one", None),
    ]
    assert listing["items"][2]["create_revision"] == 2
    assert listing["items"][1]["time"] == "2026-11-22T10:00:00.004Z.0000"


async def test_pages_of_a_history_are_pinned(door: Door) -> None:
    await live_through(door)
    page = (await door.ask("GET", "/v1/history/k?limit=2")).json
    assert (revisions(page), page["more"]) == ([5, 4], True)
    await door.ask("PUT", "/v1/kv/k", b"four")
    rest = (await door.ask("GET", f"/v1/history/k?limit=2&cursor={page['cursor']}")).json
    assert (revisions(rest), rest["revision"], rest["more"]) == ([3, 2], 5, False)
    assert revisions((await door.ask("GET", "/v1/history/k?at_rev=3")).json) == [3, 2]
    assert revisions((await door.ask("GET", "/v1/history/k?before=4")).json) == [3, 2]


async def test_history_reads_choose_consistency_and_limit(door: Door, kv: FakeKV) -> None:
    await live_through(door)
    answer = await door.ask("GET", "/v1/history/k?consistency=stale&limit=3")
    assert "kv-staleness-ms" in answer.headers
    request, options = kv.seen[-1]
    assert request == History(b"k", 3)
    assert options.consistency == "stale"


async def test_a_key_without_versions_has_no_history(door: Door) -> None:
    answer = await door.ask("GET", "/v1/history/missing")
    assert (answer.status, answer.code) == (404, "key_not_found")


async def test_bad_histories_are_refused(door: Door) -> None:
    await live_through(door)
    cursor = (await door.ask("GET", "/v1/history/k?limit=1")).json["cursor"]
    for target, code in (
        ("/v1/history/", "bad_key"),
        (f"/v1/history/other?cursor={cursor}", "bad_encoding"),
        (f"/v1/history/k?cursor={cursor}&at_rev=2", "bad_request"),
        (f"/v1/history/k?cursor={cursor}&before=2", "bad_request"),
        ("/v1/history/k?cursor=zzz", "bad_encoding"),
        ("/v1/history/k?limit=0", "bad_request"),
        ("/v1/history/k?prefix=a", "unknown_parameter"),
    ):
        answer = await door.ask("GET", target)
        assert (answer.status, answer.code) == (400, code), target
    assert (await door.ask("PUT", "/v1/history/k", b"x")).status == 405


# ── at a time ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "stamp"),
    [
        ("2026-11-22T10:00:00.123Z.0007", START_MS + 123 << 16 | 7),
        ("1970-01-01T00:00:00.000Z.0000", 1),
        ("2026-11-22T10:00:00.123Z.65535", START_MS + 123 << 16 | 65_535),
        ("2026-11-22T10:00:00Z", START_MS << 16 | 65_535),
        ("2026-11-22t10:00:00z", START_MS << 16 | 65_535),
        ("2026-11-22T10:00:00.5Z", START_MS + 500 << 16 | 65_535),
        ("2026-11-22T10:00:00.123456789Z", START_MS + 123 << 16 | 65_535),
        ("2026-11-22T11:30:00+01:30", START_MS << 16 | 65_535),
        ("2026-11-22T11:30:00%2B01:30", START_MS << 16 | 65_535),
        ("2026-11-22T02:00:00-08:00", START_MS << 16 | 65_535),
    ],
)
async def test_times_are_taken_as_written(door: Door, kv: FakeKV, text: str, stamp: int) -> None:
    await live_through(door)
    for path in ("/v1/kv/k?", "/v1/kv?prefix=&", "/v1/history/k?"):
        await door.ask("GET", f"{path}at_time={text}")
        assert kv.seen[-1][1].at_time == stamp, path


async def test_an_age_is_counted_back_from_now(door: Door, kv: FakeKV) -> None:
    await live_through(door)
    await door.ask("GET", "/v1/kv/k?at_time=-5m")
    now_ms = time.time() * 1_000
    assert -20_000 < (kv.seen[-1][1].at_time >> 16) - (now_ms - 300_000) <= 0


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "-", "-5", "-5d", "5m", "1700000000", "2026-11-22", "2026-11-22T10:00:00", "2026-13-22T10:00:00Z",
     "2026-11-22T10:00:00.123Z.70000", "1969-12-31T23:59:59Z", "2026-11-22T10:00:00Z.0007", "%FF"],
)  # fmt: skip
async def test_times_that_are_none(door: Door, text: str) -> None:
    answer = await door.ask("GET", f"/v1/kv/k?at_time={text}")
    assert (answer.status, answer.code) == (400, "bad_request"), answer.body


async def test_a_time_gives_the_revision_it_shows(door: Door) -> None:
    await live_through(door)
    answer = await door.ask("GET", "/v1/kv/k?at_time=2026-11-22T10:00:00.003Z")
    assert (answer.body, answer.headers["kv-revision"]) == (b"two", "3")
    missing = await door.ask("GET", "/v1/kv/k?at_time=2026-11-22T10:00:00.004Z")
    assert (missing.status, "at revision 4" in missing.json["error"]["message"]) == (404, True)
    both = await door.ask("GET", "/v1/kv/k?at_time=-5m&at_rev=2")
    assert (both.status, both.code) == (400, "bad_request")
    page = (await door.ask("GET", "/v1/history/k?limit=1&at_time=2026-11-22T10:00:00.003Z")).json
    rest = await door.ask("GET", f"/v1/history/k?at_time=2026-11-22T10:00:00.003Z&cursor={page['cursor']}")
    assert revisions(rest.json) == [2]


# ── the future ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_long_poll_answers_with_the_newer_version(door: Door, kv: FakeKV) -> None:
    await live_through(door)
    at_once = await door.ask("GET", "/v1/kv/k?wait=30s&after_rev=3")
    assert (at_once.status, at_once.body, at_once.headers["etag"]) == (200, b"three", '"5"')
    kv.wait_for = asyncio.Event()
    waits = asyncio.ensure_future(door.ask("GET", "/v1/kv/k?wait=30s&after_rev=5&meta=1"))
    seen = len(kv.seen)
    while len(kv.seen) == seen:
        await asyncio.sleep(0)
    assert kv.seen[-1][0] == Await(b"k", 5, 5_000), "in pieces, so that a client who has left is not waited for"
    await door.ask("PUT", "/v1/kv/k", b"four")
    kv.wait_for.set()
    assert (await waits).json["value"] == "four"


async def test_a_long_poll_says_that_nothing_came_or_that_the_key_is_gone(door: Door, kv: FakeKV) -> None:
    await live_through(door)
    nothing = await door.ask("GET", "/v1/kv/k?wait=12s&after_rev=5")
    assert (nothing.status, nothing.body) == (304, b"")
    assert [request.wait_ms for request, _ in kv.seen if isinstance(request, Await)] == [5_000, 5_000, 2_000]
    from_now = await door.ask("GET", "/v1/kv/k?wait=1s")
    assert from_now.status == 304
    assert kv.seen[-1][0].after_revision == 5
    await door.ask("DELETE", "/v1/kv/k")
    gone = await door.ask("GET", "/v1/kv/k?wait=1s&after_rev=5")
    assert (gone.status, gone.code, gone.headers["kv-mod-revision"]) == (404, "key_not_found", "6")


@pytest.mark.parametrize(
    "query",
    [
        "after_rev=1",
        "wait=1s&at_rev=2",
        "wait=1s&at_time=-1s",
        "wait=0s",
        "wait=11m",
        "wait=soon",
        "wait=1s&after_rev=x",
    ],
)
async def test_what_cannot_be_waited_for(door: Door, kv: FakeKV, query: str) -> None:
    answer = await door.ask("GET", f"/v1/kv/k?{query}")
    assert (answer.status, answer.code) == (400, "bad_request")
    assert kv.seen == []
