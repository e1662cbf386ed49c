"""The Cluster service: members as etcd shows them, and one change at a time of them.

A member joins as a learner. etcd gives whoever is added without `isLearner` a vote at once; here it gets one as soon as
it has caught up, and is shown as a learner until then.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from kvnode.api.etcd.context import Context
from kvnode.api.etcd.errors import Code, EtcdError, invalid
from kvnode.api.etcd.method import Method, Unary
from kvnode.api.etcd.proto_json import Request, Response, UInt64, decimal
from kvnode.config import check_told_address
from kvnode.errors import Conflict
from kvnode.ids import NodeId
from kvnode.kv.interface import MemberInfo
from kvnode.kv.keys import ONE_KEY
from kvnode.kv.members import AddMember, MemberChange, PromoteMember, RemoveMember, UpdateMember
from kvnode.kv.requests import Range

URLS_ARE_INVALID = "given member URLs are invalid"

_URL = re.compile(r"(https?|unixs?)://([^/]+)")


class Member(Response):
    ID: str = "0"
    name: str = ""
    peerURLs: Sequence[str] = ()
    clientURLs: Sequence[str] = ()
    isLearner: bool = False


class MemberListRequest(Request):
    linearizable: bool = False


class MemberAddRequest(Request):
    peerURLs: list[str] = msgspec.field(default_factory=list)
    isLearner: bool = False


class MemberUpdateRequest(Request):
    ID: UInt64 = 0
    peerURLs: list[str] = msgspec.field(default_factory=list)


class MemberRequest(Request):
    ID: UInt64 = 0


class MembersResponse(Response):
    header: msgspec.Raw
    member: Member | None = None
    members: Sequence[Member] = ()


async def list_members(context: Context, request: MemberListRequest) -> MembersResponse:
    if request.linearizable:
        await _catch_up(context)
    return _answer(context)


async def add(context: Context, request: MemberAddRequest) -> MembersResponse:
    address = _address(request.peerURLs)
    await _check_is_free(context, address)
    change = AddMember(address, promote=not request.isLearner)
    try:
        id_ = await _carry_out(context, change)
    except Conflict as error:
        _refuse_if_taken(context, address)
        raise EtcdError(Code.FAILED_PRECONDITION, f"etcdserver: {error.message}") from error
    return _answer(context, id_)


async def remove(context: Context, request: MemberRequest) -> MembersResponse:
    """Refused where those left would be no majority, and for the last voter."""
    await _find(context, request.ID)
    try:
        await _carry_out(context, RemoveMember(NodeId(request.ID)))
    except Conflict as error:
        raise _precondition("re-configuration failed due to not enough started members") from error
    return _answer(context)


async def update(context: Context, request: MemberUpdateRequest) -> MembersResponse:
    await _find(context, request.ID)
    address = _address(request.peerURLs)
    try:
        await _carry_out(context, UpdateMember(NodeId(request.ID), address))
    except Conflict as error:  # it has no other cause
        raise _precondition("Peer URLs already exists") from error
    return _answer(context)


async def promote(context: Context, request: MemberRequest) -> MembersResponse:
    member = await _find(context, request.ID)
    if member.role == "voter":
        raise _precondition("can only promote a learner member")
    try:
        await _carry_out(context, PromoteMember(NodeId(request.ID)))
    except Conflict as error:  # it lacks entries, does not answer, or has never been there
        raise _precondition("can only promote a learner member which is in sync with leader") from error
    return _answer(context)


async def _carry_out(context: Context, change: MemberChange) -> NodeId:
    return (await context.admin.change_members(change, context.options())).id


async def _catch_up(context: Context) -> None:
    """What was committed before the call is applied here then, changes of members among it."""
    await context.kv.execute(Range(b"\x00", ONE_KEY, count_only=True), context.options())


async def _find(context: Context, id_: int) -> MemberInfo:
    await _catch_up(context)
    for member in context.admin.members().members:
        if member.id == id_:
            return member
    raise EtcdError(Code.NOT_FOUND, "etcdserver: member not found")


async def _check_is_free(context: Context, address: str) -> None:
    """Also for a learner that was added with that address, which the store would take for the same one again."""
    await _catch_up(context)
    _refuse_if_taken(context, address)


def _refuse_if_taken(context: Context, address: str) -> None:
    if any(member.peer_address == address for member in context.admin.members().members):
        raise _precondition("Peer URLs already exists")


def _precondition(message: str) -> EtcdError:
    return EtcdError(Code.FAILED_PRECONDITION, f"etcdserver: {message}")


def _address(urls: Sequence[str]) -> str:
    """host:port of a peer listener. Raises: EtcdError."""
    matches = [_URL.fullmatch(url) for url in urls]
    if not matches:
        raise invalid(URLS_ARE_INVALID)
    addresses = []
    for match in matches:
        try:
            if match is None:
                raise ValueError("not a URL")
            check_told_address(match[2], "peerURLs")
        except ValueError:
            raise invalid(URLS_ARE_INVALID) from None
        addresses.append((match[1], match[2]))
    scheme, address = addresses[0]
    if len(addresses) > 1 or scheme != "http":
        raise EtcdError(Code.UNIMPLEMENTED, "a member has one peer URL, of the form http://host:port")
    return address


def _answer(context: Context, added: NodeId | None = None) -> MembersResponse:
    members = [_shown(member) for member in sorted(context.members(), key=lambda member: member.id)]
    member = next((each for each in members if str(added) == each.ID), None)
    return MembersResponse(header=context.header_at(0), member=member, members=tuple(members))


def _shown(member: MemberInfo) -> Member:
    return Member(
        ID=decimal(member.id),
        name=member.name or _name_of_started(member),
        peerURLs=(_url(member.peer_address),),
        clientURLs=(_url(member.client_url),) if member.client_url else (),
        isLearner=member.role == "learner",
    )


def _name_of_started(member: MemberInfo) -> str:
    """Members of the first start have no name of their own; clients take one without for one that was never there."""
    return f"node-{member.id}" if member.client_url else ""


def _url(address: str) -> str:
    return address.rstrip("/") if "://" in address else f"http://{address}"


METHODS: dict[str, Method] = {
    "cluster/member/list": Unary(MemberListRequest, list_members),
    "cluster/member/add": Unary(MemberAddRequest, add),
    "cluster/member/remove": Unary(MemberRequest, remove),
    "cluster/member/update": Unary(MemberUpdateRequest, update),
    "cluster/member/promote": Unary(MemberRequest, promote),
}
