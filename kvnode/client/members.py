"""Members over HTTP: the changes of `kvnode.kv.members` as calls of ``/v1/members``, and handing leadership over."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from kvnode.client import bodies
from kvnode.client.leases import Send
from kvnode.errors import BadRequest, ConnectionLost
from kvnode.ids import NOBODY, NodeId
from kvnode.kv.interface import Members, MembersChanged
from kvnode.kv.members import AddMember, MemberChange, PromoteMember, RemoveMember, UpdateMember

T = TypeVar("T")


class MembersRead(msgspec.Struct, frozen=True):
    """The members as some node sees them. `settings`: with what all of them must agree on."""

    settings: bool = False


class Transfer(msgspec.Struct, frozen=True):
    """Hand leadership to `to`; NOBODY: to the voter with most of the log."""

    to: NodeId = NOBODY


MemberRequest = MembersRead | Transfer | MemberChange


async def execute(send: Send, request: MemberRequest) -> Any:
    """One call. Returns Members, MembersChanged, or for `Transfer` who leads now."""
    match request:
        case MembersRead(settings=settings):
            _, _, body = await send("GET", "/v1/members", {"settings": b"1"} if settings else {})
            return _as(Members, body)
        case Transfer(to=to):
            status, _, body = await send("POST", "/v1/admin/transfer", {"to": b"%d" % to} if to != NOBODY else {})
            return NodeId(bodies.json_of(status, body)["leader"])
        case AddMember():
            _, _, body = await send("POST", "/v1/members", {}, bodies.encode(add_body(request)))
        case PromoteMember(id=id_, force=force):
            _, _, body = await send("POST", f"/v1/members/{id_}/promote", {"force": b"1"} if force else {})
        case RemoveMember(id=id_, force=force):
            _, _, body = await send("DELETE", f"/v1/members/{id_}", {"force": b"1"} if force else {})
        case UpdateMember(id=id_, address=address):
            _, _, body = await send("PUT", f"/v1/members/{id_}", {}, bodies.encode({"peer": address}))
        case _:
            raise BadRequest(f"{type(request).__name__} has no form over HTTP: leaders do that by themselves")
    return _as(MembersChanged, body)


def add_body(change: AddMember) -> dict[str, Any]:
    """The JSON body that adds this member."""
    body: dict[str, Any] = {"peer": change.address, "promote": change.promote}
    if change.name:
        body["name"] = change.name
    if change.incarnation:
        body["incarnation"] = f"{change.incarnation:016x}"
    if change.replaces != NOBODY:
        body["replaces"] = change.replaces
    return body


def is_repeatable(request: MemberRequest) -> bool:
    """Sending it twice does what sending it once does."""
    match request:
        case MembersRead() | UpdateMember():
            return True
        case AddMember(incarnation=incarnation):
            return incarnation != 0  # the same directory again is the same member
        case _:
            return False


def _as(kind: type[T], body: bytes) -> T:
    """Fields that a newer node adds are skipped. Raises: ConnectionLost if whoever answered is no node."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise ConnectionLost(f"the answer is not a list of members: {error}") from error
