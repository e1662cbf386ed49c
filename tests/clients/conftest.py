"""One cluster of three for all clients, of kvnode and, where it is on the PATH, of etcd: what holds for both is true."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from kvnode.bench.cluster import Cluster, EtcdCluster
from tests.clients.servers import Servers
from tests.system.cluster import RealCluster

_names = count(1)


@pytest.fixture(scope="session", params=["kvnode", "etcd"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    if request.param == "etcd" and not EtcdCluster.version():
        pytest.skip("there is no etcd on the PATH")
    home = tmp_path_factory.mktemp(request.param)
    cluster: Cluster = EtcdCluster(home) if request.param == "etcd" else RealCluster(home)
    try:
        cluster.start_all()
        servers = Servers(cluster)
        servers.leader()
        yield servers
    finally:
        cluster.stop()


@pytest.fixture
def servers(running: Servers) -> Iterator[Servers]:
    """All of its nodes run, before the test and after it."""
    yield running
    running.heal()


@pytest.fixture(params=["leader", "follower"])
def door(request: pytest.FixtureRequest, servers: Servers) -> int:
    """The node that the client is told: the one that leads, or one that does not."""
    return servers.leader() if request.param == "leader" else servers.followers()[0]


@pytest.fixture
def name() -> str:
    """Of keys that no other test has."""
    return f"/test{next(_names)}/"
