"""Fronts: what is written is what the HTTP interface knows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from random import Random

import pytest

from kvnode.api.routes import Router
from kvnode.bench.etcd_fronts import ETCD_GRPC, ETCD_JSON
from kvnode.bench.fronts import Front, after_prefix
from kvnode.bench.kvnode_front import KVNODE_HTTP
from kvnode.bench.workloads import AVAILABLE, WORKLOADS, Scene, Workload

ADDRESS = ("127.0.0.1", 1)
FRONTS = (KVNODE_HTTP, ETCD_GRPC, ETCD_JSON)


def _scene(front: Front) -> Scene:
    return Scene(front, ADDRESS, 100, "7", count(1), Random(1))


def _requests_of(front: Front, workload: Workload) -> Iterator[bytes]:
    if workload.kind in front.calls:
        yield next(workload.requests(_scene(front)))
        return
    talk = front.talks[workload.kind].begin(ADDRESS, 5)
    request, _ = next(talk)
    for _ in range(6):
        yield request
        request, _ = talk.send(b'{"id":8,"token":9}')


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_every_front_has_every_kind(workload: Workload) -> None:
    for front in FRONTS:
        assert front.has(workload.kind), front.name
        assert list(_requests_of(front, workload))


@pytest.mark.parametrize("workload", [*WORKLOADS, *AVAILABLE], ids=lambda workload: workload.name)
def test_kvnode_knows_its_requests(workload: Workload) -> None:
    router = Router()
    for request in _requests_of(KVNODE_HTTP, workload):
        method, target, _ = request.split(b" ", 2)
        path, _, query = target.decode().partition("?")
        _, parameters, _ = router.find(method.decode(), path)
        assert {part.partition("=")[0] for part in query.split("&") if part} <= parameters


def test_an_answer_says_what_is_released() -> None:
    lock = next(workload for workload in WORKLOADS if workload.kind == "lock")
    assert b"DELETE /v1/locks/bench-5?token=9 " in list(_requests_of(KVNODE_HTTP, lock))[1]
    lease = next(workload for workload in WORKLOADS if workload.kind == "lease")
    assert b"DELETE /v1/leases/8 " in list(_requests_of(KVNODE_HTTP, lease))[1]


def test_a_lock_of_etcd_is_released_by_the_key_its_lease_makes() -> None:
    body = list(_requests_of(ETCD_JSON, next(w for w in WORKLOADS if w.kind == "lock")))[2].rpartition(b"\r\n")[2]
    assert json.loads(body) == {"key": "YmVuY2gtNS81"}  # bench-5/5


def test_the_end_of_a_prefix() -> None:
    assert after_prefix(b"bench/00") == b"bench/01"
