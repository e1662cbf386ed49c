"""Leases and their queues in the state machine, against a plain model, whenever flushed, whenever opened again."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvnode.ids import Term
from kvnode.kv.keys import prefix_end
from kvnode.kv.requests import (
    LEASE_IDS,
    Campaign,
    Delete,
    LeaseEnded,
    LeaseGrant,
    LeaseList,
    LeaseRenew,
    LeaseReply,
    LeaseRevoke,
    LeaseUpkeep,
    Put,
    QueueRead,
    Refusal,
    Txn,
)
from kvnode.machine.leases import queue_key, queue_of
from kvnode.machine.pace import Pace, first_in_order, in_one_go
from kvnode.storage.memory_backend import MemoryBackend
from tests.machine.harness import Store

KEYS = [b"a", b"b", b"n/1", b"n/2", b"n/a", b"n/f", b"n/x", b"n/-c"]
UNUSUAL_IDS = [-12, LEASE_IDS[0], LEASE_IDS[-1]]
NAMES = [b"n", b"m", b"n/m"]


class LeasesAgainstAModel(RuleBasedStateMachine):
    """`twin` applies the same and is never flushed: equal digests show that flushing decides nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.backend = MemoryBackend()
        self.store = Store(lambda: self.backend)
        self.twin = Store(MemoryBackend)
        self.ttl: dict[int, int] = {}
        self.renewals: dict[int, int] = {}
        self.remaining: dict[int, int] = {}
        self.own: set[int] = set()
        self.lease_of: dict[bytes, int] = {}  # of every key that exists; 0: none
        self.created: dict[bytes, int] = {}
        self.places: set[bytes] = set()  # keys that were created on the lease that they are on
        self.cuts: list[Any] = []
        self.log: list[Any] = []

    # What the model does.

    def apply(self, request: Any) -> Any:
        self.log.append(request)
        applied = self.store.apply(request)
        assert self.twin.apply(request) == applied
        return applied.result

    def begin_in_model(self, lease: int, ttl_ms: int) -> None:
        self.ttl[lease], self.remaining[lease] = ttl_ms, 0
        self.renewals[lease] = self.store.machine.applied_index

    def put_in_model(self, key: bytes, lease: int) -> None:
        before = self.lease_of.get(key)
        if lease and key not in self.created:
            self.places.add(key)
        elif lease != before:
            self.places.discard(key)
        self.created.setdefault(key, self.store.machine.revision)
        self.lease_of[key] = lease
        self.let_go(before, lease)

    def delete_in_model(self, keys: list[bytes]) -> None:
        for key in keys:
            lease = self.lease_of.pop(key)
            del self.created[key]
            self.places.discard(key)
            self.let_go(lease, 0)

    def let_go(self, lease: int | None, now: int) -> None:
        if lease and lease != now and lease in self.own and lease not in self.lease_of.values():
            self.end_in_model(lease)

    def end_in_model(self, lease: int) -> None:
        del self.ttl[lease], self.renewals[lease], self.remaining[lease]
        self.own.discard(lease)

    def keys_of(self, lease: int) -> list[bytes]:
        return sorted(key for key, on in self.lease_of.items() if on == lease)

    # What happens.

    @rule(ttl=st.integers(1_000, 9_000), wanted=st.sampled_from([0, 0, 0, 3, 7, 1_000, *UNUSUAL_IDS]))
    def grant(self, ttl: int, wanted: int) -> None:
        result = self.apply(LeaseGrant(ttl, wanted))
        if wanted in self.ttl:
            assert isinstance(result, Refusal)
            assert result.code == "conflict"
            return
        assert isinstance(result, LeaseReply)
        assert result.id not in self.ttl
        assert result.id == wanted or (not wanted and result.id >= self.store.machine.applied_index)
        self.begin_in_model(result.id, ttl)

    @rule(key=st.sampled_from(KEYS), condition=st.sampled_from([-1, 0]))
    def put_with_its_own(self, key: bytes, condition: int) -> None:
        result = self.apply(LeaseGrant(2_000, put=Put(key, b"v", if_revision=condition)))
        if condition == 0 and key in self.lease_of:
            assert isinstance(result, Refusal)
            assert result.code == "compare_failed"
            return
        assert isinstance(result, LeaseReply)
        self.begin_in_model(result.id, 2_000)
        self.own.add(result.id)
        self.put_in_model(key, result.id)

    @rule(name=st.sampled_from(NAMES))
    def campaign(self, name: bytes) -> None:
        result = self.apply(Campaign(name, 5_000, b"me"))
        if isinstance(result, Refusal):
            assert result.code == "compare_failed", "somebody has put a key that looks like that by hand"
            return
        assert isinstance(result, LeaseReply)
        assert result.put is not None
        assert result.put.create_revision == self.store.machine.revision
        self.begin_in_model(result.id, 5_000)
        self.own.add(result.id)
        self.put_in_model(queue_key(name, result.id), result.id)

    @rule(key=st.sampled_from(KEYS), data=st.data())
    def put(self, key: bytes, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from([0, 0, *self.ttl, 999]))
        result = self.apply(Put(key, b"w", lease))
        if lease and lease not in self.ttl:
            assert isinstance(result, Refusal)
            assert result.code == "lease_not_found"
            return
        self.put_in_model(key, lease)

    @rule(key=st.sampled_from(KEYS))
    def delete(self, key: bytes) -> None:
        self.apply(Delete(key))
        self.delete_in_model([key] if key in self.lease_of else [])

    @rule(prefix=st.sampled_from([b"", b"n/"]))
    def delete_range(self, prefix: bytes) -> None:
        self.apply(Delete(prefix, prefix_end(prefix)))
        self.delete_in_model([key for key in list(self.lease_of) if key.startswith(prefix)])

    @rule(first=st.sampled_from(KEYS), second=st.sampled_from(KEYS), refused=st.booleans(), data=st.data())
    def transact(self, first: bytes, second: bytes, refused: bool, data: st.DataObject) -> None:
        """All or nothing, of the attachments as well."""
        lease = data.draw(st.sampled_from([0, *self.ttl]))
        puts = (Put(first, b"t", lease), *((Put(second, b"t", 999),) if refused else ()))
        result = self.apply(Txn((), puts))
        if refused:
            assert isinstance(result, Refusal)
        else:
            self.put_in_model(first, lease)

    @rule(gone=st.sampled_from(KEYS), put=st.sampled_from(KEYS), deletes=st.booleans(), data=st.data())
    def move(self, gone: bytes, put: bytes, deletes: bool, data: st.DataObject) -> None:
        """A lease may lose its last key and get another by one entry: it ends only if it has none after it."""
        if gone == put:
            return
        before, lease = self.lease_of.get(gone), data.draw(st.sampled_from([0, *self.ttl]))
        self.apply(Txn((), (Delete(gone) if deletes else Put(gone, b"m"), Put(put, b"m", lease))))
        self.put_in_model(put, lease)
        if not deletes:
            self.put_in_model(gone, 0)
        elif before is not None:
            self.delete_in_model([gone])

    @rule(data=st.data())
    def revoke(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from([*self.ttl, 999]))
        result = self.apply(LeaseRevoke(lease))
        if lease not in self.ttl:
            assert isinstance(result, Refusal)
            return
        keys = self.keys_of(lease)
        assert result == LeaseEnded(self.store.machine.revision, (lease,), len(keys))
        self.gone(lease, keys)

    def gone(self, lease: int, keys: list[bytes]) -> None:
        for key in keys:
            del self.lease_of[key], self.created[key]
            self.places.discard(key)
        self.end_in_model(lease)

    @precondition(lambda self: self.ttl)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from([*self.ttl]))
        assert self.apply(LeaseRenew(lease)) == LeaseReply(lease, self.ttl[lease], self.store.machine.revision)
        self.renewals[lease] += 1
        self.remaining[lease] = 0

    @precondition(lambda self: self.ttl)
    @rule(data=st.data())
    def keep_up(self, data: st.DataObject) -> None:
        """A decision counts only at the count of renewals that it was made at."""
        choose = st.lists(st.sampled_from([*self.ttl]), unique=True, max_size=3)
        late = data.draw(st.sampled_from([0, 0, 1]))
        expired = sorted(data.draw(choose))
        noted = sorted(data.draw(choose))
        request = LeaseUpkeep(
            tuple((lease, self.renewals[lease] - late) for lease in expired),
            tuple((lease, self.renewals[lease] - late, 500) for lease in noted),
        )
        before = self.store.machine.revision
        result = self.apply(request)
        keys = sorted(key for lease in expired for key in self.keys_of(lease)) if not late else []
        assert result == LeaseEnded(
            before + bool(keys), () if late else tuple(expired), len(keys), 0 if late else len(noted)
        )
        if not late:
            for lease in noted:
                self.remaining[lease] = 500
            for lease in expired:
                self.gone(lease, self.keys_of(lease))

    @rule()
    def begin_a_flush(self) -> None:
        cut = self.store.machine.cut(Term(1))
        if cut is not None:
            self.backend.stage(cut)
            self.cuts.append(cut)

    @precondition(lambda self: self.cuts)
    @rule()
    def finish_the_flush(self) -> None:
        self.backend.sync()
        self.store.machine.evict(self.cuts.pop())

    @rule()
    def lose_power(self) -> None:
        """What was not synced is gone; the log has it, and it is applied again."""
        self.backend.lose_power()
        self.cuts.clear()
        self.store.reopen()
        for request in self.log[self.store.machine.applied_index :]:
            self.store.apply(request)

    @precondition(lambda self: not self.cuts)
    @rule()
    def open_again(self) -> None:
        self.begin_a_flush()
        if self.cuts:
            self.finish_the_flush()
        self.store.reopen()

    @invariant()
    def same_as_the_model(self) -> None:
        machine = self.store.machine
        assert machine.digest == self.twin.machine.digest
        assert {lease: machine.leases.get(lease).ttl_ms for lease in machine.leases.ids()} == self.ttl
        for lease in self.ttl:
            held = machine.leases.get(lease)
            assert sorted(held.keys) == self.keys_of(lease)
            assert (held.renewals, held.remaining_ms) == (self.renewals[lease], self.remaining[lease])
        for name in NAMES:
            expected = sorted(
                (self.created[key], lease)
                for key, lease in self.lease_of.items()
                if lease and queue_of(key, lease) == name and key in self.places
            )
            assert list(machine.leases.queue(name)) == expected
            shown = machine.look_up(QueueRead(name)).waiting
            assert [(kv.create_revision, kv.lease) for kv in shown] == expected
            for position, (token, lease) in enumerate(expected):
                pair = machine.look_up(QueueRead(name, lease=lease)).waiting
                assert [kv.lease for kv in pair] == [on for _, on in expected[max(0, position - 1) : position + 1]]
                assert [kv.lease for kv in machine.look_up(QueueRead(name, token=token)).waiting] == [lease]
        listed = machine.look_up(LeaseList()).leases
        counted = [(lease, len(self.keys_of(lease))) for lease in sorted(self.ttl, key=lambda lease: lease % 2**64)]
        assert [(view.id, view.keys) for view in listed] == counted
        rest = machine.look_up(LeaseList(after=listed[0].id, limit=2)).leases if listed else ()
        assert [view.id for view in rest] == [view.id for view in listed[1:3]]
        for key, lease in self.lease_of.items():
            assert self.store.get(key).lease == lease, key


LeasesAgainstAModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLeasesAgainstAModel = LeasesAgainstAModel.TestCase


def test_a_lease_of_many_keys_ends_in_slices_at_one_revision() -> None:
    store = Store(MemoryBackend)
    machine = store.machine
    lease = store.apply(LeaseGrant(5_000)).result.id
    for number in range(5_000):
        store.apply(Put(b"k%05d" % number, b"v", lease))
    before = machine.revision
    slices = 1
    applied = machine.begin(machine.applied_index + 1, machine.applied_time + 1, LeaseRevoke(lease))
    while applied is None:
        assert machine.revision == before
        assert store.get(b"k00000") is not None, "nobody reads what is unfinished"
        applied = machine.resume()
        slices += 1
    assert slices >= 5
    assert machine.revision == before + 1
    assert [event.kv.key for event in applied.events] == [b"k%05d" % number for number in range(5_000)]
    assert len(machine.leases) == 0


@pytest.mark.parametrize("deletes", [True, False])
def test_a_lease_of_its_key_goes_on_if_it_gets_another_key_by_the_same_entry(deletes: bool) -> None:
    store = Store(MemoryBackend)
    lease = store.apply(LeaseGrant(5_000, put=Put(b"a", b"v"))).result.id
    first = Delete(b"a") if deletes else Put(b"a", b"w")
    assert store.apply(Txn((), (first, Put(b"b", b"v", lease)))).result.succeeded
    assert list(store.machine.leases.get(lease).keys) == [b"b"]
    store.apply(Delete(b"b"))
    assert store.machine.leases.get(lease) is None


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("revoked", [True, False])
def test_very_many_keys_leave_their_leases_in_slices(own: bool, revoked: bool) -> None:
    many = 6_000
    store = Store(MemoryBackend, leases_max=many)
    machine = store.machine
    lease = store.apply(LeaseGrant(5_000)).result.id if not own else 0
    for number in range(many):
        put = Put(b"k%04x" % (number * 7919 % 65_521), b"v", lease)
        store.apply(LeaseGrant(5_000, put=put) if own else put)
    if revoked:
        ids = [(each, machine.leases.get(each).renewals) for each in machine.leases.ids()]
        request: Any = LeaseUpkeep(tuple(ids))
    else:
        request = Delete(b"k", b"l")

    def left() -> int:
        return len(machine.leases) + sum(len(machine.leases.get(each).keys) for each in machine.leases.ids())

    sizes = [left()]
    applied = machine.begin(machine.applied_index + 1, machine.applied_time + 1, request)
    while applied is None:
        sizes.append(left())
        applied = machine.resume()
    sizes.append(left())
    assert sizes[-1] == (0 if own or revoked else 1)
    assert max(before - after for before, after in pairwise(sizes)) <= 1_500
    assert [event.kv.key for event in applied.events] == sorted(event.kv.key for event in applied.events)


