"""The two lean connections against small servers in the same loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from kvnode.bench import h2, http1, load

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[load.Address]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()


async def _read_http(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return head + await reader.readexactly(length)


def answering(answer: bytes, chunk: int) -> Handler:
    """Gives every request the same answer, `chunk` bytes at a time."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await _read_http(reader):
                for start in range(0, len(answer), chunk):
                    writer.write(answer[start : start + chunk])
                    await writer.drain()
                    await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    return handler


OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}"


async def test_chunks_of_an_answer_are_joined() -> None:
    answer = CHUNKED.replace(b"0\r\n\r\n", b"b\r\n, you there\r\n0\r\n\r\n")

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _read_http(reader)
        writer.write(answer)
        writer.close()

    async with serving(handler) as address:
        assert await http1.ask("GET", "/metrics", address) == (200, b"hello, you there")


@pytest.mark.parametrize(("answer", "failed"), [(OK, 0), (CHUNKED, 0), (REFUSED, 6)])
@pytest.mark.parametrize("chunk", [7, 1000])
async def test_http_answers_are_framed_however_they_arrive(answer: bytes, failed: int, chunk: int) -> None:
    async with serving(answering(answer, chunk)) as address:
        requests = [http1.request("PUT", "/k", address, b"v")] * 6
        found = await load.send_all(http1.connect, requests, address, connections=2, slots_each=1, limit_s=5)
    assert found == failed


async def test_measure_counts_only_what_succeeded() -> None:
    async with serving(answering(OK, 1000)) as good, serving(answering(REFUSED, 1000)) as bad:
        closed = load.ClosedLoop(itertools.cycle([http1.request("GET", "/k", good)]))
        measured = await load.measure(
            closed,
            http1.connect,
            [good, bad],
            connections=2,
            slots_each=1,
            warm_up_s=0.0,
            measure_s=0.1,
            server_cpu_s=lambda: 0.0,
        )
    assert measured.latencies_ns
    assert measured.failures
    assert 0 < measured.quantile_ms(0.5) <= measured.quantile_ms(0.99)


async def test_a_lost_connection_is_counted() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _read_http(reader)
        writer.close()

    async with serving(handler) as address:
        closed = load.ClosedLoop(itertools.cycle([http1.request("GET", "/k", address)]))
        measured = await load.measure(
            closed,
            http1.connect,
            [address],
            connections=3,
            slots_each=1,
            warm_up_s=0.0,
            measure_s=0.1,
            server_cpu_s=lambda: 0.0,
        )
    assert (len(measured.latencies_ns), measured.failures) == (0, 3)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


