"""A cluster is lost and begun anew from its backup: real processes, from `snapshot save` to members that join."""

from __future__ import annotations

import asyncio
import json
import secrets
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kvnode import connect, open_node
from kvnode.bench.process import free_ports
from kvnode.cli.main import cli
from kvnode.client.http import Caller, fetch
from kvnode.embedded import EmbeddedNode
from kvnode.errors import Compacted
from kvnode.kv.interface import Options
from kvnode.kv.keys import ONE_KEY
from kvnode.kv.requests import Range

pytestmark = pytest.mark.system

BUMP = 5_000


class Place:
    """Where one node of a test lives."""

    def __init__(self, root: Path, name: str, secret: Path) -> None:
        self.directory = str(root / name)
        self.peer, self.client = (f"127.0.0.1:{port}" for port in free_ports(2))
        self._secret = secret

    def open(self, **more: Any) -> Any:
        settings = {
            "node.data_dir": self.directory,
            "cluster.members": (f"1={self.peer}",),
            "cluster.secret_file": str(self._secret),
            "peer.listen": self.peer,
            "client.listen": self.client,
            "storage.allow_unsafe_filesystem": True,
        }
        return open_node(settings=settings | more, listen=True)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(secrets.token_bytes(32))
    path.chmod(0o600)
    return path


async def run(*arguments: str) -> Any:
    result = await asyncio.to_thread(CliRunner().invoke, cli, [*arguments, "-o", "json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


async def get(endpoint: str, path: str) -> Any:
    return (await asyncio.to_thread(fetch, endpoint, path, 10_000)).json()


async def ready(node: EmbeddedNode) -> EmbeddedNode:
    await node.ready()
    return node


async def test_a_cluster_begins_anew_from_a_backup_taken_while_it_wrote(tmp_path: Path, secret: Path) -> None:
    old, new, third = (Place(tmp_path, name, secret) for name in ("old", "new", "third"))
    file = str(tmp_path / "b")
    async with old.open() as opened, connect(old.client) as client:
        node = await ready(opened)
        for number in range(200):
            await client.put(f"k{number % 50}", f"{number} " * 50)
        lease = await client.grant(3_600_000)
        await client.put("leased", "x", lease=lease.id)
        held = (
            await asyncio.to_thread(Caller([old.client], 5_000).call, "POST", "/v1/locks/door", {"ttl": "1h"})
        ).json()
        stop = asyncio.Event()

        async def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                await node.put(f"k{number % 50}", f"meanwhile {number}")

        writes = asyncio.create_task(write())
        saved = await run("snapshot", "save", file, "--endpoint", old.client)
        stop.set()
        await writes
        hash_then = await get(old.client, f"/v1/admin/hash?rev={saved['revision']}")
        old_status = await node.status()
        last = (await client.put("after", "lost")).revision
    made = await run(
        "snapshot", "restore", file, "--data-dir", new.directory, "--peer", new.peer, "--bump", str(BUMP),
        "--allow-unsafe-filesystem",
    )  # fmt: skip
    async with AsyncExitStack() as stack:
        node = await ready(await stack.enter_async_context(new.open()))
        client = await stack.enter_async_context(connect(new.client))
        hash_now = await get(new.client, f"/v1/admin/hash?rev={made['revision']}")
        assert (hash_now["items"], hash_now["hash"]) == (hash_then["items"], hash_then["hash"])
        assert made["revision"] == saved["revision"] + BUMP > last
        status = await node.status()
        assert status.cluster_id == made["cluster_id"] != old_status.cluster_id
        assert await client.get("after") is None

        # Leases go on with their whole time, the lock is held under the same token.
        found = await get(new.client, f"/v1/leases/{lease.id}")
        assert found["remaining_ms"] > 3_590_000
        assert (await get(new.client, "/v1/locks/door"))["holder"]["token"] == held["token"]

        # Whoever goes on from before the restore is told, whether the backup had that revision or it was lost.
        for revision in (5, saved["revision"], last):
            with pytest.raises(Compacted):
                await client.get("k1", revision=revision)
            with pytest.raises(Compacted):
                await anext(node.watch_prefix("k", from_revision=revision))
        # A token of the lost future names a state that is behind: it is served.
        assert (await client.execute(Range(b"k1", ONE_KEY), Options(least_revision=last))).items
        assert (await client.put("k1", "anew")).revision > made["revision"]

        # The others join it.
        other = await stack.enter_async_context(third.open(**{"cluster.join": (new.client,)}))
        await ready(other)
        joined = await other.get("k1")
        assert joined is not None
        assert joined.value == b"anew"
        assert [member.id for member in (await other.members()).members] == [1, 2]


async def test_members_of_the_old_cluster_and_of_the_new_one_do_not_talk(
    tmp_path: Path, secret: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The restored member stands where the old one of its id stood; another old member is still running."""
    first, second, new = (Place(tmp_path, name, secret) for name in ("first", "second", "new"))
    file = str(tmp_path / "b")
    async with AsyncExitStack() as stack:
        async with first.open() as opened:
            node = await ready(opened)
            await node.put("k", "v")
            other = await ready(await stack.enter_async_context(second.open(**{"cluster.join": (first.client,)})))
            await run("snapshot", "save", file, "--endpoint", second.client)
        await run(
            "snapshot", "restore", file, "--data-dir", new.directory, "--peer", first.peer, "--bump", str(BUMP),
            "--allow-unsafe-filesystem",
        )  # fmt: skip
        settings = {"cluster.members": (f"1={first.peer}",), "peer.listen": first.peer}
        node = await ready(await stack.enter_async_context(new.open(**settings)))
        async with asyncio.timeout(20):
            while "wrong_cluster" not in caplog.text:
                await asyncio.sleep(0.05)
        assert not any(peer.connected for peer in (await other.status()).peers)
        assert [member.id for member in (await node.members()).members] == [1]
        found = await node.get("k")
        assert found is not None
        assert found.value == b"v"