def test_a_decision_about_a_lease_does_not_end_a_later_one_of_its_id() -> None:
    store = Store(MemoryBackend)
    store.apply(LeaseGrant(5_000, 7))
    decided = ((7, store.machine.leases.get(7).renewals),)
    store.apply(LeaseRevoke(7))
    store.apply(LeaseGrant(5_000, 7))
    assert store.apply(LeaseUpkeep(decided)).result.leases == ()
    assert store.machine.leases.get(7) is not None


def test_a_full_lease_lets_its_own_keys_be_changed() -> None:
    store = Store(MemoryBackend, lease_keys_max=1)
    lease = store.apply(LeaseGrant(5_000)).result.id
    store.apply(Put(b"a", b"v", lease))
    assert store.apply(Put(b"b", b"v", lease)).result.code == "too_large"
    assert store.apply(Put(b"a", b"w", lease)).result.version == 2


@pytest.mark.parametrize(("limit", "code"), [({"leases_max": 2}, "overloaded"), ({"lease_keys_max": 2}, "too_large")])
def test_the_bounds_refuse_and_nothing_is_lost(limit: dict[str, int], code: str) -> None:
    store = Store(MemoryBackend, **limit)
    if code == "overloaded":
        leases = [store.apply(LeaseGrant(5_000)).result.id for _ in range(2)]
        assert store.apply(LeaseGrant(5_000, put=Put(b"k", b"v"))).result.code == code
        assert store.apply(Campaign(b"n", 5_000)).result.code == code
        store.apply(LeaseRevoke(leases[0]))
        assert store.apply(Campaign(b"n", 5_000)).result.put is not None
    else:
        lease = store.apply(LeaseGrant(5_000)).result.id
        for key in (b"a", b"b"):
            store.apply(Put(key, b"v", lease))
        assert store.apply(Put(b"c", b"v", lease)).result.code == code
        store.apply(Delete(b"a"))
        assert store.apply(Put(b"c", b"v", lease)).result.created


