"""A real cluster in two parts, and whole again: both sides write and tell, nothing is lost, all agree in the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import pytest
import pytest_asyncio

from tests.system.available import PROBE_MS, AvailableCluster, Json, code_of, until, violations
from tests.system.cables import CableCluster

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]

HOUR_MS = 3_600_000

CALM_PROBES = 12
"""So many probe intervals without an accusation: in them everybody probes everybody several times."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[CableCluster]:
    """Two hours lie between the clocks of its members 1 and 3."""
    cluster = CableCluster(tmp_path_factory.mktemp("apart"), settings={"raft.clock_drift_ms": 4 * HOUR_MS})
    cluster.offsets_ms = {1: -HOUR_MS, 3: HOUR_MS}
    async with cluster:
        yield cluster


async def test_the_order_is_right_where_the_clocks_are_not(cluster: CableCluster) -> None:
    """The leader is killed and comes back, a member is cut off and comes back (LC-T1, LC-T2)."""
    leader = await cluster.started()
    await cluster.wait_all_alive()
    pairs: list[tuple[str, str]] = []

    async def tell_on(ahead: int, behind: int) -> None:
        """One tells, who has heard of it tells more."""
        first = await cluster.post(ahead, {"on": ahead})
        then = await cluster.post(behind, {"on": behind}, token=first.headers["kv-token"])
        pairs.append((first.json()["id"], then.json()["id"]))

    await tell_on(3, 1)
    cluster.processes[leader].kill()
    others = [node for node in cluster.ids if node != leader]
    await cluster.wait_ready()
    await tell_on(others[1], others[0])
    await cluster.started()
    await cluster.wait_all_alive()
    cut_off = others[0]
    cluster.part([cut_off], [node for node in cluster.ids if node != cut_off])
    for node in cluster.ids:
        if node != cut_off:
            await cluster.wait_status(cut_off, "suspect", on=[node])
    cluster.heal()
    await cluster.wait_ready()
    await cluster.wait_all_alive()
    await tell_on(3, 1)

    story = await cluster.final_story(*(id_ for pair in pairs for id_ in pair))
    assert violations(story, pairs) == []
    kinds = {event["kind"] for event in story}
    assert kinds >= {"leader.elected", "vote.granted", "member.suspect", "member.refuted", "user"}
    assert violations(sorted(story, key=lambda event: str(event["time"])), pairs) != []


class Reader:
    """Reads the timeline to its end by cursor, now from one node, now from another."""

    def __init__(self, cluster: AvailableCluster) -> None:
        self._cluster = cluster
        self._cursor = ""
        self.ids: list[str] = []

    async def read(self, node: int) -> None:
        while True:
            cursor = f"&cursor={self._cursor}" if self._cursor else ""
            page: Any = (await self._cluster.call(node, "GET", f"/v1/events?limit=5{cursor}")).json()
            self._cursor = page["cursor"]
            self.ids += [event["id"] for event in page["events"]]
            if not page["more"]:
                return


