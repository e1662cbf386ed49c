"""Config: the sections together, what must hold between them, and the list of all settings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Meta
from msgspec.structs import force_setattr

from kvnode.config.addresses import check_told_address, is_loopback, parse_address
from kvnode.config.sections import (
    KIB,
    ClientSection,
    ClusterSection,
    GossipSection,
    HistorySection,
    LimitsSection,
    LogSection,
    NodeSection,
    PeerSection,
    RaftSection,
    StorageSection,
)


class Config(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """All settings of one node."""

    node: NodeSection = NodeSection()
    cluster: ClusterSection = ClusterSection()
    client: ClientSection = ClientSection()
    peer: PeerSection = PeerSection()
    raft: RaftSection = RaftSection()
    gossip: GossipSection = GossipSection()
    storage: StorageSection = StorageSection()
    limits: LimitsSection = LimitsSection()
    history: HistorySection = HistorySection()
    log: LogSection = LogSection()

    def __post_init__(self) -> None:
        if self.cluster.join:
            self._check_join()
        elif self.cluster.replace:
            raise ValueError("cluster.replace goes with cluster.join: it is the new node that takes another's place")
        members = self.initial_members()
        if self.node.id and self.node.id not in members:
            raise ValueError(
                f"node.id {self.node.id} does not stand in cluster.members {sorted(members)}; a member that has joined "
                "later has node.id 0: its data directory knows"
            )
        if (len(members) > 1 or self.cluster.join) and not self.cluster.secret_file:
            raise ValueError("cluster.secret_file must be set: peers prove membership with it")
        for name, section in (("client", self.client), ("peer", self.peer)):
            host, _ = parse_address(section.listen, f"{name}.listen")
            if not is_loopback(host) and not section.insecure:
                raise ValueError(
                    f"{name}.listen {section.listen} is not loopback: set {name}.insecure = true to allow it"
                )
        if self.limits.request_bytes_max + 64 * KIB > self.peer.message_bytes_max:
            raise ValueError("peer.message_bytes_max must exceed limits.request_bytes_max by 64 KiB")
        if self.raft.append_bytes_max + 64 * KIB > self.peer.message_bytes_max:
            raise ValueError("peer.message_bytes_max must exceed raft.append_bytes_max by 64 KiB")

    def _check_join(self) -> None:
        """The id comes from the cluster or the data directory, and the others must be able to reach this node."""
        force_setattr(self, "node", msgspec.structs.replace(self.node, id=0))
        self.join_endpoints()
        check_told_address(self.peer_address, "peer.advertise" if self.peer.advertise else "peer.listen")

    @property
    def name(self) -> str:
        return self.node.name or f"node-{self.node.id}"

    @property
    def peer_address(self) -> str:
        """Where peers are told to reach this node, unless the members in its data directory say otherwise."""
        return self.peer.advertise or self.peer.listen

    def join_endpoints(self) -> tuple[str, ...]:
        """`cluster.join` as host:port; a URL as clients write it will do."""
        found = tuple(text.strip().removeprefix("http://").rstrip("/") for text in self.cluster.join)
        for address in found:
            parse_address(address, "cluster.join")
        return found

    def initial_members(self) -> dict[int, str]:
        """Member id → peer address, from `cluster.members`."""
        found: dict[int, str] = {}
        for text in self.cluster.members:
            match = re.fullmatch(r"\s*([1-9]\d{0,6})=(\S+)\s*", text)
            if match is None:
                raise ValueError(f"cluster.members: {text!r} is not of the form id=host:port")
            member, address = int(match[1]), match[2]
            parse_address(address, "cluster.members")
            if member in found or address in found.values():
                raise ValueError(f"cluster.members names id {member} or address {address} twice")
            found[member] = address
        return found

    def cluster_scope(self) -> dict[str, Any]:
        """The settings all members must agree on, by dotted name; sent whole in the peer handshake."""
        return {s.name: s.value(self) for s in settings() if s.scope == "cluster"}


class Setting(msgspec.Struct, frozen=True):
    """One declared setting, for `config --explain`, the reference page and the environment."""

    name: str  # dotted, e.g. raft.heartbeat_ms
    scope: str
    unit: str
    sentence: str
    default: Any
    type: Any

    @property
    def environment(self) -> str:
        return "KVNODE_" + self.name.replace(".", "__").upper()

    def value(self, config: Config) -> Any:
        section, field = self.name.split(".")
        return getattr(getattr(config, section), field)


def settings() -> Iterator[Setting]:
    """Every setting, in the order of declaration."""
    for section in msgspec.structs.fields(Config):
        for field in msgspec.structs.fields(section.type):
            meta: Meta = field.type.__metadata__[0]
            assert meta.extra is not None, field.name
            assert meta.description is not None, field.name
            yield Setting(
                name=f"{section.name}.{field.name}",
                scope=meta.extra["scope"],
                unit=meta.extra["unit"],
                sentence=meta.description,
                default=field.default,
                type=field.type.__origin__,
            )
