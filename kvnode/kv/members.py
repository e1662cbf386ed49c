"""Members of a cluster and the changes that may be made to them, one at a time (design decision 13).

Ids are given by the cluster, from a counter that never goes back: an id that was ever given and stands for no member
any more was removed, for ever. A member is proven by the incarnation of its data directory, not by its address.
"""

from __future__ import annotations

import msgspec

from kvnode.ids import NOBODY, NodeId


class AddMember(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """A learner joins. Again for a peer address that a learner has already: the same member, its incarnation filled in.
    The incarnation of a member that was removed is refused: its directory is of no more use.

    `promote`: it is given a vote once it has caught up. `replaces`: after that, this member is removed.
    """

    address: str  # host:port of its peer listener
    name: str = ""
    incarnation: int = 0  # 0: not known yet; it joins when it tells
    promote: bool = False
    replaces: NodeId = NOBODY


class PromoteMember(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """A learner gets a vote. Refused until it has caught up, unless forced."""

    id: NodeId
    force: bool = False


class RemoveMember(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """A member goes for ever. Refused if those left that answer would be no majority, unless forced.

    Again for one that was removed: done already, and answered like the first time.
    """

    id: NodeId
    force: bool = False


class UpdateMember(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """Peers reach a member at another address from now on."""

    id: NodeId
    address: str


class RaiseFeatureLevel(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """All members know what this level brings: it may be used. Never lowered. The leader's own change."""

    level: int


MemberChange = AddMember | PromoteMember | RemoveMember | UpdateMember | RaiseFeatureLevel
