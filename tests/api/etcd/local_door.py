"""The door of a node without consensus, with small buffers and a short election timeout."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import msgspec

from kvnode.api.app import ClientServer, build_app
from kvnode.config import ClientSection, Config, LimitsSection, RaftSection
from tests.api.raw import Door
from tests.client.local_node import LocalNode

LIMITS = LimitsSection(watch_buffer_bytes=8 << 10, watch_stall_ms=200, shutdown_ms=200, request_bytes_max=1 << 20)


@asynccontextmanager
async def serving(node: LocalNode, **limits: int) -> AsyncIterator[ClientServer]:
    raft = RaftSection(heartbeat_ms=10, election_timeout_ms=30)
    config = Config(
        client=ClientSection(listen="127.0.0.1:0"), limits=msgspec.structs.replace(LIMITS, **limits), raft=raft
    )
    server = ClientServer(build_app(node, node, config, node.plane), config)
    await server.start()
    yield server
    await server.close()


@asynccontextmanager
async def door_of(server: ClientServer) -> AsyncIterator[Door]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield Door(session, server.address)
