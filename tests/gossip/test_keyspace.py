"""Writes, siblings, limits, durability of one replica; and the scenarios that blow up plain version vectors."""

from __future__ import annotations

import pytest

from kvnode.clocks.version_vector import Dot, Origin, VersionVector
from kvnode.errors import BadContext, BadKey, Conflict, IdentityRefused, NoSpace, TooLarge
from kvnode.gossip.key_state import BLIND, ORIGINS_MAX, Context, KeyState
from kvnode.gossip.keyspace import Keyspace, KeyspaceLimits
from kvnode.gossip.keyspace_rows import Changes
from kvnode.ids import NodeId

EMPTY = VersionVector.EMPTY


def replica(member: int, life: int = 1, **limits: int) -> Keyspace:
    return Keyspace(Origin(NodeId(member), life), KeyspaceLimits(**limits))


def flush(keyspace: Keyspace) -> Changes:
    changes = keyspace.take_changes()
    keyspace.made_durable(changes.mark)
    return changes


def put(keyspace: Keyspace, key: bytes, value: bytes, seen: VersionVector | None = None) -> KeyState:
    state = keyspace.put(key, value, context=None if seen is None else Context(seen), time=0).state
    flush(keyspace)
    return state


def delete(keyspace: Keyspace, key: bytes, seen: VersionVector | None = None) -> Dot | None:
    dot = keyspace.delete(key, context=None if seen is None else Context(seen), time=0).dot
    flush(keyspace)
    return dot


def pull(asker: Keyspace, asked: Keyspace, bytes_max: int = 1 << 20) -> int:
    """Number of pages it took."""
    for pages in range(1, 10_000):
        want = asker.want()
        page = asked.delta(VersionVector.from_row(want.since), bytes_max, want.after)
        asker.merge(page)
        if not page.more:
            return pages
    raise AssertionError("it does not end")


def values(keyspace: Keyspace, key: bytes) -> list[bytes]:
    state = keyspace.read(key)
    return [] if state is None else [sibling.value for sibling in state.in_order]


def context(keyspace: Keyspace, key: bytes) -> VersionVector:
    state = keyspace.read(key)
    assert state is not None
    return state.context


# -- concurrent writes ------------------------------------------------------------------------------------------------


def test_two_sides_of_a_partition_meet_as_siblings_and_one_write_resolves_them() -> None:
    a, b, c = replicas = [replica(1), replica(2), replica(3)]
    put(a, b"k", b"left")
    put(b, b"k", b"right")
    pull(c, b)
    for asker in replicas * 2:
        for asked in replicas:
            pull(asker, asked)
    assert [values(keyspace, b"k") for keyspace in replicas] == [[b"left", b"right"]] * 3
    assert len({context(keyspace, b"k") for keyspace in replicas}) == 1
    put(c, b"k", b"one", context(a, b"k"))
    pull(a, c), pull(b, a)
    assert [values(keyspace, b"k") for keyspace in replicas] == [[b"one"]] * 3


def test_a_write_concurrent_with_a_deletion_survives_it() -> None:
    a, b = replica(1), replica(2)
    put(a, b"k", b"old")
    pull(b, a)
    read = context(b, b"k")
    put(a, b"k", b"new", context(a, b"k"))
    assert delete(b, b"k", read)
    pull(a, b), pull(b, a)
    assert values(a, b"k") == values(b, b"k") == [b"new"]


def test_two_clients_at_one_node_with_the_same_context_make_two_siblings() -> None:
    a = replica(1)
    read = put(a, b"k", b"0").context
    a.put(b"k", b"1", context=Context(read), time=1)
    a.put(b"k", b"2", context=Context(read), time=2)  # before the first is durable
    flush(a)
    assert values(a, b"k") == [b"1", b"2"]
    put(a, b"k", b"3", read)
    assert values(a, b"k") == [b"1", b"2", b"3"]


@pytest.mark.parametrize("nodes", [1, 2])
def test_blind_writers_that_interleave_make_two_siblings(nodes: int) -> None:
    """Each writes with what its own last answer said, and never reads the other's; 101 rounds."""
    replicas = [replica(1), replica(2)][:nodes]
    plain = PlainVectors()
    seen: list[Context | None] = [None, None]
    plain_seen = [EMPTY, EMPTY]
    for round_ in range(101):
        writer = round_ % 2
        at = replicas[writer % nodes]
        seen[writer] = at.put(b"k", b"%d" % round_, context=seen[writer], time=round_).context
        flush(at)
        pull(replicas[0], replicas[-1]), pull(replicas[-1], replicas[0])
        plain_seen[writer] = plain.put(at.origin, round_, plain_seen[writer])
        newest = sorted(b"%d" % n for n in (round_ - 1, round_) if n >= 0)
        assert values(replicas[0], b"k") == values(replicas[-1], b"k") == newest
    assert len(plain.values) == 101


