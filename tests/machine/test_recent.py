"""The recent table by itself: layers, the lazily sorted index, drafts."""

from __future__ import annotations

import pytest

from kvnode.kv.keys import TO_THE_END
from kvnode.kv.requests import KeyValue
from kvnode.machine.pace import Pace, in_one_go
from kvnode.machine.recent import Recent


def version(key: bytes, revision: int) -> KeyValue:
    return KeyValue(key, b"%d" % revision, revision, revision, 1)


def listed(recent: Recent, start: bytes, end: bytes, descending: bool) -> list[bytes]:
    assert recent.index(Pace())
    return list(recent.keys(start, end, descending))


@pytest.fixture
def recent() -> Recent:
    """k at 2 in the frozen layer, k at 4 and 5 and m at 3 in the active one."""
    recent = Recent()
    recent.add(version(b"k", 2))
    recent.freeze()
    recent.add(version(b"m", 3))
    recent.add(version(b"k", 4))
    recent.add(version(b"k", 5))
    return recent


def test_the_newest_layer_wins(recent: Recent) -> None:
    assert recent.newest(b"k") == version(b"k", 5)
    assert recent.newest(b"absent") is None


@pytest.mark.parametrize(("revision", "shown"), [(1, None), (2, 2), (3, 2), (4, 4), (5, 5), (9, 5)])
def test_a_revision_shows_the_version_at_or_below_it(recent: Recent, revision: int, shown: int | None) -> None:
    assert recent.at(b"k", revision) == (None if shown is None else version(b"k", shown))


def test_keys_come_once_and_in_order(recent: Recent) -> None:
    assert listed(recent, b"", TO_THE_END, False) == [b"k", b"m"]
    assert listed(recent, b"", TO_THE_END, True) == [b"m", b"k"]
    assert listed(recent, b"k", b"m", False) == [b"k"]
    assert listed(recent, b"m", b"k", False) == []
    recent.add(version(b"a", 6))
    assert listed(recent, b"", TO_THE_END, False) == [b"a", b"k", b"m"], "the index takes new keys in"


def test_eviction_drops_the_frozen_layer_only(recent: Recent) -> None:
    recent.evict()
    assert recent.at(b"k", 3) is None
    assert recent.at(b"k", 4) == version(b"k", 4)
    assert recent.versions == 3


def test_a_dropped_draft_leaves_nothing(recent: Recent) -> None:
    before = recent.size_bytes, recent.versions
    recent.begin()
    recent.add(version(b"k", 6))
    recent.add(version(b"new", 6))
    assert recent.newest(b"k") == version(b"k", 6)
    assert listed(recent, b"", TO_THE_END, False) == [b"k", b"m", b"new"]
    recent.drop()
    assert recent.newest(b"k") == version(b"k", 5)
    assert listed(recent, b"", TO_THE_END, False) == [b"k", b"m"]
    assert (recent.size_bytes, recent.versions) == before


def test_a_kept_draft_is_flushed_with_the_rest(recent: Recent) -> None:
    recent.evict()
    recent.begin()
    recent.add(version(b"new", 6))
    pace = Pace()
    in_one_go(recent.keep(pace), pace)
    assert [kv.mod_revision for kv in recent.freeze().changes] == [3, 4, 5, 6]


def test_a_second_freeze_needs_an_eviction(recent: Recent) -> None:
    with pytest.raises(AssertionError):
        recent.freeze()


def test_versions_only_grow(recent: Recent) -> None:
    with pytest.raises(AssertionError):
        recent.add(version(b"k", 5))
