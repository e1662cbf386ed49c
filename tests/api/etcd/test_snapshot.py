"""Maintenance.Snapshot: pieces that make a backup, and their digest."""

from __future__ import annotations

import base64
import hashlib
import json
from io import BytesIO
from typing import Any

import pytest

from kvnode import restore
from kvnode.errors import Overloaded, StorageFailed
from kvnode.ids import NodeId
from kvnode.machine.snapshot import SnapshotReader
from kvnode.raft.messages import Configuration, Member
from kvnode.storage.memory_backend import MemoryBackend
from kvnode.wire.codec import encode_configuration
from tests.api.etcd.test_maintenance import ask
from tests.api.fake import FakeAdmin
from tests.api.raw import Door
from tests.machine.harness import Store
from tests.machine.test_snapshot import blocks_of, flushed

PIECE_BYTES = 32 << 10


def messages(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in body.splitlines()]


async def test_the_pieces_are_a_backup_as_kvnode_takes_it(door: Door, admin: FakeAdmin) -> None:
    store = Store(MemoryBackend)
    for number in range(40):
        store.put(b"key%03d" % number, bytes([number]) * 10_000)
    one = NodeId(1)
    configuration = Configuration(voters=(one,), members=(Member(one, 0xA1, "127.0.0.1:7501"),), last_id=one)
    reader = SnapshotReader(
        flushed(store).machine.backend.pin(), cluster_id=0xC1, initial=encode_configuration(configuration)
    )
    admin.header, admin.blocks = reader.header, list(blocks_of(reader))
    found = await ask(door, "maintenance/snapshot")
    assert found.status == 200
    *pieces, last = [message["result"] for message in messages(found.body)]
    blobs = [base64.b64decode(piece["blob"]) for piece in pieces]
    assert [len(blob) for blob in blobs[:-1]] == [PIECE_BYTES] * (len(blobs) - 1)
    assert len(blobs) > 10
    content = b"".join(blobs)
    assert restore.verify(BytesIO(content)).rows > 40
    assert last == {"blob": base64.b64encode(hashlib.sha256(content).digest()).decode()}
    remaining = [int(piece["remaining_bytes"]) for piece in pieces[:-1]]
    assert remaining == [1] * len(remaining), "it was said to be smaller"
    assert "remaining_bytes" not in pieces[-1]
    assert admin.backups[0].closed


async def test_what_remains_only_falls(door: Door, admin: FakeAdmin) -> None:
    admin.logical_bytes = 5 * PIECE_BYTES
    admin.blocks = [b"x" * PIECE_BYTES] * 3
    found = await ask(door, "maintenance/snapshot")
    *pieces, _ = [message["result"] for message in messages(found.body)]
    assert [int(piece.get("remaining_bytes", 0)) // PIECE_BYTES for piece in pieces] == [4, 3, 2, 0]


async def test_a_small_one_is_one_piece(door: Door, admin: FakeAdmin) -> None:
    found = await ask(door, "maintenance/snapshot", {})
    content = b"headerblock 0the end"
    assert messages(found.body) == [
        {"result": {"blob": base64.b64encode(content).decode()}},
        {"result": {"blob": base64.b64encode(hashlib.sha256(content).digest()).decode()}},
    ]


@pytest.mark.parametrize("error", [ConnectionAbortedError("the node is stopping"), StorageFailed("a sector")])
async def test_one_that_breaks_off_ends_in_an_error(door: Door, admin: FakeAdmin, error: Exception) -> None:
    admin.blocks = [b"x" * 3 * PIECE_BYTES, error]
    found = await ask(door, "maintenance/snapshot", {})
    *pieces, last = messages(found.body)
    assert [len(base64.b64decode(piece["result"]["blob"])) for piece in pieces] == [PIECE_BYTES] * 2
    assert (last["error"]["code"], last["error"]["http_code"]) == (14, 503)
    assert [backup.closed for backup in admin.backups] == [True]


async def test_one_that_does_not_begin_is_refused(door: Door, admin: FakeAdmin) -> None:
    admin.fail_backup = Overloaded("2 backups are being read from this node", retry_after_ms=5_000)
    found = await ask(door, "maintenance/snapshot", {})
    assert found.status == 429
    assert found.json["error"]["message"] == "etcdserver: too many requests"