def test_a_queue_is_in_order_of_age_whatever_the_leases_numbers() -> None:
    store = Store(MemoryBackend)
    low = store.apply(LeaseGrant(5_000)).result.id
    first = store.apply(Campaign(b"n", 5_000, b"first")).result
    store.apply(Put(queue_key(b"n", low), b"second", low))
    shown = store.machine.look_up(QueueRead(b"n")).waiting
    assert [kv.value for kv in shown] == [b"first", b"second"]
    assert store.machine.leases.holder(b"n") == (first.put.create_revision, first.id)
    store.apply(Put(queue_key(b"n", first.id), b"again", first.id))  # keeps its age
    assert store.machine.leases.holder(b"n") == (first.put.create_revision, first.id)
    store.apply(Put(queue_key(b"n", first.id), b"off its lease"))
    assert [kv.value for kv in store.machine.look_up(QueueRead(b"n")).waiting] == [b"second"]


@pytest.mark.parametrize("lease", UNUSUAL_IDS)
def test_a_place_is_found_by_its_token_whatever_the_leases_number(lease: int) -> None:
    store = Store(MemoryBackend)
    store.apply(LeaseGrant(5_000, lease))
    store.apply(Put(queue_key(b"n", lease), b"me", lease))
    token, _ = store.machine.leases.holder(b"n")
    assert [kv.lease for kv in store.machine.look_up(QueueRead(b"n", token=token)).waiting] == [lease]


