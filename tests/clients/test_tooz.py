"""tooz, OpenStack's coordination library, with its etcd3gw driver: locks, groups, liveness, who leads, watches."""

from __future__ import annotations

import threading
from time import monotonic
from typing import Any

import pytest

from tests.clients.conftest import MakeMember
from tests.clients.servers import eventually

pytest.importorskip("etcd3gw", reason="etcd3gw is not installed (extra `clients`)")
pytest.importorskip("tooz", reason="tooz is not installed (extra `clients`)")

import tooz
from tooz import coordination

pytestmark = pytest.mark.system


@pytest.fixture
def group(name: str) -> bytes:
    return name.strip("/").encode()


def test_what_it_promises(member: MakeMember) -> None:
    driver = member("m", 1)
    assert coordination.Characteristics.LINEARIZABLE in driver.CHARACTERISTICS
    assert driver.requires_beating


# Locks


def test_a_lock_has_one_holder_at_all_nodes(member: MakeMember, name: str) -> None:
    members = [member(f"m{node}", node) for node in (1, 2, 3)]
    locks = [one.get_lock(name.encode()) for one in members]
    for at, lock in enumerate(locks):
        assert lock.acquire(blocking=False) is True
        assert lock.acquired
        others = [other for other in locks if other is not lock]
        assert [other.acquire(blocking=False) for other in others] == [False, False], at
        assert lock.heartbeat() is True
        assert [other.heartbeat() for other in others] == [False, False]
        assert [other.release() for other in others] == [False, False]
        assert lock.release() is True
        assert not lock.acquired
    with locks[0], pytest.raises(coordination.LockAcquireFailed), locks[1](blocking=False):
        pass
    with pytest.raises(tooz.NotImplemented):
        locks[0].acquire(shared=True)


def test_who_waits_for_a_lock_gets_it(member: MakeMember, name: str) -> None:
    first, second = (member(f"m{node}", node).get_lock(name.encode()) for node in (1, 2))
    assert first.acquire()
    got = threading.Event()
    waiter = threading.Thread(target=lambda: second.acquire(blocking=20.0) and got.set())
    waiter.start()
    assert not got.wait(0.1)
    assert first.release()
    waiter.join()
    assert got.is_set()
    assert second.release()


def test_a_lock_that_is_broken(member: MakeMember, name: str) -> None:
    first, second = (member(f"m{node}", node).get_lock(name.encode()) for node in (1, 2))
    assert second.break_() is False
    assert first.acquire()
    assert second.break_() is True
    assert second.acquire(blocking=False) is True
    assert first.release() is False, "it is another's now"
    assert second.release() is True


# Groups


def test_groups(member: MakeMember, group: bytes) -> None:
    one, two = member("one", 1), member("two", 2)
    with pytest.raises(coordination.GroupNotCreated):
        one.get_members(group).get()
    with pytest.raises(coordination.GroupNotCreated):
        one.join_group(group).get()
    with pytest.raises(coordination.GroupNotCreated):
        one.delete_group(group).get()
    one.create_group(group).get()
    with pytest.raises(coordination.GroupAlreadyExist):
        two.create_group(group).get()
    assert group in two.get_groups().get()
    assert two.get_members(group).get() == set()
    one.delete_group(group).get()
    assert group not in two.get_groups().get()


def test_members_and_what_they_can(member: MakeMember, group: bytes) -> None:
    one, two, three = (member(name, node) for node, name in enumerate(("one", "two", "three"), 1))
    one.create_group(group).get()
    one.join_group(group, capabilities={"weight": 3}).get()
    two.join_group(group, {"tags": ["a", "ä"]}).get()
    with pytest.raises(coordination.MemberAlreadyExist):
        two.join_group(group).get()
    assert three.get_members(group).get() == {b"one", b"two"}
    assert three.get_member_capabilities(group, b"one").get() == {"weight": 3}
    assert three.get_members_with_capabilities(group).get() == {b"one": {"weight": 3}, b"two": {"tags": ["a", "ä"]}}
    one.update_capabilities(group, {"weight": 4}).get()
    assert three.get_member_capabilities(group, b"one").get() == {"weight": 4}
    with pytest.raises(coordination.MemberNotJoined):
        three.update_capabilities(group, {}).get()
    with pytest.raises(coordination.GroupNotEmpty):
        three.delete_group(group).get()
    one.leave_group(group).get()
    with pytest.raises(coordination.MemberNotJoined):
        one.leave_group(group).get()
    assert three.get_members(group).get() == {b"two"}
    two.stop()
    assert three.get_members(group).get() == set(), "who stops leaves"
    three.delete_group(group).get()


