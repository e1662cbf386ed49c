"""Joining over real sockets: a new directory takes the place of a dead member, votes, and comes back as who it is."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from kvnode import open_node
from kvnode.bench.process import free_ports
from kvnode.embedded import EmbeddedNode
from kvnode.ids import NodeId
from kvnode.kv.members import RemoveMember

pytestmark = pytest.mark.system

WITHIN_S = 30


async def until_voters(node: EmbeddedNode, wanted: set[int]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while {member.id for member in (await node.members()).members if member.role == "voter"} != wanted:
            await asyncio.sleep(0.02)


async def test_a_dead_member_is_replaced_by_a_new_directory(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(secrets.token_bytes(32))
    secret.chmod(0o600)
    ports = free_ports(8)
    peers, clients = ([f"127.0.0.1:{port}" for port in half] for half in (ports[:4], ports[4:]))

    def settings(number: int, **more: Any) -> dict[str, Any]:
        return {
            "node.data_dir": str(tmp_path / f"n{number}"),
            "cluster.secret_file": str(secret),
            "peer.listen": peers[number - 1],
            "client.listen": clients[number - 1],
            "storage.allow_unsafe_filesystem": True,
            **{name.replace("__", "."): value for name, value in more.items()},
        }

    initial = tuple(f"{number}={peers[number - 1]}" for number in (1, 2, 3))
    async with AsyncExitStack() as stack, AsyncExitStack() as third:
        opened = [
            of.enter_async_context(
                open_node(settings=settings(number, node__id=number, cluster__members=initial), listen=True)
            )
            for number, of in ((1, stack), (2, stack), (3, third))
        ]
        one, two, _ = await asyncio.gather(*opened)
        await asyncio.gather(one.ready(), two.ready())
        await one.put("greeting", "hello")
        await third.aclose()

        joining = settings(4, cluster__join=clients[:2], cluster__replace=3, node__name="four")
        async with open_node(settings=joining) as four:
            await until_voters(one, {1, 2, 4})
            await four.ready()
            found = await four.get("greeting")
            assert found is not None
            assert found.value == b"hello"
            own = (await two.members()).members[-1]
            assert (own.id, own.name, own.peer_address) == (4, "four", peers[3])
        async with open_node(settings=joining) as four:
            await four.ready()
            assert (await four.status()).id == 4
            assert len((await one.members()).members) == 3, "it has not joined a second time"
            await one.put("greeting", "again")
            removed = await two.change_members(RemoveMember(NodeId(4)))
            assert [member.id for member in removed.members] == [1, 2]
