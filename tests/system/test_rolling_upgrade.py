"""Real processes: a version that knows more takes over node by node; only when all know it, it is used."""

from __future__ import annotations

import asyncio
import base64

import pytest

from kvnode.wire.frames import FEATURE_LEVEL
from scripts.living import LivingCluster
from tests.system.conftest import MakeLiving

pytestmark = pytest.mark.system


async def write(cluster: LivingCluster, node: int) -> None:
    code, answer = await cluster.ask(node, "PUT", "/v1/kv/upgrade", b'"kept"')
    assert code == 200, answer


async def write_anew(cluster: LivingCluster, node: int) -> int:
    """The status of a write that older versions would misread: it keeps the value (etcd's `ignore_value`)."""
    key = base64.b64encode(b"upgrade").decode()
    body = b'{"key": "%s", "ignore_value": true}' % key.encode()
    code, _ = await cluster.ask(node, "POST", "/v3/kv/put", body)
    return code


async def level(cluster: LivingCluster, node: int) -> int:
    _, members = await cluster.ask(node, "GET", "/v1/members")
    return int(members["feature_level"])


@pytest.mark.timeout(300)
async def test_the_level_rises_when_all_claim_it_and_then_binds(make_living: MakeLiving) -> None:
    cluster = make_living(cluster__feature_level_max=1)  # as an older version claims
    cluster.start_all()
    await cluster.wait_leader()
    del cluster.settings["cluster.feature_level_max"]
    for node in cluster.ids:
        assert await level(cluster, node) == 1
        cluster.write_config(node)
        assert await asyncio.to_thread(cluster.processes[node].stop) == 0
        await cluster.wait_leader()
        for other in cluster.running():
            await write(cluster, other)
        cluster.start(node)
        await cluster.wait_leader()
        await write(cluster, node)
        if node == cluster.ids[0]:
            codes = [await write_anew(cluster, other) for other in cluster.ids]
            assert codes == [400] * len(codes), "whoever is asked: a member may be of an older version"
            assert await cluster.ask(node, "GET", "/v1/kv/upgrade") == (200, "kept")
    await cluster.wait_members(lambda found: found["feature_level"] == FEATURE_LEVEL, "the level rises")
    assert [await write_anew(cluster, node) for node in cluster.ids] == [200] * len(cluster.ids)
    older = cluster.ids[-1]
    assert await cluster.ask(older, "GET", "/v1/kv/upgrade") == (200, "kept")
    cluster.write_config(older, cluster__feature_level_max=1)
    await asyncio.to_thread(cluster.processes[older].stop)
    cluster.start(older)
    refused = await cluster.wait_event(older, "peer.refused")
    assert refused["code"] == "feature_level"
    assert f"member {older} knows feature level 1, the cluster uses {FEATURE_LEVEL}" in refused["reason"]
    await write(cluster, cluster.ids[0])