@pytest.mark.parametrize("nodes", [1, 2])
def test_read_modify_writers_that_race_make_two_siblings(nodes: int) -> None:
    """In each of 101 rounds both read the same, then both write with the context of what they read."""
    replicas = [replica(1), replica(2)][:nodes]
    for round_ in range(101):
        reads = [Context(context(replicas[n % nodes], b"k")) if round_ else None for n in (0, 1)]
        for writer, read in enumerate(reads):
            at = replicas[writer % nodes]
            at.put(b"k", b"%d/%d" % (round_, writer), context=read, time=round_)
            flush(at)
        pull(replicas[0], replicas[-1]), pull(replicas[-1], replicas[0])
        assert values(replicas[0], b"k") == values(replicas[-1], b"k") == [b"%d/0" % round_, b"%d/1" % round_]


def test_the_context_of_an_answer_does_not_cover_what_the_writer_has_not_seen() -> None:
    a = replica(1)
    first = a.put(b"k", b"mine", context=None, time=0).context
    put(a, b"k", b"another's")
    second = a.put(b"k", b"mine again", context=first, time=0).context
    flush(a)
    a.put(b"k", b"and again", context=second, time=0)
    flush(a)
    assert values(a, b"k") == [b"and again", b"another's"]


class PlainVectors:
    """A server without dots: one vector for a key; whoever has not seen all of it adds a sibling."""

    def __init__(self) -> None:
        self.values: list[int] = []
        self.vector = EMPTY

    def put(self, origin: Origin, value: int, seen: VersionVector) -> VersionVector:
        if seen.includes(self.vector):
            self.values.clear()
        self.values.append(value)
        dot = Dot(origin, self.vector.get(origin) + 1)
        self.vector = self.vector.with_dot(dot)
        return seen.with_dot(dot)


# -- bounds and refusals ----------------------------------------------------------------------------------------------


def test_a_blind_write_beyond_the_cap_is_refused_with_the_context_that_passes() -> None:
    a = replica(1, siblings_max=3)
    for n in range(3):
        put(a, b"k", b"%d" % n)
    with pytest.raises(Conflict) as refused:
        put(a, b"k", b"4")
    with pytest.raises(Conflict):
        a.put(b"k", b"4", context=BLIND, time=0)
    a.put(b"k", b"5", context=refused.value.detail["context"], time=0)
    flush(a)
    assert values(a, b"k") == [b"5"]


def test_many_large_siblings_are_refused_before_they_are_many() -> None:
    a = replica(1, state_bytes_max=100)
    put(a, b"k", bytes(101))
    with pytest.raises(Conflict):
        put(a, b"k", b"")


def test_keys_and_values_have_sizes() -> None:
    a = replica(1, value_bytes_max=10)
    with pytest.raises(BadKey):
        put(a, b"", b"")
    with pytest.raises(TooLarge):
        put(a, bytes(4097), b"")
    with pytest.raises(TooLarge):
        put(a, b"k", bytes(11))
    put(a, bytes(4096), bytes(10))


def test_a_full_keyspace_takes_deletions_and_what_does_not_grow() -> None:
    a = replica(1, keys_max=2)
    put(a, b"a", b"1"), put(a, b"b", b"1")
    with pytest.raises(NoSpace):
        put(a, b"c", b"1")
    put(a, b"a", b"2", context(a, b"a"))
    assert delete(a, b"a")
    assert a.forget(a.vector) == 1
    put(a, b"c", b"1")
    b = replica(1, bytes_max=400)
    put(b, b"a", bytes(200))
    with pytest.raises(NoSpace):
        put(b, b"b", bytes(200))
    assert delete(b, b"a")


def test_a_context_from_the_future_is_refused() -> None:
    a, b = replica(1), replica(2)
    put(b, b"k", b"1")
    for dots in (Context(b.vector), Context(EMPTY, Dot(b.origin, 1)), Context(VersionVector({a.origin: 1}))):
        with pytest.raises(BadContext):
            a.put(b"k", b"2", context=dots, time=0)
        with pytest.raises(BadContext):
            a.delete(b"k", context=dots, time=0)


def test_a_deletion_of_nothing_is_no_write() -> None:
    a = replica(1)
    assert delete(a, b"k") is None
    assert (a.read(b"k"), a.vector) == (None, EMPTY)
    put(a, b"k", b"1")
    assert delete(a, b"k") == Dot(a.origin, 2)
    assert delete(a, b"k") is None


# -- durable before shown ---------------------------------------------------------------------------------------------


def test_a_write_is_shown_when_it_is_durable_and_not_before() -> None:
    a, b = replica(1), replica(2)
    digest = a.digest()
    a.put(b"k", b"1", context=None, time=0)
    first = a.take_changes()
    a.put(b"k", b"2", context=None, time=0)
    assert a.read(b"k") is None
    assert a.digest() == digest
    assert pull(b, a) == 1
    assert b.read(b"k") is None
    second = a.take_changes()
    assert a.made_durable(first.mark) == (b"k",)
    assert values(a, b"k") == [b"1"]
    assert a.vector.get(a.origin) == 1
    a.made_durable(second.mark)
    assert values(a, b"k") == [b"1", b"2"]
    assert not a.take_changes()


