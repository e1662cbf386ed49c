"""Bootstrap and identity: F60–F63, F66, R15, R16, by conversations between rosters without any network."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from kvnode.ids import NodeId
from kvnode.node.roster import Roster, derive_cluster_id
from kvnode.storage.datadir import EARLIER_BOOTS_MAX
from kvnode.wire.frames import Hello, Refusal
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
