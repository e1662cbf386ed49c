"""The whole runtime, three nodes, virtual time: what a user relies on, under crashes and cuts.

Real node, log, codec and store; simulated time, network and disk (`kvnode.sim`). Nothing here waits for real.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from kvnode.errors import CompareFailed, KvnodeError, LeadershipLost, NoLeader, Overloaded, StorageFailed, Timeout
from kvnode.ids import NodeId
from kvnode.kv.interface import Options
from kvnode.kv.requests import Compare, Delete, Put, Range
from kvnode.sim.loop import run_virtual
from kvnode.sim.runtime.cluster import Cluster


def simulate(
    scenario: Callable[[Cluster], Awaitable[None]], *, seed: int = 1, size: int = 3, **settings: object
) -> None:
    """Run `scenario` on a started cluster; nothing may have failed behind its back."""

    async def main() -> None:
        cluster = Cluster(seed, size, {name.replace("__", "."): value for name, value in settings.items()})
        await cluster.start_all()
        await scenario(cluster)
        assert not cluster.failures, cluster.failures

    run_virtual(main())


def other_than(cluster: Cluster, leader: int) -> list[NodeId]:
    return [member for member in cluster.members if member != leader]


def test_a_put_on_any_node_is_read_on_every_other() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.elect()
        for member in cluster.ids:
            reply = await cluster.kv(member).put(f"k{member}", f"v{member}")
            assert reply.revision == member + 1
            for reader in cluster.ids:
                found = await cluster.kv(reader).get(f"k{member}")
                assert found is not None
                assert (found.value, found.version) == (f"v{member}".encode(), 1)
        await cluster.settle()

    simulate(scenario)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_clusters_of_every_size_elect_and_serve(size: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.elect()
        await cluster.kv(1).put("k", "v")
        found = await cluster.kv(size).get("k")
        assert found is not None
        assert found.value == b"v"

    simulate(scenario, size=size)


def test_transactions_conditions_and_ranges_work_through_a_follower() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        kv = cluster.kv(other_than(cluster, leader.id)[0])
        first = await kv.put("a", "1", expect_revision=0)
        with pytest.raises(CompareFailed) as caught:
            await kv.put("a", "2", expect_revision=0)
        assert caught.value.detail["revision"] == first.revision
        reply = await kv.txn([Compare(b"a", "value", "=", b"1")], [Put(b"b", b"2"), Delete(b"a"), Range(b"b")])
        assert reply.succeeded
        assert reply.revision == first.revision + 1
        page = await kv.range_prefix("")
        assert [(item.key, item.value) for item in page.items] == [(b"b", b"2")]

    simulate(scenario)


def test_a_thousand_concurrent_increments_by_compare_and_set_count_to_a_thousand() -> None:
    """UQ-T1: no lost update, no duplicate success."""

    async def scenario(cluster: Cluster) -> None:
        await cluster.elect()
        await cluster.kv(1).put("n", "0")

        async def increment(member: int) -> None:
            while True:
                found = await cluster.kv(member).get("n")
                assert found is not None
                try:
                    await cluster.kv(member).put("n", str(int(found.value) + 1), expect_revision=found.mod_revision)
                except CompareFailed:
                    continue
                return

        await asyncio.gather(*(increment(1 + number % 3) for number in range(60)))
        found = await cluster.kv(2).get("n")
        assert found is not None
        assert found.value == b"60"
        assert found.version == 61

    simulate(scenario)


@pytest.mark.parametrize("end", ["crash", "kill"])
@pytest.mark.parametrize("seed", range(2))
def test_nothing_acknowledged_is_lost_when_leaders_die_under_load(seed: int, end: str) -> None:
    """I12: writers on all nodes, five leaders in a row die; every acknowledged write is there afterwards."""

    async def scenario(cluster: Cluster) -> None:
        await cluster.elect()
        acknowledged: dict[str, str] = {}
        stop = False

        async def write(worker: int) -> None:
            number = 0
            while not stop:
                number += 1
                key, value = f"w{worker}-{number % 7}", f"{number}"
                for member in list(cluster.members):
                    try:
                        await cluster.kv(member).execute(Put(key.encode(), value.encode()), Options(timeout_ms=2_000))
                    except (KvnodeError, KeyError):
                        acknowledged.pop(key, None)  # may or may not have happened: says nothing about the key
                        continue
                    acknowledged[key] = value
                    break
                await asyncio.sleep(0.001)

        workers = [asyncio.create_task(write(number)) for number in range(6)]
        for _ in range(5):
            leader = await cluster.elect()
            await asyncio.sleep(0.3)
            getattr(cluster, end)(leader.id)
            await cluster.until(lambda gone=leader: (now := cluster.leader()) is not None and now.term > gone.term)
            await cluster.start(leader.id)
        stop = True
        await asyncio.gather(*workers)
        await cluster.elect()
        await cluster.settle()
        assert len(acknowledged) > 20
        for key, value in acknowledged.items():
            found = await cluster.kv(1).get(key)
            assert found is not None, key
            assert found.value.decode() == value, key

    simulate(scenario, seed=seed)


@pytest.mark.parametrize("seed", range(4))
def test_power_loss_of_the_whole_cluster_keeps_every_acknowledged_write(seed: int) -> None:
    """F9, F11: all nodes lose power at the same instant, ten times."""

    async def scenario(cluster: Cluster) -> None:
        written = 0
        for round_ in range(10):
            leader = await cluster.elect()
            await asyncio.gather(*(leader.put(f"{round_}/{number}", "x") for number in range(20)))
            written += 20
            pending = [asyncio.ensure_future(leader.put(f"late/{round_}", "x"))]
            await asyncio.sleep(0.0003 * round_)
            for member in cluster.ids:
                cluster.crash(member)
            await asyncio.gather(*pending, return_exceptions=True)
            await cluster.start_all()
        await cluster.elect()
        for round_ in range(10):
            page = await cluster.kv(1).range_prefix(f"{round_}/")
            assert len(page.items) == 20
        await cluster.settle()

    simulate(scenario, seed=seed, storage__segment_bytes=16 << 10)


def test_an_isolated_leader_acknowledges_nothing_and_reads_nothing() -> None:
    """HW-T2, RW-T1: its clients get `unknown`, its stale reads never show the write, and after healing it is gone."""

    async def scenario(cluster: Cluster) -> None:
        old = await cluster.elect()
        await old.put("k", "before")
        cluster.network.isolate(old.id)
        lost = asyncio.ensure_future(old.execute(Put(b"k", b"lost"), Options(timeout_ms=1_000)))
        read = asyncio.ensure_future(old.execute(Range(b"k"), Options(timeout_ms=1_000)))
        await asyncio.sleep(0.05)
        stale = await old.get("k", consistency="stale")
        assert stale is not None
        assert stale.value == b"before"
        with pytest.raises((Timeout, LeadershipLost)) as caught:
            await lost
        assert caught.value.may_have_applied
        with pytest.raises((Timeout, NoLeader)):
            await read
        await cluster.until(lambda: (now := cluster.leader()) is not None and now.id != old.id)
        new = cluster.leader()
        assert new is not None
        await new.put("k", "after")
        cluster.network.heal()
        await cluster.until(lambda: old.status().role == "follower")
        found = await old.get("k")
        assert found is not None
        assert found.value == b"after"
        await cluster.settle()

    simulate(scenario)


def test_without_a_quorum_writes_are_refused_as_not_applied_once_the_loss_is_known() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        for member in other_than(cluster, leader.id):
            cluster.kill(member)
        await cluster.until(lambda: leader.status().role != "leader")
        started = cluster.loop.time()
        with pytest.raises(NoLeader) as caught:
            await leader.put("k", "v")
        assert not caught.value.may_have_applied
        assert 1.4 < cluster.loop.time() - started < 2.0, "design: no leader → 503 after 1.5 s"

    simulate(scenario)


def test_a_killed_leader_is_replaced_within_a_fraction_of_the_election_timeout() -> None:
    """Design, failover: a closed socket and a refused port start the pre-vote after 10-50 ms."""

    async def scenario(cluster: Cluster) -> None:
        gaps = []
        for _ in range(10):
            leader = await cluster.elect()
            cluster.kill(leader.id)
            died = cluster.loop.time()
            await cluster.until(lambda gone=leader: (now := cluster.leader()) is not None and now.term > gone.term)
            gaps.append(cluster.loop.time() - died)
            await cluster.start(leader.id)
        gaps.sort()
        assert gaps[5] < 0.15, gaps

    simulate(scenario)


def test_a_leader_whose_disk_hangs_is_replaced_and_its_process_ends() -> None:
    """HB6, F26, S71: heartbeats do not touch the disk, so a hung fsync alone would keep a useless leader for ever."""

    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        cluster.members[leader.id].workers["log"].hang()
        waiting = asyncio.ensure_future(leader.execute(Put(b"k", b"v"), Options(timeout_ms=60_000)))
        await cluster.until(lambda: (now := cluster.leader()) is not None and now.id != leader.id, within_s=3.0)
        new = cluster.leader()
        assert new is not None
        await new.put("other", "v")
        await cluster.until(lambda: leader.id in cluster.failures, within_s=60.0)
        assert isinstance(cluster.failures.pop(leader.id), StorageFailed)
        await asyncio.gather(waiting, return_exceptions=True)

    simulate(scenario, limits__timeout_ms_max=60_000)


def test_a_store_whose_commit_hangs_ends_its_process_and_costs_no_leader() -> None:
    """F26: the log goes on meanwhile, so nothing but a watch would ever notice."""

    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        hung = other_than(cluster, leader.id)[0]
        cluster.members[hung].workers["flusher"].hang()
        await leader.put("k", "v")
        await cluster.until(lambda: hung in cluster.failures, within_s=60.0)
        assert isinstance(cluster.failures.pop(hung), StorageFailed)
        assert leader.status().role == "leader"
        await leader.put("k", "w")

    simulate(scenario)


def test_a_failed_fsync_ends_the_node_and_acknowledges_nothing() -> None:
    """F13, R11: one error, no retry, no 200."""

    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        member = cluster.members[leader.id]

        def broken(batch: object) -> None:
            raise StorageFailed("fdatasync: Input/output error")

        member.wal.write = broken  # type: ignore[method-assign]
        with pytest.raises(KvnodeError) as caught:
            await leader.put("k", "v")
        assert caught.value.may_have_applied
        assert isinstance(cluster.failures.pop(leader.id), StorageFailed)
        cluster.kill(leader.id)
        await cluster.elect()

    simulate(scenario)


def test_overload_is_a_clean_refusal_and_no_election() -> None:
    """UQ1, UQ-T2: a flood beyond the queue's bound gets 429s, the term stays."""

    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        term = leader.term
        results = await asyncio.gather(
            *(leader.put(f"k{number}", bytes(1_000)) for number in range(2_000)), return_exceptions=True
        )
        refused = [result for result in results if isinstance(result, Overloaded)]
        assert 0 < len(refused) < 2_000
        assert all(isinstance(result, Overloaded) or not isinstance(result, Exception) for result in results)
        assert leader.term == term
        await leader.put("after", "x")

    simulate(scenario, limits__queue_items_max=500)


