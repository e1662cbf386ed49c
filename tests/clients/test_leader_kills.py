"""What etcd3gw and tooz hold and see while the node that leads is killed, and after its return.

Neither knows more than one node. At a node that lives a client goes on by itself, for calls that are refused while
there is no leader are made again; at the node that died it goes on when that node is back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from itertools import count, islice
from typing import TYPE_CHECKING, Any

import pytest

from tests.clients.conftest import TIMEOUT_S, MakeMember
from tests.clients.servers import Servers, eventually, insist, watching

pytest.importorskip("etcd3gw", reason="etcd3gw is not installed (extra `clients`)")
pytest.importorskip("tooz", reason="tooz is not installed (extra `clients`)")

import etcd3gw
from etcd3gw.exceptions import ConnectionFailedError, Etcd3Exception
from etcd3gw.lease import Lease
from tooz.coordination import ToozConnectionError, ToozError

if TYPE_CHECKING:
    from etcd3gw.client import Etcd3Client

pytestmark = [pytest.mark.system, pytest.mark.slow]

REFUSALS = (Etcd3Exception, ToozError)


Repeat = Callable[[Callable[[], None]], Callable[[], None]]


@pytest.fixture
def repeat() -> Iterator[Repeat]:
    """Calls something again and again in a thread of its own, until told to stop; what it raised is raised then."""
    with ThreadPoolExecutor() as pool:
        stops = []

        def start(call: Callable[[], None]) -> Callable[[], None]:
            over = threading.Event()

            def run() -> None:
                while not over.wait(0.01):
                    call()

            running = pool.submit(run)

            def stop() -> None:
                over.set()
                running.result()

            stops.append(stop)
            return stop

        yield start
        for stop in stops:
            stop()


def client_at(servers: Servers, node: int) -> Etcd3Client:
    return etcd3gw.client(host="127.0.0.1", port=servers.port(node), timeout=TIMEOUT_S)


def test_a_lock_stays_with_its_holder(
    servers: Servers,
    member: MakeMember,
    name: str,
    repeat: Repeat,
) -> None:
    leader, (near, far) = servers.leader(), servers.followers()
    holder, rival = member("holder", near), member("rival", far)
    lock, rivals_lock = holder.get_lock(name.encode()), rival.get_lock(name.encode())
    assert lock.acquire()
    [(value, metadata)] = holder.client.get(lock._key, metadata=True)
    tries: list[bool] = []

    def contend() -> None:
        with suppress(ToozError):
            tries.append(rivals_lock.acquire(blocking=False))

    stop = repeat(contend)
    eventually(lambda: len(tries) > 3)
    servers.kill(leader)
    insist(holder.heartbeat, *REFUSALS)
    assert insist(lock.heartbeat, *REFUSALS) is True
    assert insist(Lease(lock._lease.id, rival.client).refresh, *REFUSALS) == TIMEOUT_S, "renewed at another node"
    tried = len(tries)
    eventually(lambda: len(tries) > tried + 5)

    servers.restart(leader)
    returned = client_at(servers, leader)
    assert insist(Lease(lock._lease.id, returned).refresh, *REFUSALS) == TIMEOUT_S, "renewed at the node that came back"
    for node in (leader, near, far):
        assert insist(lambda node=node: client_at(servers, node).get(lock._key, metadata=True), *REFUSALS) == [
            (value, metadata)
        ]
    stop()
    assert not any(tries)
    assert lock.acquired
    assert lock.release() is True
    assert insist(lambda: member("next", leader).get_lock(name.encode()).acquire(blocking=10.0), *REFUSALS)


def test_a_member_stays_while_its_heart_beats_and_no_longer(
    servers: Servers,
    member: MakeMember,
    name: str,
) -> None:
    leader, (near, far) = servers.leader(), servers.followers()
    group = name.strip("/").encode()
    at = {node: member(f"at{node}", node, heart=True) for node in (leader, near, far)}
    at[near].create_group(group).get()
    for one in at.values():
        one.join_group(group).get()
    silent = member("silent", near, membership_timeout=3)
    silent.join_group(group).get()
    everyone = {b"at1", b"at2", b"at3"}
    assert at[far].get_members(group).get() == {*everyone, b"silent"}
    seen: list[Any] = []
    at[far].watch_join_group(group, seen.append)
    at[far].watch_leave_group(group, seen.append)

    servers.kill(leader)
    with pytest.raises(ToozConnectionError):
        at[leader].get_members(group).get()
    insist(at[far].run_watchers, *REFUSALS)
    assert everyone <= insist(lambda: at[near].get_members(group).get(), *REFUSALS)
    servers.restart(leader)
    eventually(lambda: insist(at[far].run_watchers, *REFUSALS) or seen)
    for one in at.values():
        insist(one.heartbeat, *REFUSALS)
    insist(at[far].run_watchers, *REFUSALS)
    assert [(type(event).__name__, event.member_id) for event in seen] == [("MemberLeftGroup", b"silent")]
    for one in at.values():
        assert insist(lambda one=one: one.get_members(group).get(), *REFUSALS) == everyone
    at[leader].leave_group(group).get()
    at[far].run_watchers()
    at[far].run_watchers()
    assert [event.member_id for event in seen] == [b"silent", b"at%d" % leader]


def test_a_client_of_the_node_that_dies_goes_on_when_it_is_back(
    servers: Servers,
    member: MakeMember,
    name: str,
) -> None:
    leader, (near, _) = servers.leader(), servers.followers()
    holder = member("holder", leader)
    lock, rivals_lock = (one.get_lock(name.encode()) for one in (holder, member("rival", near)))
    assert lock.acquire()
    servers.kill(leader)
    with pytest.raises(ConnectionFailedError):
        holder.heartbeat()
    with pytest.raises(ToozConnectionError):
        lock.heartbeat()
    holder.heart.start()  # tries by itself, once a second, until it is heard
    assert insist(lambda: rivals_lock.acquire(blocking=False), *REFUSALS) is False
    servers.restart(leader)
    eventually(lambda: holder.heart.beats)
    assert lock.acquired
    assert insist(lock.heartbeat, *REFUSALS) is True
    assert rivals_lock.acquire(blocking=False) is False
    assert lock.release() is True
    assert rivals_lock.acquire(blocking=False) is True


def test_a_watch_tells_every_change_once(servers: Servers, name: str, repeat: Repeat) -> None:
    leader, (near, far) = servers.leader(), servers.followers()
    writer, numbers, acknowledged = client_at(servers, far), count(), []

    def write() -> None:
        value = str(next(numbers))
        with suppress(Etcd3Exception):  # it may have been done all the same, now or a little later
            writer.put(name + value, value)
            acknowledged.append(value.encode())

    def some_more() -> None:
        told = len(acknowledged)
        eventually(lambda: len(acknowledged) > told + 5)

    def until_the_last(events: Iterator[Any]) -> list[Any]:
        found = []
        for event in events:
            found.append(event)
            if event["kv"]["value"] == b"last":
                break
        return found

    def watch(node: int, **options: Any) -> AbstractContextManager[Iterator[Any]]:
        return watching(client_at(servers, node).watch_prefix, name, **options)

    with watch(near) as at_one_that_lives:
        with watch(leader) as at_one_that_dies:
            stop = repeat(write)
            heard = list(islice(at_one_that_dies, 5))
            servers.kill(leader)
            some_more()
            servers.restart(leader)
            some_more()
            stop()
            insist(lambda: writer.put(name + "last", "last"), Etcd3Exception)
        whole = until_the_last(at_one_that_lives)

    # The other heard no more. Its user asks again, after the last that it was told, at any node.
    after = int(heard[-1]["kv"]["mod_revision"]) + 1
    for node in (leader, near, far):
        with watch(node, start_revision=after) as events:
            assert heard + until_the_last(events) == whole, node
    values = [event["kv"]["value"] for event in whole]
    revisions = [int(event["kv"]["mod_revision"]) for event in whole]
    assert revisions == sorted(set(revisions)), "in order, and none twice"
    assert len(set(values)) == len(values)
    assert set(acknowledged) <= set(values)
