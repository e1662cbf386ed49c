"""Leases, locks and elections of the etcd API, over the real state machine behind a real listener."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import aiohttp
import pytest

from kvnode.api.app import ClientServer, build_app
from kvnode.api.etcd.leases import ttl_s_min
from kvnode.clocks.system import SystemClock
from kvnode.config import Config, RaftSection
from kvnode.errors import NoLeader
from kvnode.kv.interface import DEFAULT_OPTIONS, Options
from kvnode.kv.requests import (
    Await,
    Campaign,
    Delete,
    LeaseGrant,
    LeaseList,
    LeaseListReply,
    LeaseRevoke,
    LeaseView,
    Put,
    QueueRead,
)
from kvnode.recipes import lock
from tests.api.fake import FakeAdmin
from tests.api.fake_available import FakeAvailable
from tests.api.machine_kv import MachineKV


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Door:
    """Posts JSON; answers are (status, parsed body without its header)."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self.revision = 0  # of the newest header

    async def post(self, path: str, body: Any = None) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        async with self._session.post(f"{self._url}/v3/{path}", data=data) as answer:
            found = json.loads(await answer.read())
            if "header" in found:
                self.revision = int(found.pop("header").get("revision", "0"))
            return answer.status, found

    async def messages(self, path: str, body: bytes) -> list[Any]:
        async with self._session.post(f"{self._url}/v3/{path}", data=body) as answer:
            assert answer.status == 200
            return [_shown(line) async for line in answer.content]

    @asynccontextmanager
    async def stream(self, path: str, body: Any) -> AsyncIterator[aiohttp.StreamReader]:
        async with self._session.post(f"{self._url}/v3/{path}", data=json.dumps(body)) as answer:
            assert answer.status == 200
            yield answer.content


def _shown(line: bytes) -> Any:
    result = json.loads(line)["result"]
    result.pop("header")
    return result


@pytest.fixture
def kv() -> MachineKV:
    return MachineKV()


@pytest.fixture
async def door(kv: MachineKV, config: Config) -> AsyncIterator[Door]:
    server = ClientServer(build_app(kv, FakeAdmin(kv), config, FakeAvailable()), config)
    await server.start()
    async with aiohttp.ClientSession() as session:
        yield Door(session, f"http://{server.address}")
    await server.close()


async def waits_for(kv: MachineKV, *keys: bytes) -> None:
    """Until somebody waits for a change of each."""
    async with asyncio.timeout(5):
        while not set(keys) <= {request.key for request in kv.seen if isinstance(request, Await)}:
            await asyncio.sleep(0)


async def is_gone(kv: MachineKV, key: bytes) -> None:
    async with asyncio.timeout(5):
        while await kv.get(key) is not None:
            await asyncio.sleep(0)


async def grant(kv: MachineKV, lease: int, ttl_ms: int = 60_000) -> int:
    return (await kv.execute(LeaseGrant(ttl_ms, lease))).id


# ── leases ──────────────────────────────────────────────────────────────────────────────────────────


async def test_a_lease_is_granted_under_any_id_and_raised_to_the_least_time(door: Door, kv: MachineKV) -> None:
    status, given = await door.post("lease/grant", {})
    assert (status, given["TTL"], int(given["ID"]) > 0) == (200, "2", True)
    for asked in (-12, "-9223372036854775808", "9223372036854775807", 778):
        assert await door.post("lease/grant", {"ID": asked, "TTL": -5}) == (200, {"ID": str(asked), "TTL": "2"})
        assert await door.post("lease/grant", {"ID": asked, "TTL": 60}) == (
            400,
            {
                "error": "etcdserver: lease already exists",
                "code": 9,
                "message": "etcdserver: lease already exists",
            },
        )
    status, refused = await door.post("lease/grant", {"TTL": 9_000_000_001})
    assert (status, refused["code"], refused["message"]) == (400, 11, "etcdserver: too large lease TTL")
    assert await door.post("lease/grant", {"ID": 6, "TTL": "9000000000"}) == (200, {"ID": "6", "TTL": "9000000000"})
    assert door.revision == 1, "leases make no revision"


@pytest.mark.parametrize(("timeout_ms", "least"), [(300, 2), (1_000, 2), (1_334, 3), (2_500, 4), (60_000, 90)])
def test_the_least_time_outlives_an_election(timeout_ms: int, least: int) -> None:
    assert ttl_s_min(RaftSection(election_timeout_ms=timeout_ms)) == least


