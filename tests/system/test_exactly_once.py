"""Real processes: a write whose answer is cut off, asked for again elsewhere, appears once (IR-T1, IR-T2)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from kvnode.storage.wal_dump import dump
from tests.system.cluster import Answer, RealCluster
from tests.system.conftest import MakeCluster

pytestmark = pytest.mark.system

ITS_OWN = {"kv-node", "kv-term", "kv-token", "x-request-id", "date"}
"""Headers about the call, not about what is answered."""


def told(answer: Answer) -> tuple[int, dict[str, str], bytes]:
    return answer.status, {n: v for n, v in answer.headers.items() if n not in ITS_OWN}, answer.body


async def send_and_hang_up(cluster: RealCluster, node: int, path: str, body: bytes, headers: Mapping[str, str]) -> None:
    """The request leaves; its answer is never read."""
    host, port = cluster.clients[node]
    _, writer = await asyncio.open_connection(host, port)
    lines = [f"PUT {path} HTTP/1.1", f"Host: {host}:{port}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode() + body)
    await writer.drain()
    writer.close()


async def insist(cluster: RealCluster, path: str, body: bytes, headers: Mapping[str, str], first: int) -> Answer:
    """Ask node after node until one gives an answer that is certain."""
    async with asyncio.timeout(20.0):
        while True:
            for node in [*cluster.ids[first:], *cluster.ids[:first]]:
                try:
                    answer = await cluster.call(node, "PUT", path, body, **headers)
                except OSError:
                    continue
                if answer.status not in {503, 504}:
                    return answer
            await asyncio.sleep(0.05)


def named(session: int, sequence: int) -> dict[str, str]:
    return {"Kv-Session": str(session), "Kv-Sequence": str(sequence)}


def logged(cluster: RealCluster, node: int, **wanted: Any) -> list[dict[str, Any]]:
    """The entries of a node's log that say so."""
    lines: list[dict[str, Any]] = list(dump(str(cluster.data_dir(node))))
    return [line for line in lines if wanted.items() <= line.items()]


async def test_ir_t1_an_answer_that_was_cut_off_is_given_again_by_another_node(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    leader = await cluster.started()
    session = (await cluster.call(1, "POST", "/v1/sessions?ttl=1h")).json()["session"]
    for sequence in range(1, 21):
        path, body = f"/v1/kv/cut?if_rev={sequence if sequence > 1 else 0}", b"%d" % sequence
        asked, other = sequence % 3, (sequence + 1) % 3
        await send_and_hang_up(cluster, cluster.ids[asked], path, body, named(session, sequence))
        await asyncio.sleep(0.01 * (sequence % 4))
        answer = await insist(cluster, path, body, named(session, sequence), other)
        assert answer.status == 200, answer.body
        assert answer.json()["created"] is (sequence == 1)
        again = [await cluster.call(node, "PUT", path, body, **named(session, sequence)) for node in cluster.ids]
        assert [told(each) for each in again] == [told(answer)] * 3
    history = (await cluster.call(2, "GET", "/v1/history/cut")).json()
    assert [item["value"] for item in history["items"]] == [str(n) for n in range(20, 0, -1)]
    other_body = await cluster.call(1, "PUT", "/v1/kv/cut", b"another", **named(session, 20))
    assert (other_body.status, other_body.json()["error"]["code"]) == (409, "conflict")
    assert (await cluster.call(1, "DELETE", "/v1/kv/cut", **{"Idempotency-Key": "once"})).json()["deleted"] == 1
    status = await cluster.status(leader)
    await cluster.wait_applied(status["applied_index"])
    for node in cluster.ids:
        cluster.processes[node].stop()
    sent = logged(cluster, 1, session=session, sequence=20, op="put")
    assert len(sent) >= 4, "each sending has an entry; one of them was executed"
    assert len(logged(cluster, 1, op="session_open")) == 1
    assert [line["key"] for line in logged(cluster, 1, idempotency_key="once")] == ["cut"]


async def test_ir_t2_also_across_kill_9_of_the_leader_and_of_everybody(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    leader = await cluster.started()
    session = (await cluster.call(1, "POST", "/v1/sessions")).json()["session"]
    answers: dict[int, tuple[int, dict[str, str], bytes]] = {}
    for sequence in range(1, 31):
        headers = named(session, sequence)
        await send_and_hang_up(cluster, leader, f"/v1/kv/k{sequence}", b"v", headers)
        if sequence == 15:
            cluster.processes[leader].kill()
        answer = await insist(cluster, f"/v1/kv/k{sequence}", b"v", headers, sequence % 3)
        answers[sequence] = told(answer)
        if sequence == 15:
            leader = await cluster.started()
    once = {"Idempotency-Key": "order-17"}
    refused = await insist(cluster, "/v1/kv/k1?if_rev=0", b"v", once, 0)
    assert refused.status == 412
    for process in cluster.processes.values():
        process.kill()
    await cluster.started()
    for sequence, first in answers.items():
        for node in cluster.ids:
            answer = await cluster.call(node, "PUT", f"/v1/kv/k{sequence}", b"v", **named(session, sequence))
            assert told(answer) == first, sequence
    again = await cluster.call(2, "PUT", "/v1/kv/k1?if_rev=0", b"v", **once)
    assert (again.status, again.body) == (refused.status, refused.body)
    listing = (await cluster.call(3, "GET", "/v1/kv?prefix=k")).json()
    assert [item["version"] for item in listing["items"]] == [1] * 30
    late = await cluster.call(1, "PUT", "/v1/kv/k1", b"v", **(named(session, 31) | {"Kv-Acknowledged": "30"}))
    assert late.status == 200
    gone = await cluster.call(2, "PUT", "/v1/kv/k1", b"v", **named(session, 30))
    assert (gone.status, gone.json()["error"]["code"]) == (409, "sequence_too_old")
    assert (await cluster.call(3, "DELETE", f"/v1/sessions/{session}")).json()["ended"] == 1
    late = await cluster.call(1, "PUT", "/v1/kv/k1", b"w", **named(session, 32))
    assert (late.status, late.json()["error"]["code"], late.headers["kv-outcome"]) == (
        410,
        "session_expired",
        "not-applied",
    )
