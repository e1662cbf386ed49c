"""What etcd serves beside its API: /health, its /livez and /readyz, the names of its metrics."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvnode.errors import NoLeader
from kvnode.observe import etcd_metrics, metrics
from kvnode.version import ETCD_SERVER_VERSION
from tests.api.fake import FakeAdmin, FakeKV
from tests.api.raw import Door

PLAIN = "text/plain; charset=utf-8"


async def health(door: Door, query: str = "") -> tuple[int, bytes]:
    found = await door.ask("GET", f"/health{query}")
    assert found.headers["content-type"] == PLAIN
    return found.status, found.body


async def test_health_is_text_in_json_as_plain_text(door: Door) -> None:
    assert await health(door) == (200, b'{"health":"true","reason":""}')


async def test_health_without_a_leader(door: Door, admin: FakeAdmin, kv: FakeKV) -> None:
    admin.leader = None
    assert await health(door) == (503, b'{"health":"false","reason":"RAFT NO LEADER"}\n')
    kv.fail_if = lambda _: NoLeader("nobody leads") if kv.seen[-1][1].consistency == "linearizable" else None
    assert (await health(door, "?serializable=true"))[0] == 200
    admin.leader = admin.id
    assert await health(door) == (503, b'{"health":"false","reason":"RANGE ERROR:etcdserver: no leader"}\n')


async def test_health_under_an_alarm(door: Door, admin: FakeAdmin) -> None:
    admin.short_of_space = True
    bad = (503, b'{"health":"false","reason":"ALARM NOSPACE"}\n')
    for query in ("", "?serializable=true", "?exclude=CORRUPT"):
        assert await health(door, query) == bad, query
    assert (await health(door, "?exclude=NOSPACE"))[0] == 200
    admin.corrupted = True
    assert await health(door, "?exclude=NOSPACE") == (503, b'{"health":"false","reason":"ALARM CORRUPT"}\n')


async def test_health_is_fetched_only(door: Door) -> None:
    for method in ("POST", "PUT", "DELETE"):
        found = await door.ask(method, "/health")
        assert (found.status, found.headers["allow"]) == (405, "GET, HEAD")


async def test_livez_and_readyz_alone_are_kvnodes(door: Door) -> None:
    assert (await door.ask("GET", "/livez")).json == {"live": True}
    assert (await door.ask("GET", "/readyz")).json == {"ready": True}


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/livez?verbose", b"[+]serializable_read ok\nok\n"),
        ("/livez?exclude=serializable_read", b"ok\n"),
        ("/livez/serializable_read", b"ok\n"),
        ("/livez/serializable_read?verbose=1", b"[+]serializable_read ok\nok\n"),
        (
            "/readyz?verbose&exclude=non_learner",
            (
                b"[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n"
                b"[+]non_learner excluded: ok\nok\n"
            ),
        ),
        ("/readyz/data_corruption", b"ok\n"),
        ("/readyz/linearizable_read", b"ok\n"),
        ("/readyz/non_learner", b"ok\n"),
    ],
)
async def test_checks_that_hold(door: Door, target: str, body: bytes) -> None:
    found = await door.ask("GET", target)
    assert (found.status, found.headers["content-type"], found.body) == (200, PLAIN, body)


async def test_checks_that_fail(door: Door, admin: FakeAdmin, kv: FakeKV) -> None:
    admin.role, admin.corrupted = "learner", True
    kv.fail_if = lambda _: NoLeader("nobody leads") if kv.seen[-1][1].consistency == "linearizable" else None
    found = await door.ask("GET", "/readyz?verbose")
    assert found.status == 503
    assert found.body.splitlines() == [
        b"[-]data_corruption failed: alarm activated: CORRUPT",
        b"[+]serializable_read ok",
        b"[-]linearizable_read failed: etcdserver: no leader",
        b"[-]non_learner failed: the local member is a learner",
        b"readyz check failed",
    ]
    assert (await door.ask("GET", "/livez?verbose")).status == 200
    for check in ("data_corruption", "linearizable_read", "non_learner"):
        assert (await door.ask("GET", f"/readyz/{check}")).status == 503
    assert (await door.ask("GET", "/readyz/nothing")).status == 404
    assert (await door.ask("GET", "/livez/non_learner")).status == 404


async def test_metrics_have_the_names_that_dashboards_for_etcd_read(door: Door, admin: FakeAdmin) -> None:
    await door.ask("GET", "/health")
    admin.leader = None
    await door.ask("GET", "/health")
    page = (await door.ask("GET", "/metrics")).body.decode()
    samples = {sample.name: sample for family in text_string_to_metric_families(page) for sample in family.samples}
    assert samples["etcd_server_id"].labels == {"server_id": "1"}
    assert samples["etcd_server_version"].labels == {"server_version": ETCD_SERVER_VERSION}
    assert samples["etcd_cluster_version"].labels == {"cluster_version": "3.5"}
    assert samples["etcd_server_health_success"].value == 1
    assert samples["etcd_server_health_failures"].value == 1
    assert samples["etcd_server_is_learner"].value == 0
    assert samples["etcd_server_quota_backend_bytes"].value > 0


def test_each_name_of_etcd_stands_for_a_metric_that_is_declared() -> None:
    every = {
        name: metrics.Histogram() if declared.kind == "histogram" else {"x": 3.0} if declared.label else 3.0
        for name, declared in metrics.BY_NAME.items()
    }
    own = {declared.name: {"x": 1.0} if declared.label else 1.0 for declared in etcd_metrics.OWN}
    page = etcd_metrics.render_as_etcd(every, own).decode()
    names = {sample.name for family in text_string_to_metric_families(page) for sample in family.samples}
    for name in etcd_metrics.DECLARED:
        assert name in names or f"{name}_count" in names, name
    assert not etcd_metrics.DECLARED.keys() & metrics.BY_NAME.keys()
    assert etcd_metrics.render_as_etcd({}, {}) == b""
