"""etcd3-py, a client of the whole JSON API, with calls that block and with asyncio's."""

from __future__ import annotations

import hashlib
import threading
from base64 import b64decode
from typing import TYPE_CHECKING, Any

import pytest

from tests.clients.servers import Servers, eventually, insist

pytest.importorskip("etcd3", reason="etcd3-py is not installed (extra `clients`)")

import etcd3
from etcd3 import AioClient, EventType
from etcd3.errors import (
    ErrAuthNotEnabled,
    ErrCompacted,
    ErrDuplicateKey,
    ErrEmptyKey,
    ErrFutureRev,
    ErrKeyNotFound,
    ErrLeaseExist,
    ErrLeaseNotFound,
    ErrLeaseTTLTooLarge,
    ErrMemberBadURLs,
    ErrMemberNotFound,
    ErrTooManyOps,
    ErrValueProvided,
    Etcd3Exception,
    Etcd3WatchCanceled,
)
from etcd3.stateful.lock import EtcdLockAcquireTimeout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from etcd3 import Client

pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore:setDaemon:DeprecationWarning"),
    # Its thread that keeps a lease alive is told to end by releasing the lock that it holds: it says so as it ends.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

LIMIT_S = 20
WATCHERS = "etcd_debugging_mvcc_watcher_total"


@pytest.fixture
def client(servers: Servers, door: int) -> Iterator[Client]:
    with etcd3.Client("127.0.0.1", servers.port(door), timeout=LIMIT_S) as made:
        yield made


def test_it_knows_the_server(client: Client, servers: Servers, door: int) -> None:
    assert client.api_prefix == "/v3"
    for version in (client.server_version, client.cluster_version):
        assert [int(part) >= 0 for part in version.split(".")] == [True] * 3
    assert client.health() == "true"
    families = {family.name: [sample.value for sample in family.samples] for family in client.metrics()}
    assert families["etcd_server_has_leader"] == [1.0]
    assert families["etcd_server_is_leader"] == [float(door == servers.leader())]
    members = client.member_list().members
    assert len({member.ID for member in members}) == 3
    status = client.status()
    assert status.leader in {member.ID for member in members}
    assert (status.header.member_id == status.leader) is (door == servers.leader())


def test_keys(client: Client, name: str) -> None:
    first = client.put(name + "a", "1").header.revision
    assert client.put(name + "a", b"\0\xff", prev_kv=True).prev_kv.value == b"1"
    client.put(name + "b", "2")
    found = client.range(name, prefix=True, sort_order="DESCEND", sort_target="CREATE")
    assert [(kv.key.decode(), kv.value) for kv in found.kvs] == [(name + "b", b"2"), (name + "a", b"\0\xff")]
    assert found.count == 2
    cut = client.range(name, prefix=True, limit=1)
    assert (len(cut.kvs), cut.more, cut.count) == (1, True, 2)
    assert client.range(name, prefix=True, count_only=True).count == 2
    assert client.range(name + "a", revision=first).kvs[0].value == b"1"
    assert client.range(name, prefix=True, min_mod_revision=first + 2).kvs[0].key == (name + "b").encode()
    assert client.put(name + "a", "", ignore_value=True).header.revision == first + 3
    assert client.range(name + "a").kvs[0].value == b"\0\xff"
    deleted = client.delete_range(name, prefix=True, prev_kv=True)
    assert (deleted.deleted, [kv.value for kv in deleted.prev_kvs]) == (2, [b"\0\xff", b"2"])
    assert "kvs" not in client.range(name, prefix=True)
    assert client.range(all=True, keys_only=True).header.revision == first + 4


def test_each_error_has_its_name(client: Client, servers: Servers, name: str) -> None:
    revision = client.put(name, "1").header.revision
    for error, call in [
        (ErrEmptyKey, lambda: client.put("", "1")),
        (ErrKeyNotFound, lambda: client.put(name + "none", "", ignore_value=True)),
        (ErrValueProvided, lambda: client.put(name, "1", ignore_value=True)),
        (ErrLeaseNotFound, lambda: client.put(name, "1", lease=4711)),
        (ErrLeaseNotFound, lambda: client.lease_revoke(4711)),
        (ErrLeaseTTLTooLarge, lambda: client.lease_grant(9_000_000_001)),
        (ErrFutureRev, lambda: client.range(name, revision=revision + 1000)),
        (ErrFutureRev, lambda: client.compact(revision + 1000)),
        (ErrMemberNotFound, lambda: client.member_remove(4711)),
        (ErrMemberBadURLs, lambda: client.member_add(["nonsense"])),
        (ErrAuthNotEnabled, lambda: client.authenticate("someone", "x")),
        (ErrTooManyOps, lambda: client.txn([], [{"request_range": {"key": name}}] * 129, [])),
        (ErrDuplicateKey, lambda: client.txn([], [{"request_put": {"key": name, "value": "1"}}] * 2, [])),
    ]:
        with pytest.raises(error):
            call()
    assert client.range(name).header.revision == revision