class GrpcServer:
    """Answers every call with one message, in one write per frame; refuses calls whose body is `b"refuse"`."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.blocks: list[bytes] = []
        self.acknowledged: list[int] = []  # kinds of frames the client acknowledged

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readexactly(24)
            writer.write(_frame(4, 0, 0, b"") + _frame(6, 0, 0, b"pingpong"))
            while True:
                head = await reader.readexactly(9)
                length, kind, flags = int.from_bytes(head[:3]), head[3], head[4]
                stream = int.from_bytes(head[5:])
                payload = await reader.readexactly(length)
                if kind == 1:
                    self.blocks.append(payload)
                elif kind == 0:
                    self._answer(writer, stream, payload)
                elif kind in {4, 6} and flags & 1:
                    self.acknowledged.append(kind)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def _answer(self, writer: asyncio.StreamWriter, stream: int, payload: bytes) -> None:
        self.bodies.append(payload)
        if payload.endswith(b"refuse"):
            writer.write(_frame(1, 0x5, stream, b"\x88"))
            return
        writer.write(_frame(8, 0, 0, len(payload).to_bytes(4)))
        for frame in (
            _frame(1, 0x4, stream, b"\x88"),
            _frame(0, 0, stream, b"\0\0\0\0\1x"),
            _frame(1, 0x5, stream, b""),
        ):
            writer.write(frame)


async def test_grpc_calls_share_a_connection() -> None:
    server = GrpcServer()
    calls = [h2.message(b"key%d" % number, b"v" * 300) for number in range(500)]
    connect = functools.partial(h2.connect, ("/pkg.Service/Call",))
    async with serving(server) as address:
        failed = await load.send_all(connect, calls, address, connections=1, slots_each=400, limit_s=5)
    assert failed == 0
    assert sorted(server.bodies) == sorted(calls)  # 400 × 300 bytes in flight exceed the initial window: it was kept
    assert b"/pkg.Service/Call" in server.blocks[0]
    assert {block.hex() for block in server.blocks[1:]} == {"8386c1c0bfbe"}
    assert sorted(set(server.acknowledged)) == [4, 6]


async def test_methods_share_a_connection_and_each_enters_the_header_table_once() -> None:
    server = GrpcServer()
    calls = [h2.message(b"v", method=number % 2) for number in range(6)]
    connect = functools.partial(h2.connect, ("/pkg.Service/First", "/pkg.Service/Second"))
    async with serving(server) as address:
        failed = await load.send_all(connect, calls, address, connections=1, slots_each=1, limit_s=5)
    assert failed == 0
    assert [b"First" in block for block in server.blocks] == [True, False, False, False, False, False]
    assert [b"Second" in block for block in server.blocks] == [False, True, False, False, False, False]
    assert [block.hex() for block in server.blocks[2:4]] == ["8386c2c1c0bf", "8386bec1c0bf"]
    assert set(server.bodies) == {h2.message(b"v")}  # the method is not said in the message


async def test_a_grpc_receive_window_is_opened_again_before_it_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(h2, "_WINDOW_MAX", 65_535 + 1)
    opened: list[int] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(24)
        window = 65_535
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readexactly(9)
                payload = await reader.readexactly(int.from_bytes(head[:3]))
                if head[3] == 8:
                    opened.append(int.from_bytes(payload))
                    window += opened[-1]
                elif head[3] == 0:
                    window -= 20_000
                    assert window >= 0
                    stream = int.from_bytes(head[5:])
                    writer.write(_frame(0, 0, stream, b"x" * 10_000) * 2 + _frame(1, 0x5, stream, b""))
        writer.close()

    connect = functools.partial(h2.connect, ("/pkg.Service/Call",))
    async with serving(handler) as address:
        failed = await load.send_all(connect, [h2.message(b"k")] * 20, address, connections=1, slots_each=1, limit_s=5)
    assert failed == 0
    assert opened[0] == 1
    assert set(opened[1:]) == {40_000}  # what came, once it was more than half


async def test_a_grpc_error_is_a_failure() -> None:
    connect = functools.partial(h2.connect, ("/pkg.Service/Call",))
    async with serving(GrpcServer()) as address:
        calls = [h2.message(b"fine"), h2.message(b"refuse")]
        failed = await load.send_all(connect, calls, address, connections=1, slots_each=2, limit_s=5)
    assert failed == 1


def test_a_message_is_length_prefixed_protobuf() -> None:
    assert h2.message(b"k", b"v") == b"\0" + (6).to_bytes(4) + b"\x0a\x01k\x12\x01v"
    assert h2.message(b"x" * 300)[5:8] == b"\x0a\xac\x02"
    assert h2.message(b"k", b"", 0, 300)[5:] == b"\x0a\x01k\x20\xac\x02"


@pytest.mark.parametrize("piece", [1, 7, 50, 1000])
def test_messages_of_a_stream_come_whole(piece: int) -> None:
    first, second = h2.message(b"first" * 9), h2.message(b"second" * 5)
    sent = (
        _frame(4, 0, 0, b"")
        + _frame(1, 0x4, 1, b"\x88")
        + _frame(0, 0, 1, first[:20])
        + _frame(8, 0, 0, bytes(4))
        + _frame(0, 0, 1, first[20:] + second)
    )
    messages = h2.Messages()
    taken = [messages.take(sent[start : start + piece]) for start in range(0, len(sent), piece)]
    assert b"".join(taken) == first + second
    assert all(whole in {b"", first, first + second} for whole in taken)


async def test_a_call_that_streams_is_opened_as_any_other() -> None:
    server = GrpcServer()
    async with serving(server) as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(h2.open_call("/pkg.Service/Watch", address, h2.message(h2.encoded(b"prefix"))))
        await reader.readuntil(b"\0\0\0\0\1x")
        writer.close()
    assert b"/pkg.Service/Watch" in server.blocks[0]
    assert server.bodies == [b"\0" + (10).to_bytes(4) + b"\x0a\x08\x0a\x06prefix"]
