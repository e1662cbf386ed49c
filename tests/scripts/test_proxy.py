"""The proxy knows who dialled, treats each direction by itself, and leaves no damaged connection behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvnode.bench.load import Address
from kvnode.bench.process import free_ports
from scripts.faults.proxy import Proxies, Treatment

DIALLER, ACCEPTOR = 1, 2

pytestmark = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="who dialled is found in /proc")


class Far:
    """What listens behind the proxy: keeps what arrives, says what it is told to."""

    def __init__(self) -> None:
        self.got = b""
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(4096):
                self.got += chunk
        writer.close()


class World:
    """This process dials as node 1; node 2 is behind the proxy."""

    def __init__(self, proxies: Proxies, far: Far, address: Address) -> None:
        self.proxies, self.far, self.address = proxies, far, address

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self.address)
        await until(lambda: bool(self.far.writers))
        return reader, writer


async def until(claim) -> None:
    async with asyncio.timeout(10):
        while not claim():
            await asyncio.sleep(0.005)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    far = Far()
    server = await asyncio.start_server(far.serve, "127.0.0.1", 0)
    other, port = free_ports(2)
    proxies = Proxies(lambda node: os.getpid() if node == DIALLER else 0, random.Random(1))
    await proxies.listen(DIALLER, ("127.0.0.1", other), ("127.0.0.1", 1))
    await proxies.listen(ACCEPTOR, ("127.0.0.1", port), server.sockets[0].getsockname())
    yield World(proxies, far, ("127.0.0.1", port))
    await proxies.close()
    server.close()


async def test_bytes_pass_both_ways(world: World):
    reader, writer = await world.dial()
    writer.write(b"hello")
    await until(lambda: world.far.got == b"hello")
    world.far.writers[0].write(b"world")
    assert await reader.readexactly(5) == b"world"
    assert world.proxies.open_connections == 1
    writer.close()
    await until(lambda: world.proxies.open_connections == 0)


async def test_what_is_held_arrives_whole_when_healed(world: World):
    reader, writer = await world.dial()
    world.proxies.treat((DIALLER, ACCEPTOR), Treatment(hold=True))
    writer.write(b"later")
    world.far.writers[0].write(b"the other way is open")
    assert await reader.readexactly(21) == b"the other way is open"
    assert world.far.got == b""
    world.proxies.heal()
    await until(lambda: world.far.got == b"later")


async def test_a_connection_that_lost_bytes_is_reset_when_healed(world: World):
    reader, writer = await world.dial()
    world.proxies.treat((DIALLER, ACCEPTOR), Treatment(swallow=True))
    writer.write(b"gone")
    await until(lambda: world.proxies.counts["swallowed"] == 1)
    world.proxies.heal()
    with pytest.raises(ConnectionResetError):
        await reader.read()
    assert world.far.got == b""


@pytest.mark.parametrize(
    ("treatment", "expected"),
    [
        (Treatment(repeat=1.0), lambda got: got == b"01234567890123456789"),
        (Treatment(truncate=1.0), lambda got: len(got) < 10 and b"0123456789".startswith(got)),
        (Treatment(corrupt=1.0), lambda got: len(got) == 10 and flipped_bits(got, b"0123456789") == 1),
        (Treatment(delay_s=(0.001, 0.002)), lambda got: got == b"0123456789"),
    ],
)
async def test_how_bytes_are_changed(world: World, treatment: Treatment, expected):
    _, writer = await world.dial()
    world.proxies.treat((DIALLER, ACCEPTOR), treatment)
    writer.write(b"0123456789")
    if treatment.truncate:
        await until(lambda: world.proxies.counts["truncated"] == 1)
        await asyncio.sleep(0)
    else:
        await until(lambda: len(world.far.got) >= 10)
    assert expected(world.far.got), world.far.got


def flipped_bits(one: bytes, other: bytes) -> int:
    return sum((a ^ b).bit_count() for a, b in zip(one, other, strict=True))


async def test_resets_reach_both_ends(world: World):
    reader, _ = await world.dial()
    assert world.proxies.reset() == 1
    with pytest.raises(ConnectionResetError):
        await reader.read()
    await until(world.far.writers[0].is_closing)


async def test_a_shut_port_refuses_and_opens_again(world: World):
    world.proxies.shut(ACCEPTOR)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*world.address)
    await world.proxies.open(ACCEPTOR)
    await world.dial()


async def test_who_is_no_node_is_not_let_through(world: World):
    world.proxies.pid_of = lambda _: 0
    reader, _ = await asyncio.open_connection(*world.address)
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read() == b""
    assert world.proxies.counts["of nobody"] == 1
    assert not world.far.writers


def test_plain_is_the_default():
    assert Treatment().is_plain
    assert not Treatment(hold=True).is_plain
