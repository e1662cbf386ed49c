"""The targets: the same assertions for kvnode's leader, for a follower, and for etcd where there is one on the PATH.

One cluster of each kind serves all tests of the package, one after another: every test writes under a prefix of its own
(`own`), ends the leases it grants, and may rely on nobody else writing while it runs.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvnode.bench.cluster import EtcdCluster
from kvnode.bench.load import Address
from tests.etcd.connection import Connection
from tests.etcd.target import Target, own_prefix
from tests.system.cluster import RealCluster

AS_ETCD = {"raft.heartbeat_ms": 100, "raft.election_timeout_ms": 1_000}
"""etcd's defaults: no test is about a change of leaders, and one on a machine that does not keep up would fail it."""

NAMES = ("kvnode-leader", "kvnode-follower", *(["etcd"] if shutil.which("etcd") else []))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.system)


@pytest.fixture(scope="package")
def kvnode_targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Target]]:
    """A cluster of three processes → its leader and a follower."""
    cluster = RealCluster(tmp_path_factory.mktemp("kvnode"), settings=AS_ETCD)
    try:
        leader = asyncio.run(cluster.started())
        follower = next(node for node in cluster.ids if node != leader)
        first = _first_requests(cluster.clients[leader])
        found = {
            "kvnode-leader": _target("kvnode-leader", cluster.clients[leader], first),
            "kvnode-follower": _target("kvnode-follower", cluster.clients[follower], first),
        }
        yield found
        for target in found.values():
            target.close()
    finally:
        cluster.stop()


@pytest.fixture(scope="package")
def etcd_targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Target]]:
    """One node of etcd. Skips, with the reason, where there is none on the PATH."""
    if "etcd" not in NAMES:
        pytest.skip("no etcd on the PATH: these assertions are not checked against etcd itself")
    cluster = EtcdCluster(tmp_path_factory.mktemp("etcd"), nodes=1)
    try:
        cluster.start_all()
        address = cluster.clients[1]
        asyncio.run(cluster.wait_ready())
        target = _target("etcd", address, _first_requests(address))
        yield {"etcd": target}
        target.close()
    finally:
        cluster.stop()


@pytest.fixture(params=NAMES)
def target(request: pytest.FixtureRequest) -> Target:
    """The server under test."""
    targets = request.getfixturevalue("etcd_targets" if request.param == "etcd" else "kvnode_targets")
    found: Target = targets[request.param]
    return found


@pytest.fixture
def own() -> bytes:
    """A prefix for the keys of this test, ending in a slash."""
    return own_prefix()


def _target(name: str, address: Address, first: list[dict[str, Any]]) -> Target:
    connection = Connection(address)
    connection.send("GET", "/version")
    version = connection.answer().json().get("etcdserver", "0")  # a test of /version finds it missing
    connection.close()
    return Target(name, address, tuple(int(part) for part in version.split(".")), first)


def _first_requests(address: Address) -> list[dict[str, Any]]:
    """A range and a put in a store that has seen nothing else: what their answers say is checked by a test."""
    connection = Connection(address)
    answers = []
    for path, body in (("/v3/kv/range", {"key": "Zmlyc3Q="}), ("/v3/kv/put", {"key": "Zmlyc3Q=", "value": "MQ=="})):
        connection.send("POST", path, json.dumps(body).encode())
        answers.append(connection.answer().json())
    connection.close()
    return answers
