"""`GET /v1/admin/snapshot` at the door: whole, or visibly not."""

from __future__ import annotations

import aiohttp
import pytest

from kvnode.errors import Overloaded, StorageFailed
from tests.api.fake import FakeAdmin
from tests.api.raw import Door


async def test_it_is_streamed_with_what_it_is(door: Door, admin: FakeAdmin) -> None:
    await door.ask("PUT", "/v1/kv/k", b"v")
    found = await door.ask("GET", "/v1/admin/snapshot?timeout=30s")
    assert (found.status, found.body) == (200, b"headerblock 0the end")
    assert found.headers["content-type"] == "application/octet-stream"
    assert found.headers["content-disposition"] == 'attachment; filename="kvnode-00112233445566ff-2.snapshot"'
    assert [found.headers[name] for name in ("kv-revision", "kv-index", "kv-logical-bytes")] == ["2", "9", "4096"]
    assert admin.options[-1].timeout_ms == 30_000
    assert [backup.closed for backup in admin.backups] == [True]


async def test_its_head_leaves_nothing_open(door: Door, admin: FakeAdmin) -> None:
    found = await door.ask("HEAD", "/v1/admin/snapshot")
    assert (found.status, found.body) == (200, b"")
    assert [backup.closed for backup in admin.backups] == [True]


@pytest.mark.parametrize("error", [ConnectionAbortedError("the node is stopping"), StorageFailed("a sector")])
async def test_one_that_breaks_off_does_not_end_like_a_whole_one(
    door: Door, admin: FakeAdmin, error: Exception
) -> None:
    admin.blocks = [b"block 0", error]
    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        await door.ask("GET", "/v1/admin/snapshot")
    assert [backup.closed for backup in admin.backups] == [True]


async def test_too_many_at_a_time(door: Door, admin: FakeAdmin) -> None:
    admin.fail_backup = Overloaded("2 backups are being read from this node", retry_after_ms=5_000)
    found = await door.ask("GET", "/v1/admin/snapshot")
    assert (found.status, found.code, found.headers["retry-after"]) == (429, "overloaded", "5")
    assert (await door.ask("GET", "/v1/admin/snapshot?rev=3")).status == 400
