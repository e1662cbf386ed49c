"""The second copy of term and vote: golden bytes, torn writes, and when it is to be believed."""

from __future__ import annotations

from zlib import crc32

from kvnode.ids import Index, NodeId, Term
from kvnode.raft.messages import HardState
from kvnode.sim.choices import every_choice
from kvnode.sim.disk import FakeDisk
from kvnode.storage.vote_copy import VoteCopy
from tests.storage.crash_states import stop_everywhere
from tests.storage.wal_world import HOME, STAMP, new_disk

GOLDEN = (
    "4b564e564f544531"  # KVNVOTE1
    "c10000000000000002000000000000003412000000000000"  # cluster, member, incarnation
    "020000000000000005000000000000000300000000000000"  # number 2, term 5, vote for 3
)


def state(term: int, vote: int) -> HardState:
    return HardState(Term(term), NodeId(vote), Index(0))


def test_the_bytes_are_fixed() -> None:
    disk = new_disk()
    VoteCopy(disk, HOME, STAMP).renew(state(5, 3))
    content = disk.content(f"{HOME}/votes")
    assert content[:56].hex() == GOLDEN
    assert content[56:508] == bytes(452)
    assert int.from_bytes(content[508:512], "little") == crc32(bytes.fromhex(GOLDEN) + bytes(452))
    assert content[4096:4104] == b"KVNVOTE1"


def test_it_tells_the_newest_and_whether_it_is_certain() -> None:
    disk = new_disk()
    copy = VoteCopy(disk, HOME, STAMP)
    assert (copy.term, copy.vote, copy.is_certain) == (0, 0, False)
    copy.renew(state(1, 2))
    for term, vote in ((2, 0), (2, 3), (7, 1)):
        copy.keep(state(term, vote))
        found = VoteCopy(disk, HOME, STAMP)
        assert (found.term, found.vote, found.is_certain) == (term, vote, True)
    syncs = disk.count("fdatasync")
    copy.keep(state(7, 1))
    assert disk.count("fdatasync") == syncs, "nothing new, nothing written"


def test_a_damaged_slot_makes_it_uncertain_until_it_is_renewed() -> None:
    for offset in (3, 20, 45, 509, 4096 + 3, 4096 + 45):
        disk = new_disk()
        VoteCopy(disk, HOME, STAMP).renew(state(5, 3))
        disk = disk.kill()
        disk.flip_bit(f"{HOME}/votes", offset)
        copy = VoteCopy(disk, HOME, STAMP)
        assert not copy.is_certain, offset
        copy.renew(state(6, 1))
        found = VoteCopy(disk, HOME, STAMP)
        assert (found.term, found.vote, found.is_certain) == (6, 1, True), offset


def test_anothers_copy_is_none() -> None:
    disk = new_disk()
    VoteCopy(disk, HOME, STAMP).renew(state(5, 3))
    other = VoteCopy(disk, HOME, type(STAMP)(STAMP.cluster_id, STAMP.member, 99))
    assert (other.term, other.is_certain) == (0, False)


def test_a_torn_write_leaves_the_vote_before_or_the_new_one() -> None:
    states = 0

    def renewed() -> FakeDisk:
        disk = new_disk()
        VoteCopy(disk, HOME, STAMP).renew(state(1, 2))
        return disk

    for disk, _ in stop_everywhere(renewed, lambda disk: VoteCopy(disk, HOME, STAMP).keep(state(2, 3))):
        for choices in every_choice():
            states += 1
            found = VoteCopy(disk.crash(choices), HOME, STAMP)
            assert (found.term, found.vote) in {(1, 2), (2, 3)}, choices.taken
    assert states > 2


def test_it_is_ahead_only_of_what_lost_something() -> None:
    disk = new_disk()
    copy = VoteCopy(disk, HOME, STAMP)
    copy.renew(state(5, 3))
    assert [copy.is_ahead_of(state(*log)) for log in ((4, 9), (5, 0), (5, 2), (5, 3), (6, 0))] == [
        True,
        True,
        True,
        False,
        False,
    ]
    copy.keep(state(6, 0))
    assert not copy.is_ahead_of(state(6, 2))
