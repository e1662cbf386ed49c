"""What gossip says of the members, beside what the configuration says: for people and for the choice of a node."""

from __future__ import annotations

import msgspec

from kvnode.kv.available import AvailableNode
from kvnode.kv.interface import MemberInfo


def with_health(members: tuple[MemberInfo, ...], plane: AvailableNode | None) -> tuple[MemberInfo, ...]:
    """The members, each with its state as gossip on this node sees it; unknown where it has not been heard of."""
    if plane is None:
        return members
    heard = {one.id: one for one in plane.alive_members()}
    found = []
    for member in members:
        one = heard.get(member.id)
        if one is not None:
            member = msgspec.structs.replace(  # noqa: PLW2901  the same member, with more known of it
                member,
                status=one.status,
                number=one.number,
                rtt_ms=one.rtt_ms,
                since_ms=one.since_ms,
                last_heard_ms=one.last_heard_ms,
                applied_index=one.applied_index,
                client_url=member.client_url or one.client_url,
                version=member.version or one.version,
            )
        found.append(member)
    return tuple(found)


def unheard(plane: AvailableNode | None) -> list[int]:
    """Ids of the members that gossip takes for dead, or for suspect."""
    return [] if plane is None else [one.id for one in plane.alive_members() if one.status in {"suspect", "dead"}]