async def test_a_stream_renews_one_lease_after_another(door: Door, kv: MachineKV) -> None:
    await grant(kv, 778)
    await grant(kv, -12, 9_500)
    body = b'{"ID":778}{"ID":"5555"}\n {"ID":-12}{}'
    assert await door.messages("lease/keepalive", body) == [
        {"ID": "778", "TTL": "60"},
        {"ID": "5555"},
        {"ID": "-12", "TTL": "9"},
        {},
    ]
    assert await door.messages("lease/keepalive", b"") == []


@pytest.mark.parametrize("prefix", ["lease", "kv/lease"])
async def test_a_lease_is_revoked_with_its_keys(door: Door, kv: MachineKV, prefix: str) -> None:
    await grant(kv, 5)
    for key in (b"a", b"b"):
        await kv.execute(Put(key, b"v", lease=5))
    assert await door.post(f"{prefix}/revoke", {"ID": "5"}) == (200, {})
    assert (door.revision, await kv.get(b"a")) == (4, None)
    for asked in ({"ID": 5}, {}):
        status, refused = await door.post(f"{prefix}/revoke", asked)
        assert (status, refused["code"], refused["error"]) == (404, 5, "etcdserver: requested lease not found")


@pytest.mark.parametrize("prefix", ["lease", "kv/lease"])
async def test_what_a_lease_has_left_and_its_keys(door: Door, kv: MachineKV, prefix: str) -> None:
    await grant(kv, 6, 59_900)
    await kv.execute(Put(b"k", b"v", lease=6))
    left = {"ID": "6", "TTL": "59", "grantedTTL": "59"}
    assert await door.post(f"{prefix}/timetolive", {"ID": 6}) == (200, left)
    assert await door.post(f"{prefix}/timetolive", {"ID": 6, "keys": True}) == (200, left | {"keys": [b64(b"k")]})
    assert await door.post(f"{prefix}/timetolive", {"ID": 999, "keys": True}) == (200, {"ID": "999", "TTL": "-1"})
    assert await door.post(f"{prefix}/timetolive", {}) == (200, {"TTL": "-1"})


async def test_more_keys_than_a_page_are_all_told(door: Door, kv: MachineKV, config: Config) -> None:
    await grant(kv, 6)
    many = config.limits.page_items_max + 7
    for number in range(many):
        await kv.execute(Put(b"%06d" % number, b"", lease=6))
    _, found = await door.post("lease/timetolive", {"ID": 6, "keys": True})
    assert [base64.b64decode(key) for key in found["keys"]] == [b"%06d" % number for number in range(many)]


class LeaderKV(MachineKV):
    """Knows what is left of each lease, and tells two at a time."""

    left: ClassVar = {3: 900, -1: 5, 8: 70}

    async def execute(self, request: Any, options: Options = DEFAULT_OPTIONS) -> Any:
        if isinstance(request, LeaseList):
            ids = [lease for lease in (3, 8, -1) if lease % 2**64 > request.after % 2**64]
            views = tuple(LeaseView(lease, 1_000, 0, self.left[lease]) for lease in ids[:2])
            return LeaseListReply(1, views, len(ids) > 2)
        return await super().execute(request, options)


async def test_leases_are_listed_by_their_end_where_it_is_known(config: Config) -> None:
    kv = LeaderKV()
    server = ClientServer(build_app(kv, FakeAdmin(kv), config, FakeAvailable()), config)
    await server.start()
    async with aiohttp.ClientSession() as session:
        door = Door(session, f"http://{server.address}")
        assert await door.post("lease/leases") == (200, {"leases": [{"ID": "-1"}, {"ID": "8"}, {"ID": "3"}]})
    await server.close()


@pytest.mark.parametrize("prefix", ["lease", "kv/lease"])
async def test_leases_are_listed(door: Door, kv: MachineKV, prefix: str) -> None:
    assert await door.post(f"{prefix}/leases") == (200, {})
    for lease in (9, -9):
        await grant(kv, lease)
    assert await door.post(f"{prefix}/leases") == (200, {"leases": [{"ID": "9"}, {"ID": "-9"}]})


