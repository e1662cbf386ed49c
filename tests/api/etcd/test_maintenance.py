"""The Maintenance service at the door: status, alarms, hashes, handing leadership over."""

from __future__ import annotations

from typing import Any

import pytest

from kvnode.errors import Compacted, Conflict, NoLeader
from kvnode.ids import NodeId
from kvnode.version import ETCD_SERVER_VERSION
from tests.api.fake import FakeAdmin
from tests.api.raw import Door, Reply

HEADER = {"cluster_id": str(0x00112233445566FF), "member_id": "1", "revision": "1", "raft_term": "3"}
NOSPACE = {"memberID": "1", "alarm": "NOSPACE"}
CORRUPT = {"memberID": "1", "alarm": "CORRUPT"}


async def ask(door: Door, path: str, body: Any = None) -> Reply:
    return await door.ask("POST", f"/v3/{path}", body)


async def refusal(door: Door, path: str, body: Any = None) -> tuple[int, int, str]:
    """(HTTP status, code, message)"""
    found = await ask(door, path, body)
    assert found.json["error"] == found.json["message"], found
    return found.status, found.json["code"], found.json["message"]


async def test_status(door: Door, admin: FakeAdmin) -> None:
    assert (await ask(door, "maintenance/status")).json == {
        "header": HEADER,
        "version": ETCD_SERVER_VERSION,
        "dbSize": "8192",
        "leader": "1",
        "raftIndex": "9",
        "raftTerm": "3",
        "raftAppliedIndex": "9",
    }


async def test_status_says_what_is_wrong(door: Door, admin: FakeAdmin) -> None:
    admin.leader, admin.role = None, "learner"
    admin.short_of_space = admin.corrupted = True
    found = (await ask(door, "maintenance/status")).json
    assert found["errors"] == ["etcdserver: no leader", "memberID:1 alarm:NOSPACE ", "memberID:1 alarm:CORRUPT "]
    assert found["isLearner"] is True
    assert "leader" not in found


async def test_alarms_are_those_that_hold(door: Door, admin: FakeAdmin) -> None:
    assert (await ask(door, "maintenance/alarm", {})).json == {"header": HEADER}
    admin.short_of_space = admin.quarantined = True
    assert (await ask(door, "maintenance/alarm", {"action": "GET"})).json["alarms"] == [NOSPACE, CORRUPT]
    assert (await ask(door, "maintenance/alarm", {"alarm": 1})).json["alarms"] == [NOSPACE]
    assert (await ask(door, "maintenance/alarm", {"alarm": "CORRUPT"})).json["alarms"] == [CORRUPT]
    assert (await ask(door, "maintenance/alarm", {"alarm": 7})).json == {"header": HEADER}


async def test_an_alarm_ends_with_its_cause_alone(door: Door, admin: FakeAdmin) -> None:
    put_away = {"action": "DEACTIVATE", "memberID": "1", "alarm": "NOSPACE"}
    assert (await ask(door, "maintenance/alarm", put_away)).json == {"header": HEADER}, "there is none"
    admin.short_of_space = True
    status, code, message = await refusal(door, "maintenance/alarm", put_away)
    assert (status, code) == (400, 9)
    assert "NOSPACE ends by itself" in message
    for other in ({**put_away, "memberID": "2"}, {**put_away, "alarm": "CORRUPT"}, {"action": 2, "alarm": 1}):
        assert (await ask(door, "maintenance/alarm", other)).json == {"header": HEADER}, other
    status, code, _ = await refusal(door, "maintenance/alarm", {"action": "ACTIVATE", "alarm": "NOSPACE"})
    assert (status, code) == (501, 12)
    assert (await refusal(door, "maintenance/alarm", {"action": 9}))[1] == 3


async def test_hashes_are_the_first_bits_of_the_states(door: Door, admin: FakeAdmin) -> None:
    await door.ask("PUT", "/v1/kv/k", b"v")
    header = HEADER | {"revision": "2"}
    assert (await ask(door, "maintenance/hash")).json == {"header": header, "hash": 0xABABABAB}
    now = (await ask(door, "maintenance/hashkv", {"revision": "0"})).json
    assert now == {"header": header, "hash": 0xABABABAB, "hash_revision": "2"}
    before = (await ask(door, "maintenance/hashkv", {"revision": 1})).json
    assert before == {"header": header, "hash": 0xABABABAB, "hash_revision": "1"}
    future = "etcdserver: mvcc: required revision is a future revision"
    assert await refusal(door, "maintenance/hashkv", {"revision": 3}) == (400, 11, future)


async def test_a_hash_of_what_is_gone(door: Door, admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object) -> None:
        raise Compacted("gone", compact_revision=5)

    monkeypatch.setattr(admin, "state_hash", refuse)
    compacted = "etcdserver: mvcc: required revision has been compacted"
    assert await refusal(door, "maintenance/hashkv", {"revision": 1}) == (400, 11, compacted)


async def test_leadership_is_handed_over_by_the_leader(door: Door, admin: FakeAdmin) -> None:
    assert (await ask(door, "maintenance/transfer-leadership", {"targetID": "2"})).json == {}
    assert admin.transferred == [2]
    bad_target = (400, 9, "etcdserver: bad leader transferee")
    for body in (None, {"targetID": 0}, {"targetID": "9"}, {"targetID": str(2**64 - 1)}):
        assert await refusal(door, "maintenance/transfer-leadership", body) == bad_target, body
    admin.leader = NodeId(2)
    not_leader = (400, 9, "etcdserver: not leader")
    assert await refusal(door, "maintenance/transfer-leadership", {"targetID": "2"}) == not_leader
    assert admin.transferred == [2]


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (Conflict("there is no other voter"), (400, 9, "etcdserver: bad leader transferee")),
        (TimeoutError(), (503, 14, "etcdserver: request timed out")),
        (NoLeader("only the leader can hand over"), (503, 14, "etcdserver: no leader")),
    ],
)
async def test_leadership_that_is_not_handed_over(
    door: Door, admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch, error: Exception, wanted: tuple[int, int, str]
) -> None:
    async def refuse(_: int) -> None:
        raise error

    monkeypatch.setattr(admin, "transfer_leadership", refuse)
    assert await refusal(door, "maintenance/transfer-leadership", {"targetID": "2"}) == wanted


async def test_what_there_is_nothing_to_do_for(door: Door) -> None:
    assert (await ask(door, "maintenance/defragment")).json == {}
    cancel = (400, 9, "etcdserver: no inflight downgrade job")
    assert await refusal(door, "maintenance/downgrade", {"action": "CANCEL"}) == cancel
    for version in ("", "3", "x.y", "3.4.0.1"):
        wrong = (400, 3, "etcdserver: wrong downgrade target version format")
        assert await refusal(door, "maintenance/downgrade", {"action": "ENABLE", "version": version}) == wrong
    for version in ("3.4", "3.5.0"):
        bad = (400, 3, "etcdserver: invalid downgrade target version")
        assert await refusal(door, "maintenance/downgrade", {"version": version}) == bad
