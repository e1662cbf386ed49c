"""A new cluster out of a snapshot: it shows what was there, and never takes the old one's future for its own."""

from __future__ import annotations

from io import BytesIO

import pytest

from kvnode.config import LimitsSection
from kvnode.errors import BadRequest, Compacted, FutureRevision
from kvnode.ids import Index
from kvnode.kv import keys
from kvnode.kv.requests import (
    Campaign,
    Command,
    Fence,
    History,
    LeaseGrant,
    LeaseReply,
    Put,
    Range,
    Refusal,
    SessionOpen,
    SessionReply,
    Sweep,
    SweepReply,
)
from kvnode.machine.changelog import ChangesAsked
from kvnode.machine.machine import StateMachine
from kvnode.machine.pace import Pace, in_one_go
from kvnode.machine.restore import SKIPPED, SKIPPED_MAX, Restoration
from kvnode.machine.snapshot import describe, pieces, verified_rows
from kvnode.storage.memory_backend import MemoryBackend
from tests.backend_suite import all_rows, commit
from tests.machine.harness import Store
from tests.machine.rich import rich_store
from tests.machine.test_snapshot import flushed, over, reader_of, whole
from tests.machine.test_state_hash import hash_of
from tests.machine.test_take_over import holder_token

NEW = b"new members"
ALL = Range(b"", keys.TO_THE_END)


def restored(store: Store, skipped: int = SKIPPED) -> Store:
    data = whole(reader_of(flushed(store)))
    restoration = Restoration(describe(next(pieces(BytesIO(data).read))), configuration=NEW, skipped=skipped)
    backend = MemoryBackend()
    commit(backend, *restoration.rows(verified_rows(BytesIO(data).read)))
    found = over(backend)
    assert (found.machine.applied_index, found.machine.revision) == (restoration.index, restoration.revision)
    assert (found.machine.cut_term, found.machine.applied_time) == (restoration.term, restoration.time)
    return found


@pytest.fixture
def old() -> Store:
    return rich_store(Store(MemoryBackend))


def test_it_shows_what_was_there_far_above(old: Store) -> None:
    new = restored(old)
    before, machine = old.machine, new.machine
    assert machine.revision == machine.compact_revision == before.revision + SKIPPED
    assert machine.applied_index == before.applied_index + SKIPPED
    assert (machine.digest, machine.applied_time) == (before.digest, before.applied_time)
    assert machine.installed == (machine.applied_index, 3)
    assert (machine.configuration, machine.configuration_index) == (NEW, machine.applied_index)
    for revision in (0, machine.revision):
        assert machine.range(Range(b"", keys.TO_THE_END, revision=revision)).items == before.range(ALL).items
    assert (machine.logical_bytes, machine.live_bytes) == (before.logical_bytes, before.live_bytes)
    assert hash_of(new).hash == hash_of(old).hash


def test_every_revision_of_before_is_compacted_the_lost_ones_too(old: Store) -> None:
    new = restored(old)
    machine = new.machine
    for revision in (2, old.machine.revision, old.machine.revision + 5, machine.revision - 1):
        with pytest.raises(Compacted) as refused:
            machine.range(Range(b"plain", revision=revision))
        assert refused.value.detail["compact_revision"] == machine.revision
        asked = ChangesAsked(b"", keys.TO_THE_END, revision, machine.revision)
        with pytest.raises(Compacted):
            in_one_go(machine.changes(asked, pace := Pace()), pace)
    with pytest.raises(FutureRevision):
        machine.range(Range(b"plain", revision=machine.revision + 1))
    assert [kv.value for kv in new.history(b"plain")] == [b"3"]
    with pytest.raises(Compacted):
        in_one_go(machine.read(History(b"plain", revision=old.machine.revision), pace := Pace()), pace)


def test_the_first_write_follows_the_new_revision(old: Store) -> None:
    new = restored(old)
    begun = new.machine.revision
    assert new.put(b"plain", b"4") == begun + 1
    asked = ChangesAsked(b"", keys.TO_THE_END, begun, begun + 1, previous=True)
    for is_flushed in (False, True):
        if is_flushed:
            flushed(new)
            new.reopen()
        (event,) = in_one_go(new.machine.changes(asked, pace := Pace()), pace).events
        assert (event.kv.mod_revision, event.kv.value) == (begun + 1, b"4")
        assert event.previous is not None
        assert event.previous.value == b"3"
    assert [kv.value for kv in new.history(b"plain")] == [b"4", b"3"]
    kept = new.get(b"plain", begun)
    assert kept is not None
    assert kept.value == b"3"


def test_times_from_the_snapshot_on_show_it(old: Store) -> None:
    new = restored(old)
    begun, time = new.machine.revision, new.machine.applied_time
    assert new.machine.revision_at(time - 1) < begun, "cannot be read any more"
    assert [new.machine.revision_at(each) for each in (time, time + 7, time + 1_000)] == [begun] * 3
    new.apply(Put(b"a", b"1"), time=time + 10)
    new.apply(Put(b"a", b"2"), time=time + 20)
    for is_flushed in (False, True):
        if is_flushed:
            flushed(new)
            new.reopen()
        found = [new.machine.revision_at(time + each) for each in (0, 9, 10, 19, 20, 99)]
        assert found == [begun, begun, begun + 1, begun + 1, begun + 2, begun + 2]