# ── locks ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("lease", "key"),
    [(778, b"n/30a"), (-12, b"n/-c"), (-(2**63), b"n/-8000000000000000"), (2**63 - 1, b"n/" + b"7fff" + b"f" * 12)],
)
async def test_a_lock_is_a_key_of_the_name_and_the_lease(door: Door, kv: MachineKV, lease: int, key: bytes) -> None:
    await grant(kv, lease)
    assert await door.post("lock/lock", {"name": b64(b"n"), "lease": str(lease)}) == (200, {"key": b64(key)})
    assert door.revision == 2
    held = await kv.get(key)
    assert held is not None
    assert (held.value, held.lease) == (b"", lease)
    assert [kv.lease for kv in (await kv.execute(QueueRead(b"n"))).waiting] == [lease], "the store's own queue has it"
    assert await door.post("lock/lock", {"name": b64(b"n"), "lease": lease}) == (200, {"key": b64(key)})
    assert door.revision == 2, "who holds it changes nothing"
    assert await door.post("lock/unlock", {"key": b64(key)}) == (200, {})
    assert await kv.get(key) is None
    assert await door.post("lock/unlock", {"key": b64(key)}) == (200, {})
    assert door.revision == 3


async def test_a_lock_without_a_lease_is_held_for_a_minute(door: Door, kv: MachineKV) -> None:
    status, found = await door.post("lock/lock", {"name": b64(b"n")})
    held = await kv.get(base64.b64decode(found["key"]))
    assert status == 200
    assert held is not None
    assert kv.machine.leases.get(held.lease).ttl_ms == 60_000
    assert held.key == b"n/%x" % held.lease


async def test_what_the_lock_service_refuses_is_unknown(door: Door, kv: MachineKV) -> None:
    for path, asked, words in (
        ("lock/lock", {"name": b64(b"n"), "lease": 99}, "etcdserver: requested lease not found"),
        ("lock/unlock", {}, "etcdserver: key is not provided"),
        ("election/leader", {"name": b64(b"n")}, "election: no leader"),
        ("election/campaign", {"name": b64(b"n"), "lease": 99}, "etcdserver: requested lease not found"),
        ("election/proclaim", {}, '"leader" field must be provided'),
        ("election/resign", {}, '"leader" field must be provided'),
        ("election/proclaim", {"leader": {}}, "etcdserver: key is not provided"),
    ):
        assert await door.post(path, asked) == (500, {"error": words, "code": 2, "message": words}), path
    assert kv.revision == 1


async def test_who_waits_gets_the_lock_when_the_one_before_goes(door: Door, kv: MachineKV) -> None:
    for lease in (1, 2, 3):
        await grant(kv, lease)
    await door.post("lock/lock", {"name": b64(b"n"), "lease": 1})
    second = asyncio.create_task(door.post("lock/lock", {"name": b64(b"n"), "lease": 2}))
    await waits_for(kv, b"n/1", b"n/2")
    third = asyncio.create_task(door.post("lock/lock", {"name": b64(b"n"), "lease": 3}))
    await waits_for(kv, b"n/2", b"n/3")
    asked = [request.key for request in kv.seen if isinstance(request, Await)]
    assert sorted(asked) == [b"n/1", b"n/2", b"n/2", b"n/3"], "each looks after the one before it and itself"
    await kv.execute(Delete(b"n/1"))
    assert await second == (200, {"key": b64(b"n/2")})
    assert not third.done()
    await kv.execute(LeaseRevoke(2))
    assert await third == (200, {"key": b64(b"n/3")})


async def test_every_older_key_below_the_name_is_waited_for(door: Door, kv: MachineKV) -> None:
    await grant(kv, 1)
    await kv.execute(Put(b"n/by hand", b"x"))
    waiting = asyncio.create_task(door.post("lock/lock", {"name": b64(b"n"), "lease": 1}))
    await waits_for(kv, b"n/by hand", b"n/1")
    await kv.execute(Put(b"n/younger", b"x"))
    await kv.execute(Put(b"n/by hand", b"changed"))
    await kv.execute(Put(b"n0", b"x"))
    await asyncio.sleep(0)
    assert not waiting.done()
    await kv.execute(Delete(b"n/by hand"))
    assert (await waiting)[0] == 200


async def test_whose_lease_ends_while_it_waits_is_told(door: Door, kv: MachineKV) -> None:
    await grant(kv, 1)
    await grant(kv, 2)
    await door.post("lock/lock", {"name": b64(b"n"), "lease": 1})
    waiting = asyncio.create_task(door.post("lock/lock", {"name": b64(b"n"), "lease": 2}))
    await waits_for(kv, b"n/1", b"n/2")
    await kv.execute(LeaseRevoke(2))
    status, refused = await waiting
    assert (status, refused["code"], refused["message"]) == (500, 2, "mutex: session is expired")
    assert await kv.get(b"n/1") is not None, "the holder is still there"


