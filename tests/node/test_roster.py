"""Bootstrap and identity: F60–F63, F66, R15, R16, by conversations between rosters without any network."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from kvnode.ids import Index, NodeId
from kvnode.node.roster import NEWCOMERS_MAX, Roster, base_configuration, derive_cluster_id
from kvnode.raft.messages import Configuration, Member
from kvnode.storage.datadir import EARLIER_BOOTS_MAX
from kvnode.wire.frames import FEATURE_LEVEL, Hello, KnownMember, Refusal
from tests.transport.cluster import Directory, addresses

MEMBERS = addresses(1, 2, 3)
NONCE = bytes(32)


def up(directory: Directory, members: Mapping[int, str] = MEMBERS, **how: Any) -> Roster:
    """One start of a node on `directory`."""
    directory.start()
    return directory.roster(members, **how)


def hello(roster: Roster) -> Hello:
    return roster.hello("control", link=1, nonce=NONCE)


def meet(one: Roster, other: Roster) -> Refusal | None:
    """A whole handshake. The first refusal, if there is one."""
    from_one, from_other = hello(one), hello(other)
    for judge, shown in ((one, from_other), (other, from_one)):
        refusal = judge.judge(shown)
        if refusal is not None:
            return refusal
        judge.admit(shown)
    one.note_met(from_other)
    other.note_met(from_one)
    return None


def cluster() -> tuple[list[Directory], list[Roster]]:
    """Three members that have finished their first start."""
    directories = [Directory(1), Directory(2), Directory(3)]
    rosters = [up(directory) for directory in directories]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert meet(rosters[one], rosters[other]) is None
    assert all(roster.is_bootstrapped for roster in rosters)
    return directories, rosters


def code(refusal: Refusal | None) -> str:
    return refusal.code if refusal is not None else ""


def test_nobody_takes_part_before_all_initial_members_have_met() -> None:
    one, two, three = up(Directory(1)), up(Directory(2)), up(Directory(3))
    told: list[int] = []
    one.on_bootstrapped = lambda: told.append(1)
    one.begin()
    assert one.missing() == (2, 3)
    assert meet(one, two) is None
    assert one.missing() == (3,)
    assert (one.cluster_id, one.is_bootstrapped) == (0, False)
    assert meet(one, three) is None
    assert one.is_bootstrapped
    assert told == [1]
    assert not two.is_bootstrapped
    assert meet(two, three) is None  # one of them is done, with 1 as well as with each other
    assert one.cluster_id == two.cluster_id == three.cluster_id != 0
    assert one.missing() == ()
    assert told == [1]
    assert one.client_url(NodeId(2)) == "127.0.0.1:7402"
    assert one.client_url(NodeId(9)) == ""


def test_the_cluster_id_is_fixed_by_ids_incarnations_and_addresses() -> None:
    members = {NodeId(2): (7, "b:1"), NodeId(1): (5, "a:1")}
    assert f"{derive_cluster_id(members):016x}" == "39497bcc7c57e03f"
    assert derive_cluster_id(members) == derive_cluster_id(dict(reversed(members.items())))
    for changed in ({**members, NodeId(1): (6, "a:1")}, {**members, NodeId(1): (5, "a:2")}, {NodeId(1): (5, "a:1")}):
        assert derive_cluster_id(changed) != derive_cluster_id(members)


def test_a_cluster_of_one_is_its_own_quorum() -> None:
    told: list[int] = []
    directory = Directory(1)
    roster = up(directory, addresses(1))
    roster.on_bootstrapped = lambda: told.append(1)
    roster.begin()
    roster.begin()
    assert roster.is_bootstrapped
    assert told == [1]
    assert directory.identity.cluster_id == roster.cluster_id


def test_what_was_learnt_before_the_end_of_the_bootstrap_survives_a_restart() -> None:
    directory = Directory(1)
    one, two = up(directory), up(Directory(2))
    assert meet(one, two) is None
    assert directory.identity.members[2].incarnation == 1002
    assert directory.identity.cluster_id == 0
    again = up(directory)
    assert meet(again, up(Directory(2, incarnation=99))).code == "wrong_incarnation"  # type: ignore[union-attr]
    three = up(Directory(3))
    assert meet(again, three) is None
    assert not again.is_bootstrapped  # 2 has to be met in this life of the process too
    assert meet(again, two) is None
    assert again.is_bootstrapped


def test_a_finished_member_takes_back_one_that_has_not_finished() -> None:
    """1 finished while 2 had not met 3; 2 restarts and meets the finished ones."""
    directories = [Directory(1), Directory(2), Directory(3)]
    one, two, three = (up(directory) for directory in directories)
    assert meet(one, two) is None
    assert meet(one, three) is None
    assert one.is_bootstrapped
    two = up(directories[1])
    assert meet(two, one) is None
    assert not two.is_bootstrapped
    assert meet(two, three) is None
    assert two.is_bootstrapped
    assert two.cluster_id == one.cluster_id == three.cluster_id


def test_later_starts_need_nobody() -> None:
    directories, rosters = cluster()
    again = up(directories[0], {1: "changed:1"})  # the initial members are read at the very first start only
    assert again.is_bootstrapped
    assert again.cluster_id == rosters[0].cluster_id
    assert again.members == MEMBERS
    assert meet(again, rosters[1]) is None


def test_a_wiped_node_is_refused_and_refuses_itself() -> None:
    """F61, R16: it may have forgotten a vote."""
    _, rosters = cluster()
    wiped = up(Directory(2, incarnation=99))
    for judge, shown in ((rosters[0], wiped), (wiped, rosters[0])):
        refusal = judge.judge(hello(shown))
        assert code(refusal) == "wrong_incarnation"
        assert "data directory of member 2 was wiped or replaced; remove the member" in refusal.sentence  # type: ignore[union-attr]
    assert not wiped.is_bootstrapped


def test_a_copy_of_a_data_directory_is_noticed() -> None:
    """F62: the same start number with another nonce."""
    directories, rosters = cluster()
    copy = Directory(2)
    copy.identity = directories[1].identity
    copy.boot.counter = directories[1].boot.counter - 1
    twin = up(copy)
    refusal = meet(twin, rosters[0])
    assert code(refusal) == "cloned"
    assert rosters[0].alarms == (refusal.sentence,)  # type: ignore[union-attr]
    assert "runs twice" in rosters[0].alarms[0]
    assert meet(rosters[1], rosters[0]) is None  # the one seen first goes on


def test_a_copy_that_started_again_shuts_out_the_original() -> None:
    """Which of the two is the right one nobody can know; that there are two is made known."""
    directories, rosters = cluster()
    copy = Directory(2)
    copy.identity, copy.boot = directories[1].identity, directories[1].boot
    assert meet(up(copy), rosters[0]) is None
    assert code(meet(rosters[1], rosters[0])) == "stale_boot"
    assert "old backup or a copy" in rosters[0].alarms[0]


def test_an_old_backup_is_noticed_even_after_a_restart_of_the_judge() -> None:
    """F66: the highest start number of each peer is kept durably."""
    directories, rosters = cluster()
    for _ in range(3):
        assert meet(up(directories[1]), rosters[0]) is None
    backup = Directory(2)
    backup.identity = directories[1].identity
    assert code(meet(up(backup), up(directories[0]))) == "stale_boot"


def test_an_alarm_is_over_when_its_member_is_admitted_again() -> None:
    """A greeting of the life before may come late, and looks like that of a copy."""
    directories, rosters = cluster()
    late = hello(rosters[1])
    again = up(directories[1])
    assert meet(again, rosters[0]) is None
    assert code(rosters[0].judge(late)) == "stale_boot"
    assert rosters[0].alarms
    assert meet(again, rosters[0]) is None
    assert rosters[0].alarms == ()


@pytest.mark.parametrize("starts", [1, 2, 3, 20, 200])
def test_an_old_backup_that_was_started_often_is_noticed(starts: int) -> None:
    """Its counter has reached or passed the one seen last, but the start seen last is none of its own."""
    directories, rosters = cluster()
    backup = Directory(2)
    backup.identity, backup.boot = directories[1].identity, directories[1].boot
    for _ in range(2):
        assert meet(up(directories[1]), rosters[0]) is None
    for _ in range(starts - 1):
        backup.start()
    assert code(meet(up(backup), rosters[0])) == ("stale_boot" if starts != 2 else "cloned")
    for _ in range(5):  # starts that nobody saw are no reason to refuse the original
        directories[1].start()
    assert meet(up(directories[1]), rosters[0]) is None


def test_a_member_is_let_in_after_more_starts_than_it_remembers() -> None:
    directories, rosters = cluster()
    for _ in range(EARLIER_BOOTS_MAX + 20):
        directories[1].start()
    assert meet(up(directories[1]), rosters[0]) is None


def test_nothing_is_saved_for_a_peer_that_is_known_already() -> None:
    directories, rosters = cluster()
    before = [directory.saves for directory in directories]
    for _ in range(3):
        assert meet(rosters[0], rosters[1]) is None
    assert [directory.saves for directory in directories] == before


def test_other_clusters_and_strangers_are_refused() -> None:
    """R15, F63."""
    _, rosters = cluster()
    other_directories = [Directory(id_, incarnation=2000 + id_) for id_ in (1, 2, 3)]
    others = [up(directory) for directory in other_directories]
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert meet(others[one], others[two]) is None
    assert code(rosters[0].judge(hello(others[1]))) == "wrong_cluster"
    named = up(Directory(2, cluster_name="prod"))
    refusal = rosters[0].judge(hello(named))
    assert refusal == Refusal("wrong_cluster", "cluster.name differs: 'local' here, 'prod' there")
    stranger = msgspec.structs.replace(hello(rosters[1]), member=NodeId(9))
    assert code(rosters[0].judge(stranger)) == "unknown_member"
    assert code(rosters[0].judge(hello(rosters[0]))) == "own_id"


def test_members_that_were_configured_differently_do_not_found_a_cluster() -> None:
    one = up(Directory(1))
    two = up(Directory(2), {**MEMBERS, 3: "127.0.0.1:9999"})
    refusal = one.judge(hello(two))
    assert code(refusal) == "members_differ"
    assert "3=127.0.0.1:7503" in refusal.sentence  # type: ignore[union-attr]
    assert "3=127.0.0.1:9999" in refusal.sentence  # type: ignore[union-attr]
    assert code(one.judge(hello(up(Directory(2), addresses(1, 2))))) == "members_differ"


def test_a_member_met_on_two_directories_during_the_first_start_is_reported() -> None:
    directories = [Directory(1), Directory(3)]
    one, three = (up(directory) for directory in directories)
    assert meet(one, up(Directory(2, incarnation=0xA))) is None
    assert meet(three, up(Directory(2, incarnation=0xB))) is None
    refusal = meet(one, three)
    assert code(refusal) == "bootstrap_conflict"
    assert "000000000000000a by member 1, 000000000000000b by member 3" in refusal.sentence  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("ours", "theirs", "sentence"),
    [
        ({"a.b": 1}, {"a.b": 2}, "a.b differs: 1 on member 1, 2 on member 2; it must be equal on all members"),
        ({"a.b": "lan", "c.d": 1}, {"a.b": "wan", "c.d": 1}, "a.b differs: 'lan' on member 1, 'wan' on member 2; "),
        ({"a.b": 1, "new.one": 5}, {"a.b": 1}, ""),
        ({"a.b": 1}, {"a.b": 1, "new.one": 5}, ""),
    ],
)
def test_cluster_settings_must_agree_where_both_know_them(
    ours: dict[str, Any], theirs: dict[str, Any], sentence: str
) -> None:
    """F60: the refusal names the key and both values."""
    refusal = up(Directory(1), scope=ours).judge(hello(up(Directory(2), scope=theirs)))
    if sentence:
        assert refusal is not None
        assert refusal.code == "setting_differs"
        assert refusal.sentence.startswith(sentence)
    else:
        assert refusal is None


def test_a_directory_that_cannot_be_written_leaves_the_roster_as_it_was() -> None:
    directory = Directory(1)
    one = up(directory)

    def fail(*_: object) -> None:
        raise OSError("disk")

    one._save_identity = fail
    two = up(Directory(2))
    with pytest.raises(OSError, match="disk"):
        one.admit(hello(two))
    assert hello(one).members[1].incarnation == 0
    assert not one.is_bootstrapped


# ── members that come and go ────────────────────────────────────────────────────────────────────────


def configuration(*voters: int, last_id: int = 0, level: int = 1, **incarnations: int) -> Configuration:
    """Members whose directories are those of `Directory`, unless `m4=…` says otherwise."""
    ids = tuple(NodeId(id_) for id_ in voters)
    members = tuple(Member(id_, incarnations.get(f"m{id_}", 1000 + id_), f"127.0.0.1:{7500 + id_}") for id_ in ids)
    return Configuration(ids, members=members, last_id=NodeId(last_id or max(ids)), feature_level=level)


def change(roster: Roster, index: int, found: Configuration) -> None:
    """An entry was appended, committed and applied."""
    roster.on_configuration(found, Index(index), found)


def joined(directory: Directory, cluster_id: int, index: int, found: Configuration) -> Directory:
    """A directory to which a join was answered."""
    directory.identity.cluster_id = cluster_id
    directory.save_configuration(found, Index(index))
    return directory


def test_a_new_member_is_let_in_by_the_entry_that_made_it_one() -> None:
    directories, (one, two, _) = cluster()
    four = configuration(1, 2, 3, 4)
    new = up(joined(Directory(4), one.cluster_id, 20, four))
    assert new.is_bootstrapped
    assert new.members == addresses(1, 2, 3, 4)
    one.on_configuration(configuration(1, 2, 3), Index(0), four)  # in force, not committed: that is enough
    assert meet(new, one) is None
    assert 4 not in directories[0].peer_boots  # until it is committed that this is its directory
    assert [record.member for record in hello(one).members] == [1, 2, 3]
    change(one, 20, four)
    assert directories[0].peer_boots[4].counter == 1
    change(two, 20, four)
    assert meet(new, two) is None
    assert (two.configuration_index, hello(two).configuration_index) == (20, 20)
    assert [record.member for record in hello(two).members] == [1, 2, 3, 4]


def test_an_addition_that_is_never_committed_binds_its_id_to_nobody() -> None:
    """Its leader failed, and the next one gave the same id to another directory, which may lead by now."""
    directories, (one, two, _) = cluster()
    one.on_configuration(configuration(1, 2, 3), Index(0), configuration(1, 2, 3, 4, m4=99))
    found = configuration(1, 2, 3, 4)
    new = up(joined(Directory(4), one.cluster_id, 20, found))
    assert meet(new, one) is None
    change(one, 20, found)
    assert meet(up(directories[0]), new) is None
    assert directories[0].peer_boots[4].counter == 1
    change(two, 20, configuration(1, 2, 3, 4, m4=99))
    assert code(two.judge(hello(new))) == "wrong_incarnation"


def test_a_joiner_on_another_directory_than_its_entry_says_is_refused() -> None:
    """Never bound to whoever comes first: the log says which directory a member has."""
    directories, (one, _, _) = cluster()
    change(one, 20, configuration(1, 2, 3, 4))
    wiped = up(joined(Directory(4, incarnation=99), one.cluster_id, 20, configuration(1, 2, 3, 4, m4=99)))
    assert code(one.judge(hello(wiped))) == "wrong_incarnation"
    assert 4 not in directories[0].peer_boots
    assert meet(up(joined(Directory(4), one.cluster_id, 20, configuration(1, 2, 3, 4))), one) is None


def test_a_removed_member_is_refused_and_its_id_is_gone_for_ever() -> None:
    _, (one, two, three) = cluster()
    one.on_configuration(configuration(1, 2, 3), Index(0), configuration(1, 2))
    assert meet(three, one) is None  # as long as the removal is not committed it may have to vote
    change(one, 30, configuration(1, 2, last_id=3))
    assert code(one.judge(hello(three))) == "removed_member"
    assert NodeId(3) not in one.members
    assert meet(one, two) is None
    change(one, 40, configuration(1, 2, 4))
    assert code(one.judge(hello(three))) == "removed_member"
    one.on_configuration(configuration(1, 2, 3), Index(0), configuration(1, 2, 3))  # an old log, applied again
    assert code(one.judge(hello(three))) == "removed_member"
    assert one.configuration_index == 40


def test_a_removed_member_learns_of_it_from_whoever_knows_a_newer_configuration() -> None:
    _, (one, _, three) = cluster()
    told: list[str] = []
    three.on_removed = told.append
    change(one, 30, configuration(1, 2, last_id=3))
    assert code(three.judge(hello(one))) == "removed_member"
    assert told == [three.was_removed]
    assert three.alarms == (three.was_removed,)
    assert "member 3 was removed from the cluster (member 1 knows a newer configuration without it, of entry 30)" in (
        three.was_removed
    )
    assert one.was_removed == ""
    three.judge(hello(one))
    assert len(told) == 1


def test_a_member_that_applies_its_own_removal_knows_it_after_a_restart_too() -> None:
    directories, (one, _, _) = cluster()
    one.on_configuration(configuration(1, 2, 3), Index(0), configuration(2, 3))
    assert not one.was_removed  # it may be rolled back
    change(one, 30, configuration(2, 3))
    assert "entry 30 of its log" in one.was_removed
    again = up(directories[0])
    assert again.was_removed == one.was_removed
    assert again.members[NodeId(1)] == "127.0.0.1:7501"


def test_who_has_not_heard_of_this_member_yet_does_not_remove_it() -> None:
    """A joiner knows more than those that lag behind; and its answer says how much."""
    _, (one, _, _) = cluster()
    new = up(joined(Directory(4), one.cluster_id, 20, configuration(1, 2, 3, 4)))
    change(one, 10, configuration(1, 2, 3))
    new.judge(hello(one))
    new.on_configuration(configuration(1, 2, 3), Index(10), configuration(1, 2, 3))  # its log begins long ago
    assert not new.was_removed
    assert new.members == addresses(1, 2, 3, 4)
    change(one, 21, configuration(1, 2, 3, last_id=4))
    new.judge(hello(one))
    assert new.was_removed


def test_a_node_that_was_away_lets_in_members_it_has_not_heard_of() -> None:
    """It may know nobody any more that is still a member."""
    directories, rosters = cluster()
    three = up(directories[2])
    last = configuration(3, 4, 5)
    four, five = (up(joined(Directory(id_), three.cluster_id, 90, last)) for id_ in (4, 5))
    assert meet(four, three) is None
    assert meet(five, three) is None
    assert three.members == addresses(1, 2, 3, 4, 5)
    assert directories[2].peer_boots.keys() == {1, 2}  # bound to nothing before the log has named them
    assert directories[2].identity.configuration is None
    change(three, 90, last)
    assert directories[2].peer_boots.keys() == {1, 2, 4, 5}
    assert three.members == addresses(3, 4, 5)
    assert code(three.judge(hello(rosters[0]))) == "removed_member"
    assert three.was_removed == ""


def test_a_newcomer_must_list_this_member_and_itself() -> None:
    _, (one, _, _) = cluster()
    four = up(joined(Directory(4), one.cluster_id, 20, configuration(1, 2, 3, 4)))
    known = hello(four)
    assert one.judge(known) is None
    for changes in (
        {"members": tuple(record for record in known.members if record.member != 1), "configuration_index": 0},
        {"members": known.members[:3]},
        {"member": NodeId(9)},
        {"address": "nowhere"},
        {"members": (KnownMember(NodeId(1), 0, "127.0.0.1:7501"), *known.members[1:])},
    ):
        assert code(one.judge(msgspec.structs.replace(known, **changes))) == "unknown_member", changes
    other = msgspec.structs.replace(known, members=(KnownMember(NodeId(1), 77, "127.0.0.1:7501"), *known.members[1:]))
    assert code(one.judge(other)) == "wrong_incarnation"


def test_newcomers_are_bounded() -> None:
    _, (one, _, _) = cluster()
    for id_ in range(4, 4 + NEWCOMERS_MAX):
        found = configuration(1, 2, 3, id_)
        assert meet(up(joined(Directory(id_), one.cluster_id, id_, found)), one) is None
    late = up(joined(Directory(99), one.cluster_id, 99, configuration(1, 2, 3, 99)))
    assert "it must catch up" in one.judge(hello(late)).sentence  # type: ignore[union-attr]
    assert meet(up(joined(Directory(5), one.cluster_id, 5, configuration(1, 2, 3, 5))), one) is None


def test_a_member_that_has_not_told_its_directory_yet_is_bound_by_a_later_entry() -> None:
    directories, (one, _, _) = cluster()
    change(one, 20, configuration(1, 2, 3, 4, m4=0))
    told = configuration(1, 2, 3, 4)
    four = up(joined(Directory(4), one.cluster_id, 21, told))
    assert meet(four, one) is None
    assert 4 not in directories[0].peer_boots
    change(one, 21, told)
    assert 4 in directories[0].peer_boots
    assert code(one.judge(msgspec.structs.replace(hello(four), incarnation=5))) == "wrong_incarnation"


def test_a_copy_of_a_new_member_is_noticed() -> None:
    _, (one, _, _) = cluster()
    found = configuration(1, 2, 3, 4)
    change(one, 20, found)
    assert meet(up(joined(Directory(4), one.cluster_id, 20, found)), one) is None
    assert code(meet(up(joined(Directory(4), one.cluster_id, 20, found)), one)) == "cloned"


def test_a_member_moves_to_another_address() -> None:
    _, (one, two, _) = cluster()
    moved = configuration(1, 2, 3)
    members = (moved.members[0], Member(NodeId(2), 1002, "elsewhere:7502"), moved.members[2])
    moved = msgspec.structs.replace(moved, members=members)
    one.on_configuration(configuration(1, 2, 3), Index(0), moved)
    assert one.members[NodeId(2)] == "elsewhere:7502"
    change(two, 20, moved)
    assert hello(two).address == "elsewhere:7502"
    assert meet(one, two) is None


def test_a_member_that_knows_less_than_the_cluster_uses_is_refused() -> None:
    directories, (one, _, three) = cluster()
    assert (one.feature_level, one.hello("control", link=1, nonce=NONCE).feature_level) == (
        FEATURE_LEVEL,
        FEATURE_LEVEL,
    )
    old = up(directories[1], feature_level_max=1)
    assert old.feature_level == 1
    assert meet(old, one) is None
    two_levels = configuration(1, 2, 3, level=2)
    one.on_configuration(configuration(1, 2, 3), Index(0), two_levels)
    refusal = one.judge(hello(old))
    assert code(refusal) == "feature_level"
    assert "member 2 knows feature level 1, the cluster uses 2" in refusal.sentence  # type: ignore[union-attr]
    assert meet(one, three) is None
    change(old, 20, two_levels)
    assert "member 2 knows feature level 1" in old.judge(hello(three)).sentence  # type: ignore[union-attr]
    assert up(directories[0], feature_level_max=2).feature_level == 2
    assert up(directories[0], feature_level_max=9).feature_level == FEATURE_LEVEL


def test_what_was_applied_is_known_after_a_restart() -> None:
    directories, (one, _, _) = cluster()
    change(one, 20, configuration(1, 2, 4))
    again = up(directories[0])
    assert again.members == addresses(1, 2, 4)
    assert again.configuration_index == 20
    assert base_configuration(directories[0].identity) == configuration(1, 2, 3)
    new = joined(Directory(4), one.cluster_id, 20, configuration(1, 2, 4))
    assert base_configuration(new.identity) == configuration(1, 2, 4)


def test_what_the_log_says_at_an_index_wins_over_what_a_joiner_was_told() -> None:
    directory = joined(Directory(4), 7, 20, configuration(1, 2, 4))
    new = up(directory)
    saves = directory.saves
    change(new, 20, configuration(1, 2, 4))
    assert directory.saves == saves
    change(new, 20, configuration(1, 2, 3, 4))
    assert new.members == addresses(1, 2, 3, 4)
    assert directory.identity.configuration == configuration(1, 2, 3, 4)


def test_a_wiped_initial_member_is_told_so_by_a_cluster_that_has_changed_since() -> None:
    _, (one, _, _) = cluster()
    wiped = up(Directory(2, incarnation=99))
    change(one, 20, configuration(1, 2, 4))
    assert code(one.judge(hello(wiped))) == "wrong_incarnation"
    four = up(joined(Directory(4), one.cluster_id, 20, configuration(1, 2, 4, 5, m5=0)))
    assert code(four.judge(hello(wiped))) == "wrong_incarnation"
    assert code(four.judge(hello(up(Directory(5), addresses(1, 2, 4, 5))))) == "unknown_member"
    assert code(one.judge(hello(up(Directory(2), addresses(1, 2))))) == "members_differ"  # of another cluster, rather
    change(one, 30, configuration(1, 4))
    assert code(one.judge(hello(wiped))) == "removed_member"


def test_members_find_each_other_however_far_each_of_them_has_come() -> None:
    """Random histories of members, random places in them.

    Whoever is a member now lets every other member in and never believes that it was removed; who was removed is
    refused wherever that has been applied, and learns of it there.
    """
    rng = random.Random(12)
    met_newcomers = met_removed = 0
    for _ in range(150):
        history = [configuration(1, 2, 3)]
        for _ in range(rng.randrange(1, 12)):
            before = history[-1]
            if rng.random() < 0.5 and len(before.voters) > 1:
                left = [id_ for id_ in before.voters if id_ != rng.choice(before.voters)]
                history.append(configuration(*left, last_id=before.last_id))
            else:
                history.append(configuration(*before.voters, before.last_id + 1))
        newest = len(history) - 1
        rosters, known = {}, {}
        for id_ in range(1, history[-1].last_id + 1):
            present = [index for index, found in enumerate(history) if id_ in found.voters]
            told = present[0] if id_ > 3 else 0  # by which entry it joined: it knows that much at least
            applied = rng.randint(0, min(newest, present[-1] + 1))
            in_force = rng.randint(applied, newest)
            roster = up(joined(Directory(id_), 7, told, history[told]))
            roster.on_configuration(history[applied], Index(applied), history[in_force])
            rosters[id_], known[id_] = roster, max(told, applied)
        for id_, roster in rosters.items():
            for other, peer in rosters.items():
                if id_ == other:
                    continue
                refusal = roster.judge(hello(peer))
                if id_ in history[-1].voters and other in history[-1].voters:
                    assert refusal is None, (id_, other, refusal)
                    met_newcomers += other > history[known[id_]].last_id
                if other <= history[known[id_]].last_id and other not in history[known[id_]].voters:
                    assert code(refusal) == "removed_member"
                    peer.judge(hello(roster))
                    assert peer.was_removed or known[other] >= known[id_]
                    met_removed += 1
        assert not any(rosters[id_].was_removed for id_ in history[-1].voters)
    assert met_newcomers > 100
    assert met_removed > 500


def test_two_clusters_out_of_one_first_start_never_both_have_a_majority() -> None:
    """Random meetings, restarts, cut handshakes and swapped directories; the argument is in the module's docstring."""
    rng = random.Random(11)
    finished_runs = split_runs = 0
    for _ in range(400):
        size = rng.choice((2, 3, 3, 5))
        members = addresses(*range(1, size + 1))
        spare = {
            id_: [Directory(id_, incarnation=10 * id_ + n) for n in range(rng.choice((1, 1, 2)))] for id_ in members
        }
        running = {id_: up(rng.choice(spare[id_]), members) for id_ in members}
        for _ in range(rng.randrange(5, 60)):
            one, other = rng.sample(sorted(members), 2)
            if rng.random() < 0.1:
                running[one] = up(rng.choice(spare[one]), members)  # restarted, or started on another directory
            from_one, from_other = hello(running[one]), hello(running[other])
            if running[one].judge(from_other) or running[other].judge(from_one):
                continue
            running[one].admit(from_other)
            if rng.random() < 0.1:
                continue  # the connection is lost half-way
            running[other].admit(from_one)
            running[other].note_met(from_one)
            if rng.random() < 0.9:
                running[one].note_met(from_other)
        clusters: dict[int, set[tuple[int, int]]] = {}
        for id_, directories in spare.items():
            for directory in directories:
                if directory.identity.cluster_id:
                    clusters.setdefault(directory.identity.cluster_id, set()).add((id_, directory.identity.incarnation))
        with_majority = [found for found in clusters.values() if len(found) * 2 > size]
        directories_of = [
            {(id_, known.incarnation) for id_, known in directory.identity.members.items()}
            for found in with_majority
            for directory in [d for ds in spare.values() for d in ds]
            if (directory.identity.member, directory.identity.incarnation) in found
        ]
        finished_runs += bool(with_majority)
        split_runs += len(clusters) > 1
        if len(with_majority) > 1:
            assert not set.intersection(*directories_of)
    assert finished_runs > 100
    assert split_runs > 3


