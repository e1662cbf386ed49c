"""The members as this node sees them, for front ends, status and whoever joins.

The configuration in force says who they are, the links say who is met, the leader's progress how far each one is.
"""

from __future__ import annotations

from typing import Any

from kvnode.ids import NOBODY, Index
from kvnode.kv.interface import MemberInfo, Members, MembersChanged
from kvnode.kv.members import AddMember, MemberChange, RaiseFeatureLevel
from kvnode.kv.requests import ConfigurationReply
from kvnode.node.ports import LinkInfo, Transport
from kvnode.raft.core import Raft
from kvnode.raft.messages import Configuration, Member
from kvnode.version import __version__
from kvnode.wire.codec import decode_configuration


class MemberView:
    """Lives on the node's loop. `feature_level`: what this node claims to know."""

    def __init__(
        self,
        *,
        raft: Raft,
        transport: Transport,
        cluster_id: str,
        cluster_name: str,
        client_url: str,
        feature_level: int,
    ) -> None:
        self._raft = raft
        self._transport = transport
        self._cluster_id = cluster_id
        self._cluster_name = cluster_name
        self._client_url = client_url
        self._feature_level = feature_level

    def members(self) -> Members:
        """By the configuration in force."""
        return Members(**self._shown(self._raft.configuration, self._raft.configuration_index))

    def changed(self, change: MemberChange, applied: ConfigurationReply) -> MembersChanged:
        """By the configuration that `change` led to."""
        configuration = decode_configuration(applied.configuration)
        match change:
            case AddMember(address=address):
                # The newest there: it may have the address of the member that it replaces.
                id_ = max(member.id for member in configuration.members if member.address == address)
            case RaiseFeatureLevel():
                id_ = NOBODY
            case _:
                id_ = change.id
        return MembersChanged(id=id_, **self._shown(configuration, Index(applied.index)))

    def infos(self, configuration: Configuration) -> tuple[MemberInfo, ...]:
        links = self._transport.links()
        return tuple(self._info(configuration, member, links.get(member.id)) for member in configuration.members)

    def _shown(self, configuration: Configuration, index: Index) -> dict[str, Any]:
        leader = self._raft.leader
        return {
            "cluster_id": self._cluster_id,
            "cluster_name": self._cluster_name,
            "leader": leader if leader != NOBODY else None,
            "configuration_index": index,
            "last_id": configuration.last_id,
            "feature_level": configuration.feature_level,
            "members": self.infos(configuration),
        }

    def _info(self, configuration: Configuration, member: Member, link: LinkInfo | None) -> MemberInfo:
        raft = self._raft
        is_own = member.id == raft.node
        progress = raft.progress.get(member.id)
        match_index = progress.match_index if progress is not None else None
        if is_own and raft.role == "leader":
            match_index = raft.last_index
        return MemberInfo(
            id=member.id,
            name=member.name,
            role="voter" if member.id in configuration.voters else "learner",
            peer_address=member.address,
            client_url=self._client_url if is_own else link.client_url if link else "",
            incarnation=f"{member.incarnation:016x}" if member.incarnation else "",
            version=__version__ if is_own else link.software if link else "",
            feature_level=self._feature_level if is_own else link.feature_level if link else 0,
            connected=is_own or (link is not None and link.connected),
            wants_vote=member.wants_vote,
            replaces=member.replaces if member.replaces != NOBODY else None,
            match_index=match_index,
            lag=max(0, raft.last_index - match_index) if match_index is not None else None,
            progress=progress.state if progress is not None else None,
        )
