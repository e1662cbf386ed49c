"""One cluster of three for all clients: of kvnode, and of etcd where it is on the PATH. The same holds for both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import pytest

from kvnode.bench.cluster import Cluster, EtcdCluster
from tests.clients.servers import Servers
from tests.system.cluster import RealCluster

TIMEOUT_S = 30
"""Of a member's calls, its membership and its locks, unless it says something else: more than any pause of a test."""

MakeMember = Callable[..., Any]

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
    """All of its nodes run, and nobody has a lease."""
    yield running
    running.tidy()


@pytest.fixture(params=["leader", "follower"])
def door(request: pytest.FixtureRequest, servers: Servers) -> int:
    """The node that the client is told: the one that leads, or one that does not."""
    return servers.leader() if request.param == "leader" else servers.followers()[0]


@pytest.fixture
def name() -> str:
    """Of keys that no other test has."""
    return f"/test{next(_names)}/"


@pytest.fixture
def member(servers: Servers) -> Iterator[MakeMember]:
    """Makes members of the coordination, each at the node that it is told; they leave with the test."""
    coordination = pytest.importorskip("tooz.coordination", reason="tooz is not installed (extra `clients`)")
    made: list[Any] = []

    def make(name: str, node: int, *, heart: bool = False, **options: Any) -> Any:
        text = "&".join(f"{key}={value}" for key, value in {"timeout": TIMEOUT_S, **options}.items())
        made.append(coordination.get_coordinator(servers.url(node, "etcd3+http", f"?{text}"), name.encode()))
        made[-1].start(start_heart=heart)
        return made[-1]

    yield make
    with ThreadPoolExecutor() as pool:  # each takes a second to end its threads
        list(pool.map(lambda one: one.stop(), [one for one in made if one.is_started]))
