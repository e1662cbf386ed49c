"""etcd3gw, the client that OpenStack uses: its whole interface, at the leader and at a follower."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest

from tests.clients.servers import LIMIT_S, Servers, eventually, watching

pytest.importorskip("etcd3gw", reason="etcd3gw is not installed (extra `clients`)")

import etcd3gw
from etcd3gw.exceptions import ConnectionFailedError, Etcd3Exception, WatchTimedOut
from etcd3gw.lease import Lease
from etcd3gw.utils import _encode as base64
from etcd3gw.watch import Watcher

from kvnode.bench.process import free_ports

if TYPE_CHECKING:
    from etcd3gw.client import Etcd3Client

pytestmark = pytest.mark.system

TARGETS = ("key", "version", "create", "mod", "value")


@pytest.fixture
def client(servers: Servers, door: int) -> Etcd3Client:
    return etcd3gw.client(host="127.0.0.1", port=servers.port(door), timeout=LIMIT_S)


def keys(found: list[tuple[bytes, Any]], prefix: str) -> list[str]:
    return [metadata["key"].decode().removeprefix(prefix) for _, metadata in found]


def revision(client: Etcd3Client) -> int:
    return int(client.status()["header"]["revision"])


# What is at the door


def test_it_finds_its_way(client: Etcd3Client, servers: Servers) -> None:
    assert client.api_path == "/v3/"
    status = client.status()
    assert {"version", "header", "leader", "raftTerm", "raftIndex", "dbSize"} <= set(status)
    members = client.members()
    assert [member["name"] != "" and len(member["peerURLs"]) for member in members] == [1, 1, 1]
    assert sorted(url for member in members for url in member["clientURLs"]) == sorted(map(servers.url, (1, 2, 3)))
    assert status["leader"] in {member["ID"] for member in members}
    assert status["header"]["member_id"] in {member["ID"] for member in members}


@pytest.mark.parametrize("path", ["/v3/", "/v3beta/"])
def test_every_prefix_that_it_may_be_told(servers: Servers, name: str, path: str) -> None:
    client = etcd3gw.client(host="127.0.0.1", port=servers.port(1), timeout=LIMIT_S, api_path=path)
    assert client.put(name, path)
    assert client.get(name) == [path.encode()]


def test_nobody_is_there() -> None:
    client = etcd3gw.client(host="127.0.0.1", port=free_ports(1)[0], timeout=LIMIT_S)
    with pytest.raises(ConnectionFailedError):
        client.status()


# Keys


@pytest.mark.parametrize("value", ["text", b"\0\xff", "", 2001, "x" * 100_000])
def test_what_is_put_is_read(client: Etcd3Client, name: str, value: Any) -> None:
    expected = value if isinstance(value, bytes) else str(value).encode()
    assert client.get(name) == []
    assert client.put(name, value)
    assert client.get(name) == [expected]
    [(found, metadata)] = client.get(name, metadata=True)
    assert (found, metadata["key"], metadata["version"]) == (expected, name.encode(), "1")
    assert metadata["create_revision"] == metadata["mod_revision"]
    assert client.delete(name) is True
    assert client.delete(name) is False
    assert client.get(name) == []


def test_every_order(client: Etcd3Client, name: str) -> None:
    for key, value in [("c", "1"), ("a", "3"), ("b", "2"), ("b", "2"), ("c", "1"), ("c", "1")]:
        client.put(name + key, value)
    for target, ascending in [(None, "abc"), *zip(TARGETS, ("abc", "abc", "cab", "abc", "cba"), strict=True)]:
        for order in (None, "none", "ascend", "descend"):
            found = client.get_prefix(name, sort_order=order, sort_target=target)
            expected = list(reversed(ascending) if order == "descend" else ascending)
            assert keys(found, name) == expected, (target, order)


def test_every_option_of_a_range(client: Etcd3Client, name: str) -> None:
    end = name[:-1] + "0"
    for key in "abcd":
        client.put(name + key, key)
    first = int(client.get(name + "a", metadata=True)[0][1]["create_revision"])
    client.put(name + "b", "again")

    def found(**options: Any) -> list[str]:
        return keys(client.get(name, metadata=True, range_end=end, **options), name)

    assert found() == ["a", "b", "c", "d"]
    assert found(serializable=False) == ["a", "b", "c", "d"]
    assert found(limit=2) == ["a", "b"]
    assert found(limit=0) == ["a", "b", "c", "d"]
    assert found(limit=2, sort_order="descend") == ["d", "c"]
    assert found(revision=first + 1) == ["a", "b"]
    assert found(min_mod_revision=first + 3) == ["b", "d"]
    assert found(max_mod_revision=first + 2) == ["a", "c"]
    assert found(min_create_revision=first + 1, max_create_revision=first + 2) == ["b", "c"]
    assert found(min_mod_revision=first + 2, limit=1) == ["b"]
    assert client.get(name + "b", revision=first + 1) == [b"b"]
    assert client.get(name + "b") == [b"again"]
    assert client.get(name, range_end=end, keys_only=True) == [b"", b"", b"", b""]
    assert client.get(name, range_end=end, count_only=True) == []
    assert client.get(name, range_end=name) == []
    everything = [metadata["key"] for _, metadata in client.get_all()]
    assert everything == sorted(everything)
    assert {f"{name}{key}".encode() for key in "abcd"} <= set(everything)
    with pytest.raises(Etcd3Exception) as refused:
        client.get(name, revision=revision(client) + 1000)
    assert "etcdserver: mvcc: required revision is a future revision" in str(refused.value.detail_text)


def test_a_read_of_the_node_alone(client: Etcd3Client, name: str) -> None:
    client.put(name, "1")
    assert eventually(lambda: client.get(name, serializable=True)) == [b"1"]


def test_what_is_deleted(client: Etcd3Client, name: str) -> None:
    for key in "abcde":
        client.put(name + key, key)
    assert client.delete(name + "a", range_end=name + "c") is True
    assert keys(client.get_prefix(name), name) == ["c", "d", "e"]
    assert client.delete(name + "c", prev_kv=True) is True
    assert client.delete_prefix(name) is True
    assert client.delete_prefix(name) is False
    assert client.get_prefix(name) == []


def test_create_and_replace(client: Etcd3Client, name: str) -> None:
    assert client.replace(name, "", "1") is False
    assert client.create(name, "1") is True
    assert client.create(name, "2") is False
    assert client.replace(name, "2", "3") is False
    assert client.replace(name, "1", "2") is True
    assert client.get(name) == [b"2"]
    assert client.get(name, metadata=True)[0][1]["version"] == "2"


def test_a_transaction_with_everything(client: Etcd3Client, name: str) -> None:
    client.put(name + "a", "1")
    created = client.get(name + "a", metadata=True)[0][1]["create_revision"]
    a, b, c, end = (base64(name[:-1] + "/" + key) for key in ("a", "b", "c", "z"))
    txn = {
        "compare": [
            {"key": a, "target": "CREATE", "result": "EQUAL", "create_revision": created},
            {"key": a, "target": "MOD", "result": "LESS", "mod_revision": int(created) + 1},
            {"key": a, "target": "VERSION", "result": "GREATER", "version": 0},
            {"key": a, "target": "VALUE", "result": "NOT_EQUAL", "value": base64("2")},
            {"key": a, "target": "LEASE", "lease": 0},
            {"key": a, "range_end": end, "target": "VERSION", "version": "1"},
        ],
        "success": [
            {"request_put": {"key": b, "value": base64("2"), "prev_kv": True}},
            {"request_range": {"key": a, "range_end": end}},
            {"request_delete_range": {"key": a, "prev_kv": True}},
            {
                "request_txn": {
                    "compare": [{"key": b, "target": "VERSION", "version": 1}],
                    "success": [{"request_put": {"key": c, "value": base64("no")}}],
                    "failure": [{"requestPut": {"key": c, "value": base64("3")}}],
                }
            },
        ],
        "failure": [],
    }
    before = revision(client)
    done = client.transaction(txn)
    assert done["succeeded"] is True
    assert done["header"]["revision"] == str(before + 1)
    put, ranged, deleted, nested = done["responses"]
    assert "prev_kv" not in put["response_put"]
    assert [kv["key"] for kv in ranged["response_range"]["kvs"]] == [a, b]
    assert deleted["response_delete_range"]["deleted"] == "1"
    assert [kv["value"] for kv in deleted["response_delete_range"]["prev_kvs"]] == [base64("1")]
    assert "succeeded" not in nested["response_txn"]
    assert [value for value, _ in client.get_prefix(name)] == [b"2", b"3"]

    again = client.transaction(txn)
    assert "succeeded" not in again
    assert "responses" not in again
    assert again["header"]["revision"] == str(before + 1)


@pytest.mark.parametrize(
    ("operations", "told"),
    [
        ([{"request_put": {"key": "YQ=="}}] * 2, "etcdserver: duplicate key given in txn request"),
        ([{"request_range": {}}], "etcdserver: key is not provided"),
        ([{}], "etcdserver: key not found"),
        ([{"request_range": {"key": "YQ=="}}] * 129, "etcdserver: too many operations in txn request"),
        ([{"request_put": {"key": "YQ==", "lease": 4711}}], "etcdserver: requested lease not found"),
        ([{"request_put": {"key": "YQ==", "value": "YQ==", "ignore_value": True}}], "etcdserver: value is provided"),
        ([{"request_put": {"key": "%"}}], "illegal base64 data"),
    ],
)
def test_a_transaction_that_is_refused(client: Etcd3Client, operations: list[Any], told: str) -> None:
    before = revision(client)
    with pytest.raises(Etcd3Exception) as refused:
        client.transaction({"compare": [], "success": operations, "failure": []})
    assert told in str(refused.value.detail_text)
    assert revision(client) == before


# Leases


def test_a_lease_and_its_keys(client: Etcd3Client, name: str) -> None:
    lease = client.lease(ttl=60)
    assert 0 < lease.ttl() <= 60
    assert lease.keys() == []
    client.put(name + "a", "1", lease)
    client.create(name + "b", "2", lease)
    client.put(name + "c", "3", lease)
    client.put(name + "c", "3")  # without the lease it is the lease's no more
    assert sorted(lease.keys()) == [f"{name}{key}".encode() for key in "ab"]
    assert client.get(name + "a", metadata=True)[0][1]["lease"] == str(lease.id)
    assert lease.refresh() == 60
    before = revision(client)
    assert lease.revoke() is True
    assert revision(client) == before + 1
    assert keys(client.get_prefix(name), name) == ["c"]
    assert lease.refresh() == -1
    assert lease.ttl() == -1
    with pytest.raises(Etcd3Exception) as refused:
        lease.revoke()
    assert "etcdserver: requested lease not found" in str(refused.value.detail_text)
    with pytest.raises(Etcd3Exception) as refused:
        client.put(name, "", lease)
    assert "etcdserver: requested lease not found" in str(refused.value.detail_text)


@pytest.mark.slow
def test_a_lease_that_ends_takes_its_keys_along(servers: Servers, name: str) -> None:
    client = etcd3gw.client(host="127.0.0.1", port=servers.port(servers.followers()[0]), timeout=LIMIT_S)
    lease = client.lease(ttl=1)
    granted = lease.refresh()
    assert granted >= 1, "the server may grant more than was asked for"
    client.put(name + "a", "1", lease)
    client.put(name + "b", "1", lease)
    with watching(client.watch, name, range_end=name + "z") as events:
        assert sorted(event["kv"]["key"].decode() for event in islice(events, 2)) == [name + "a", name + "b"]
    assert client.get_prefix(name) == []
    for port in servers.ports():
        assert Lease(lease.id, etcd3gw.client(host="127.0.0.1", port=port, timeout=LIMIT_S)).ttl() == -1


def test_a_lease_lives_as_long_as_any_node_renews_it(servers: Servers, name: str) -> None:
    clients = [etcd3gw.client(host="127.0.0.1", port=port, timeout=LIMIT_S) for port in servers.ports()]
    lease = clients[0].lease(ttl=30)
    clients[1].put(name, "1", lease)
    for client in clients:
        assert Lease(lease.id, client).refresh() == 30
        assert Lease(lease.id, client).keys() == [name.encode()]
    assert Lease(lease.id, clients[2]).revoke()
    assert clients[0].get(name) == []


# Locks


def test_a_lock(client: Etcd3Client, name: str) -> None:
    lock, rival = client.lock(name, ttl=30), client.lock(name, ttl=30)
    assert lock.is_acquired() is False
    assert lock.acquire() is True
    assert (lock.is_acquired(), rival.is_acquired()) == (True, False)
    assert rival.acquire() is False
    assert lock.acquire() is False, "it is held, by itself too"
    assert lock.refresh() == 30
    assert rival.release() is False
    assert lock.release() is True
    assert lock.release() is False
    with rival:
        assert rival.is_acquired()
        assert lock.acquire() is False
    assert rival.is_acquired() is False


def test_a_lock_is_one_at_all_nodes(servers: Servers, name: str) -> None:
    clients = [etcd3gw.client(host="127.0.0.1", port=port, timeout=LIMIT_S) for port in servers.ports()]
    locks = [client.lock(name, ttl=30) for client in clients]
    won: list[int] = []

    def contend(at: int) -> None:
        if locks[at].acquire():
            won.append(at)

    threads = [threading.Thread(target=contend, args=(at,)) for at in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert [lock.is_acquired() for lock in locks] == [at in won for at in range(3)]


# Watches


def test_a_watch_tells_each_change_once(client: Etcd3Client, name: str) -> None:
    client.put(name, "before")
    with watching(client.watch, name) as events:
        client.put(name + "other", "")
        for value in ("1", "", "2" * 100_000):
            client.put(name, value)
        client.delete(name)
        client.put(name, "last")
        found = list(islice(events, 5))
    assert [event.get("type", "PUT") for event in found] == ["PUT", "PUT", "PUT", "DELETE", "PUT"]
    assert [event["kv"].get("value") for event in found] == [b"1", None, b"2" * 100_000, None, b"last"]
    assert {event["kv"]["key"] for event in found} == {name.encode()}
    assert set(found[3]["kv"]) == {"key", "mod_revision"}
    assert [event["kv"].get("version") for event in found] == ["2", "3", "4", None, "1"]


def test_a_watch_of_a_prefix_and_of_a_transaction(client: Etcd3Client, name: str) -> None:
    puts = [{"request_put": {"key": base64(f"{name}{key}"), "value": base64(key)}} for key in "ba"]
    with watching(client.watch_prefix, name) as events:
        client.transaction({"compare": [], "success": puts, "failure": []})
        client.delete_prefix(name)
        found = list(islice(events, 4))
    assert [event["kv"]["key"].decode()[-1] for event in found] == ["b", "a", "a", "b"]
    revisions = [int(event["kv"]["mod_revision"]) for event in found]
    assert revisions == [revisions[0]] * 2 + [revisions[0] + 1] * 2
    assert list(events) == [], "nothing comes after the end"


def test_a_watch_of_what_has_been(client: Etcd3Client, name: str) -> None:
    for value in ("1", "2", "3"):
        client.put(name, value)
    client.delete(name)
    first = int(client.get(name, metadata=True, revision=revision(client) - 1)[0][1]["create_revision"])
    with watching(client.watch, name, start_revision=first + 1, prev_kv=True) as events:
        found = list(islice(events, 3))
        client.put(name, "4")
        found.append(next(events))
    assert [event["kv"].get("value") for event in found] == [b"2", b"3", None, b"4"]
    assert [event.get("prev_kv", {}).get("value") for event in found] == [base64("1"), base64("2"), base64("3"), None]
    with watching(client.watch, name, start_revision=first, filters=["NOPUT"]) as events:
        assert [event["type"] for event in islice(events, 1)] == ["DELETE"]
    with watching(client.watch, name, start_revision=first, filters=["NODELETE"]) as events:
        assert [event["kv"]["value"] for event in islice(events, 4)] == [b"1", b"2", b"3", b"4"]


def test_a_watch_with_a_callback_and_all_its_options(client: Etcd3Client, name: str) -> None:
    seen: list[Any] = []
    watcher = Watcher(
        client, name, seen.append, range_end=name[:-1] + "0", progress_notify=True, watch_id=7, fragment=True
    )
    for number in range(20):
        client.put(f"{name}{number}", str(number))
    eventually(lambda: len(seen) == 20)
    watcher.stop()
    client.put(name, "after")
    assert [event["kv"]["value"] for event in seen] == [b"%d" % number for number in range(20)]


def test_a_watch_for_one_change(client: Etcd3Client, name: str) -> None:
    client.put(name, "1")
    first = int(client.get(name, metadata=True)[0][1]["mod_revision"])
    assert client.watch_once(name, timeout=LIMIT_S, start_revision=first)["kv"]["value"] == b"1"
    with pytest.raises(WatchTimedOut):
        client.watch_once(name, timeout=0.1)


def test_watch_prefix_once_asks_for_a_strange_range(client: Etcd3Client, name: str) -> None:
    """It encodes the end twice: `/a/` to `L2Ew`, which has `/a/` in it; `x/` to `eDA=`, which ends before it begins."""
    client.put(name + "a", "1")
    first = int(client.get(name + "a", metadata=True)[0][1]["mod_revision"])
    event = client.watch_prefix_once(name, timeout=LIMIT_S, start_revision=first)
    assert (event["kv"]["key"], event["kv"]["value"]) == (f"{name}a".encode(), b"1")
    for prefix in (name, "x" + name):
        with pytest.raises(WatchTimedOut):
            client.watch_prefix_once(prefix, timeout=0.1)
    assert client.put("x" + name, "1"), "the client's connections serve it still"


def test_twenty_watches_of_one_client_end_with_it(client: Etcd3Client, servers: Servers, door: int, name: str) -> None:
    def watchers() -> float:
        return servers.metric(door, "etcd_debugging_mvcc_watcher_total")

    eventually(lambda: watchers() == 0)
    with ExitStack() as stack:
        watches = [stack.enter_context(watching(client.watch, name)) for _ in range(20)]
        client.put(name, "1")
        assert [next(events)["kv"]["value"] for events in watches] == [b"1"] * 20
        assert watchers() == 20
    eventually(lambda: watchers() == 0)