def test_a_stopping_leader_hands_over_and_answers_everybody() -> None:
    """F6, UQ-T4: SIGTERM under load: nobody is left without an answer, the others go on without an election timeout."""

    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        pending = [asyncio.ensure_future(leader.put(f"k{number}", "v")) for number in range(50)]
        await asyncio.sleep(0.0001)
        began = cluster.loop.time()
        await leader.stop()
        results = await asyncio.gather(*pending, return_exceptions=True)
        acknowledged = [r for r in results if not isinstance(r, Exception)]
        assert all(isinstance(r, KvnodeError) for r in results if isinstance(r, Exception))
        cluster.members.pop(leader.id)
        new = await cluster.elect()
        assert cluster.loop.time() - began < 0.5
        page = await new.range_prefix("k")
        assert len(page.items) >= len(acknowledged)

    simulate(scenario)


def test_a_restarted_follower_catches_up_from_disk_when_memory_no_longer_holds_its_entries() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        gone = other_than(cluster, leader.id)[0]
        cluster.kill(gone)
        for number in range(300):
            await leader.put(f"k{number}", bytes(2_000))
        await cluster.start(gone)
        await cluster.settle()
        found = await cluster.members[gone].node.get("k0", consistency="stale")
        assert found is not None

    simulate(scenario, raft__log_cache_bytes=64 << 10, storage__segment_bytes=64 << 10)


