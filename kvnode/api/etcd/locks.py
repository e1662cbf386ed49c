"""v3lock: a lock is a place in the queue for its name, held while its key is the oldest (`queues`)."""

from __future__ import annotations

import msgspec

from kvnode.api.etcd import queues
from kvnode.api.etcd.context import Context
from kvnode.api.etcd.errors import KEY_NOT_PROVIDED, Code, EtcdError, invalid
from kvnode.api.etcd.method import Method, Unary
from kvnode.api.etcd.proto_json import Request, Response
from kvnode.kv.requests import Delete

EXPIRED = "mutex: session is expired"


class LockRequest(Request):
    name: bytes = b""
    lease: int = 0


class LockResponse(Response):
    header: msgspec.Raw = msgspec.Raw(b"")
    key: bytes = b""


class UnlockRequest(Request):
    key: bytes = b""


class UnlockResponse(Response):
    header: msgspec.Raw = msgspec.Raw(b"")


@queues.unknown_to_etcd
async def lock(context: Context, request: LockRequest) -> LockResponse:
    """Waits as long as its client does."""
    place = await queues.enter(context, request.name, request.lease, b"")
    try:
        revision = await queues.turn(context, place, EtcdError(Code.UNKNOWN, EXPIRED))
    except BaseException:
        if place.is_new:
            await queues.give_up(context, place)
        raise
    return LockResponse(header=context.header_at(revision), key=place.key)


@queues.unknown_to_etcd
async def unlock(context: Context, request: UnlockRequest) -> UnlockResponse:
    """A key that is gone is no error."""
    if not request.key:
        raise invalid(KEY_NOT_PROVIDED)
    reply = await context.kv.execute(Delete(request.key), context.options())
    return UnlockResponse(header=context.header_at(reply.revision))


METHODS: dict[str, Method] = {
    "lock/lock": Unary(LockRequest, lock, waits=True),
    "lock/unlock": Unary(UnlockRequest, unlock),
}
