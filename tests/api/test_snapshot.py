"""`GET /v1/admin/snapshot` at the door: whole, or visibly not."""

from __future__ import annotations

import asyncio
import contextlib

import aiohttp
import pytest

from kvnode.config import LimitsSection
from kvnode.errors import Overloaded, StorageFailed
from tests.api.fake import FakeAdmin
from tests.api.raw import Door


@pytest.fixture
def limits() -> LimitsSection:
    return LimitsSection(watch_buffer_bytes=64 << 10, watch_stall_ms=500)


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


async def test_whoever_does_not_read_loses_it(door: Door, admin: FakeAdmin) -> None:
    """Bounded: not all of it waits here for a client that has stopped reading."""
    admin.blocks = [b"x" * 65_536] * 2_000
    host, port = door.address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 10)
    writer.write(b"GET /v1/admin/snapshot HTTP/1.1\r\nHost: localhost\r\n\r\n")
    async with asyncio.timeout(20):
        while not (admin.backups and admin.backups[0].closed):
            await asyncio.sleep(0.01)
    received = 0
    with contextlib.suppress(ConnectionError):
        while part := await reader.read(1 << 20):
            received += len(part)
    writer.close()
    assert received < 2_000 * 65_536


async def test_a_client_that_leaves_gives_it_back(door: Door, admin: FakeAdmin) -> None:
    admin.blocks = [b"x" * 65_536] * 2_000
    host, port = door.address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 10)
    writer.write(b"GET /v1/admin/snapshot HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.read(1_000)
    assert not admin.backups[0].closed
    writer.transport.abort()
    async with asyncio.timeout(5):
        while not admin.backups[0].closed:
            await asyncio.sleep(0.01)
