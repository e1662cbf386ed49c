"""Pages between replicas: what they may leave out, when a vector rises, what stays deleted."""

from __future__ import annotations

import msgspec
import pytest

from kvnode.clocks.version_vector import Origin, VersionVector
from kvnode.errors import IdentityRefused, NoSpace
from kvnode.gossip import anti_entropy
from kvnode.gossip.anti_entropy import MISSES_MAX, KeyspaceDelta
from kvnode.gossip.key_state import StateRow
from kvnode.gossip.keyspace import Keyspace
from kvnode.ids import NodeId
from tests.gossip.test_keyspace import context, delete, flush, pull, put, replica, values


def page(asker: Keyspace, asked: Keyspace, bytes_max: int = 1 << 20) -> KeyspaceDelta:
    want = asker.want()
    made = asked.delta(VersionVector.from_row(want.since), bytes_max, want.after)
    return msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=KeyspaceDelta)


def filled(member: int, keys: int) -> Keyspace:
    keyspace = replica(member)
    for n in range(keys):
        put(keyspace, b"%03d" % n, bytes(50))
    return keyspace


def test_a_page_carries_exactly_what_is_beyond_the_vector() -> None:
    a, b = filled(1, 20), replica(2)
    assert pull(b, a) == 1
    put(a, b"007", b"new", context(a, b"007"))
    delete(a, b"009")
    sent = page(b, a)
    assert ([key for key, _ in sent.states], sent.more, sent.whole) == ([b"007", b"009"], False, False)
    assert b.merge(sent) == (b"007", b"009")
    assert a.digest() == b.digest()
    assert page(b, a).states == ()
    assert b.merge(sent) == (), "a page that comes again changes nothing"


def test_what_is_too_much_for_one_page_goes_in_the_order_of_keys_and_the_vector_rises_at_its_end() -> None:
    a, b = filled(1, 30), replica(2)
    pages = 0
    while (sent := page(b, a, 1_000)).more:
        pages += 1
        assert b.merge(sent)
        assert b.vector == VersionVector.EMPTY
        assert b.digest() != a.digest()
    assert pages > 3
    b.merge(sent)
    assert b.vector == a.vector
    assert b.digest() == a.digest()


def test_a_catch_up_goes_on_with_another_sender_and_claims_what_both_have() -> None:
    a, c, b = filled(1, 30), replica(3), replica(2)
    pull(c, a)
    put(a, b"000", b"a only")
    b.merge(page(b, a, 1_000))
    assert pull(b, c, 1_000) > 2
    assert b.vector == c.vector
    assert b.digest() != c.digest(), "it also holds a write that the other lacks, and says so"
    pull(c, b)
    assert c.digest() == b.digest()
    pull(b, a), pull(c, a)
    assert a.digest() == b.digest() == c.digest()


def test_a_page_looks_at_a_bounded_number_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anti_entropy, "SCAN_KEYS_MAX", 10)
    a, b = filled(1, 30), replica(2)
    pull(b, a)
    for key in (b"028", b"029"):
        put(a, key, bytes(500), context(a, key))
    sent = page(b, a, 100)
    assert (sent.states, sent.more) == ((), True)
    assert pull(b, a, 100) == 4
    assert a.digest() == b.digest()


def test_one_key_is_carried_however_large() -> None:
    a, b = replica(1), replica(2)
    put(a, b"k", bytes(1_000)), put(a, b"l", bytes(1_000))
    assert pull(b, a, 1) == 2
    assert a.digest() == b.digest()


# -- deletions --------------------------------------------------------------------------------------------------------


def test_a_tombstone_is_forgotten_when_every_member_has_it_and_no_sooner() -> None:
    a, b = replica(1), replica(2)
    put(a, b"k", b"1")
    pull(b, a)
    before = b.vector
    delete(a, b"k")
    assert a.forget(before) == 0
    assert a.read(b"k") is not None
    pull(b, a)
    assert a.forget(a.vector.meet(b.vector)) == 1
    assert a.read(b"k") is None
    changes = flush(a)
    assert changes.removed == (b"kk",)
    assert a.forgotten == a.vector


def test_what_was_deleted_does_not_come_back_after_its_tombstone_is_forgotten() -> None:
    a, b, c = replica(1), replica(2), replica(3)
    put(a, b"k", b"1")
    pull(b, a)
    old = page(c, b)  # made before b hears of the deletion; it comes late
    late = page(a, b)
    delete(a, b"k")
    pull(b, a), pull(c, a)
    for keyspace in (a, b, c):
        assert keyspace.forget(a.vector) == 1
    c.merge(old), a.merge(late)
    assert values(c, b"k") == values(a, b"k") == []
    assert a.digest() == b.digest() == c.digest()


