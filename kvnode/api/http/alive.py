"""What gossip says of the members, beside what the configuration says: for people and for the choice of a node."""

from __future__ import annotations

import msgspec

from kvnode.kv.available import AliveMember, AvailableNode
from kvnode.kv.interface import MemberInfo


def with_health(members: tuple[MemberInfo, ...], plane: AvailableNode) -> tuple[MemberInfo, ...]:
    """The members, each with its state as gossip on this node sees it; unknown where it has not been heard of."""
    heard = {one.id: one for one in plane.alive_members()}
    return tuple(_with_what_is_heard(member, heard.get(member.id)) for member in members)


def _with_what_is_heard(member: MemberInfo, heard: AliveMember | None) -> MemberInfo:
    if heard is None:
        return member
    return msgspec.structs.replace(
        member,
        status=heard.status,
        number=heard.number,
        rtt_ms=heard.rtt_ms,
        since_ms=heard.since_ms,
        last_heard_ms=heard.last_heard_ms,
        applied_index=heard.applied_index,
        client_url=member.client_url or heard.client_url,
        version=member.version or heard.version,
    )


def unheard(plane: AvailableNode) -> list[int]:
    """Ids of the members that gossip takes for dead, or for suspect."""
    return [one.id for one in plane.alive_members() if one.status in {"suspect", "dead"}]
