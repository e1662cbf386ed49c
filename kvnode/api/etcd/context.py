"""What a handler of the etcd API works with: the node behind it, the request it came by, the header of its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from kvnode.api.etcd.errors import Code, EtcdError
from kvnode.api.etcd.leader_loss import LeaderLoss
from kvnode.api.etcd.proto_json import Response, decimal
from kvnode.api.http.alive import with_health
from kvnode.config import Config
from kvnode.kv.available import AvailableNode
from kvnode.kv.interface import KV, Admin, Consistency, MemberInfo, Options

NO_LEADER = "etcdserver: no leader"
STOPPED = "etcdserver: server stopped"


class ResponseHeader(Response):
    """Of which cluster and member, at which revision of the store, and the newest term that has had a leader.

    The current term may be a candidate's whom nobody elects: a client that was told of it (Patroni) would take the
    members that never hear of it for stale.
    """

    cluster_id: str = "0"
    member_id: str = "0"
    revision: str = "0"
    raft_term: str = "0"


LONG_ANSWERS_MAX = 4
"""Ranges of more than a page that are read and rendered at a time; further ones wait for their turn with one page."""


class Gateway:
    """What all etcd requests of one node share."""

    def __init__(self, kv: KV, admin: Admin, config: Config, available: AvailableNode | None = None) -> None:
        """`available`: tells by gossip where members are reached; None: nobody gossips."""
        self.kv = kv
        self.admin = admin
        self.available = available
        self.config = config
        self._cluster_id = ""
        self._header_of: tuple[int, int] = (-1, -1)
        self._header = msgspec.Raw(b"{}")
        self.leader_loss = LeaderLoss(admin, config.raft.election_timeout_ms / 1e3)
        self.long_answers = asyncio.Semaphore(LONG_ANSWERS_MAX)
        self.open_streams: dict[Any, Callable[[EtcdError], None]] = {}
        """Those that last until somebody ends them, and what ends each."""

    def close(self) -> None:
        """The node stops: nobody is to wait here for what will not come."""
        for end in list(self.open_streams.values()):
            end(EtcdError(Code.UNAVAILABLE, STOPPED))

    def header(self, revision: int) -> msgspec.Raw:
        """The header of an answer, in JSON; `revision` 0: without one. Rendered anew only when it is another."""
        wanted = (revision, self.admin.led_term)
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
            raft_term=decimal(self.admin.led_term),
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
        members, available = self.admin.members().members, self.gateway.available
        return members if available is None else with_health(members, available)

    def check_leader(self) -> None:
        """Raises: EtcdError where a leader is needed and none is known."""
        if self.needs_leader and self.admin.members().leader is None:
            raise EtcdError(Code.UNAVAILABLE, NO_LEADER)
