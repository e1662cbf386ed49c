"""Patroni's own driver for etcd v3 (`patroni.dcs.etcd3`) on a live cluster of three, through the deaths of its nodes.

The same tests run on kvnode and, where it is on the PATH, on etcd: what holds for both is what Patroni relies on.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from time import time
from typing import TYPE_CHECKING

import pytest

from tests.clients.servers import LIMIT_S, Servers, eventually

pytest.importorskip("patroni.dcs.etcd3", reason="Patroni's etcd3 driver is not installed (extra `clients`)")

from patroni.dcs.etcd import StaleEtcdNode, StaleEtcdNodeGuard
from patroni.dcs.etcd3 import Etcd3Error

from tests.clients.patroni_side import Patronis, complaints, patronis

if TYPE_CHECKING:
    from patroni.dcs.etcd3 import Etcd3

pytestmark = [pytest.mark.system, pytest.mark.slow]

TTL_S = 3
"""Of a lease that is to end in a test: short, and long enough that etcd grants it as it is."""


@pytest.fixture
def patroni(servers: Servers, name: str, caplog: pytest.LogCaptureFixture) -> Iterator[Patronis]:
    """Makes drivers of a Patroni cluster of the test's own. To none of them may a node seem stale, or a stranger."""
    caplog.set_level("INFO", logger="patroni")
    with patronis(f"{name.strip('/')}-", servers.ports()) as made:
        yield made
        for driver in made.drivers:
            seen = driver._client._cluster_id, driver._client._raft_term
            assert all(seen), f"no answer told cluster and term, so none was checked: {seen}"
    logged = [record for when in ("setup", "call", "teardown") for record in caplog.get_records(when)]
    assert complaints(logged, made.settled_s) == []


def leader_seen_by(driver: Etcd3) -> str | None:
    leader = driver.get_cluster().leader
    return leader.name if leader else None


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────


def test_every_node_of_the_cluster_is_found_through_one(patroni: Patronis, servers: Servers) -> None:
    assert sorted(patroni("a", hosts=1)._client.machines_cache) == sorted(map(servers.url, (1, 2, 3)))


def test_one_of_those_who_race_initializes(patroni: Patronis) -> None:
    drivers = [patroni(name) for name in "abc"]
    with ThreadPoolExecutor(len(drivers)) as pool:
        won = list(pool.map(lambda driver: bool(driver.initialize(create_new=True)), drivers))
    assert sorted(won) == [False, False, True]
    winner = drivers[won.index(True)]
    assert winner.get_cluster().initialize == ""
    assert winner.initialize(create_new=False, sysid="7312")
    for driver in drivers:
        assert eventually(lambda driver=driver: driver.get_cluster().initialize) == "7312"
    assert winner.cancel_initialization()
    assert winner.get_cluster().initialize is None
    assert drivers[won.index(False)].initialize(create_new=True), "who failed before is free to try again"


def test_members_are_told_with_their_leases(patroni: Patronis) -> None:
    a, b = patroni("a"), patroni("b")
    assert a.touch_member({"conn_url": "postgres://a", "state": "running", "xlog_location": 7})
    assert b.touch_member({"conn_url": "postgres://b", "state": "starting"})
    for driver in (a, b):
        eventually(lambda driver=driver: len(driver.get_cluster().members) == 2)
        members = {member.name: member for member in driver.get_cluster().members}
        assert {name: member.session for name, member in members.items()} == {"a": a._lease, "b": b._lease}
        assert members["a"].data == {"conn_url": "postgres://a", "state": "running", "xlog_location": 7}
    before = a.get_cluster().get_member("a").version
    assert a.touch_member({"conn_url": "postgres://a", "state": "running", "xlog_location": 7})
    assert a.get_cluster().get_member("a").version == before, "what is there already is not written again"
    assert a.touch_member({"conn_url": "postgres://a", "state": "stopped"})
    assert int(a.get_cluster().get_member("a").version) > int(before)


def test_keys_with_versions_are_not_overwritten_by_who_is_late(patroni: Patronis) -> None:
    a, b = patroni("a"), patroni("b")
    assert a.set_config_value('{"ttl": 30, "where": "Zürich"}')
    config = eventually(lambda: b.get_cluster().config)
    assert config.data == {"ttl": 30, "where": "Zürich"}
    assert b.set_config_value('{"ttl": 20}', config.version)
    assert not a.set_config_value('{"ttl": 40}', config.version)
    assert eventually(lambda: a.get_cluster().config.data == {"ttl": 20})

    first = a.write_sync_state("a", None, 0)
    second = a.write_sync_state("a", ["b"], 0, version=first.version)
    assert second.sync_standby == "b"
    assert a.write_sync_state("a", ["c"], 0, version=first.version) is None
    sync = eventually(lambda: (found := b.get_cluster().sync).sync_standby and found)
    assert (sync.leader, sync.sync_standby, int(sync.version)) == ("a", "b", int(second.version))
    assert not b.delete_sync_state(version=first.version)
    assert b.delete_sync_state(version=second.version)
    assert eventually(lambda: a.get_cluster().sync.is_empty)

    assert b.manual_failover("a", "b")
    failover = eventually(lambda: a.get_cluster().failover)
    assert (failover.leader, failover.candidate) == ("a", "b")
    assert a.manual_failover("", "", version=failover.version)
    assert not b.manual_failover("a", "c", version=failover.version)
    assert eventually(lambda: not b.get_cluster().failover.leader)


