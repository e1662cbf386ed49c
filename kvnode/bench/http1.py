"""HTTP/1.1 client connection that costs next to nothing: bytes prepared beforehand go out, the answer is only framed.

One request in flight per connection. Understands Content-Length and chunked answers, which is all that kvnode and
etcd's JSON gateway send. Not a general client: a load generator must stay far cheaper than the server it measures.
"""

from __future__ import annotations

import asyncio
import re
from time import perf_counter_ns
from typing import cast

from kvnode.bench.load import Address, OnAnswer, OnLost

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class Http1Connection(asyncio.Protocol):
    """Sends one request after another; reports each answer, and its own end."""

    def __init__(self, on_answer: OnAnswer, on_lost: OnLost) -> None:
        self._on_answer = on_answer
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()  # of an answer that is not whole yet
        self._sent_ns = 0
        self.answer = b""

    def send(self, request: bytes) -> None:
        assert self._transport is not None
        self._sent_ns = perf_counter_ns()
        self._transport.write(request)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it

    def data_received(self, data: bytes) -> None:
        if self._received:
            self._received += data
            if _is_whole(self._received):
                data = bytes(self._received)
                self._received.clear()
                self._report(data)
        elif _is_whole(data):
            self._report(data)
        else:
            self._received += data

    def _report(self, answer: bytes) -> None:
        self.answer = answer
        self._on_answer(self, self._sent_ns, answer[9:12] in {b"200", b"204"})

    def connection_lost(self, error: Exception | None) -> None:
        self._on_lost(self)


def _is_whole(received: bytes | bytearray) -> bool:
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return False
    if received[9:12] == b"204":
        return True
    length = _LENGTH.search(received, 0, end + 2)
    if length is not None:
        return len(received) >= end + 4 + int(length[1])
    return received.endswith(b"0\r\n\r\n")


async def connect(address: Address, on_answer: OnAnswer, on_lost: OnLost) -> Http1Connection:
    """Raises: OSError."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Http1Connection(on_answer, on_lost), *address)
    return connection


def request(method: str, path: str, address: Address, body: bytes = b"", *, headers: str = "") -> bytes:
    """One whole request. `headers`: further header lines, each ending in CRLF."""
    host, port = address
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def ask(method: str, path: str, address: Address, body: bytes = b"") -> tuple[int, bytes]:
    """One request on a connection of its own → (status, body). Raises: OSError."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(request(method, path, address, body, headers="Connection: close\r\n"))
        answer = await reader.read()
    finally:
        writer.close()
    head, _, content = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 "):
        raise ConnectionResetError("no answer")
    chunked = b"\r\ntransfer-encoding: chunked" in head.lower()
    return int(head[9:12]), _joined(content) if chunked else content


def _joined(chunks: bytes) -> bytes:
    """What chunks of an answer hold."""
    content, start = b"", 0
    while True:
        end = chunks.index(b"\r\n", start)
        size = int(chunks[start:end], 16)
        if size == 0:
            return content
        content += chunks[end + 2 : end + 2 + size]
        start = end + 2 + size + 2