@pytest.mark.parametrize("reopened", [False, True])
def test_a_token_is_one_holders_and_does_not_come_back(reopened: bool) -> None:
    """Whatever is done to the keys of a queue by hand: once a newer token is out no older one passes."""
    backend = MemoryBackend()
    store = Store(lambda: backend, "reopened" if reopened else "recent")
    one, two = (store.apply(LeaseGrant(5_000)).result.id for _ in range(2))
    keys = {lease: queue_key(b"n", lease) for lease in (one, two)}

    def holder_after(request: Any) -> tuple[int, int] | None:
        store.apply(request)
        store.settle()
        return store.machine.leases.holder(b"n")

    assert holder_after(Put(keys[one], b"", one)) == (2, one)
    assert holder_after(Put(keys[two], b"", two)) == (2, one)
    assert holder_after(Put(keys[one], b"off its lease")) == (3, two)
    assert holder_after(Put(keys[one], b"and on it again", one)) == (3, two)
    assert store.machine.leases.position(b"n", one) == -1
    assert holder_after(Delete(keys[two])) is None
    assert holder_after(Delete(keys[one])) is None
    both = Txn((), tuple(Put(key, b"", lease) for lease, key in keys.items()))
    assert holder_after(both) == (8, one)
    assert holder_after(LeaseRevoke(one)) is None, "a token is not given twice"
    assert holder_after(LeaseRevoke(two)) is None
    assert not store.get(keys[two])


def test_a_page_of_a_queue_is_bounded_in_items_and_in_bytes() -> None:
    store = Store(MemoryBackend, page_items=3, page_bytes_max=100)
    places = [store.apply(Campaign(b"n", 5_000, b"v" * 20)).result for _ in range(5)]
    shown = store.machine.look_up(QueueRead(b"n", limit=5))
    assert [kv.lease for kv in shown.waiting] == [place.id for place in places[:3]]
    assert shown.more
    store.apply(LeaseRevoke(places[0].id))
    store.apply(Put(queue_key(b"n", places[1].id), b"v" * 90, places[1].id))
    shown = store.machine.look_up(QueueRead(b"n"))
    assert [kv.lease for kv in shown.waiting] == [places[1].id]
    assert shown.more
    assert len(store.machine.look_up(QueueRead(b"n", lease=places[2].id)).waiting) == 2, "who waits is shown whom for"


class CountingPace(Pace):
    __slots__ = ("slices",)

    def __init__(self) -> None:
        super().__init__()
        self.slices = 0

    def renew(self) -> None:
        super().renew()
        self.slices += 1


@pytest.mark.parametrize("most", [1, 5_000, 20_000])
def test_many_keys_are_put_in_order_in_slices(most: int) -> None:
    keys = [b"%04x" % (number * 7919 % 65_521) for number in range(10_000)]
    pace = CountingPace()
    assert list(in_one_go(first_in_order(keys, most, pace), pace)) == sorted(keys)[:most]
    assert pace.slices >= 2
    assert in_one_go(first_in_order([], 5, pace), pace) == ()