def test_what_the_leader_tells_of_itself_is_read_by_all(patroni: Patronis) -> None:
    a, b = patroni("a"), patroni("b")
    assert a.attempt_to_acquire_leader()
    assert a.update_leader(a.get_cluster(), 7, {"slot": 5}, {"a": "http://a:8008"})
    assert a.set_history_value('[[1, 67197376, "no recovery target specified"]]')
    seen = eventually(lambda: (found := b.get_cluster()).history and found)
    assert seen.history.lines == [[1, 67197376, "no recovery target specified"]]
    assert (seen.status.last_lsn, seen.status.slots["slot"], seen.failsafe) == (7, 5, {"a": "http://a:8008"})


def test_patronictl_reads_what_was_just_written(patroni: Patronis) -> None:
    a, ctl = patroni("a"), patroni("ctl", ctl=True)
    for value in range(20):
        assert a.set_config_value(json.dumps({"value": value}))
        assert ctl.get_cluster().config.data == {"value": value}


def test_a_cluster_is_deleted_and_its_neighbour_is_not(patroni: Patronis, servers: Servers) -> None:
    # The end of one's interval is the prefix of the other.
    with patronis(f"{patroni.scope}0", servers.ports()) as others:
        other = others("x")
        assert other.initialize(create_new=True, sysid="1")
        a, b, ctl = patroni("a"), patroni("b"), patroni("ctl", ctl=True)
        assert a.initialize(create_new=True, sysid="2")
        assert a.attempt_to_acquire_leader()
        assert a.touch_member({"state": "running"})
        assert eventually(lambda: b.get_cluster().members)
        assert ctl.delete_cluster()
        assert ctl.get_cluster().is_empty()
        assert eventually(lambda: a.get_cluster().is_empty() and b.get_cluster().is_empty())
        assert other.get_cluster().initialize == "1"


# ── the leader ──────────────────────────────────────────────────────────────────────────────────────


def test_one_of_those_who_race_leads_until_it_lets_go(patroni: Patronis) -> None:
    drivers = [patroni(name) for name in "abc"]
    with ThreadPoolExecutor(len(drivers)) as pool:
        won = list(pool.map(lambda driver: bool(driver.attempt_to_acquire_leader()), drivers))
    assert sorted(won) == [False, False, True]
    leader, other = drivers[won.index(True)], drivers[won.index(False)]
    for driver in drivers:
        assert eventually(lambda driver=driver: leader_seen_by(driver)) == leader._name
    held = other.get_cluster().leader
    assert held.session == leader._lease
    assert not other.delete_leader(held), "it is not its to delete"
    assert leader.update_leader(leader.get_cluster(), 1)
    assert leader.get_cluster().leader.version == held.version, "to renew a lease writes nothing"
    assert leader.delete_leader(held)
    assert other.attempt_to_acquire_leader()


def test_watch_wakes_for_what_patroni_waits_for(patroni: Patronis) -> None:
    a, b = patroni("a"), patroni("b")
    assert eventually(lambda: not b.watch(None, 0.1)), "nothing happens, and nothing wakes it"
    assert a.attempt_to_acquire_leader()
    assert b.watch(None, LIMIT_S)
    assert eventually(lambda: leader_seen_by(b)) == "a"
    assert a.update_leader(a.get_cluster(), 7)
    assert b.watch(None, LIMIT_S), "the position of the leader"
    assert a.set_config_value('{"ttl": 30}')
    assert eventually(lambda: b.get_cluster().config)
    assert eventually(lambda: not b.watch(None, 0.1))
    assert a.set_config_value('{"ttl": 20}')
    assert b.watch(None, LIMIT_S), "the configuration"
    assert a.delete_leader(a.get_cluster().leader)
    assert b.watch(None, LIMIT_S), "the leader is gone"
    assert leader_seen_by(b) is None


def test_who_no_longer_renews_is_replaced_and_learns_of_it(patroni: Patronis) -> None:
    a, b = patroni("a", ttl=TTL_S), patroni("b")
    assert a.attempt_to_acquire_leader()
    assert a.touch_member({"state": "running"})
    before = a.get_cluster()
    assert eventually(lambda: leader_seen_by(b)) == "a"
    assert eventually(lambda: b.get_cluster().members)
    assert not b.attempt_to_acquire_leader()
    assert eventually(lambda: b.watch(None, LIMIT_S) and leader_seen_by(b) is None), "woken by the end of the lease"
    assert b.get_cluster().members == [], "both of its keys go in one revision"
    assert b.attempt_to_acquire_leader()
    assert a.update_leader(before, 1) is False
    assert eventually(lambda: leader_seen_by(a)) == "b"