def test_a_member_that_was_away_for_long_deletes_what_it_held() -> None:
    a, b = replica(1), replica(2)
    put(a, b"k", b"1")
    pull(b, a)
    delete(a, b"k")
    for n in range(50):
        put(a, b"%d" % n, b"")
    assert a.forget(a.vector.meet(b.vector)) == 0, "it has not said that it knows"
    pull(a, b), pull(b, a)
    assert values(a, b"k") == values(b, b"k") == []


def test_a_wiped_member_that_took_an_old_value_from_a_slow_one_loses_it_again() -> None:
    """The others forgot the tombstone, for its earlier life had it: nobody could tell it now by states alone."""
    a, slow, wiped = replica(1), replica(2), replica(3)
    put(a, b"k", b"1")
    pull(slow, a), pull(wiped, a)
    delete(a, b"k")
    pull(wiped, a)
    believed = wiped.vector
    wiped = replica(3, life=2)
    pull(wiped, slow)
    assert values(wiped, b"k") == [b"1"]
    pull(slow, a)
    assert a.forget(slow.vector.meet(believed)) == 1
    sent = page(wiped, a)
    assert sent.whole
    wiped.merge(sent)
    assert values(wiped, b"k") == []
    assert wiped.forgotten == a.forgotten


def test_a_new_member_learns_what_is_forgotten_and_does_not_leave_it_out_either() -> None:
    a, b, c = replica(1), replica(2), replica(3)
    put(a, b"k", b"1")
    pull(c, a)
    delete(a, b"k")
    a.forget(a.vector)  # too early
    pull(b, a)
    pull(c, b)
    assert values(c, b"k") == []


# -- pages that are not what a replica sends --------------------------------------------------------------------------


def test_a_page_that_does_not_continue_is_ignored_and_a_catch_up_that_gets_nowhere_is_given_up() -> None:
    a, b = filled(1, 30), replica(2)
    first = page(b, a, 1_000)
    b.merge(first)
    b.merge(page(b, a, 1_000))
    position = b.want().after
    for _ in range(MISSES_MAX - 1):
        assert b.merge(first) == ()
        assert b.want().after == position
    b.merge(first)
    assert b.want().after == b""
    pull(b, a, 1_000)
    assert a.digest() == b.digest()


def test_an_answer_to_an_earlier_life_is_ignored() -> None:
    a, b = filled(1, 3), replica(2)
    pull(b, a)
    put(a, b"k", b"1")
    late = page(b, a)
    reborn = replica(2, life=2)
    assert reborn.merge(late) == ()
    assert reborn.vector == VersionVector.EMPTY


ONE = (1, 1, 1)
STATE = StateRow(((1, 1, 1, 0, b""),), (ONE,))
OTHER = StateRow(((1, 1, 2, 0, b""),), ((1, 1, 2),))


@pytest.mark.parametrize(
    "change",
    [
        {"vector": ((1, 1, 0),)},
        {"states": ((b"a", STATE), (b"b", STATE))},
        {"states": ((b"b", STATE), (b"a", OTHER))},
        {"states": ((b"a", STATE), (b"a", OTHER))},
        {"states": ((b"", STATE),)},
        {"states": ((b"b", STATE),), "upto": b"a"},
        {"states": ((bytes(4097), STATE),)},
        {"states": ((b"a", StateRow(((1, 1, 2, 0, b""),), (ONE,))),)},
        {"forgotten": (ONE,)},
    ],
)
def test_other_pages_are_refused_whole(change: dict[str, object]) -> None:
    good = KeyspaceDelta((), ((1, 1, 2),), (), b"", None, False, ((b"a", STATE),))
    keyspace = replica(2)
    with pytest.raises(ValueError, match=r"."):
        keyspace.merge(msgspec.structs.replace(good, **change))
    assert (keyspace.read(b"a"), keyspace.vector) == (None, VersionVector.EMPTY)
    assert keyspace.merge(good) == (b"a",)
    with pytest.raises(ValueError, match="two keys"):
        keyspace.merge(msgspec.structs.replace(good, states=((b"c", STATE),)))


def test_pages_are_refused_beyond_every_bound() -> None:
    a, b = filled(1, 20), replica(2, keys_max=4)
    with pytest.raises(NoSpace):
        pull(b, a)
    many = tuple((1, life, 1) for life in range(200))
    more = tuple((2, life, 1) for life in range(200))
    c = replica(3)
    c.merge(KeyspaceDelta((), many, (), b"", None, False, ()))
    with pytest.raises(NoSpace):
        c.merge(KeyspaceDelta((), more, (), b"", None, False, ()))
    with pytest.raises(IdentityRefused):
        c.merge(KeyspaceDelta((), ((3, 1, 1),), (), b"", None, False, ()))
    assert Origin(NodeId(3), 1) == c.origin