def test_what_peers_bring_meanwhile_meets_what_is_on_its_way_to_the_disk() -> None:
    a, b = replica(1), replica(2)
    put(a, b"k", b"0")
    pull(b, a)
    a.put(b"k", b"a", context=Context(context(a, b"k")), time=0)
    put(b, b"k", b"b", context(b, b"k"))
    pull(a, b)
    assert values(a, b"k") == [b"b"]
    changes = flush(a)
    assert values(a, b"k") == [b"a", b"b"]
    restored = Keyspace.restore(a.origin, changes.rows)
    assert values(restored, b"k") == [b"a", b"b"]
    assert restored.vector == a.vector


def test_an_old_copy_of_a_store_is_noticed() -> None:
    a, b = replica(1), replica(2)
    copy = flush(a)
    put(a, b"k", b"1")
    pull(b, a)
    with pytest.raises(IdentityRefused):
        pull(Keyspace.restore(a.origin, copy.rows), b)


@pytest.mark.parametrize("rows", [[(b"x", b"")], [(b"ka", b"\x00")], [(b"v", b"\x90")], [(b"ka", b"\x92\x90\x90")]])
def test_rows_that_were_never_written_are_refused(rows: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Keyspace.restore(Origin(NodeId(1), 1), rows)


# -- listing ----------------------------------------------------------------------------------------------------------


def test_a_listing_is_in_byte_order_and_continues_after_a_key() -> None:
    a = replica(1)
    for key in (b"b\xff", b"a", b"b", b"b/1", b"c", b"b/2"):
        put(a, key, key)
    delete(a, b"b/1")
    listed, more = a.list(b"b", None, 2)
    assert ([key for key, _ in listed], more) == ([b"b", b"b/2"], True)
    listed, more = a.list(b"b", b"b/2", 2)
    assert ([key for key, _ in listed], more) == ([b"b\xff"], False)
    assert [key for key, _ in a.list(b"", b"a", 10)[0]] == [b"b", b"b/2", b"b\xff", b"c"]
    assert a.list(b"b", b"c", 10) == ([], False)
    assert len(a.list(b"b", b"a", 10)[0]) == 3


# -- origins ----------------------------------------------------------------------------------------------------------


def after_lives(member: int, lives: int) -> Keyspace:
    """What another member pulls of a cluster in which stores were lost so often."""
    keyspace = replica(member)
    for life in range(1, lives + 1):
        wiped = replica(99, life)
        put(wiped, b"key-%d" % life, b"x")
        pull(keyspace, wiped)
    return keyspace


def test_an_origin_that_nobody_would_take_writes_of_gives_none() -> None:
    """A vector with one origin too many is refused by every other member, and by this one when it starts again."""
    keyspace = after_lives(1, ORIGINS_MAX)
    for write in (lambda: put(keyspace, b"k", b"v"), lambda: delete(keyspace, b"key-1")):
        with pytest.raises(NoSpace):
            write()
    other = replica(2)
    pull(other, keyspace)
    assert other.digest() == keyspace.digest()
    rows = dict(flush(keyspace).rows)
    Keyspace.restore(keyspace.origin, rows.items())


def test_a_page_leaves_room_for_the_own_origin_once_it_has_written() -> None:
    keyspace = after_lives(1, ORIGINS_MAX - 1)
    keyspace.put(b"k", b"v", context=None, time=0)  # not durable yet
    one_more = replica(3)
    put(one_more, b"j", b"x")
    with pytest.raises(NoSpace):
        pull(keyspace, one_more)
    flush(keyspace)
    assert len(keyspace.vector) == ORIGINS_MAX
    put(keyspace, b"k2", b"v")


def test_a_catching_up_goes_on_after_a_crash() -> None:
    """What whole pages took away of the keys it has passed is accounted for by it alone."""
    sender, receiver = replica(1), replica(2)
    put(sender, b"a", b"deleted")
    pull(receiver, sender)
    delete(sender, b"a")
    for key in (b"b", b"c", b"d"):
        put(sender, key, b"x")
    assert sender.forget(sender.vector) == 1
    page = sender.delta(receiver.vector, 1)
    assert (page.whole, page.more) == (True, True)
    receiver.merge(page)
    rows = dict(flush(receiver).rows)
    restarted = Keyspace.restore(receiver.origin, rows.items())
    assert values(restarted, b"a") == []
    assert restarted.want() == receiver.want()
    assert restarted._known(b"a") == sender.vector
    pull(restarted, sender)
    assert restarted.digest() == sender.digest()
    again = Keyspace.restore(receiver.origin, {**rows, **dict(flush(restarted).rows)}.items())
    assert (again.want().after, again.vector) == (b"", sender.vector)