@pytest.mark.parametrize("seed", range(6))
def test_every_claim_about_a_write_is_true_under_loss_duplication_and_reordering(seed: int) -> None:
    """RW-T1, I29: `not-applied` never has an effect; what was acknowledged is there; states are equal."""

    async def scenario(cluster: Cluster) -> None:
        await cluster.elect()
        cluster.network.loss, cluster.network.duplication, cluster.network.reorder = 0.1, 0.1, True
        cluster.network.delay_s = (0.0005, 0.02)
        rng = cluster.fork("workload")
        claims: dict[str, str] = {}

        async def write(number: int) -> None:
            await asyncio.sleep(rng.random() * 3)
            member = rng.choice(list(cluster.members))
            try:
                await cluster.kv(member).execute(Put(f"k{number}".encode(), b"v"), Options(timeout_ms=1_500))
            except KvnodeError as error:
                claims[f"k{number}"] = "unknown" if error.may_have_applied else "not-applied"
            else:
                claims[f"k{number}"] = "ok"

        tasks = [asyncio.create_task(write(number)) for number in range(200)]
        for _ in range(4):
            await asyncio.sleep(0.6)
            one, other = rng.sample(cluster.ids, 2)
            cluster.network.cut(one, other)
            await asyncio.sleep(0.2)
            cluster.network.heal()
        await asyncio.gather(*tasks)
        cluster.network.loss, cluster.network.duplication = 0.0, 0.0
        await cluster.elect()
        await cluster.settle()
        present = {item.key.decode() for item in (await cluster.kv(1).range_prefix("k", limit=1_000)).items}
        for key, claim in claims.items():
            assert claim != "ok" or key in present, (key, claim)
            assert claim != "not-applied" or key not in present, (key, claim)
        assert sum(claim == "ok" for claim in claims.values()) > 50

    simulate(scenario, seed=seed)


def test_a_sole_voter_with_a_slow_disk_wins_its_first_election() -> None:
    """Its own vote takes an fsync: the election timer must not fire again and again meanwhile."""

    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        cluster.kill(leader.id)
        cluster.disk_delay_s = 0.02
        restarted = (await cluster.start(leader.id)).node
        await cluster.elect()
        assert (leader.term, restarted.term) == (1, 2)

    simulate(scenario, size=1)


def test_the_led_term_is_one_that_has_had_a_leader() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        await cluster.kv(leader.id).put("k", "v")
        await cluster.settle()
        before = leader.term
        assert {node.led_term for node in cluster.nodes().values()} == {before}
        cluster.kill(leader.id)
        candidacies = 0
        for _ in range(20_000):  # of half a virtual millisecond
            if (found := cluster.leader()) is not None and found.term > before:
                break
            others = cluster.nodes().values()
            candidacies += max(node.term for node in others) > before
            assert {node.led_term for node in others} == {before}
            await asyncio.sleep(0.000_5)
        assert candidacies > 0, "the term of a candidate was never seen, so nothing was shown"
        await cluster.until(lambda: {node.led_term for node in cluster.nodes().values()} == {found.term})

    simulate(scenario)
