"""Members: who belongs to the cluster, and one change at a time of that."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from kvnode.api import query
from kvnode.api.answer import Answer
from kvnode.api.call import Call
from kvnode.api.http.alive import with_health
from kvnode.api.strict_json import expect_flag, expect_integer, expect_object, loads
from kvnode.config import check_told_address
from kvnode.errors import BadRequest
from kvnode.ids import NOBODY, NodeId
from kvnode.kv.members import AddMember, MemberChange, PromoteMember, RemoveMember, UpdateMember

BODY_BYTES_MAX = 4_096
ADD_FIELDS = frozenset({"peer", "name", "incarnation", "promote", "replaces"})
UPDATE_FIELDS = frozenset({"peer"})
NAME_LENGTH_MAX = 64
ADDRESS_LENGTH_MAX = 255
MEMBER_ID_MAX = 1_000_000


async def list_members(call: Call) -> Answer:
    call.options()  # checked like everywhere; the answer waits for nothing
    found = call.app.admin.members()
    found = msgspec.structs.replace(found, members=with_health(found.members, call.app.available))
    if call.flag("settings"):
        found = msgspec.structs.replace(found, settings=call.app.config.cluster_scope())
    return call.json(200, found)


async def add(call: Call) -> Answer:
    fields = await _fields(call, ADD_FIELDS)
    replaces = expect_integer(fields.get("replaces", NOBODY), "replaces", most=MEMBER_ID_MAX)
    change = AddMember(
        address=_address(fields),
        name=_name(fields.get("name", "")),
        incarnation=_incarnation(fields.get("incarnation")),
        # Whoever is to take another's place must vote before that one goes.
        promote=expect_flag(fields.get("promote", replaces != NOBODY), "promote"),
        replaces=NodeId(replaces),
    )
    if replaces != NOBODY and not change.promote:
        raise BadRequest("replaces takes effect once the new member votes: leave promote out, or let it be true")
    return await _carry_out(call, change)


async def update(call: Call) -> Answer:
    member = _member(call)
    return await _carry_out(call, UpdateMember(member, _address(await _fields(call, UPDATE_FIELDS))))


async def promote(call: Call) -> Answer:
    call.refuse_body()
    return await _carry_out(call, PromoteMember(_member(call), call.flag("force")))


async def remove(call: Call) -> Answer:
    call.refuse_body()
    return await _carry_out(call, RemoveMember(_member(call), call.flag("force")))


async def _carry_out(call: Call, change: MemberChange) -> Answer:
    found = await call.app.admin.change_members(change, call.options())
    return call.json(200, msgspec.structs.replace(found, members=with_health(found.members, call.app.available)))


def _member(call: Call) -> NodeId:
    return NodeId(query.parse_integer(query.percent_decode(call.rest), "member id", least=1, most=MEMBER_ID_MAX))


async def _fields(call: Call, known: frozenset[str]) -> dict[str, Any]:
    body = loads(
        await call.body(BODY_BYTES_MAX),
        depth_max=call.app.config.limits.json_depth_max,
        items_max=4 * len(ADD_FIELDS),
    )
    return expect_object(body, "the body", known)


def _address(fields: dict[str, Any]) -> str:
    """Where the others shall reach it: a port that is listened on, on a host that is somewhere."""
    address = fields.get("peer")
    if not isinstance(address, str) or len(address) > ADDRESS_LENGTH_MAX:
        raise BadRequest('peer must be "host:port", the address of the member\'s peer listener', field="peer")
    try:
        check_told_address(address, "peer")
    except ValueError as error:
        raise BadRequest(str(error), field="peer") from None
    return address


def _name(value: Any) -> str:
    if not isinstance(value, str) or len(value) > NAME_LENGTH_MAX or not (value.isprintable() or not value):
        raise BadRequest(f"name must be printable text of at most {NAME_LENGTH_MAX} characters", field="name")
    return value


def _incarnation(value: Any) -> int:
    """16 hexadecimal digits, as they are shown: 64 bits do not fit into the numbers of every JSON reader."""
    if value is None:
        return 0
    if not isinstance(value, str) or not re.fullmatch("[0-9a-fA-F]{16}", value):
        raise BadRequest(
            "incarnation must be the 16 hexadecimal digits of the new member's data directory, or left out",
            field="incarnation",
        )
    return int(value, 16)
