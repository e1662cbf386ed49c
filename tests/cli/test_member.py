"""`kvnode member` and `kvnode transfer` against the real front door: what the node is asked, and what people read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import msgspec
import pytest
from click.testing import CliRunner, Result

from kvnode import errors
from kvnode.cli import member
from kvnode.cli.main import cli
from kvnode.ids import NodeId
from kvnode.kv.available import AliveMember
from kvnode.kv.interface import AliveStatus, MemberInfo, Members
from kvnode.kv.members import AddMember, PromoteMember, RemoveMember, UpdateMember
from tests.cli.cluster import ServedNode, serving
from tests.client.local_node import LocalNode

Run = Callable[..., Result]

PEER = "10.0.0.4:7501"


@pytest.fixture
def alone() -> Iterator[ServedNode]:
    with serving() as served:
        yield served


@pytest.fixture
def node(alone: ServedNode) -> LocalNode:
    return alone.node


@pytest.fixture
def run(alone: ServedNode, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("KVNODE_ENDPOINTS", alone.endpoint)
    monkeypatch.setattr(member, "LOOK_S", 0.0)

    def invoke(*arguments: str, stdin: str = "") -> Result:
        return CliRunner().invoke(cli, arguments, input=stdin)

    return invoke


def learner(**more: object) -> MemberInfo:
    fields = {"id": NodeId(4), "name": "four", "role": "learner", "peer_address": PEER, "client_url": "", **more}
    return MemberInfo(**fields)  # type: ignore[arg-type]


def members(*more: MemberInfo, index: int = 5) -> Members:
    voters = tuple(
        MemberInfo(
            id=NodeId(id_),
            role="voter",
            peer_address=f"10.0.0.{id_}:7501",
            client_url=f"http://10.0.0.{id_}:7401",
            version="1.0",
            connected=True,
            match_index=9_000,
            lag=0,
            progress="replicate",
        )
        for id_ in (1, 2, 3)
    )
    return Members(
        cluster_id="aa",
        cluster_name="local",
        leader=NodeId(1),
        configuration_index=index,
        last_id=NodeId(4),
        feature_level=1,
        members=(*voters, *more),
    )


@pytest.mark.parametrize(
    ("info", "row"),
    [
        (learner(), ["?", "never met, no vote"]),
        (learner(match_index=0, lag=9_000), ["-", "never met, no vote"]),
        (learner(match_index=4_500, lag=4_500, connected=True, version="1"), ["50 %", "no vote"]),
        (
            learner(match_index=4_500, lag=4_500, connected=True, version="1", wants_vote=True, replaces=NodeId(3)),
            ["50 %", "gets its vote when level, takes the place of 3"],
        ),
        (
            learner(match_index=0, lag=9_000, connected=True, version="1", progress="snapshot"),
            ["gets a snapshot", "no vote"],
        ),
        (learner(match_index=8_990, lag=10, connected=True, version="1", role="voter"), ["level", "votes"]),
        (learner(match_index=8_990, lag=10, version="1", role="voter"), ["-", "unreachable"]),
    ],
)
def test_rows_say_how_far_a_member_is(info: MemberInfo, row: list[str]) -> None:
    assert member._rows(members(info))[3][-2:] == row


def heard(*statuses: AliveStatus) -> tuple[AliveMember, ...]:
    """Members from 1 on, as gossip sees them."""
    return tuple(
        AliveMember(id=NodeId(id_), status=status, since_ms=5_000, rtt_ms=0.4)
        for id_, status in enumerate(statuses, start=1)
    )


def test_the_list(run: Run, node: LocalNode) -> None:
    node.configuration = members(learner())
    table = run("member", "list").stdout.splitlines()
    assert table[0].split() == ["id", "name", "role", "state", "peer", "client", "version", "log", "notes"]
    assert table[1].split() == ["1", "-", "voter", "-", "10.0.0.1:7501", "10.0.0.1:7401", "1.0", "leads", "votes"]
    assert table[2].split()[-2:] == ["level", "votes"]
    assert json.loads(run("member", "list", "-o", "json").stdout)["members"][3]["name"] == "four"


def test_the_list_tells_who_is_heard_of(run: Run, node: LocalNode) -> None:
    node.configuration = members(learner())
    node.plane.members = heard("alive", "suspect", "dead", "left")
    rows = [line.split() for line in run("member", "list").stdout.splitlines()[1:]]
    assert [row[3] for row in rows] == ["alive", "suspect", "dead", "left"]
    assert " ".join(rows[2]).endswith("to replace it: kvnode serve --join … --replace 3")
    assert "replace" not in " ".join(rows[1] + rows[3])
    shown = json.loads(run("member", "list", "-o", "json").stdout)["members"][1]
    assert (shown["status"], shown["since_ms"], shown["rtt_ms"]) == ("suspect", 5_000, 0.4)


def test_the_leader_is_asked_how_far_the_others_are(run: Run, node: LocalNode) -> None:
    with serving() as leading:
        leading.node.configuration = members(learner(match_index=0, lag=9_000, connected=True))
        seen = [msgspec.structs.replace(one, match_index=None, lag=None) for one in members().members]
        seen[0] = msgspec.structs.replace(seen[0], client_url=f"http://{leading.endpoint}")
        node.configuration = msgspec.structs.replace(members(), members=tuple(seen))
        assert " 0 %" in run("member", "list").stdout
    assert "?" in run("member", "list").stdout, "and if it has just gone, what is known here must do"


def test_a_member_is_added(run: Run, node: LocalNode, alone: ServedNode) -> None:
    added = run("member", "add", PEER, "--name", "two")
    assert added.exit_code == 0
    assert added.stdout == f"member 2 (two, {PEER}) is a learner now\n"
    assert f"kvnode serve --join {alone.endpoint} --peer {PEER}" in added.stderr
    run("member", "add", "10.0.0.5:7501", "--promote")
    run("member", "add", "10.0.0.6:7501", "--replace", "2")
    assert node.changes == [
        AddMember(PEER, "two"),
        AddMember("10.0.0.5:7501", promote=True),
        AddMember("10.0.0.6:7501", promote=True, replaces=NodeId(2)),
    ]
    answer = json.loads(run("member", "add", "10.0.0.7:7501", "-o", "json").stdout)
    assert (answer["id"], len(answer["members"])) == (5, 5)


def test_a_member_is_promoted_moved_and_removed(run: Run, node: LocalNode) -> None:
    run("member", "add", PEER)
    assert run("member", "promote", "2").stdout == f"member 2 ({PEER}) has a vote now: 2 voters, 2 needed\n"
    assert run("member", "update", "2", "10.0.0.9:7501").stdout == "member 2 (10.0.0.9:7501) is reached there now\n"
    assert run("member", "remove", "2").stdout == "member 2 is removed: 1 voter, 1 needed\n"
    assert node.changes[1:] == [
        PromoteMember(NodeId(2)),
        UpdateMember(NodeId(2), "10.0.0.9:7501"),
        RemoveMember(NodeId(2)),
    ]


@pytest.mark.parametrize("verb", ["promote", "remove"])
def test_force_asks_first_and_says_what_is_at_stake(run: Run, node: LocalNode, verb: str) -> None:
    run("member", "add", PEER)
    for answer in ("n\n", ""):
        refused = run("member", verb, "2", "--force", stdin=answer)
        assert refused.exit_code == 1
        assert "--force" in refused.stderr
    assert len(node.changes) == 1
    assert run("member", verb, "2", "--force", stdin="y\n").exit_code == 0
    assert node.changes[-1].force  # type: ignore[union-attr]
    run("member", "add", "10.0.0.5:7501")
    assert run("member", verb, "3", "--force", "--yes").exit_code == 0


def test_refusals_are_told_with_their_sentence(run: Run, node: LocalNode) -> None:
    node.refuse_next(errors.Conflict("member 4 has not caught up: wait until it has"))
    refused = run("member", "promote", "4")
    assert refused.exit_code == 1
    assert refused.stderr == "kvnode: member 4 has not caught up: wait until it has [conflict]\n"
    node.refuse_next(errors.Timeout("no answer"))
    assert run("member", "remove", "4").exit_code == 4
    assert run("member", "add", "nowhere").exit_code == 1
    assert run("member", "remove", "9").exit_code == 1
    assert run("member", "remove", "nine").exit_code == 2


def test_adding_can_be_waited_for(run: Run, node: LocalNode, monkeypatch: pytest.MonkeyPatch) -> None:
    new = {"id": NodeId(2), "wants_vote": True, "replaces": NodeId(3)}
    half = {"match_index": 4_500, "lag": 4_500, "connected": True, "version": "1"}
    voter = {**new, "role": "voter", "match_index": 9_000, "lag": 0, "connected": True, "version": "1"}
    one, _, three = members().members
    views = iter(
        [
            (one, three),  # of a node that has not heard of it
            (one, learner(**new), three),
            (one, learner(**new, **half), three),
            (one, learner(**new, **half), three),
            (one, learner(**voter), three),
            (one, learner(**voter)),
        ]
    )

    def look(endpoints: list[str], timeout_ms: int) -> Members:
        shown = next(views)
        index = 0 if len(shown) == 2 and three in shown else 5
        return msgspec.structs.replace(members(), members=shown, configuration_index=index)

    monkeypatch.setattr(member, "_look", look)
    waited = run("member", "add", PEER, "--name", "four", "--replace", "3", "--wait")
    assert waited.exit_code == 0, waited.stderr
    assert waited.stdout.splitlines()[1:] == [
        f"member 2 (four, {PEER}): never met, gets its vote when level, takes the place of 3; log: ?",
        f"member 2 (four, {PEER}): gets its vote when level, takes the place of 3; log: 50 %",
        f"member 2 (four, {PEER}): takes the place of 3; log: level",
        f"member 2 (four, {PEER}): votes; log: level",
        "member 3 is removed: 2 voters, 2 needed",
    ]


def test_a_watched_list_is_printed_when_it_changes(run: Run, node: LocalNode, monkeypatch: pytest.MonkeyPatch) -> None:
    views: Iterator[Members | BaseException] = iter(
        [
            members(),
            members(),
            errors.NoLeader("an election"),
            members(learner(match_index=8_999, lag=1, connected=True)),
            members(learner(match_index=8_998, lag=2, connected=True)),
            KeyboardInterrupt(),
        ]
    )

    def look(endpoints: list[str], timeout_ms: int) -> Members:
        view = next(views)
        if isinstance(view, BaseException):
            raise view
        return view

    monkeypatch.setattr(member, "_look", look)
    watched = run("member", "list", "--watch", "-o", "json")
    assert watched.exit_code == 0
    assert [len(json.loads(line)["members"]) for line in watched.stdout.splitlines()] == [3, 4]
    assert watched.stderr == "kvnode: an election\n"


def test_leadership_is_handed_over(run: Run, node: LocalNode) -> None:
    assert run("transfer", "1").stdout == "member 1 leads\n"
    assert json.loads(run("transfer", "1", "-o", "json").stdout) == {"leader": 1}
    nobody = run("transfer")
    assert nobody.exit_code == 1
    assert "no other voter" in nobody.stderr
    assert run("transfer", "9").exit_code == 1


def test_a_transfer_goes_to_the_leader(run: Run, node: LocalNode, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as leading:

        async def refuse(to: NodeId) -> NodeId:
            raise errors.NoLeader("only the leader can hand over", leader_url=f"http://{leading.endpoint}")

        monkeypatch.setattr(node, "transfer_leadership", refuse)
        assert run("transfer", "1").stdout == "member 1 leads\n"

    async def nowhere(to: NodeId) -> NodeId:
        raise errors.NoLeader("nobody leads")

    monkeypatch.setattr(node, "transfer_leadership", nowhere)
    assert run("transfer", "1").exit_code == 3


def test_without_a_majority_nobody_is_told_to_replace_anybody(run: Run, node: LocalNode) -> None:
    node.configuration = members(learner())
    node.plane.members = heard("alive", "dead", "dead")
    rows = run("member", "list").stdout.splitlines()[1:]
    assert [row.endswith("start it again") for row in rows] == [False, True, True, False]
