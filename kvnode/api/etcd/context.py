"""What a handler of the etcd API works with: the node behind it, the request it came by, the header of its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from kvnode.api.etcd.errors import Code, EtcdError
from kvnode.api.etcd.proto_json import Response, decimal
from kvnode.api.http.alive import with_health
from kvnode.config import Config
from kvnode.kv.available import AvailableNode
from kvnode.kv.interface import KV, Admin, Consistency, MemberInfo, Options

NO_LEADER = "etcdserver: no leader"


class ResponseHeader(Response):
    """Of which cluster and member, at which revision of the store and in which term."""

    cluster_id: str = "0"
    member_id: str = "0"
    revision: str = "0"
    raft_term: str = "0"


class Gateway:
    """What all etcd requests of one node share."""

    def __init__(self, kv: KV, admin: Admin, config: Config, available: AvailableNode) -> None:
        self.kv = kv
        self.admin = admin
        self.available = available
        self.config = config
        self._cluster_id = ""
        self._header_of: tuple[int, int] = (-1, -1)
        self._header = msgspec.Raw(b"{}")

    def header(self, revision: int) -> msgspec.Raw:
        """The header of an answer, in JSON; `revision` 0: without one. Rendered anew only when it is another."""
        wanted = (revision, self.admin.term)
        if wanted != self._header_of or not self._cluster_id:
            self._header = msgspec.Raw(msgspec.json.encode(self._render(revision)))
            self._header_of = wanted
        return self._header

    def _render(self, revision: int) -> ResponseHeader:
        if not self._cluster_id:
            cluster_id = self.admin.members().cluster_id
            self._cluster_id = str(int(cluster_id, 16)) if cluster_id else ""
        return ResponseHeader(
            cluster_id=self._cluster_id or "0",
            member_id=str(self.admin.id),
            revision=decimal(revision),
            raft_term=decimal(self.admin.term),
        )


class Context:
    """Lives as long as one request. `is_wanted`: whether the client is still there to be answered."""

    __slots__ = ("admin", "config", "gateway", "is_wanted", "kv", "needs_leader", "request_id")

    def __init__(
        self,
        gateway: Gateway,
        *,
        request_id: str = "",
        headers: Mapping[str, str] = {},
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        self.gateway = gateway
        self.kv = gateway.kv
        self.admin = gateway.admin
        self.config = gateway.config
        self.request_id = request_id
        self.needs_leader = headers.get("Grpc-Metadata-Hasleader") == "true"  # etcd's metadata `hasleader`
        self.is_wanted = is_wanted

    def header(self, revision: int = 0) -> msgspec.Raw:
        """With the revision of this node's applied state, at least `revision`: what etcd calls the current one."""
        return self.gateway.header(max(revision, self.admin.revision))

    def header_at(self, revision: int) -> msgspec.Raw:
        """With just this revision, as a write tells its own, and a read of what is current; 0: without one."""
        return self.gateway.header(revision)

    def options(self, *, serializable: bool = False) -> Options:
        """Deadline and consistency. `serializable`: what this node has, as old as it may be."""
        consistency: Consistency = "stale" if serializable else "linearizable"
        return Options(self.config.limits.timeout_ms, consistency, self.request_id)

    def members(self) -> tuple[MemberInfo, ...]:
        """The members as this node knows them; where clients reach them it may have heard by gossip."""
        return with_health(self.admin.members().members, self.gateway.available)

    def check_leader(self) -> None:
        """A request may ask to be refused where no leader is known. Raises: EtcdError."""
        if self.needs_leader and self.admin.members().leader is None:
            raise EtcdError(Code.UNAVAILABLE, NO_LEADER)
