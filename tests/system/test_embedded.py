"""Embedded nodes: a host program that blocks its own loop costs the cluster nothing."""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from kvnode import open_node
from kvnode.bench.process import free_ports

pytestmark = pytest.mark.system

BLOCKED_S = 2.0


async def test_a_blocked_host_loop_causes_no_election(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(secrets.token_bytes(32))
    secret.chmod(0o600)
    addresses = [f"127.0.0.1:{port}" for port in free_ports(3)]
    members = tuple(f"{number}={address}" for number, address in enumerate(addresses, start=1))
    async with AsyncExitStack() as stack:
        opened = (
            stack.enter_async_context(
                open_node(
                    settings={
                        "node.id": number,
                        "node.data_dir": str(tmp_path / f"n{number}"),
                        "cluster.members": members,
                        "cluster.secret_file": str(secret),
                        "peer.listen": address,
                        "storage.allow_unsafe_filesystem": True,
                    }
                )
            )
            for number, address in enumerate(addresses, start=1)
        )
        nodes = await asyncio.gather(*opened)
        await asyncio.gather(*(node.ready() for node in nodes))
        await nodes[0].put("greeting", "hello")
        before = [(status.term, status.leader) for status in [await node.status() for node in nodes]]

        time.sleep(BLOCKED_S)  # the host's loop is stuck: nothing else of this thread runs

        after = [(status.term, status.leader) for status in [await node.status() for node in nodes]]
        assert after == before
        assert len(set(after)) == 1
        found = await nodes[2].get("greeting")
        assert found is not None
        assert found.value == b"hello"
