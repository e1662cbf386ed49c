"""The Maintenance service: status, hashes, handing leadership over, and what there is nothing to do for.

Alarms: `alarms`. The snapshot: `snapshot`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from enum import IntEnum

import msgspec

from kvnode.api.etcd import alarms
from kvnode.api.etcd.context import NO_LEADER, Context
from kvnode.api.etcd.errors import REQUEST_TIMED_OUT, Code, EtcdError, invalid
from kvnode.api.etcd.method import Method, Unary
from kvnode.api.etcd.proto_json import Empty, Request, Response, UInt64, decimal
from kvnode.errors import Conflict, MemberNotFound
from kvnode.ids import NodeId
from kvnode.kv.requests import HashReply
from kvnode.version import ETCD_SERVER_VERSION

HASH_DIGITS = 8
"""Of a state's hash etcd's answers have room for 32 bits."""


class StatusResponse(Response):
    header: msgspec.Raw
    version: str
    dbSize: str = "0"
    leader: str = "0"
    raftIndex: str = "0"
    raftTerm: str = "0"
    raftAppliedIndex: str = "0"
    errors: Sequence[str] = ()
    dbSizeInUse: str = "0"
    isLearner: bool = False


class HashResponse(Response):
    header: msgspec.Raw
    hash: int = 0


class HashKVRequest(Request):
    revision: int = 0


class HashKVResponse(Response):
    header: msgspec.Raw
    hash: int = 0
    compact_revision: str = "0"
    hash_revision: str = "0"


class MoveLeaderRequest(Request):
    targetID: UInt64 = 0


class DowngradeAction(IntEnum):
    VALIDATE = 0
    ENABLE = 1
    CANCEL = 2


class DowngradeRequest(Request):
    action: DowngradeAction = DowngradeAction.VALIDATE
    version: str = ""


async def status(context: Context, request: Empty) -> StatusResponse:
    found = context.admin.status()
    errors = [] if found.leader else [NO_LEADER]
    errors += [f"memberID:{found.id} alarm:{each.name} " for each in alarms.raised(found)]
    return StatusResponse(
        header=context.header(),
        version=ETCD_SERVER_VERSION,
        dbSize=decimal(found.store_bytes),
        leader=decimal(found.leader or 0),
        raftIndex=decimal(found.commit_index),
        raftTerm=decimal(found.term),
        raftAppliedIndex=decimal(found.applied_index),
        errors=tuple(errors),
        dbSizeInUse=decimal(min(found.logical_bytes, found.store_bytes)),
        isLearner=found.role == "learner",
    )


async def hash_(context: Context, request: Empty) -> HashResponse:
    reply = await context.admin.state_hash(0, context.options())
    return HashResponse(header=context.header(reply.revision), hash=_first_bits(reply))


async def hash_kv(context: Context, request: HashKVRequest) -> HashKVResponse:
    """Of the items that a revision shows. Where the history begins does not count, though it is told."""
    reply = await context.admin.state_hash(max(request.revision, 0), context.options())
    return HashKVResponse(
        header=context.header(reply.revision),
        hash=_first_bits(reply),
        compact_revision=decimal(context.admin.status().compact_revision),
        hash_revision=decimal(reply.revision),
    )


def _first_bits(reply: HashReply) -> int:
    return int(reply.hash[:HASH_DIGITS], 16)


async def defragment(context: Context, request: Empty) -> Empty:
    """There is nothing to do: pages that are free are used again."""
    return Empty()


async def move_leader(context: Context, request: MoveLeaderRequest) -> Empty:
    if context.admin.members().leader != context.admin.id:
        raise EtcdError(Code.FAILED_PRECONDITION, "etcdserver: not leader")
    bad_target = EtcdError(Code.FAILED_PRECONDITION, "etcdserver: bad leader transferee")
    if not request.targetID:  # to the store that would be: to whomever
        raise bad_target
    try:
        async with asyncio.timeout(context.options().timeout_ms / 1_000):
            await context.admin.transfer_leadership(NodeId(request.targetID))
    except (MemberNotFound, Conflict):
        raise bad_target from None
    except TimeoutError:  # ours or the node's own
        raise EtcdError(Code.UNAVAILABLE, REQUEST_TIMED_OUT) from None
    return Empty()


async def downgrade(context: Context, request: DowngradeRequest) -> Empty:
    """Never possible: the version stands for what the API knows."""
    if request.action == DowngradeAction.CANCEL:
        raise EtcdError(Code.FAILED_PRECONDITION, "etcdserver: no inflight downgrade job")
    if not re.fullmatch(r"\d+\.\d+(\.\d+)?", request.version):
        raise invalid("wrong downgrade target version format")
    raise invalid("invalid downgrade target version")


METHODS: dict[str, Method] = {
    "maintenance/status": Unary(Empty, status),
    "maintenance/hash": Unary(Empty, hash_),
    "maintenance/hashkv": Unary(HashKVRequest, hash_kv),
    "maintenance/defragment": Unary(Empty, defragment),
    "maintenance/transfer-leadership": Unary(MoveLeaderRequest, move_leader),
    "maintenance/downgrade": Unary(DowngradeRequest, downgrade),
}
