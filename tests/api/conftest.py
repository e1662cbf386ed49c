"""A real listener on a free port over the fake store, and a client without opinions."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from kvnode.api.app import App, ClientServer, build_app
from kvnode.config import ClientSection, Config, LimitsSection
from tests.api.fake import FakeAdmin, FakeKV
from tests.api.fake_available import FakeAvailable
from tests.api.raw import Door


@pytest.fixture
def limits() -> LimitsSection:
    return LimitsSection()


@pytest.fixture
def config(limits: LimitsSection) -> Config:
    client = ClientSection(listen="127.0.0.1:0", allowed_hosts=("kv.example",), body_timeout_ms=300)
    return Config(client=client, limits=limits)


@pytest.fixture
def kv() -> FakeKV:
    return FakeKV()


@pytest.fixture
def admin(kv: FakeKV) -> FakeAdmin:
    return FakeAdmin(kv)


@pytest.fixture
def plane() -> FakeAvailable:
    return FakeAvailable()


@pytest.fixture
def app(kv: FakeKV, admin: FakeAdmin, config: Config, plane: FakeAvailable) -> App:
    return build_app(kv, admin, config, plane)


@pytest.fixture
async def door(app: App, config: Config) -> AsyncIterator[Door]:
    server = ClientServer(app, config)
    await server.start()
    async with aiohttp.ClientSession(auto_decompress=False, skip_auto_headers={"Content-Type"}) as session:
        yield Door(session, server.address)
    await server.close()