@pytest.mark.parametrize("changes", [1, 3, 10_000])
def test_sweeps_cross_the_gap_and_leave_what_is_shown(old: Store, changes: int) -> None:
    new = restored(old)
    new.put(b"after")
    machine, shown = new.machine, old.machine.range(ALL).items
    for _ in range(100):
        result = new.apply(Sweep(machine.compact_revision, changes)).result
        assert isinstance(result, SweepReply)
        flushed(new)
        if result.swept_revision == machine.compact_revision:
            break
    assert machine.swept_revision == machine.compact_revision
    assert [kv for kv in machine.range(ALL).items if kv.key != b"after"] == list(shown)
    assert machine.history_bytes == 0
    versions = [row for row in all_rows(machine.backend) if row[0][:1] == b"\x10"]
    assert len(versions) == len(shown) + 1
    assert sum(row[0][:1] == b"\xf0" for row in all_rows(machine.backend)) == 1, "that of the write after it"


def test_leases_keep_their_time_and_their_keys(old: Store) -> None:
    new = restored(old)
    before, after = old.machine.leases, new.machine.leases
    assert after.ids() == before.ids()
    for id_ in before.ids():
        one, other = before.get(id_), after.get(id_)
        assert one is not None
        assert other is not None
        assert (other.ttl_ms, other.renewals, other.keys, other.is_own) == (
            one.ttl_ms,
            one.renewals,
            one.keys,
            one.is_own,
        )
        assert other.remaining_ms == 0, "the whole of it"
    checkpointed = before.get(10)
    assert checkpointed is not None
    assert checkpointed.remaining_ms == 12_000
    assert after.queue(b"lock") == before.queue(b"lock")


def test_answers_and_fences_hold(old: Store) -> None:
    new = restored(old)
    repeat = new.apply(Command(Put(b"named", b"1"), key=b"idempotent"))
    assert repeat.events == ()
    refused = new.apply(Command(Put(b"once", b"2", if_revision=99), session=5, sequence=2)).result
    assert isinstance(refused, Refusal)
    assert refused.code == "compare_failed"
    assert new.apply(Command(Put(b"once", b"5"), session=5, sequence=5)).events != ()
    token = holder_token(new.machine)
    assert new.apply(Command(Put(b"f", b""), fence=Fence(b"lock", token))).events != ()
    assert new.apply(Command(Put(b"f", b""), fence=Fence(b"lock", token + 1))).events == ()


def test_no_id_and_no_token_is_given_twice(old: Store) -> None:
    """Somebody may hold one that the old cluster gave after the snapshot, and use it here."""
    new = restored(old)
    lost_sessions, lost_leases, lost_tokens = set(), set(), set()
    given_sessions, given_leases, given_tokens = set(), set(), set()
    for store, sessions, leases, tokens in (
        (old, lost_sessions, lost_leases, lost_tokens),
        (new, given_sessions, given_leases, given_tokens),
    ):
        for _ in range(20):
            session, lease = store.apply(SessionOpen(5_000)).result, store.apply(LeaseGrant(5_000)).result
            campaign = store.apply(Campaign(b"name", 5_000)).result
            assert isinstance(session, SessionReply)
            assert isinstance(lease, LeaseReply)
            assert isinstance(campaign, LeaseReply)
            assert campaign.put is not None
            sessions.add(session.session)
            leases |= {lease.id, campaign.id}
            tokens.add(campaign.put.create_revision)
    assert not lost_sessions & given_sessions
    assert not lost_leases & given_leases
    assert max(lost_tokens) < min(given_tokens)


def test_a_snapshot_of_the_restored_cluster_is_one_like_any_other(old: Store) -> None:
    new = restored(old, skipped=50)
    new.put(b"k")
    second = restored(new, skipped=70)
    assert second.machine.revision == old.machine.revision + 50 + 1 + 70
    assert second.machine.range(ALL).items == new.machine.range(ALL).items
    copy = MemoryBackend()
    commit(copy, *verified_rows(BytesIO(whole(reader_of(new))).read))
    joined = StateMachine(copy, LimitsSection())
    assert joined.restored == new.machine.restored
    assert joined.digest == new.machine.digest
    index = Index(joined.applied_index + 1)
    assert joined.apply(index, index * 10, Put(b"x", b"")) == new.apply(Put(b"x", b""))
    assert joined.digest == new.machine.digest


@pytest.mark.parametrize("skipped", [0, -1, SKIPPED_MAX + 1])
def test_a_gap_that_makes_no_sense_is_refused(old: Store, skipped: int) -> None:
    with pytest.raises(BadRequest, match="leave out 1 to"):
        restored(old, skipped)
