"""The cursor of the timeline: round trips, and nothing that was cut, edited or made up gets through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.clocks.version_vector import COUNTER_MAX, INCARNATION_MAX, Origin, VersionVector
from kvnode.errors import BadEncoding
from kvnode.wire.event_cursor import decode_event_cursor, encode_event_cursor

ORIGINS = st.builds(Origin, st.integers(1, COUNTER_MAX), st.integers(0, INCARNATION_MAX))
VECTORS = st.builds(VersionVector, st.dictionaries(ORIGINS, st.integers(1, COUNTER_MAX), max_size=8))
ONE = encode_event_cursor(VersionVector({Origin(1, 2): 3}))


@given(VECTORS)
def test_it_comes_back_as_it_was(vector: VersionVector) -> None:
    assert decode_event_cursor(encode_event_cursor(vector)) == vector


def test_before_everything_it_is_empty() -> None:
    assert encode_event_cursor(VersionVector.EMPTY) == ""


@given(VECTORS.filter(len), st.data())
def test_a_changed_character_is_noticed(vector: VersionVector, data: st.DataObject) -> None:
    text = encode_event_cursor(vector)
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from("Ab3-_").filter(lambda character: character != text[place]))
    with pytest.raises(BadEncoding):
        decode_event_cursor(text[:place] + other + text[place + 1 :])


@pytest.mark.parametrize("text", [ONE[:-1], ONE + "A", ONE + "=", ONE[1:], "!", "\udc80", "AAAA", "A" * 40_000, " "])
def test_what_is_not_ours_is_refused(text: str) -> None:
    with pytest.raises(BadEncoding):
        decode_event_cursor(text)
