"""The plane without a quorum while nodes are killed, frozen, stopped and robbed of their store."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import Iterator
from time import monotonic

import pytest

from tests.system.available import PROBE_MS, AvailableCluster, until
from tests.system.cluster import Answer

pytestmark = pytest.mark.system

DEAD_PROBES_MAX = 24
"""Probe intervals until two dead members of three are known to be dead: at most two for the first of them, then three
more, stretched by the bad hearing that silence looks like; four to refute; the other half for the machine."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AvailableCluster]:
    """One for all tests here; each starts what the one before has ended."""
    cluster = AvailableCluster(tmp_path_factory.mktemp("lost"))
    try:
        yield cluster
    finally:
        for process in cluster.processes.values():
            process.signal(signal.SIGCONT)
        cluster.stop()


async def test_two_of_three_dead(cluster: AvailableCluster) -> None:
    """The survivor alone: /v1/kv cannot answer, all of the other plane does (VV-T3, VV-T4, GO-T1)."""
    await cluster.started()
    await cluster.wait_all_alive()
    assert (await cluster.put(1, "quorum", b"there")).status == 200
    for key in ("flag", "deleted"):
        await cluster.write(2, key, b"on")
        await cluster.agreed(key, [b"on"])
    before = await cluster.members(1)
    for node in (2, 3):
        cluster.processes[node].kill()
    killed = monotonic()
    seen: dict[int, list[str]] = {2: [], 3: []}

    async def look() -> bool:
        members = await cluster.members(1)
        for node, statuses in seen.items():
            if not statuses or statuses[-1] != members[node]["status"]:
                statuses.append(members[node]["status"])
                if statuses[-1] == "dead":
                    assert monotonic() - killed > PROBE_MS / 1e3
        return all(statuses[-1] == "dead" for statuses in seen.values())

    await until(look, "both are dead for the survivor")
    assert monotonic() - killed < DEAD_PROBES_MAX * PROBE_MS / 1e3
    for statuses in seen.values():
        assert [one for one in statuses if one != "suspect"] == ["alive", "dead"]

    async def look_at_kv() -> Answer | None:
        answer = await cluster.call(1, "PUT", "/v1/kv/quorum?timeout=300ms", b"gone")
        return answer if answer.status == 503 else None

    refused = await until(look_at_kv, "a write that needs a quorum is refused with 503")
    assert refused.json()["error"]["code"] == "no_leader"
    assert refused.headers["kv-outcome"] == "not-applied"
    assert (await cluster.call(1, "GET", "/v1/kv/quorum?timeout=300ms")).status == 503

    context = (await cluster.ap(1, "GET", "flag")).headers["kv-context"]
    await cluster.write(1, "flag", b"off", context=context)
    assert await cluster.shown(1, "flag") == [b"off"]
    assert (await cluster.ap(1, "DELETE", "deleted")).status == 204
    assert (await cluster.call(1, "GET", "/v1/ap?prefix=flag")).status == 200
    posted = await cluster.post(1, {"all": "alone"})
    story = await cluster.story(1)
    assert posted.json()["id"] in {event["id"] for event in story}
    for node in (2, 3):
        kinds = [event["kind"] for event in story if event["fields"].get("member") == node and event["member"] == 1]
        assert kinds[-2:] == ["member.suspect", "member.dead"]

    code, table, _ = await cluster.run("member", "list", on=[1])
    assert code == 0
    assert [line.split()[3] for line in table.splitlines()[1:]] == ["alive", "dead", "dead"]
    assert await cluster.run("ap", "get", "flag", on=[1]) == (0, "off", "")

    await cluster.started()
    await cluster.wait_all_alive()
    after = await cluster.members(1)
    for node in (2, 3):
        assert after[node]["number"] > before[node]["number"]
    assert after[1]["number"] == before[1]["number"]
    await cluster.agreed("flag", [b"off"])
    await cluster.agreed("deleted", [])  # although two have slept through it, and come with the value
    assert (await cluster.get(3, "quorum")).status == 200
    await cluster.final_story(posted.json()["id"])


