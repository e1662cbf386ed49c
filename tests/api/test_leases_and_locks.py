"""Leases, locks and elections as one asks for them with curl, over the real state machine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from yarl import URL

from kvnode.api.app import ClientServer, build_app
from kvnode.config import Config
from kvnode.errors import KvnodeError, NoLeader, NotReady, Timeout
from kvnode.kv.interface import DEFAULT_OPTIONS, Options
from kvnode.kv.requests import Campaign, Command, LeaseGrant, LeaseKeepAlive, LeaseRevoke, LeaseUpkeep, QueueRead
from kvnode.recipes import lock
from tests.api.fake import FakeAdmin
from tests.api.fake_available import FakeAvailable
from tests.api.machine_kv import MachineKV
from tests.api.raw import Door


@pytest.fixture
def kv() -> MachineKV:
    return MachineKV()


@pytest.fixture
async def door(kv: MachineKV, config: Config) -> AsyncIterator[Door]:
    server = ClientServer(build_app(kv, FakeAdmin(kv), config, FakeAvailable()), config)
    await server.start()
    async with aiohttp.ClientSession(auto_decompress=False, skip_auto_headers={"Content-Type"}) as session:
        yield Door(session, server.address)
    await server.close()


async def test_a_lease_and_its_keys(door: Door, kv: MachineKV) -> None:
    granted = await door.ask("POST", "/v1/leases?ttl=30s")
    assert granted.status == 200
    lease = granted.json["id"]
    assert granted.json == {"id": lease, "ttl_ms": 30_000}
    put = await door.ask("PUT", f"/v1/kv/a?lease={lease}", b"1")
    assert put.json == {"revision": 2, "created": True}
    assert put.headers["kv-lease"] == str(lease)
    await door.ask("POST", "/v1/txn", {"success": [{"put": {"key": "b", "value": "2", "lease": lease}}]})
    assert (await door.ask("GET", "/v1/kv/a")).headers["kv-lease"] == str(lease)
    shown = await door.ask("GET", f"/v1/leases/{lease}")
    assert shown.json == {
        "id": lease, "ttl_ms": 30_000, "remaining_ms": 30_000, "count": 2, "keys": [{"key": "a"}, {"key": "b"}]
    }  # fmt: skip
    assert (await door.ask("POST", f"/v1/leases/{lease}/keepalive")).json == {"id": lease, "ttl_ms": 30_000}
    await door.ask("POST", "/v1/leases?ttl=1h")
    listed = await door.ask("GET", "/v1/leases?limit=1")
    assert listed.json == {"revision": 3, "more": True, "leases": [{"id": lease, "ttl_ms": 30_000, "count": 2}]}
    rest = await door.ask("GET", f"/v1/leases?after={lease}")
    assert [each["ttl_ms"] for each in rest.json["leases"]] == [3_600_000]
    ended = await door.ask("DELETE", f"/v1/leases/{lease}")
    assert ended.json == {"revision": 4, "deleted": 2}
    for method, path in (("GET", f"{lease}"), ("DELETE", f"{lease}"), ("POST", f"{lease}/keepalive")):
        refused = await door.ask(method, f"/v1/leases/{path}")
        assert (refused.status, refused.code) == (404, "lease_not_found")
    refused = await door.ask("PUT", f"/v1/kv/a?lease={lease}", b"1")
    assert (refused.status, refused.code, refused.outcome) == (404, "lease_not_found", "not-applied")


async def test_a_put_with_a_lease_of_its_own(door: Door, kv: MachineKV) -> None:
    first = await door.ask("PUT", "/v1/kv/a?ttl=30s&if_rev=0", b"1")
    assert first.json == {"revision": 2, "created": True}
    lease = int(first.headers["kv-lease"])
    refused = await door.ask("PUT", "/v1/kv/a?ttl=30s&if_rev=0", b"1")
    assert (refused.status, refused.code) == (412, "compare_failed")
    assert [each.id for each in kv.machine.leases.after(0)] == [lease], "what was refused has begun no lease"
    again = await door.ask("PUT", "/v1/kv/a?ttl=30s", b"2")
    assert int(again.headers["kv-lease"]) != lease
    assert kv.machine.leases.get(lease) is None, "a lease of the key's own ends with its hold on the key"
    await door.ask("DELETE", "/v1/kv/a")
    assert len(kv.machine.leases) == 0


async def test_a_lock_is_taken_waited_for_and_handed_on_in_order(door: Door, kv: MachineKV) -> None:
    first = await door.ask("POST", "/v1/locks/deploy?ttl=30s&owner=ann")
    assert first.status == 200
    assert first.json == {
        "name": "deploy", "owner": "ann", "lease": first.json["lease"], "token": 2, "ttl_ms": 30_000
    }  # fmt: skip
    assert (await door.ask("POST", "/v1/locks/deploy?owner=bob&wait=0s")).code == "lock_held"
    refused = await door.ask("POST", "/v1/locks/deploy?owner=bob")
    assert (refused.status, refused.code, refused.outcome) == (409, "lock_held", "not-applied")
    assert refused.json["error"]["detail"] == {"owner": "ann", "token": 2, "lease": first.json["lease"]}
    assert len(kv.machine.leases) == 1, "not even a place in the queue was taken"
    bob = asyncio.ensure_future(door.ask("POST", "/v1/locks/deploy?owner=bob&wait=30s"))
    while len(kv.machine.leases) < 2:
        await asyncio.sleep(0.005)
    cid = asyncio.ensure_future(door.ask("POST", "/v1/locks/deploy?owner=cid&wait=30s"))
    while len(kv.machine.leases) < 3:
        await asyncio.sleep(0.005)
    shown = await door.ask("GET", "/v1/locks/deploy")
    assert shown.json["holder"]["owner"] == "ann"
    assert [each["owner"] for each in shown.json["queue"]] == ["bob", "cid"]
    kept = await door.ask("POST", "/v1/locks/deploy/keepalive?token=2")
    assert kept.json == {"id": first.json["lease"], "ttl_ms": 30_000}
    wrong = await door.ask("DELETE", "/v1/locks/deploy?token=77")
    assert (wrong.status, wrong.code) == (412, "fenced")
    assert (await door.ask("DELETE", "/v1/locks/deploy?token=2")).status == 200
    got = (await bob).json
    assert got["owner"] == "bob"
    assert got["token"] > 2
    assert not cid.done()
    assert (await door.ask("DELETE", "/v1/locks/deploy?token=2")).code == "fenced"
    renewals = kv.machine.leases.get(got["lease"]).renewals
    kv.machine.apply(kv.machine.applied_index + 1, 1 << 40, LeaseUpkeep(((got["lease"], renewals),)))  # bob's expires
    kv.changed.set()
    assert (await cid).json["token"] > got["token"]
    assert (await door.ask("POST", f"/v1/locks/deploy/keepalive?token={got['token']}")).code == "fenced"


async def test_waiting_ends_with_its_time_or_its_client_and_leaves_no_place_behind(door: Door, kv: MachineKV) -> None:
    first = (await door.ask("POST", "/v1/locks/a%2Fb?wait=1s")).json
    assert first["name"] == "a/b"
    refused = await door.ask("POST", "/v1/locks/a/b?wait=50ms&ttl=1s")
    assert (refused.status, refused.code) == (409, "lock_held")
    assert len(kv.machine.leases) == 1
    assert any(isinstance(request, LeaseRevoke) for request in kv.seen)
    waiting = asyncio.ensure_future(door.ask("POST", "/v1/locks/a/b?wait=30s&ttl=1s"))
    while len(kv.machine.leases) < 2:
        await asyncio.sleep(0.005)
    waiting.cancel()
    for _ in range(400):
        if len(kv.machine.leases) == 1:
            break
        await asyncio.sleep(0.005)
    assert len(kv.machine.leases) == 1, "its client has left"


async def test_whose_turn_comes_after_it_has_left_does_not_hold_the_lock(door: Door, kv: MachineKV) -> None:
    first = (await door.ask("POST", "/v1/locks/a?ttl=60s")).json
    waiting = asyncio.ensure_future(door.ask("POST", "/v1/locks/a?wait=60s&ttl=60s"))
    while len(kv.machine.leases) < 2:
        await asyncio.sleep(0.005)
    waiting.cancel()
    await asyncio.sleep(0.1)
    await door.ask("DELETE", f"/v1/locks/a?token={first['token']}")
    for _ in range(400):
        if not len(kv.machine.leases):
            break
        await asyncio.sleep(0.005)
    assert len(kv.machine.leases) == 0, "long before its ttl"


async def test_a_place_is_kept_while_it_is_waited_for(door: Door, kv: MachineKV) -> None:
    first = (await door.ask("POST", "/v1/locks/a")).json
    waiting = asyncio.ensure_future(door.ask("POST", "/v1/locks/a?wait=30s&ttl=1s"))
    while not any(isinstance(request, LeaseKeepAlive) for request in kv.seen):
        await asyncio.sleep(0.02)
    await door.ask("DELETE", f"/v1/locks/a?token={first['token']}")
    assert (await waiting).status == 200
    assert isinstance(kv.seen[-1], LeaseKeepAlive), "its holder has the whole time from the answer on"


async def test_a_place_that_was_lost_is_told(door: Door, kv: MachineKV) -> None:
    await door.ask("POST", "/v1/locks/a")
    waiting = asyncio.ensure_future(door.ask("POST", "/v1/locks/a?wait=30s&ttl=1s"))
    while len(kv.machine.leases) < 2:
        await asyncio.sleep(0.005)
    await kv.execute(LeaseRevoke(kv.machine.leases.ids()[-1]))
    lost = await waiting
    assert (lost.status, lost.code) == (404, "lease_not_found")


async def test_an_election(door: Door, kv: MachineKV) -> None:
    assert (await door.ask("GET", "/v1/elections/e")).code == "not_found"
    won = await door.ask("POST", "/v1/elections/e?value=http://a:1&ttl=5s")
    assert won.json == {
        "name": "e", "value": "http://a:1", "lease": won.json["lease"], "token": 2, "ttl_ms": 5_000
    }  # fmt: skip
    shown = await door.ask("GET", "/v1/elections/e")
    assert shown.json == {key: won.json[key] for key in ("name", "value", "lease", "token")}
    assert (await door.ask("POST", "/v1/elections/e?value=b")).code == "lock_held"
    assert (await door.ask("DELETE", "/v1/elections/e?token=2")).json == {"revision": 3, "deleted": 1}
    assert (await door.ask("GET", "/v1/elections/e")).status == 404


async def test_other_keys_below_a_name_do_not_count(door: Door, kv: MachineKV) -> None:
    await door.ask("PUT", "/v1/kv/e/1", b"by hand")
    lease = (await door.ask("POST", "/v1/leases?ttl=30s")).json["id"]
    await door.ask("PUT", f"/v1/kv/e/ff?lease={lease}", b"on a lease, but not named after it")
    assert (await door.ask("GET", "/v1/elections/e")).status == 404
    won = await door.ask("POST", "/v1/elections/e?value=me")
    assert won.status == 200
    assert any(isinstance(request, Campaign) for request in kv.seen)
    # Whoever knows etcd's layout stands in the same queue.
    await door.ask("PUT", f"/v1/kv/e/{lease:x}?lease={lease}", b"by its own layout")
    await door.ask("DELETE", f"/v1/elections/e?token={won.json['token']}")
    assert (await door.ask("GET", "/v1/elections/e")).json["value"] == "by its own layout"


async def test_who_asks_again_under_the_same_name_stands_at_the_same_place(door: Door, kv: MachineKV) -> None:
    once = {"Idempotency-Key": "deploy 17"}
    first = await door.ask("POST", "/v1/locks/deploy?ttl=30s&owner=ann", **once)
    again = await door.ask("POST", "/v1/locks/deploy?ttl=30s&owner=ann", **once)
    assert (first.status, again.json) == (200, first.json)
    other = await door.ask("POST", "/v1/locks/deploy?ttl=30s&owner=bob", **once)
    assert (other.status, other.code) == (409, "conflict")
    refused = await door.ask("POST", "/v1/locks/deploy?ttl=30s&owner=bob", **{"Idempotency-Key": "bob"})
    assert (refused.status, refused.code) == (409, "lock_held")
    assert len(kv.machine.leases) == 1, "a place that was refused is given up"
    late = await door.ask("POST", "/v1/locks/deploy?ttl=30s&owner=bob", **{"Idempotency-Key": "bob"})
    assert (late.status, late.code) == (404, "lease_not_found"), "under that name it is not taken again"


async def test_a_named_place_waits_for_a_client_that_has_gone(door: Door, kv: MachineKV) -> None:
    first = await door.ask("POST", "/v1/locks/deploy?ttl=30s&owner=ann")
    host, port = door.address.rsplit(":", 1)
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/locks/deploy?ttl=30s&owner=bob&wait=30s HTTP/1.1\r\nHost: {door.address}\r\nContent-Length: 0\r\n"
    writer.write(head.encode() + b"Idempotency-Key: bob\r\n\r\n")
    while len(kv.machine.leases) < 2:
        await asyncio.sleep(0.005)
    writer.close()
    await asyncio.sleep(0.05)
    bob = asyncio.ensure_future(
        door.ask("POST", "/v1/locks/deploy?ttl=30s&owner=bob&wait=30s", **{"Idempotency-Key": "bob"})
    )
    await asyncio.sleep(0.05)
    assert len(kv.machine.leases) == 2, "it stands once"
    await door.ask("DELETE", f"/v1/locks/deploy?token={first.json['token']}")
    assert (await bob).json["owner"] == "bob"


async def test_who_asks_again_has_the_whole_time_from_the_answer_on(door: Door, kv: MachineKV) -> None:
    once = {"Idempotency-Key": "deploy 17"}
    first = await door.ask("POST", "/v1/locks/deploy?ttl=30s", **once)
    kv.seen.clear()
    assert (await door.ask("POST", "/v1/locks/deploy?ttl=30s", **once)).json == first.json
    assert kv.seen[-1] == LeaseKeepAlive(first.json["lease"])


class Faulty(MachineKV):
    """Whoever has stood in line is told that there is no leader, as long as this is so."""

    def __init__(self, *lost: type, error: KvnodeError | None = None) -> None:
        super().__init__()
        self.lost = lost
        self.error = error or NoLeader("gone")

    async def execute(self, request: Any, options: Options = DEFAULT_OPTIONS) -> Any:
        if self.machine.leases and isinstance(request, self.lost):
            raise self.error
        return await super().execute(request, options)


@pytest.mark.parametrize("can_leave", [True, False])
@pytest.mark.parametrize("key", [b"", b"k"])
async def test_a_place_that_may_be_left_behind_is_not_called_not_applied(can_leave: bool, key: bytes) -> None:
    kv = Faulty(QueueRead) if can_leave else Faulty(QueueRead, LeaseRevoke)
    campaign = Campaign(b"n", 30_000)
    named = Command(campaign, key=key) if key else None
    with pytest.raises(KvnodeError) as raised:
        await lock.acquire(kv, campaign, named=named, wait_ms=0, now_ms=lambda: 0)
    is_left = can_leave and not key
    assert raised.value.code == ("no_leader" if is_left else "timeout")
    assert len(kv.machine.leases) == (0 if is_left else 1), "a named one may be held by now, for its client elsewhere"


async def test_who_waits_for_a_lock_does_not_keep_its_node_from_stopping() -> None:
    kv = Faulty(QueueRead, LeaseRevoke, error=NotReady("the node is stopping"))
    async with asyncio.timeout(1):
        with pytest.raises(Timeout):
            await lock.acquire(kv, Campaign(b"n", 30_000), wait_ms=60_000, now_ms=lambda: 0)


async def test_a_fence_on_every_write(door: Door, kv: MachineKV) -> None:
    first = (await door.ask("POST", "/v1/locks/a:b?owner=ann")).json
    good, old = f"fence=a:b:{first['token']}", f"fence=a:b:{first['token'] + 1}"
    body = {"success": [{"put": {"key": "k", "value": "1"}}]}
    for method, path, data in (
        ("PUT", "/v1/kv/k?", b"1"),
        ("PUT", "/v1/kv/k?ttl=5s&", b"1"),
        ("DELETE", "/v1/kv/k?", None),
        ("POST", "/v1/txn?", body),
        ("DELETE", "/v1/kv?prefix=k&", None),
    ):
        refused = await door.ask(method, path + old, data)
        assert (refused.status, refused.code, refused.outcome) == (412, "fenced", "not-applied"), (method, path)
        assert (await door.ask(method, path + good, data)).status == 200, (method, path)
    batch = [{"put": {"key": "k", "value": "1"}}, {"get": {"key": "k"}}]
    results = (await door.ask("POST", f"/v1/batch?{good}", batch)).json["results"]
    assert [each["status"] for each in results] == [200, 200]
    results = (await door.ask("POST", f"/v1/batch?{old}", batch)).json["results"]
    assert [each["status"] for each in results] == [412, 200], "reads need no fence"
    named = await door.ask("PUT", f"/v1/kv/k?{good}", b"2", Idempotency_Key="x")
    await door.ask("DELETE", f"/v1/locks/a:b?token={first['token']}")
    assert (await door.ask("PUT", f"/v1/kv/k?{good}", b"2", Idempotency_Key="x")).body == named.body
    assert (await door.ask("PUT", f"/v1/kv/k?{good}", b"2")).code == "fenced"
    for bad in ("fence=a", "fence=:1", "fence=a:", "fence=a:0", "fence=a:-1", "fence=a:x"):
        refused = await door.ask("PUT", f"/v1/kv/k?{bad}", b"1")
        assert (refused.status, refused.code) == (400, "bad_request"), bad


async def test_an_election_is_observed(door: Door, kv: MachineKV) -> None:
    url = URL(f"http://{door.address}/v1/elections/e/observe")
    async with door.session.get(url) as response:
        assert response.headers["Content-Type"] == "application/x-ndjson"

        async def line() -> dict[str, object]:
            async with asyncio.timeout(5):
                found: dict[str, object] = json.loads(await response.content.readline())
                return found

        assert await line() == {"type": "nobody", "revision": 1, "name": "e"}
        first = (await door.ask("POST", "/v1/elections/e?value=a")).json
        seen = await line()
        assert (seen["type"], seen["value"], seen["token"]) == ("leader", "a", first["token"])
        waiting = asyncio.ensure_future(door.ask("POST", "/v1/elections/e?value=b&wait=9s"))
        while len(kv.machine.leases) < 2:
            await asyncio.sleep(0.005)
        await door.ask("PUT", "/v1/kv/e/other", b"not a candidate")
        await door.ask("DELETE", f"/v1/elections/e?token={first['token']}")
        seen = await line()
        assert (seen["type"], seen["value"]) == ("leader", "b")
        assert seen["token"] == (await waiting).json["token"]
        await door.ask("DELETE", f"/v1/elections/e?token={seen['token']}")
        assert (await line())["type"] == "nobody"
    assert (await door.ask("HEAD", "/v1/elections/e/observe")).status == 200


async def test_leases_that_clients_of_etcd_have_numbered_can_be_named(door: Door, kv: MachineKV) -> None:
    await kv.execute(LeaseGrant(5_000, -12))
    await kv.execute(LeaseGrant(5_000, 9))
    assert (await door.ask("PUT", "/v1/kv/a?lease=-12", b"1")).headers["kv-lease"] == "-12"
    await door.ask("POST", "/v1/txn", {"success": [{"put": {"key": "b", "value": "2", "lease": -12}}]})
    shown = (await door.ask("GET", "/v1/leases/-12")).json
    assert (shown["id"], shown["count"]) == (-12, 2)
    assert [each["id"] for each in (await door.ask("GET", "/v1/leases?after=0")).json["leases"]] == [9, -12]
    assert [each["id"] for each in (await door.ask("GET", "/v1/leases?after=9")).json["leases"]] == [-12]
    assert (await door.ask("DELETE", "/v1/leases/-12")).json["deleted"] == 2
    for wrong in ("0", "--1", "-", "9223372036854775808", "1.0"):
        assert (await door.ask("GET", f"/v1/leases/{wrong}")).status == 400
    for wrong in (0, 1 << 63, True, "1"):
        asked = {"success": [{"put": {"key": "b", "value": "2", "lease": wrong}}]}
        assert (await door.ask("POST", "/v1/txn", asked)).status == 400
