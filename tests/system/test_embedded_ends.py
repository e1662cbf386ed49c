"""Embedded nodes end: however a start or a stop is broken off, nobody waits for ever and nothing stays taken."""

from __future__ import annotations

import asyncio
import secrets
import threading
from pathlib import Path
from typing import Any

import pytest

from kvnode import open_node, server
from kvnode.bench.process import free_ports
from kvnode.config import load
from kvnode.errors import ConfigInvalid, KvnodeError, LogCorrupted, StorageFailed

pytestmark = pytest.mark.system


def lonely(tmp_path: Path) -> dict[str, Any]:
    """Settings of a member whose peers never come: its first start waits for them."""
    secret = tmp_path / "secret"
    if not secret.exists():
        secret.write_bytes(secrets.token_bytes(32))
        secret.chmod(0o600)
    addresses = [f"127.0.0.1:{port}" for port in free_ports(3)]
    return {
        "node.id": 1,
        "node.data_dir": str(tmp_path / "n1"),
        "cluster.members": tuple(f"{number}={address}" for number, address in enumerate(addresses, start=1)),
        "cluster.secret_file": str(secret),
        "peer.listen": addresses[0],
        "storage.allow_unsafe_filesystem": True,
    }


def alone(tmp_path: Path) -> dict[str, Any]:
    return {
        "node.data_dir": str(tmp_path / "n1"),
        "peer.listen": "127.0.0.1:0",
        "storage.allow_unsafe_filesystem": True,
    }


def node_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("kvnode-")]


@pytest.mark.parametrize("loop", ["own", "host"])
async def test_a_start_that_is_given_up_leaves_nothing_taken(tmp_path: Path, loop: Any) -> None:
    settings = lonely(tmp_path)
    for _ in range(2):  # the second finds the directory and the port free
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3), open_node(settings=settings, loop=loop):
                raise AssertionError("a member without peers has started")
    assert not node_threads()


async def test_a_call_that_waits_while_the_node_ends_gets_an_answer(tmp_path: Path) -> None:
    async with open_node(settings=alone(tmp_path)) as node:
        await node.ready()

        async def never() -> None:
            await asyncio.Event().wait()

        waiting = asyncio.ensure_future(node._call(never))
        await asyncio.sleep(0.01)
    async with asyncio.timeout(5):
        with pytest.raises(KvnodeError):
            await waiting
        with pytest.raises(KvnodeError):
            await node.put("late", "x")


async def test_a_first_start_that_cannot_record_its_peers_fails(tmp_path: Path, monkeypatch: Any) -> None:
    """Nobody else looks at a failure while the bootstrap waits: it must not wait on for ever."""
    failed: list[Any] = []
    make = server.make_transport

    def keep(config: Any, roster: Any, clock: Any, on_failed: Any) -> Any:
        failed.append(on_failed)
        return make(config, roster, clock, on_failed)

    monkeypatch.setattr(server, "make_transport", keep)
    starting = asyncio.ensure_future(server.RunningNode.start(load(overrides=lonely(tmp_path)), serve_clients=False))
    while not failed:
        await asyncio.sleep(0.01)
    failed[0](StorageFailed("writing peers failed"))
    async with asyncio.timeout(5):
        with pytest.raises(StorageFailed):
            await starting


@pytest.mark.parametrize("loop", ["own", "host"])
async def test_a_stop_that_is_cancelled_still_ends_the_node(tmp_path: Path, loop: Any) -> None:
    settings = alone(tmp_path)
    entered = asyncio.Event()

    async def live() -> None:
        async with open_node(settings=settings, loop=loop) as node:
            await node.ready()
            await node.put("k", "v")
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(live())
    await entered.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()  # again, while it stops
    await asyncio.wait({task})
    async with open_node(settings=settings, loop=loop) as node:
        await node.ready()
        found = await node.get("k")
        assert found is not None
    assert not node_threads()


async def test_a_start_on_a_damaged_log_gives_everything_back(tmp_path: Path) -> None:
    settings = alone(tmp_path)
    async with open_node(settings=settings) as node:
        await node.ready()
        for number in range(20):
            await node.put(f"k{number}", "v" * 100)
    [segment] = (tmp_path / "n1" / "wal").glob("*.wal")
    good = segment.read_bytes()
    damaged = bytearray(good)
    damaged[5_000] ^= 0xFF
    segment.write_bytes(damaged)
    for _ in range(2):
        with pytest.raises(LogCorrupted):
            async with open_node(settings=settings):
                raise AssertionError("started on a damaged log")
    segment.write_bytes(good)
    async with open_node(settings=settings) as node:
        await node.ready()
        assert await node.get("k19") is not None
    assert not node_threads()


async def test_limits_that_decide_what_an_entry_does_are_fixed_with_the_first_log(tmp_path: Path) -> None:
    """I7: replayed under a lower limit an acknowledged range delete would be refused, on this node only."""
    settings = alone(tmp_path)
    async with open_node(settings=settings) as node:
        await node.ready()
    with pytest.raises(ConfigInvalid, match=r"limits\.delete_keys_max is 10, but"):
        async with open_node(settings={**settings, "limits.delete_keys_max": 10}):
            raise AssertionError("started under another limit")
    async with open_node(settings={**settings, "limits.value_bytes_max": 1_000}) as node:
        await node.ready()