@pytest.mark.parametrize("lease", [2, 0])
@pytest.mark.parametrize("path", ["lock/lock", "election/campaign"])
async def test_who_leaves_gives_its_place_up(door: Door, kv: MachineKV, lease: int, path: str) -> None:
    await grant(kv, 1)
    await grant(kv, 2)
    await kv.execute(Put(b"n/1", b"", lease=1))
    waiting = asyncio.create_task(door.post(path, {"name": b64(b"n"), "lease": lease}))
    await waits_for(kv, b"n/1")
    own = next(request.key for request in kv.seen if isinstance(request, Await) and request.key != b"n/1")
    waiting.cancel()
    await is_gone(kv, own)
    assert len(kv.machine.leases) == 2, "a lease that was begun for it ends, one of the client's own does not"
    assert await kv.get(b"n/1") is not None


async def test_who_leaves_does_not_lose_the_lock_that_it_holds(door: Door, kv: MachineKV) -> None:
    await grant(kv, 1)
    await door.post("lock/lock", {"name": b64(b"n"), "lease": 1})
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await door.post("lock/lock", {"name": b64(b"n"), "lease": 1})
    assert await door.post("lock/lock", {"name": b64(b"n"), "lease": 1}) == (200, {"key": b64(b"n/1")})


class SlowKV(MachineKV):
    """Looks at queues wait, if they are to."""

    def __init__(self) -> None:
        super().__init__()
        self.is_slow = False
        self.looks = 0

    async def execute(self, request: Any, options: Options = DEFAULT_OPTIONS) -> Any:
        if isinstance(request, QueueRead) and self.is_slow:
            self.looks += 1
            try:
                await asyncio.Event().wait()
            finally:
                self.looks -= 1
        return await super().execute(request, options)


@pytest.mark.parametrize("path", ["lock/lock", "election/campaign"])
async def test_who_asks_again_and_leaves_keeps_what_it_holds(config: Config, path: str) -> None:
    """The first answer has told it that it holds the name: nobody else may, until it says so or its lease ends."""
    kv = SlowKV()
    server = ClientServer(build_app(kv, FakeAdmin(kv), config, FakeAvailable()), config)
    await server.start()
    async with aiohttp.ClientSession() as session, asyncio.timeout(5):
        door = Door(session, f"http://{server.address}")
        await grant(kv, 1)
        asked = {"name": b64(b"n"), "lease": 1}
        assert (await door.post(path, asked))[0] == 200
        kv.is_slow = True
        again = asyncio.create_task(door.post(path, asked))
        while not kv.looks:
            await asyncio.sleep(0)
        again.cancel()
        while kv.looks:
            await asyncio.sleep(0)
        kv.is_slow = False
        await door.post("kv/range", {"key": b64(b"n/1")})  # whoever would give it up has had time to
        assert await kv.get(b"n/1") is not None
    await server.close()


class LeaderlessKV(MachineKV):
    """Awaits fail as they do while nobody leads, so many times."""

    failures = 0

    async def execute(self, request: Any, options: Options = DEFAULT_OPTIONS) -> Any:
        if isinstance(request, Await) and self.failures:
            self.failures -= 1
            raise NoLeader("nobody leads")
        return await super().execute(request, options)


async def test_a_place_is_kept_while_nobody_leads(config: Config) -> None:
    kv = LeaderlessKV()
    server = ClientServer(build_app(kv, FakeAdmin(kv), config, FakeAvailable()), config)
    await server.start()
    async with aiohttp.ClientSession() as session:
        door = Door(session, f"http://{server.address}")
        await grant(kv, 1)
        await kv.execute(Put(b"n/7", b""))
        kv.failures = 3
        waiting = asyncio.create_task(door.post("lock/lock", {"name": b64(b"n"), "lease": 1}))
        await waits_for(kv, b"n/1", b"n/7")
        assert kv.failures == 0
        await kv.execute(Delete(b"n/7"))
        assert await waiting == (200, {"key": b64(b"n/1")})
    await server.close()


async def test_a_client_of_etcd_and_one_of_the_store_contend_for_the_same_lock(door: Door, kv: MachineKV) -> None:
    now_ms = SystemClock().monotonic_ms

    async def acquire(value: bytes) -> lock.Place:
        return await lock.acquire(kv, Campaign(b"n", 60_000, value), wait_ms=60_000, now_ms=now_ms)

    first = await acquire(b"first")
    await grant(kv, 778)
    second = asyncio.create_task(door.post("lock/lock", {"name": b64(b"n"), "lease": 778}))
    await waits_for(kv, b"n/%x" % first.lease, b"n/30a")
    third = asyncio.create_task(acquire(b"third"))
    await waits_for(kv, b"n/30a")
    assert not second.done()
    await lock.release(kv, b"n", first.token)
    assert await second == (200, {"key": b64(b"n/30a")})
    held = await lock.holder(kv, b"n")
    assert held is not None
    assert held.lease == 778
    assert not third.done()
    assert await door.post("lock/unlock", {"key": b64(b"n/30a")}) == (200, {})
    assert (await third).token > held.token > first.token


