"""The node about itself, the route table against the router and the description, and the metrics page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvnode.api import openapi
from kvnode.api.app import App
from kvnode.api.routes import COMMON_ERRORS, TABLE, Router
from kvnode.errors import NoLeader, by_code
from kvnode.observe import metrics
from kvnode.version import ETCD_CLUSTER_VERSION, ETCD_SERVER_VERSION, __version__
from tests.api.fake import FakeAdmin, FakeKV
from tests.api.raw import Door

DOCS = Path(__file__).parents[2] / "docs" / "http-api.md"


async def test_status_has_the_names_of_the_contract(door: Door) -> None:
    status = (await door.ask("GET", "/v1/status?timeout=1s")).json
    wanted = (
        "id name cluster_id role term leader commit_index applied_index last_index revision compact_revision members "
        "peers wal_bytes store_bytes alarms"
    )
    assert set(wanted.split()) <= status.keys()
    assert status["members"][0]["peer_address"] == "127.0.0.1:7501"


async def test_liveness_and_readiness(door: Door, admin: FakeAdmin) -> None:
    assert (await door.ask("GET", "/livez")).json == {"live": True}
    assert (await door.ask("GET", "/readyz")).json == {"ready": True}
    admin.ready = False
    refused = await door.ask("GET", "/readyz")
    assert (refused.status, refused.code) == (503, "not_ready")
    assert "leader" in refused.json["error"]["message"]
    admin.quarantined = True
    assert "quarantine" in (await door.ask("GET", "/readyz")).json["error"]["message"]
    assert (await door.ask("GET", "/livez")).status == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/version", "/openapi.json", "/v1/status", "/v1/kv?prefix=k"])
async def test_whatever_can_be_fetched_has_a_head(door: Door, path: str) -> None:
    got, head = await door.ask("GET", path), await door.ask("HEAD", path)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == got.headers["content-length"]
    assert "HEAD" in (await door.ask("PATCH", path)).headers["allow"]


async def test_version(door: Door) -> None:
    """Clients of etcd choose the prefix of their paths by it, and take it for numbers."""
    found = (await door.ask("GET", "/version")).json
    assert found == {"version": __version__, "etcdserver": ETCD_SERVER_VERSION, "etcdcluster": ETCD_CLUSTER_VERSION}
    for version in (found["etcdserver"], found["etcdcluster"]):
        assert (3, 5, 0) <= tuple(map(int, version.split("."))) < (3, 6, 0)


async def test_transfer_leadership(door: Door, admin: FakeAdmin) -> None:
    assert (await door.ask("POST", "/v1/admin/transfer?to=2")).json == {"leader": 2}
    assert admin.transferred == [2]
    assert (await door.ask("POST", "/v1/admin/transfer?to=9")).code == "member_not_found"
    assert (await door.ask("POST", "/v1/admin/transfer")).json == {"leader": 2}
    assert admin.transferred == [2, 0], "the node chooses"
    for bad in ("?to=", "?to=0", "?to=two"):
        assert (await door.ask("POST", f"/v1/admin/transfer{bad}")).code == "bad_request"


async def test_the_hash_of_what_a_revision_shows(door: Door) -> None:
    await door.ask("PUT", "/v1/kv/k", b"v")
    now = await door.ask("GET", "/v1/admin/hash?timeout=30s")
    assert now.json == {"revision": 2, "items": 1, "hash": "ab" * 16}
    assert now.headers["kv-revision"] == "2"
    assert (await door.ask("GET", "/v1/admin/hash?rev=1")).json["revision"] == 1
    assert (await door.ask("GET", "/v1/admin/hash?rev=3")).code == "future_revision"
    for bad in ("rev=0", "rev=", "rev=x", "prefix=a"):
        assert (await door.ask("GET", f"/v1/admin/hash?{bad}")).status == 400


async def test_a_follower_points_a_transfer_at_the_leader(
    door: Door, admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(to: int) -> None:
        raise NoLeader("only the leader can hand over", leader_url="http://127.0.0.1:7402")

    monkeypatch.setattr(admin, "transfer_leadership", refuse)
    reply = await door.ask("POST", "/v1/admin/transfer?to=2")
    assert (reply.status, reply.headers["location"]) == (307, "http://127.0.0.1:7402/v1/admin/transfer?to=2")


async def test_metrics_parse_as_prometheus_text(door: Door) -> None:
    await door.ask("PUT", "/v1/kv/k", b"v")
    await door.ask("GET", "/nowhere")
    page = await door.ask("GET", "/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(page.body.decode())}
    assert families["kvnode_term"].samples[0].value == 3
    assert families["kvnode_proposals"].samples[0].name == "kvnode_proposals_total"
    answered = {sample.labels["status"]: sample.value for sample in families["kvnode_http_requests"].samples}
    assert answered == {"2xx": 1, "3xx": 0, "4xx": 1, "5xx": 0}
    assert families["kvnode_http_requests_in_flight"].samples[0].value == 1
    seconds = families["kvnode_http_request_seconds"].samples
    assert next(sample.value for sample in seconds if sample.name.endswith("_count")) == 2


def test_histograms_are_cumulative_and_inclusive() -> None:
    histogram = metrics.Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 3.0):
        histogram.observe(value)
    assert (histogram.buckets, histogram.count, histogram.total) == ([2, 2, 1], 5, 8.0)
    text = metrics.render({"kvnode_wal_batch_entries": histogram}).decode()
    assert 'kvnode_wal_batch_entries_bucket{le="2.0"} 4.0' in text
    assert 'kvnode_wal_batch_entries_bucket{le="+Inf"} 5.0' in text
    assert "kvnode_wal_batch_entries_sum 8.0" in text


def test_every_metric_is_declared_once_and_named_as_the_field_does() -> None:
    assert len(metrics.BY_NAME) == len(metrics.DECLARED)
    for declared in metrics.DECLARED:
        assert declared.name.startswith("kvnode_")
        assert declared.name.endswith("_total") == (declared.kind == "counter"), declared
        assert not declared.unit or declared.name.endswith(declared.unit), declared
    with pytest.raises(KeyError):
        metrics.render({"kvnode_unheard_of": 1.0})
    every = {d.name: metrics.Histogram() if d.kind == "histogram" else 1.0 for d in metrics.DECLARED if not d.label}
    assert metrics.render(every).count(b"# HELP") >= len(every)


def test_the_router_knows_the_table_and_nothing_else() -> None:
    table = {(route.method, route.path) for route in TABLE}
    assert Router().paths() == table | {("HEAD", path) for method, path in table if method == "GET"}


def test_the_description_has_every_route_parameter_and_error() -> None:
    document = openapi.document()
    assert document["openapi"] == "3.1.0"
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(route.method, route.path) for route in TABLE}
    for route in TABLE:
        operation = document["paths"][route.path][route.method.lower()]
        named = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "query"}
        assert named == route.names
        assert set(route.errors) | set(COMMON_ERRORS) <= by_code().keys()
        text = json.dumps(operation["responses"])
        assert all(code in text for code in route.errors)


def test_every_reference_in_the_description_resolves() -> None:
    document = openapi.document()
    schemas = document["components"]["schemas"]
    found: set[str] = set()

    def walk(node: object) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                found.add(node["$ref"].removeprefix("#/components/schemas/"))
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(document)
    assert found <= schemas.keys()
    assert {"Item", "Listing", "Txn", "Operation", "BatchOperation", "Compare", "ErrorBody", "Status"} <= schemas.keys()
    operation_ids = [op["operationId"] for methods in document["paths"].values() for op in methods.values()]
    assert len(operation_ids) == len(set(operation_ids))


async def test_the_description_is_served(door: Door) -> None:
    reply = await door.ask("GET", "/openapi.json")
    assert reply.json == json.loads(openapi.build())
    assert reply.json["info"]["version"] == __version__


def test_the_reference_page_names_every_route_parameter_and_code() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for route in TABLE:
        assert f"`{route.method} {route.path}`" in text, route
        for name in route.names:
            assert f"`{name}" in text, name
        for code in (*route.errors, *COMMON_ERRORS):
            assert f"`{code}`" in text, code


async def test_tokens_are_one_per_state(door: Door, app: App, kv: FakeKV) -> None:
    first = (await door.ask("GET", "/v1/status")).headers["kv-token"]
    assert (await door.ask("GET", "/v1/status")).headers["kv-token"] == first
    wrote = (await door.ask("PUT", "/v1/kv/k", b"v")).headers["kv-token"]
    assert wrote != first
    assert (await door.ask("GET", "/v1/kv/k")).headers["kv-token"] == wrote


async def test_a_request_can_be_found_in_the_log_by_its_id(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "kvnode.api")
    await door.ask("PUT", "/v1/kv/secret-key", b"v", X_Request_Id="mine-7")
    [line] = [record.message for record in caplog.records if "mine-7" in record.message]
    assert line.startswith("request.answered")
    assert "status=200" in line
    assert "secret-key" not in line
