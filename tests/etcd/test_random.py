"""Random sequences of requests, to every target and to a model: each answer is the same, down to the last field.

etcd, where there is one, proves the model; the model then holds for kvnode everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.etcd.model import Model, Refused, Undecided
from tests.etcd.target import Refusal, Target, own_prefix
from tests.etcd.words import b64

LEASE, NO_LEASE = 4_611_686_018_427_000_042, 77

Body = dict[str, Any]


class Since(int):
    """A revision, counted from where the sequence began."""


def body(required: dict[str, st.SearchStrategy[Any]], **optional: st.SearchStrategy[Any]) -> st.SearchStrategy[Body]:
    return st.fixed_dictionaries(required, optional=optional)


names = st.sampled_from([b"", b"a", b"a\0", b"ab", b"b", b"c", b"\xff"])
values = st.sampled_from([b"", b"1", b"2", b"\xff\0"])
revisions = st.integers(0, 4).map(Since)
yes = st.just(True)
intervals = st.one_of(
    body({"key": names}),
    body({"key": names, "range_end": names}),
    body({"key": st.just(b""), "range_end": st.just(b"\xff\xff")}),
)
leases = st.sampled_from([LEASE, str(LEASE), 0, NO_LEASE])


def with_bounds(options: st.SearchStrategy[Body]) -> st.SearchStrategy[Body]:
    return st.builds(lambda bounds, more: {**bounds, **more}, intervals, options)


def sorted_whole(request: Body) -> Body:
    """Without an order, etcd sorts only what the limit leaves: nobody is held to that."""
    if request.get("sort_target", "KEY") != "KEY" and request.get("sort_order", "NONE") == "NONE":
        request.pop("limit", None)
    return request


ranges = with_bounds(
    body(
        {},
        limit=st.integers(0, 3),
        revision=revisions,
        sort_order=st.sampled_from(["NONE", "ASCEND", "DESCEND"]),
        sort_target=st.sampled_from(["KEY", "VERSION", "CREATE", "MOD", "VALUE"]),
        keys_only=yes,
        count_only=yes,
        min_mod_revision=revisions,
        max_mod_revision=revisions,
        min_create_revision=revisions,
        max_create_revision=revisions,
    )
).map(sorted_whole)


def with_one_fault(request: Body) -> Body:
    """Which of two is told is nobody's concern."""
    if request.get("lease") == NO_LEASE:
        request.pop("ignore_value", None)
        request.pop("ignore_lease", None)
    return request


plain_puts = body({"key": names, "value": values}, prev_kv=yes)
puts = st.one_of(
    plain_puts,
    plain_puts,
    body({"key": names}, value=values, lease=leases, prev_kv=yes, ignore_value=yes, ignore_lease=yes).map(
        with_one_fault
    ),
)
deletes = with_bounds(body({}, prev_kv=yes))
results = st.sampled_from(["EQUAL", "GREATER", "LESS", "NOT_EQUAL"])
compares = st.builds(
    lambda bounds, result, condition: {**bounds, "result": result, **condition},
    intervals,
    results,
    st.one_of(
        body({"target": st.just("VERSION"), "version": st.integers(0, 3)}),
        body({"target": st.just("CREATE"), "create_revision": st.one_of(st.just(0), revisions)}),
        body({"target": st.just("MOD"), "mod_revision": st.one_of(st.just(0), revisions)}),
        body({"target": st.just("VALUE"), "value": values}),
        body({"target": st.just("LEASE"), "lease": st.sampled_from([0, LEASE, 5])}),
        body({"target": st.sampled_from(["VERSION", "MOD"]), "value": values}),
    ),
)


def txns(operations: st.SearchStrategy[Body], most: int = 3) -> st.SearchStrategy[Body]:
    branches = st.lists(operations, max_size=most)
    return body({"success": branches}, compare=st.lists(compares, max_size=2), failure=branches)


simple: st.SearchStrategy[Body] = st.one_of(
    body({"request_put": puts}),
    body({"request_put": plain_puts}),
    body({"request_range": ranges}),
    body({"request_delete_range": deletes}),
)
operations: st.SearchStrategy[Body] = st.one_of(
    *[simple] * 6,
    *[body({"request_txn": txns(st.one_of(simple, body({"request_txn": txns(simple, 2)})), 2)})] * 3,
    st.just({}),
)


def call(path: str, request: st.SearchStrategy[Body]) -> st.SearchStrategy[tuple[str, Body]]:
    return st.tuples(st.just(path), request)


calls = st.one_of(
    call("kv/put", puts),
    call("kv/put", plain_puts),
    call("kv/range", ranges),
    call("kv/range", ranges),
    call("kv/deleterange", deletes),
    call("kv/txn", txns(operations)),
    call("kv/txn", txns(operations)),
    call("kv/compaction", body({"revision": st.integers(1, 4).map(Since)}, physical=yes)),
)
sequences = st.builds(
    lambda first, more: [*first, *more],
    st.lists(call("kv/put", plain_puts), min_size=2, max_size=3),
    st.lists(calls, min_size=2, max_size=6),
)


def written(part: Any, own: bytes, begin: int, field: str = "") -> Any:
    """A request as it is sent: keys under `own`, revisions from `begin` on, bytes as base64."""
    if isinstance(part, dict):
        return {name: written(value, own, begin, name) for name, value in part.items()}
    if isinstance(part, list):
        return [written(value, own, begin) for value in part]
    if isinstance(part, bytes):
        return b64(own + part if field in {"key", "range_end"} else part)
    return begin + part if isinstance(part, Since) else part


@pytest.fixture
def leased(target: Target) -> Iterator[Target]:
    """A target that has the lease."""
    target.ok("lease/grant", {"ID": LEASE, "TTL": 3600})
    yield target
    target.post("lease/revoke", {"ID": LEASE})


@pytest.mark.timeout(300)  # to find the shortest sequence that fails
@settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(sequence=sequences)
def test_every_answer_is_the_models(leased: Target, sequence: list[tuple[str, Body]]) -> None:
    own, begin = own_prefix(), leased.revision()
    model = Model(begin, [LEASE])
    for path, request in sequence:
        sent = written(request, own, begin)
        expected: Refusal | Body
        try:
            expected = model.call(path, sent)
        except Refused as refused:
            expected = refused.refusal
        except Undecided:
            continue
        answer = leased.post(path, sent)
        found = answer.json() if answer.status == 200 else leased.refusal(answer)
        if isinstance(found, dict):
            found["header"] = {"revision": found["header"]["revision"]}
        assert found == expected, (path, sent)
