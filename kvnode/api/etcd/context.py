"""What a handler of the etcd API works with: the node behind it, the request it came by, the header of its answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from kvnode.api.call import Call
from kvnode.api.etcd.errors import Code, EtcdError
from kvnode.api.etcd.leader_loss import LeaderLoss
from kvnode.api.etcd.proto_json import Response, decimal
from kvnode.config import Config
from kvnode.kv.interface import KV, Admin, Options

if TYPE_CHECKING:
    from kvnode.api.app import App

NO_LEADER = "etcdserver: no leader"
STOPPED = "etcdserver: server stopped"


class ResponseHeader(Response):
    """Of which cluster and member, at which revision of the store and in which term."""

    cluster_id: str = "0"
    member_id: str = "0"
    revision: str = "0"
    raft_term: str = "0"


class Gateway:
    """What all etcd requests of one node share."""

    def __init__(self, app: App) -> None:
        self.app = app
        self._cluster_id = ""
        self._header_of: tuple[int, int] = (-1, -1)
        self._header = msgspec.Raw(b"{}")
        self.leader_loss = LeaderLoss(app.admin, app.config.raft.election_timeout_ms / 1e3)
        self.open_streams: dict[Any, Callable[[EtcdError], None]] = {}
        """Those that last until somebody ends them, and what ends each."""

    def close(self) -> None:
        """The node stops: nobody is to wait here for what will not come."""
        for end in list(self.open_streams.values()):
            end(EtcdError(Code.UNAVAILABLE, STOPPED))

    def header(self, revision: int) -> msgspec.Raw:
        """The header of an answer, in JSON; `revision` 0: without one. Rendered anew only when it is another."""
        wanted = (revision, self.app.admin.term)
        if wanted != self._header_of or not self._cluster_id:
            self._header = msgspec.Raw(msgspec.json.encode(self._render(revision)))
            self._header_of = wanted
        return self._header

    def _render(self, revision: int) -> ResponseHeader:
        admin = self.app.admin
        if not self._cluster_id:
            cluster_id = admin.members().cluster_id
            self._cluster_id = str(int(cluster_id, 16)) if cluster_id else ""
        return ResponseHeader(
            cluster_id=self._cluster_id or "0",
            member_id=str(admin.id),
            revision=decimal(revision),
            raft_term=decimal(admin.term),
        )


class Context:
    """Lives as long as one request."""

    __slots__ = ("call", "gateway")

    def __init__(self, gateway: Gateway, call: Call) -> None:
        self.gateway = gateway
        self.call = call

    @property
    def kv(self) -> KV:
        return self.gateway.app.kv

    @property
    def admin(self) -> Admin:
        return self.gateway.app.admin

    @property
    def config(self) -> Config:
        return self.gateway.app.config

    def header(self, revision: int = 0) -> msgspec.Raw:
        """With `revision`, or the one of this node's applied state if that is newer, as etcd tells the current one."""
        return self.gateway.header(max(revision, self.admin.revision))

    def header_at(self, revision: int) -> msgspec.Raw:
        """With just this revision, as a write tells its own; 0: without one."""
        return self.gateway.header(revision)

    def options(self, *, serializable: bool = False) -> Options:
        """Deadline and consistency. `serializable`: what this node has, as old as it may be."""
        return Options(
            self.config.limits.timeout_ms,
            "stale" if serializable else "linearizable",
            self.call.request_id,
        )

    @property
    def needs_leader(self) -> bool:
        """The caller wants nothing from a node that knows of no leader."""
        return self.call.headers.get("Grpc-Metadata-Hasleader") == "true"

    def check_leader(self) -> None:
        """Raises: EtcdError where a leader is needed and none is known."""
        if self.needs_leader and self.admin.members().leader is None:
            raise EtcdError(Code.UNAVAILABLE, NO_LEADER)