# ── gossip ──────────────────────────────────────────────────────────────────────────────────────────


def gossip_of(roster: Roster, other: Roster, **changes: int) -> str:
    """The code with which `roster` refuses what `other` gossips in this start, "" if it believes it."""
    shown = hello(other)
    seal = {
        "sender": shown.member,
        "incarnation": shown.incarnation,
        "boot_counter": shown.boot_counter,
        "boot_nonce": shown.boot_nonce,
        **changes,
    }
    return code(roster.judge_gossip(**seal))  # type: ignore[arg-type]


def test_gossip_is_believed_of_members_on_their_directory_in_their_newest_start() -> None:
    directories, (one, two, _) = cluster()
    two = up(directories[1])
    assert meet(one, two) is None
    saves = directories[0].saves
    assert gossip_of(one, two) == ""
    assert gossip_of(one, two, boot_counter=3, boot_nonce=5) == "", "a start of which no handshake has told yet"
    assert gossip_of(one, two) == "", "… and is not recorded"
    assert gossip_of(one, two, boot_counter=1) == "stale_boot"
    assert gossip_of(one, two, boot_nonce=5) == "cloned"
    assert gossip_of(one, two, incarnation=7) == "wrong_incarnation"
    assert gossip_of(one, two, sender=4) == gossip_of(one, one) == "unknown_member"
    assert (directories[0].saves, one.alarms) == (saves, ())


def test_before_the_bootstrap_has_finished_nobody_is_gossiped_with() -> None:
    one, two = up(Directory(1)), up(Directory(2))
    assert meet(one, two) is None
    assert gossip_of(one, two) == "unknown_member"


def test_a_newer_member_gossips_once_a_handshake_has_let_it_in() -> None:
    _, (one, two, _) = cluster()
    four = configuration(1, 2, 3, 4)
    new = up(joined(Directory(4), one.cluster_id, 20, four))
    assert gossip_of(one, new) == "unknown_member"
    assert meet(new, one) is None
    assert gossip_of(one, new) == ""
    assert gossip_of(one, new, incarnation=7) == "wrong_incarnation"
    change(one, 20, four)
    assert gossip_of(one, new) == ""
    assert gossip_of(two, new) == "unknown_member"


def test_a_removed_member_gossips_with_nobody() -> None:
    _, (one, two, three) = cluster()
    change(one, 20, configuration(1, 2, last_id=3))
    change(three, 20, configuration(1, 2, last_id=3))
    assert gossip_of(one, three) == gossip_of(three, one) == "removed_member"
    assert gossip_of(two, three) == "", "it has not heard of that yet"
