"""What the HTTP API does not offer is refused by its client, not left out in silence."""

from __future__ import annotations

import pytest

from kvnode.client import bodies
from kvnode.errors import BadRequest
from kvnode.kv.requests import Compare, Operation, Put, Range, Txn


@pytest.mark.parametrize(
    "operation",
    [
        Put(b"k", b"", keep_value=True),
        Put(b"k", b"v", keep_lease=True),
        Range(b"k", b"l", counted=True),
        Txn((), ()),
    ],
)
def test_an_operation(operation: Operation) -> None:
    with pytest.raises(BadRequest, match="does not offer"):
        bodies.txn_body(Txn((), (operation,)))


def test_a_compare_of_a_range_and_a_counted_page() -> None:
    with pytest.raises(BadRequest, match="does not offer"):
        bodies.txn_body(Txn((Compare(b"k", "version", "=", 1, b"l"),), ()))
    with pytest.raises(BadRequest, match="does not offer"):
        bodies.range_query(Range(b"k", b"l", counted=True))