async def test_both_sides_of_a_partition_go_on(cluster: CableCluster) -> None:
    """VV-T1, VV-T4, LC-T3, LC7."""
    leader = await cluster.started()
    await cluster.wait_all_alive()
    alone = next(node for node in cluster.ids if node != leader)
    many = [node for node in cluster.ids if node != alone]
    far = many[0]
    await cluster.write(alone, "drain", b"old")
    await cluster.write(far, "drain-2", b"old")
    contexts = [(await cluster.agreed(key, [b"old"])).headers["kv-context"] for key in ("drain", "drain-2")]
    before = (await cluster.post(far, {"before": "the cut"})).json()
    await cluster.final_story(before["id"])
    numbers = {node: found["number"] for node, found in (await cluster.members(far)).items()}
    reader = Reader(cluster)
    await reader.read(alone)

    cluster.part([alone], many)
    for node in many:
        await cluster.wait_status(alone, "dead", on=[node])
        await cluster.wait_status(node, "dead", on=[alone])
    assert cluster.lost

    # Keys: one written on both sides; one deleted here and written there; the other way round.
    await cluster.write(alone, "both", b"of one")
    await cluster.write(far, "both", b"of two")
    assert (await cluster.ap(alone, "DELETE", "drain", context=contexts[0])).status == 204
    await cluster.write(far, "drain", b"new", context=contexts[0])
    assert (await cluster.ap(far, "DELETE", "drain-2")).status == 204
    await cluster.write(alone, "drain-2", b"new", context=contexts[1])
    assert [await cluster.shown(node, "both") for node in (alone, far)] == [[b"of one"], [b"of two"]]

    # The consistent plane: only the side of the majority.
    refused = await cluster.call(alone, "PUT", "/v1/kv/side?timeout=300ms", b"one")
    while refused.status == 504:  # it has not given up the leader that it cannot reach
        refused = await cluster.call(alone, "PUT", "/v1/kv/side?timeout=300ms", b"one")
    assert code_of(refused) == (503, "no_leader")
    assert (await cluster.put(far, "side", b"two")).status == 200

    # The timeline: each side tells its own; nothing of it is final, for the other side may have earlier events.
    posted: list[Json] = []
    for number in range(8):
        posted += [(await cluster.post(node, {"cut": number})).json() for node in (alone, far)]
        await reader.read(cluster.ids[number % 3])
    wanted = {event["id"] for event in posted}
    for node in (alone, far):
        ids = {event["id"] for event in await cluster.story(node)}
        final = {event["id"] for event in await cluster.story(node, "stable=1")}
        assert len(ids & wanted) == 8
        assert not final & wanted

    cluster.heal()
    await cluster.wait_all_alive()
    both = await cluster.agreed("both", [b"of one", b"of two"])
    await cluster.agreed("drain", [b"new"])
    await cluster.agreed("drain-2", [b"new"])
    await cluster.write(alone, "both", b"resolved", context=both.headers["kv-context"])
    await cluster.agreed("both", [b"resolved"])
    last = (await cluster.post(alone, {"after": "the cut"})).json()
    agreed = await cluster.final_story(before["id"], *wanted, last["id"])
    earlier = {event["id"] for event in await cluster.story(far)}
    await reader.read(far)
    assert len(reader.ids) == len(set(reader.ids))
    assert set(reader.ids) >= earlier >= wanted | {before["id"], last["id"]}
    assert set(reader.ids) <= {event["id"] for event in await cluster.story(far)}

    # A member that was taken for dead has refuted it: the accusation comes first in the story.
    after = await cluster.members(far)
    assert after[alone]["number"] > numbers[alone]
    assert {(event["kind"], event["member"]) for event in agreed} >= {("member.refuted", alone)}
    assert violations(agreed, []) == []


async def test_who_is_not_reached_directly_is_reached_by_others(cluster: CableCluster) -> None:
    """Only what one member sends to one other is lost: all count as alive (GO-T3), as soon as that has been noticed.

    Without helpers the two ends accuse each other again and again, and refute by the third. That nobody is even taken
    for dead before is a matter of a machine that keeps up: `tests/gossip` counts it in virtual time.
    """
    await cluster.started()
    await cluster.wait_all_alive()
    cluster.cut((1, 2))
    before: set[tuple[str, int]] = set()
    calm_since = monotonic()

    async def look() -> bool:
        nonlocal before, calm_since
        tables = [await cluster.members(node) for node in cluster.ids]
        found = {(one["status"], one["number"]) for table in tables for one in table.values()}
        if found != before or {"suspect", "dead"} & {status for status, _ in found}:
            before, calm_since = found, monotonic()
        return monotonic() - calm_since > CALM_PROBES * PROBE_MS / 1e3

    await until(look, "nobody accuses anybody for a while")
    assert cluster.lost[1, 2] > 3
    cluster.heal()
    await cluster.wait_all_alive()
