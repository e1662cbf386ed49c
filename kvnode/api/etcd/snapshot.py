"""Maintenance.Snapshot: a backup in pieces, and the SHA-256 of them all.

The pieces are kvnode's own backup (`kvnode snapshot verify` and `restore` take them), not etcd's database file. How
long it is shows only at its end: `remaining_bytes` is an estimate that only falls, and the last piece has none.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator

from kvnode.api.etcd.context import Context
from kvnode.api.etcd.errors import Code, EtcdError
from kvnode.api.etcd.method import Method, Stream
from kvnode.api.etcd.proto_json import Empty, Response, decimal
from kvnode.kv.interface import Backup

PIECE_BYTES = 32 << 10


class SnapshotResponse(Response):
    remaining_bytes: str = "0"
    blob: bytes = b""


async def snapshot(context: Context, requests: AsyncIterator[Empty]) -> AsyncGenerator[SnapshotResponse, None]:
    backup = await context.admin.backup(context.options())
    try:
        digest = hashlib.sha256()
        sent, piece = 0, b""
        remaining = max(backup.logical_bytes, 1)
        async for following in _pieces(backup):
            if piece:
                sent += len(piece)
                remaining = max(min(remaining, backup.logical_bytes - sent), 1)
                yield SnapshotResponse(remaining_bytes=decimal(remaining), blob=piece)
            digest.update(following)
            piece = following
        yield SnapshotResponse(blob=piece)
        yield SnapshotResponse(blob=digest.digest())
    except ConnectionAbortedError as error:  # the node has closed it
        raise EtcdError(Code.UNAVAILABLE, f"the snapshot broke off: {error}") from error
    finally:
        backup.close()


async def _pieces(backup: Backup) -> AsyncIterator[bytes]:
    """All of it, in pieces of equal length but for the last."""
    held = bytearray(backup.header)
    number = 0
    while (block := await backup.block(number)) is not None:
        number += 1
        held += block
        while len(held) >= PIECE_BYTES:
            yield bytes(held[:PIECE_BYTES])
            del held[:PIECE_BYTES]
    if held:
        yield bytes(held)


METHODS: dict[str, Method] = {"maintenance/snapshot": Stream(Empty, snapshot)}