async def test_what_only_the_dead_had_acknowledged_comes_back(cluster: AvailableCluster) -> None:
    """The others are frozen, so nobody has heard of it when its node is killed; later all are (VV4, LC-T2)."""
    await cluster.started()
    await cluster.wait_all_alive()
    for value in (b"old", b""):
        answer = await cluster.ap(3, "PUT" if value else "DELETE", "deleted-before", value)
        assert answer.status == 204
        await cluster.agreed("deleted-before", [value] if value else [])
    first = (await cluster.post(1, {"before": "the kill"})).json()
    for node in (2, 3):
        cluster.processes[node].signal(signal.SIGSTOP)
    last = (await cluster.post(1, {"only": "here"})).json()
    writes = [cluster.write(1, f"acknowledged/{number}", b"%d" % number) for number in range(20)]
    await asyncio.gather(*writes)
    cluster.processes[1].kill()  # at once: what is acknowledged must be durable already
    for node in (2, 3):
        cluster.processes[node].signal(signal.SIGCONT)
    assert await cluster.shown(2, "acknowledged/7") == []
    await cluster.write(2, "acknowledged/7", b"meanwhile")
    for node in (2, 3):
        cluster.processes[node].kill()
    await cluster.started()
    await cluster.agreed("deleted-before", [])
    for number in range(20):
        also = [b"meanwhile"] if number == 7 else []
        await cluster.agreed(f"acknowledged/{number}", [b"%d" % number, *also])
    await cluster.write(1, "acknowledged/8", b"a new dot")  # its number was not given twice
    await cluster.agreed("acknowledged/8", [b"8", b"a new dot"])
    next_ = (await cluster.post(1, {"after": "the start"})).json()
    story = await cluster.final_story(first["id"], last["id"], next_["id"])
    own = [event for event in story if event["member"] == 1]
    assert [event["seq"] for event in own] == list(range(1, len(own) + 1))
    assert [event["boot"] for event in own] == sorted(event["boot"] for event in own)
    assert first["boot"] == last["boot"] < next_["boot"]
    assert first["lamport"] < last["lamport"] < next_["lamport"]


async def test_frozen_then_heard_again(cluster: AvailableCluster) -> None:
    """A suspicion is refuted with a higher number, before the member counts as dead (GO-T2)."""
    await cluster.started()
    await cluster.wait_all_alive()
    numbers = {node: found["number"] for node, found in (await cluster.members(1)).items()}
    posted = (await cluster.post(1, {"before": "the freeze"})).json()
    cluster.processes[3].signal(signal.SIGSTOP)
    await cluster.wait_status(3, "suspect", on=[1])
    cluster.processes[3].signal(signal.SIGCONT)

    async def look() -> bool:
        found = [(await cluster.members(node))[3] for node in cluster.ids]
        return all(one["status"] == "alive" and one["number"] > numbers[3] for one in found)

    await until(look, "member 3 is alive with a higher number for all")
    last = (await cluster.post(3, {"after": "the freeze"})).json()
    story = await cluster.final_story(posted["id"], last["id"])
    story = story[next(place for place, event in enumerate(story) if event["id"] == posted["id"]) :]
    told = [(event["kind"], event["member"], event["fields"].get("member")) for event in story]
    assert ("member.dead", 1, 3) not in told
    refuted = told.index(("member.refuted", 3, None))
    assert refuted > min(told.index(one) for one in told if one[0] == "member.suspect" and one[2] == 3)


async def test_who_leaves_says_so_and_comes_back_with_nothing(cluster: AvailableCluster) -> None:
    """SIGTERM: left, at once (GO-T4). Its store is lost then: another incarnation begins, which numbers from 1 again.

    Those must not be taken for the numbers that it gave before (VV4, S33, S47).
    """
    await cluster.started()
    await cluster.wait_all_alive()
    await cluster.write(3, "mine", b"before")
    await cluster.agreed("mine", [b"before"])
    before = (await cluster.post(3, {"store": "first"})).json()
    await cluster.final_story(before["id"])
    assert await asyncio.to_thread(cluster.processes[3].stop) == 0
    found = await cluster.wait_status(3, "left", on=[1, 2])
    code, out, _ = await cluster.run("member", "list", "-o", "json", on=[2])
    assert (code, [one["status"] for one in json.loads(out)["members"]]) == (0, ["alive", "alive", "left"])

    shutil.rmtree(cluster.data_dir(3) / "ap")
    await cluster.started()
    await cluster.wait_all_alive()
    assert (await cluster.members(1))[3]["number"] > found[1]["number"]
    await cluster.agreed("mine", [b"before"])
    for number in range(5):
        await cluster.write(3, f"mine/{number}", b"after")
        await cluster.agreed(f"mine/{number}", [b"after"])
    await cluster.write(3, "mine", b"beside")
    await cluster.agreed("mine", [b"before", b"beside"])
    after = (await cluster.post(3, {"store": "second"})).json()
    assert after["incarnation"] != before["incarnation"]
    assert after["lamport"] > before["lamport"]
    ids = [event["id"] for event in await cluster.final_story(before["id"], after["id"])]
    assert ids.index(before["id"]) < ids.index(after["id"])