# ── elections ───────────────────────────────────────────────────────────────────────────────────────


async def test_an_election_from_campaign_to_resignation(door: Door, kv: MachineKV) -> None:
    await grant(kv, 778)
    name = b64(b"e")
    leader = {"name": name, "key": b64(b"e/30a"), "rev": "2", "lease": "778"}
    campaign = {"name": name, "lease": 778, "value": b64(b"v1")}
    assert await door.post("election/campaign", campaign) == (200, {"leader": leader})
    assert await door.post("election/campaign", campaign | {"value": b64(b"v2")}) == (200, {"leader": leader})
    shown = {"key": b64(b"e/30a"), "create_revision": "2", "mod_revision": "3", "version": "2", "lease": "778"}
    assert await door.post("election/leader", {"name": name}) == (200, {"kv": shown | {"value": b64(b"v2")}})
    assert await door.post("election/proclaim", {"leader": leader, "value": b64(b"v3")}) == (200, {})
    assert door.revision == 4
    no_lease = {"leader": leader | {"lease": "0"}, "value": b64(b"v4")}
    assert await door.post("election/proclaim", no_lease) == (200, {})
    kept = await kv.get(b"e/30a")
    assert kept is not None
    assert (kept.value, kept.lease) == (b"v4", 778)
    for other, words in (
        ({"rev": "1"}, "election: not leader"),
        ({"lease": "4"}, "etcdserver: requested lease not found"),
    ):
        status, refused = await door.post("election/proclaim", {"leader": leader | other, "value": ""})
        assert (status, refused["code"], refused["error"]) == (500, 2, words)
    assert await door.post("election/resign", {"leader": leader | {"rev": "1"}}) == (200, {})
    assert await kv.get(b"e/30a") is not None, "who does not lead resigns from nothing"
    assert await door.post("election/resign", {"leader": leader}) == (200, {})
    assert (door.revision, await kv.get(b"e/30a")) == (6, None)
    assert await door.post("election/resign", {"leader": leader}) == (200, {})


async def test_a_candidate_leads_when_all_older_ones_are_gone(door: Door, kv: MachineKV) -> None:
    await grant(kv, 1)
    await grant(kv, 2)
    await door.post("election/campaign", {"name": b64(b"e"), "lease": 1, "value": b64(b"one")})
    waiting = asyncio.create_task(door.post("election/campaign", {"name": b64(b"e"), "lease": 2, "value": b64(b"two")}))
    await waits_for(kv, b"e/1", b"e/2")
    _, found = await door.post("election/leader", {"name": b64(b"e")})
    assert found["kv"]["value"] == b64(b"one")
    await kv.execute(LeaseRevoke(1))
    status, found = await waiting
    assert (status, found["leader"]["rev"]) == (200, "3")


async def test_who_observes_is_told_of_each_leader_and_each_value(door: Door, kv: MachineKV) -> None:
    await grant(kv, 1)
    await grant(kv, 2)
    async with door.stream("election/observe", {"name": b64(b"e")}) as lines:
        for key, value, lease in ((b"e/1", b"a", 1), (b"e/2", b"never told", 2), (b"e/1", b"a", 1), (b"e/2", b"b", 2)):
            await kv.execute(Put(key, value, lease=lease))
        seen = [_shown(await lines.readline())["kv"] for _ in range(2)]
        assert [(each["mod_revision"], each["value"]) for each in seen] == [("2", b64(b"a")), ("4", b64(b"a"))]
        await kv.execute(LeaseRevoke(1))
        assert _shown(await lines.readline())["kv"]["value"] == b64(b"b")
        await kv.execute(LeaseRevoke(2))
        await kv.execute(Put(b"e/by hand", b"c"))
        assert _shown(await lines.readline())["kv"]["value"] == b64(b"c")


async def test_the_present_leader_is_told_first(door: Door, kv: MachineKV) -> None:
    await kv.execute(Put(b"e/1", b"a"))
    async with door.stream("election/observe", {"name": b64(b"e")}) as lines:
        assert _shown(await lines.readline())["kv"]["value"] == b64(b"a")
