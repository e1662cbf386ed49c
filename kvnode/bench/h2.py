"""HTTP/2 client connection for unary gRPC calls of one method, as lean as the HTTP/1.1 one beside it.

Everything constant is encoded once. The first request puts its four long headers into the server's dynamic header
table, every later one refers to them: six bytes of header. Of the answers only the framing is read: a call has
succeeded when a message came before the end of its stream (a gRPC error carries none). The connection's send window
is kept; receive windows are opened so wide at the start that they never close during a measurement.

Source: RFC 9113 (frames), RFC 7541 (header compression), the gRPC wire protocol.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import perf_counter_ns
from typing import cast

from kvnode.bench.load import Address, OnAnswer, OnLost

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_ACK = _END_STREAM = 0x1
_INITIAL_WINDOW_SIZE = 4
_WINDOW_MAX = (1 << 31) - 1
_WINDOW_INITIAL = 65_535

# :method POST, :scheme http, then the dynamic entries in the order they were added (the newest is 62).
_SHORT_BLOCK = bytes([0x83, 0x86, 0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62])


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def _indexed_from_now_on(name: bytes, value: bytes) -> bytes:
    """Literal header that enters the dynamic table. `name` is a static index byte or a length-prefixed literal."""
    assert len(value) < 127, value
    return name + bytes([len(value)]) + value


def _first_block(path: str, authority: str) -> bytes:
    return (
        bytes([0x83, 0x86])
        + _indexed_from_now_on(bytes([0x40 | 4]), path.encode())
        + _indexed_from_now_on(bytes([0x40 | 1]), authority.encode())
        + _indexed_from_now_on(bytes([0x40 | 31]), b"application/grpc")
        + _indexed_from_now_on(b"\x40\x02te", b"trailers")
    )


class GrpcConnection(asyncio.Protocol):
    """Many calls in flight. A request is the gRPC message with its 5-byte prefix (see `message`)."""

    def __init__(self, path: str, authority: str, on_answer: OnAnswer, on_lost: OnLost) -> None:
        self._on_answer = on_answer
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._header_block = _first_block(path, authority)
        self._next_stream = 1
        self._sent_ns: dict[int, int] = {}  # stream → when its request was sent
        self._with_message: dict[int, bool] = {}
        self._send_window = _WINDOW_INITIAL
        self._waiting: deque[bytes] = deque()  # requests the send window has no room for
        self._out: list[bytes] = []
        self._reading = False  # answers of one read are collected into one write

    def send(self, request: bytes) -> None:
        if len(request) > self._send_window:
            self._waiting.append(request)
            return
        self._send_window -= len(request)
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        block = self._header_block
        self._header_block = _SHORT_BLOCK
        number = stream.to_bytes(4)
        self._out += (
            len(block).to_bytes(3),
            b"\x01\x04",  # HEADERS, END_HEADERS
            number,
            block,
            len(request).to_bytes(3),
            b"\x00\x01",  # DATA, END_STREAM
            number,
            request,
        )
        self._sent_ns[stream] = perf_counter_ns()
        if not self._reading:
            self._flush()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        settings = _INITIAL_WINDOW_SIZE.to_bytes(2) + _WINDOW_MAX.to_bytes(4)
        window = (_WINDOW_MAX - _WINDOW_INITIAL).to_bytes(4)
        self._transport.write(_PREFACE + _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW_UPDATE, 0, 0, window))

    def data_received(self, data: bytes) -> None:
        received = self._received + data if self._received else data
        self._reading = True
        position, size = 0, len(received)
        while position + 9 <= size:
            end = position + 9 + int.from_bytes(received[position : position + 3])
            if end > size:
                break
            kind, flags = received[position + 3], received[position + 4]
            stream = int.from_bytes(received[position + 5 : position + 9])
            if kind == _DATA:
                self._with_message[stream] = True
            elif kind != _HEADERS:
                self._on_control(kind, flags, stream, received[position + 9 : end])
            elif flags & _END_STREAM:
                self._on_answer(self, self._sent_ns.pop(stream), self._with_message.pop(stream, False))
            position = end
        self._received = received[position:]
        self._reading = False
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        self._on_lost(self)

    def _on_control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind in {_SETTINGS, _PING} and not flags & _ACK:
            self._out.append(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
        elif kind == _WINDOW_UPDATE and stream == 0:
            self._send_window += int.from_bytes(payload)
            self._send_waiting()
        elif kind == _RST_STREAM:
            self._with_message.pop(stream, None)
            self._on_answer(self, self._sent_ns.pop(stream), False)
        elif kind == _GOAWAY:
            self.close()

    def _send_waiting(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        for request in waiting:
            self.send(request)

    def _flush(self) -> None:
        if self._out and self._transport is not None:
            self._transport.write(b"".join(self._out))
            self._out.clear()


async def connect(path: str, address: Address, on_answer: OnAnswer, on_lost: OnLost) -> GrpcConnection:
    """A connection for calls of the gRPC method `path`. Raises: OSError."""
    loop = asyncio.get_running_loop()
    authority = f"{address[0]}:{address[1]}"
    _, connection = await loop.create_connection(lambda: GrpcConnection(path, authority, on_answer, on_lost), *address)
    return connection


def message(*fields: bytes) -> bytes:
    """A gRPC request whose protobuf message has the given bytes in fields 1, 2, …"""
    encoded = b"".join(
        bytes([number << 3 | 2]) + _varint(len(content)) + content for number, content in enumerate(fields, start=1)
    )
    return b"\0" + len(encoded).to_bytes(4) + encoded


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