@pytest.mark.slow
def test_only_while_the_heart_beats_a_member_is_one_and_has_its_locks(
    member: MakeMember, name: str, group: bytes
) -> None:
    beating = member("beating", 1, heart=True, lock_timeout=4, membership_timeout=4)
    beating.create_group(group).get()
    began = monotonic()
    silent = member("silent", 2, lock_timeout=2, membership_timeout=2)
    other = member("other", 3)
    kept, lost = beating.get_lock(b"kept" + name.encode()), silent.get_lock(b"lost" + name.encode())
    for one, lock in ((beating, kept), (silent, lost)):
        one.join_group(group).get()
        assert lock.acquire()

    assert other.get_lock(b"lost" + name.encode()).acquire(blocking=20.0)
    assert monotonic() - began > 2.0, "nobody gets it before its time is over"
    assert other.get_lock(b"kept" + name.encode()).acquire(blocking=False) is False
    eventually(lambda: other.get_members(group).get() == {b"beating"})
    eventually(lambda: beating.heart.beats > 2)  # longer than without a heart
    assert other.get_members(group).get() == {b"beating"}
    assert other.get_lock(b"kept" + name.encode()).acquire(blocking=False) is False
    assert lost.release() is False
    assert kept.release() is True

    silent.heartbeat()
    silent.join_group(group).get()  # it is none, or this were refused


def test_each_coming_and_going_is_told_once(member: MakeMember, group: bytes) -> None:
    watcher, one, two = (member(name, node) for node, name in enumerate(("watcher", "one", "two"), 1))
    watcher.create_group(group).get()
    seen: list[tuple[str, bytes]] = []

    def joined(event: Any) -> None:
        seen.append(("joined", event.member_id))

    def left(event: Any) -> None:
        seen.append(("left", event.member_id))

    watcher.watch_join_group(group, joined)
    watcher.watch_leave_group(group, left)
    one.join_group(group).get()
    watcher.run_watchers()
    two.join_group(group).get()
    one.leave_group(group).get()
    watcher.run_watchers()
    watcher.run_watchers()
    assert seen[0] == ("joined", b"one")
    assert sorted(seen[1:]) == [("joined", b"two"), ("left", b"one")]
    watcher.unwatch_join_group(group, joined)
    one.join_group(group).get()
    watcher.unwatch_leave_group(group, left)
    two.leave_group(group).get()
    watcher.run_watchers()
    assert len(seen) == 3
    with pytest.raises(coordination.WatchCallbackNotFound):
        watcher.unwatch_join_group(group, joined)


def test_work_is_divided_among_members(member: MakeMember, group: bytes) -> None:
    one, two = member("one", 1), member("two", 2)
    first = one.join_partitioned_group(group)
    second = two.join_partitioned_group(group)
    one.run_watchers()
    jobs = [f"job{number}" for number in range(100)]
    owners = [first.members_for_object(job) for job in jobs]
    assert owners == [second.members_for_object(job) for job in jobs]
    assert set().union(*owners) == {b"one", b"two"}
    two.leave_partitioned_group(second)
    one.run_watchers()
    assert all(first.belongs_to_self(job) for job in jobs)


def test_who_leads(member: MakeMember, name: str) -> None:
    """The driver has no election of its own, as of tooz 9: who holds a lock leads, and who waits for it is next."""
    one, two = member("one", 1), member("two", 2)
    with pytest.raises(tooz.NotImplemented):
        one.watch_elected_as_leader(b"group", print)
    with pytest.raises(tooz.NotImplemented):
        one.run_elect_coordinator()
    leads = [driver.get_lock(name.encode()) for driver in (one, two)]
    assert leads[0].acquire(blocking=False)
    successor = threading.Thread(target=leads[1].acquire, kwargs={"blocking": 20.0})
    successor.start()
    one.heartbeat()
    assert [lead.acquired for lead in leads] == [True, False]
    assert leads[0].release()
    successor.join()
    assert [lead.acquired for lead in leads] == [False, True]
    assert leads[0].acquire(blocking=False) is False
