"""``GET /v1/admin/snapshot``: a backup, as it is read, block after block.

It has no length: whether it is whole shows in its last block. A backup that the node has to give up, or whose client
does not read, ends with its connection, in the middle.
"""

from __future__ import annotations

from kvnode.api.answer import KIND_RAW, Answer
from kvnode.api.call import Call
from kvnode.api.streaming import Outlet, TooSlow
from kvnode.errors import KvnodeError
from kvnode.kv.interface import Backup
from kvnode.observe.log import get_logger

log = get_logger("backups")


async def take(call: Call) -> Answer:
    options = call.options()
    call.refuse_body()
    backup = await call.app.admin.backup(options)
    try:
        cluster_id = call.app.admin.members().cluster_id
        name = f"kvnode-{cluster_id}-{backup.revision}.snapshot"
        extra = (
            f'Content-Disposition: attachment; filename="{name}"\r\n'
            f"Kv-Index: {backup.index}\r\nKv-Logical-Bytes: {backup.logical_bytes}\r\n"
        )
        if call.is_head:
            backup.close()
            return call.answer(200, b"", kind=KIND_RAW, revision=backup.revision, extra=extra, length=False)

        async def produce(outlet: Outlet) -> None:
            await _send(backup, outlet)

        return call.stream(produce, kind=KIND_RAW, revision=backup.revision, extra=extra)
    except BaseException:
        backup.close()
        raise


async def _send(backup: Backup, outlet: Outlet) -> None:
    """All of it, or the connection is cut: a body that is not whole must not end as if it were."""
    try:
        await outlet.write(outlet.frame(backup.header))
        number = 0
        while (block := await backup.block(number)) is not None:
            await outlet.write(outlet.frame(block))
            number += 1
        outlet.end()
    except (TooSlow, ConnectionAbortedError, KvnodeError) as error:
        log.warning("backup.broken_off", index=backup.index, reason=str(error) or "the client does not read")
        outlet.cut()
    finally:
        backup.close()