def test_a_compaction(client: Client, name: str) -> None:
    first = client.put(name, "1").header.revision
    last = client.put(name, "2").header.revision
    client.compact(last, physical=True)
    with pytest.raises(ErrCompacted):
        client.range(name, revision=first)
    assert client.range(name, revision=last).kvs[0].value == b"2"
    with pytest.raises(ErrCompacted):
        client.compact(last)
    with pytest.raises(Etcd3WatchCanceled):
        client.Watcher(name, start_revision=first).watch_once(timeout=LIMIT_S)


def test_transactions(client: Client, name: str) -> None:
    txn = client.Txn()
    txn.If(txn.key(name).version == 0)
    txn.Then(txn.put(name, "1"))
    txn.Then(txn.range(name))
    txn.Else(txn.delete(name, prev_kv=True))
    done = txn.commit()
    assert done.succeeded is True
    assert done.responses[1].response_range.kvs[0].value == b"1"
    for compare in (
        txn.key(name).value == "1",
        txn.key(name).value != "2",
        txn.key(name).version < 2,
        txn.key(name).create > done.header.revision - 1,
        txn.key(name).mod == done.header.revision,
        txn.key(name).lease == 0,
    ):
        assert client.txn(compare=[compare.to_compare()], success=[], failure=[]).succeeded is True
    refused = txn.commit()
    assert not refused.succeeded
    assert refused.responses[0].response_delete_range.prev_kvs[0].value == b"1"


def test_leases(client: Client, name: str) -> None:
    with client.Lease(ttl=30) as lease:
        client.put(name, "1", lease=lease.ID)
        found = lease.time_to_live(keys=True)
        assert (found.grantedTTL, found.keys) == (30, [name.encode()])
        assert lease.keepalive_once().TTL == 30
        assert lease.alive()
        eventually(lambda: lease.last_keep)
        with pytest.raises(ErrLeaseExist):
            client.lease_grant(30, lease.ID)
    assert lease.alive() is False
    assert lease.ttl() == -1
    assert "TTL" not in lease.keepalive_once()
    assert "kvs" not in client.range(name)
    negative = client.lease_grant(30, -12)
    assert negative.ID == -12
    client.lease_revoke(-12)


def test_its_own_lock(client: Client, servers: Servers, name: str) -> None:
    """One after the other only: between two at once it chooses nobody, whatever the server (it looks, then writes)."""
    far = servers.followers()[-1]
    lock = client.Lock(name, lock_ttl=30)
    with etcd3.Client("127.0.0.1", servers.port(far), timeout=LIMIT_S) as other:
        rival = other.Lock(name, lock_ttl=30)
        with lock:
            assert lock.is_acquired
            with pytest.raises(EtcdLockAcquireTimeout):
                rival.acquire(timeout=0.3)
            assert not rival.is_acquired
            eventually(lambda: servers.metric(far, WATCHERS) == 0)
            waiter = threading.Thread(target=rival.acquire)
            waiter.start()
            eventually(lambda: servers.metric(far, WATCHERS) == 1)  # what happens before it watches, it misses
        waiter.join(LIMIT_S)
        assert rival.is_acquired
        rival.release()


def test_the_servers_lock(client: Client, servers: Servers, name: str) -> None:
    lease = client.lease_grant(30).ID
    key = client.lock(name, lease).key
    assert key.decode() == f"{name}/{lease:x}"
    assert client.lock(name, lease).key == key, "again, with the same lease"
    got: list[bytes] = []
    with etcd3.Client("127.0.0.1", servers.port(servers.followers()[-1]), timeout=LIMIT_S) as other:
        second = other.lease_grant(30).ID
        waiter = threading.Thread(target=lambda: got.append(other.lock(name, second).key))
        waiter.start()
        eventually(lambda: client.range(name, prefix=True, count_only=True).count == 2)
        assert got == []
        client.unlock(key)
        waiter.join(LIMIT_S)
        assert got == [f"{name}/{second:x}".encode()]
        other.lease_revoke(second)
    client.lease_revoke(lease)
    assert "kvs" not in client.range(name, prefix=True)