def test_a_restarted_leader_keeps_its_key_under_its_new_lease(patroni: Patronis) -> None:
    before, other = patroni("a"), patroni("b")
    assert before.attempt_to_acquire_leader()
    after = patroni("a")
    assert after._lease != before._lease
    assert after.update_leader(seen := after.get_cluster(), 1)
    assert after.get_cluster().leader.session == after._lease
    assert after._client.call_rpc("/lease/revoke", {"ID": before._lease})
    assert eventually(lambda: (found := other.get_cluster().leader) and found.session == after._lease)
    # Where the key is gone as well, the second half of that transaction makes it again.
    assert after.delete_leader(after.get_cluster().leader)
    assert after.update_leader(seen, 1)
    assert after.get_cluster().leader.session == after._lease
    assert other.update_leader(seen, 1) is False


def test_a_lost_lease_is_told_by_name_and_replaced(patroni: Patronis) -> None:
    a = patroni("a")
    lost = a._lease
    assert a._client.call_rpc("/lease/revoke", {"ID": lost})
    assert a.attempt_to_acquire_leader(), "with another lease, at the second attempt"
    assert a._lease != lost
    assert a.get_cluster().leader.session == a._lease
    assert a._client.call_rpc("/lease/revoke", {"ID": a._lease})
    assert not a.touch_member({"state": "running"})
    assert a._lease is None
    assert a.touch_member({"state": "running"})


# ── nodes that die ──────────────────────────────────────────────────────────────────────────────────


def test_the_node_they_speak_to_is_killed(patroni: Patronis, servers: Servers, door: int) -> None:
    a, b = drivers = [patroni(name) for name in "ab"]
    for driver in drivers:
        driver._client.set_base_uri(servers.url(door))
    assert a.initialize(create_new=True, sysid="7312")
    assert a.attempt_to_acquire_leader()
    assert all(driver.touch_member({"state": "running"}) for driver in drivers)
    assert eventually(lambda: leader_seen_by(b)) == "a"
    held = b.get_cluster().leader
    lsns = itertools.count(1)

    def goes_on() -> int:
        """Leads, tells where it is, and nobody takes its place."""
        lsn = next(lsns)
        assert a.update_leader(a.get_cluster(), lsn)
        assert not b.attempt_to_acquire_leader()
        return lsn

    def heard() -> bool:
        return goes_on() == eventually(b.get_cluster).status.last_lsn

    assert eventually(heard)
    servers.kill(door)
    assert eventually(heard), "the watch goes on at another node"
    patroni.settled_s = time()
    assert servers.url(door) not in {driver._client._base_uri for driver in drivers}
    assert a.touch_member({"state": "running", "role": "primary"})
    assert eventually(lambda: b.get_cluster().get_member("a").data.get("role")) == "primary"
    servers.restart(door)
    assert eventually(heard)
    found = b.get_cluster()
    assert (found.initialize, found.leader.version, found.leader.session) == ("7312", held.version, held.session)


def test_without_a_majority_nobody_is_told_that_it_leads(patroni: Patronis, servers: Servers) -> None:
    a, b = patroni("a", retry_s=3), patroni("b", retry_s=3)
    assert a.attempt_to_acquire_leader()
    held = a.get_cluster()

    def is_told_that_it_may_not() -> bool:
        try:
            return not a.update_leader(held, 1)
        except Etcd3Error:
            return True

    killed = servers.followers()
    for node in killed:
        servers.kill(node)
    with pytest.raises(Etcd3Error):
        b.attempt_to_acquire_leader()
    assert eventually(is_told_that_it_may_not), "the node that is left renews leases only as long as it leads"
    for node in killed:
        servers.restart(node)
    assert a.update_leader(held, 1)
    assert not b.attempt_to_acquire_leader()
    assert eventually(lambda: leader_seen_by(b)) == "a"
    assert b.get_cluster().leader.version == held.leader.version


# ── what would be heard ─────────────────────────────────────────────────────────────────────────────


def test_a_stale_node_and_a_stranger_are_complained_of(caplog: pytest.LogCaptureFixture) -> None:
    guard = StaleEtcdNodeGuard()
    guard._check_cluster_raft_term("7", "2")
    assert complaints(caplog.records) == []
    with pytest.raises(StaleEtcdNode):
        guard._check_cluster_raft_term("7", "1")
    guard._check_cluster_raft_term("8", "1")
    stale, strange = complaints(caplog.records)
    assert complaints(caplog.records, time() + 1.0) == [strange], "another cluster is never in order"
    assert "term 1" in stale
