"""One answer for siblings: by time and member, by byte order, or arrays merged."""

from __future__ import annotations

import pytest

from kvnode.clocks.version_vector import Dot, Origin, VersionVector
from kvnode.errors import BadRequest
from kvnode.gossip.key_state import KeyState, Sibling
from kvnode.gossip.resolve import resolve
from kvnode.ids import NodeId


def state(*written: tuple[int, int, bytes]) -> KeyState:
    """(member, time, value) of each sibling."""
    siblings = [
        Sibling(Dot(Origin(NodeId(member), 1), n), value, time) for n, (member, time, value) in enumerate(written, 1)
    ]
    siblings.sort(key=lambda sibling: sibling.dot)
    return KeyState(tuple(siblings), VersionVector({sibling.dot.origin: len(written) for sibling in siblings}))


def test_the_newest_by_time_then_by_member() -> None:
    assert resolve(state((1, 9, b"a"), (2, 5, b"b"), (3, 5, b"c")), "lww") == b"a"
    assert resolve(state((3, 5, b"a"), (2, 5, b"b"), (1, 5, b"c")), "lww") == b"a"
    assert resolve(state((1, 5, b"a"), (1, 5, b"b")), "lww") == b"b", "and by dot"


def test_the_last_in_byte_order() -> None:
    assert resolve(state((1, 9, b"a"), (2, 1, b"b"), (1, 3, b"B")), "max") == b"b"


def test_arrays_are_merged_in_canonical_order() -> None:
    merged = resolve(state((1, 1, b'[2, {"b": 1, "a": [1.5]}]'), (2, 1, b' [ "x", 2 , {"a":[1.50],"b":1}]')), "union")
    assert merged == b'["x",2,{"a":[1.5],"b":1}]'
    assert resolve(state((1, 1, b"[]")), "union") == b"[]"


@pytest.mark.parametrize("value", [b"", b"{}", b"[1", b"\xff", b'["\xff"]', b"[" * 5_000, b"[NaN]"])
def test_a_value_that_is_no_array_cannot_be_merged(value: bytes) -> None:
    with pytest.raises(BadRequest, match="JSON array"):
        resolve(state((1, 1, b"[1]"), (2, 1, value)), "union")


def test_nothing_stays_nothing() -> None:
    for how in ("lww", "max", "union"):
        assert resolve(KeyState.EMPTY, how) is None


def test_large_numbers_are_kept_and_those_beyond_all_bounds_refused() -> None:
    large = b"[123456789012345678901234567890]"
    assert resolve(state((1, 1, large)), "union") == large
    with pytest.raises(BadRequest, match="out of range"):
        resolve(state((1, 1, b"[1e400]")), "union")