def test_watches(client: Client, name: str) -> None:
    first = client.put(name + "a", "1").header.revision
    seen: list[Any] = []
    watcher = client.Watcher(name, prefix=True, start_revision=first, prev_kv=True, progress_notify=True)
    watcher.onEvent(seen.append)
    deleted: list[Any] = []
    watcher.onEvent(EventType.DELETE, deleted.append)
    watcher.runDaemon()
    client.put(name + "a", "2")
    client.delete_range(name + "a")
    for number in range(10):
        client.put(f"{name}{number}", "x" * 20_000)
    eventually(lambda: len(seen) == 13)
    watcher.stop()
    assert [event.type for event in seen] == [EventType.PUT, EventType.PUT, EventType.DELETE] + [EventType.PUT] * 10
    assert [event.value for event in seen[:3]] == [b"1", b"2", None]
    assert [event.prev_kv and event.prev_kv.value for event in seen[:4]] == [None, b"1", b"2", None]
    assert deleted == [seen[2]]
    with pytest.raises(Etcd3WatchCanceled, match="watcher range is empty"):
        client.Watcher(name + "b", range_end=name + "a").watch_once(timeout=LIMIT_S)
    assert client.Watcher(name).watch_once(timeout=0.2) is None


def test_maintenance(client: Client, name: str) -> None:
    client.put(name, "x" * 100_000)
    assert client.hash().hash > 0
    client.defragment()
    assert "alarms" not in client.alarm_get(0, "NONE")
    assert client.status().dbSize > 0
    size, left, digest = 0, None, hashlib.sha256()
    with client.snapshot() as pieces:
        for piece in pieces:
            if "remaining_bytes" in piece:
                left = piece.remaining_bytes
            blob = piece.blob if isinstance(piece.blob, bytes) else b64decode(piece.blob)
            last = blob
            size += len(blob)
    assert size > 100_000
    assert left is not None
    assert len(last) == digest.digest_size


def test_without_users(client: Client) -> None:
    assert "users" not in client.user_list()
    assert "roles" not in client.role_list()
    with pytest.raises(Etcd3Exception, match="root user does not exist"):
        client.auth_enable()


async def test_with_asyncio(servers: Servers, door: int, name: str) -> None:
    """Its streams know only an aiohttp of long ago."""
    client = AioClient("127.0.0.1", servers.port(door))
    try:
        await client.put(name, "1")
        assert (await client.range(name)).kvs[0].value == b"1"
        with pytest.raises(ErrEmptyKey):
            await client.put("", "1")
        lease = (await client.lease_grant(30)).ID
        assert (await client.lease_time_to_live(lease)).grantedTTL == 30
        await client.lease_revoke(lease)
    finally:
        await client.close()


@pytest.mark.slow
def test_a_lock_and_a_watch_outlive_the_leader(servers: Servers, name: str) -> None:
    leader, (near, far) = servers.leader(), servers.followers()
    seen: list[bytes] = []
    with (
        etcd3.Client("127.0.0.1", servers.port(near), timeout=LIMIT_S) as one,
        etcd3.Client("127.0.0.1", servers.port(far), timeout=LIMIT_S) as two,
    ):
        lock = one.Lock("lock" + name, lock_ttl=30)
        lock.acquire()
        watcher = one.Watcher(name, prefix=True)
        watcher.onEvent(lambda event: seen.append(event.value))
        watcher.runDaemon()
        insist(lambda: two.put(name + "1", "1"))
        servers.kill(leader)
        insist(lambda: two.put(name + "2", "2"), Etcd3Exception)
        assert insist(lambda: lock.lease.keepalive_once().TTL, Etcd3Exception) == 30
        assert insist(lambda: two.lease_keep_alive_once(lock.lease.ID).TTL, Etcd3Exception) == 30
        servers.restart(leader)
        insist(lambda: two.put(name + "3", "3"), Etcd3Exception)
        eventually(lambda: b"3" in seen)
        watcher.stop()
        assert sorted(set(seen)) == [b"1", b"2", b"3"]
        assert insist(lambda: lock.is_acquired, Etcd3Exception)
        with pytest.raises(EtcdLockAcquireTimeout):
            two.Lock("lock" + name, lock_ttl=30).acquire(timeout=0.3)
        lock.release()
