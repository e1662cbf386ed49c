"""What a plain connect tells about a peer's process."""

from __future__ import annotations

import socket

import pytest

from kvnode.transport.probe import probe


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_nobody_listens(host: str) -> None:
    with socket.socket() as bound:  # the port is taken, so nobody else can, and nobody does, listen on it
        bound.bind(("127.0.0.1", 0))
        assert await probe(host, bound.getsockname()[1], 2) == "refused"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_somebody_listens(host: str) -> None:
    """Also if only one of a name's addresses answers, and if nobody ever accepts: a stopped process is not gone."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert await probe(host, server.getsockname()[1], 2) == "open"


async def test_a_host_that_cannot_be_found_says_nothing() -> None:
    assert await probe("no.such.host.invalid", 7501, 2) == "unreachable"


async def test_a_host_that_does_not_answer_says_nothing() -> None:
    """A full backlog swallows connects, as a broken network does."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        waiting = []
        for _ in range(3):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(server.getsockname())
            waiting.append(client)
        assert await probe("127.0.0.1", server.getsockname()[1], 0.1) == "unreachable"
        for client in waiting:
            client.close()
