"""A disk that runs full: writes end at the soft limit, and what is left goes to deletes, terms and votes.

Fault F15, scenario S70: `storage.free_bytes_min` is the reserve.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from kvnode.errors import NoSpace, StorageFailed
from kvnode.kv.requests import Command, Delete, LeaseGrant, Put, Txn
from kvnode.sim.loop import run_virtual
from kvnode.sim.runtime.cluster import Cluster
from kvnode.storage.lmdb_backend import LmdbBackend
from kvnode.storage.wal import Wal
from tests.backend_suite import commit
from tests.storage.wal_world import entry, new_disk, open_wal, persist

RESERVE = 256 << 10
SEGMENT = 16 << 10


def simulate(scenario: Callable[[Cluster], Awaitable[None]]) -> None:
    async def main() -> None:
        settings = {
            "storage.segment_bytes": SEGMENT,
            "storage.batch_bytes_max": 4096,
            "storage.free_bytes_min": RESERVE,
        }
        cluster = Cluster(5, 3, settings)
        for member in cluster.ids:
            cluster.disks[member].capacity_bytes = 4 << 20
        await cluster.start_all()
        await scenario(cluster)
        assert not cluster.failures, cluster.failures

    run_virtual(main())


def fill_up(cluster: Cluster, *, free: int) -> None:
    """Something else takes the disks."""
    for member in cluster.ids:
        disk = cluster.disk_of(member)
        disk.capacity_bytes = disk.used_bytes() + free


async def past_the_check() -> None:
    """Free space is looked at once a second."""
    await asyncio.sleep(1.1)


def test_at_the_soft_limit_writes_are_refused_and_everything_else_goes_on() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        kv = cluster.kv(leader.id)
        for number in range(20):
            await kv.put(f"k{number}", "v" * 100)
        fill_up(cluster, free=RESERVE - 1)
        await past_the_check()
        growing = (Put(b"new", b"v"), Txn((), (Put(b"new", b"v"),)), Command(Put(b"new", b"v"), key=b"once"))
        for request in (*growing, LeaseGrant(ttl_ms=60_000)):
            with pytest.raises(NoSpace, match="bytes free, less than"):
                await kv.execute(request)
        assert await kv.get("new") is None
        found = await kv.get("k0")
        assert found is not None
        await kv.delete("k0")
        revision = (await kv.range("k1")).revision
        await kv.compact(revision)
        await kv.execute(Txn((), ()))
        alarms = cluster.members[leader.id].node.status().alarms
        assert any("less than" in alarm for alarm in alarms)
        fill_up(cluster, free=RESERVE + (1 << 20))
        await past_the_check()
        await kv.put("new", "v")

    simulate(scenario)


def test_a_leader_at_its_limit_refuses_what_is_forwarded_to_it() -> None:
    """Its log is everybody's: the room of the node that was asked is not enough."""

    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        asked = cluster.kv(next(member for member in cluster.ids if member != leader.id))
        await asked.put("k0", "v")
        disk = cluster.disk_of(leader.id)
        disk.capacity_bytes = disk.used_bytes() + RESERVE - 1
        await past_the_check()
        growing = Put(b"new", b"v")
        with pytest.raises(NoSpace, match="bytes free, less than"):
            await asked.execute(growing)
        answers = await asked.execute_all([growing, Delete(b"k0"), Command(growing, key=b"once")])
        assert [isinstance(answer, NoSpace) for answer in answers] == [True, False, True]
        assert await asked.get("new") is None
        assert await asked.get("k0") is None
        assert any("less than" in alarm for alarm in leader.status().alarms)
        disk.capacity_bytes += 1 << 20
        await past_the_check()
        await asked.put("new", "v")

    simulate(scenario)


def test_in_the_reserve_leaders_are_elected_one_after_the_other() -> None:
    """Term, vote and each leader's first entry find room, and deletes with them."""

    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        for number in range(30):
            await cluster.kv(leader.id).put(f"k{number}", "v" * 100)
        fill_up(cluster, free=RESERVE - 1)
        terms = []
        for number in range(12):
            leader = await cluster.elect()
            terms.append(leader.status().term)
            await cluster.kv(leader.id).delete(f"k{number}")
            cluster.kill(leader.id)
            await cluster.elect()
            await cluster.start(leader.id)
        assert terms == sorted(set(terms)), terms
        await cluster.settle()
        assert all(cluster.disk_of(member).free_bytes("/") > 0 for member in cluster.ids)

    simulate(scenario)


def test_without_any_room_the_log_still_takes_terms_and_votes() -> None:
    """What is left of the segment in use, and the next one, which is made ready at half of it."""
    disk = new_disk()
    wal, _ = open_wal(disk, create=True, segment_bytes=SEGMENT)
    index = 1
    while wal._writer._prepared is None:
        wal.write([persist(index, entry(index, text=bytes(500)), state=(1, 2) if index == 1 else None)])
        index += 1
    disk.capacity_bytes = disk.used_bytes()
    term = 1
    while not vote_fails(wal, term + 1):
        term += 1
    assert term > 100
    image = disk.kill()
    image.capacity_bytes += 1 << 20
    found = open_wal(image, segment_bytes=SEGMENT)[1]
    assert found.hard_state.term in {term, term + 1}, "one that failed may have reached the disk"
    assert found.last_index == index - 1


def vote_fails(wal: Wal, term: int) -> bool:
    try:
        wal.write([persist(term, state=(term, term % 3))])
    except StorageFailed as failure:
        return "No space left" in failure.message
    return False


def test_what_a_pinned_view_holds_back_is_used_again_afterwards(tmp_path: object) -> None:
    """While a snapshot is read the store grows by what is written; after it, it does not."""
    backend = LmdbBackend(str(tmp_path), map_bytes=64 << 20)

    def rewrite(times: int) -> None:
        for number in range(times):
            commit(backend, *((b"k%03d" % key, bytes([number % 256]) * 1000) for key in range(100)))

    rewrite(10)
    settled = backend.bytes_used
    rewrite(10)
    assert backend.bytes_used <= settled * 1.2
    view = backend.pin()
    before = view.rows(b"", 1 << 20)
    rewrite(20)
    grown = backend.bytes_used
    assert grown > settled * 3, "nothing that the view shows may be written over"
    assert view.rows(b"", 1 << 20) == before
    view.close()
    rewrite(40)
    assert backend.bytes_used <= grown * 1.1, "pages are used again"
    backend.close()
