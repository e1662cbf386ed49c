"""HTTP/2 client connection for unary gRPC calls of a few methods, as lean as the HTTP/1.1 one beside it.

Everything constant is encoded once. The first request puts its four long headers into the server's dynamic header
table, every later one refers to them: six bytes of header. Of the answers only the framing is read: a call has
succeeded when a message came before the end of its stream (a gRPC error carries none). The connection's send window
is kept; receive windows are as wide as they can be, and the connection's is opened again before it closes.

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
_WINDOW_INITIAL = 65_535  # of a connection, and of each stream: what one request may have
_FRAME_MAX = 16_384

_NEWEST = 62  # index of the dynamic table's newest entry


_END_HEADERS = 0x4


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def _opening() -> bytes:
    """What a client says first: both receive windows are as wide as can be."""
    settings = _INITIAL_WINDOW_SIZE.to_bytes(2) + _WINDOW_MAX.to_bytes(4)
    window = (_WINDOW_MAX - _WINDOW_INITIAL).to_bytes(4)
    return _PREFACE + _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW_UPDATE, 0, 0, window)


def _indexed_from_now_on(name: bytes, value: bytes) -> bytes:
    """Literal header that enters the dynamic table. `name` is a static index byte or a length-prefixed literal."""
    assert len(value) < 127, value
    return name + bytes([len(value)]) + value


class _HeaderBlocks:
    """Header blocks of the calls of a connection: what the server has seen is referred to by its place in its table."""

    def __init__(self, paths: tuple[str, ...], authority: str) -> None:
        self._paths = [_indexed_from_now_on(bytes([0x40 | 4]), path.encode()) for path in paths]
        self._authority = _indexed_from_now_on(bytes([0x40 | 1]), authority.encode())
        self._constant = (
            _indexed_from_now_on(bytes([0x40 | 31]), b"application/grpc"),
            _indexed_from_now_on(b"\x40\x02te", b"trailers"),
        )
        self._table: list[bytes] = []  # the server's dynamic table, newest first
        self._known: dict[int, bytes] = {}  # method → block that adds nothing to the table

    def of(self, method: int) -> bytes:
        found = self._known.get(method)
        return self._encode(method) if found is None else found

    def _encode(self, method: int) -> bytes:
        size = len(self._table)
        block = bytes([0x83, 0x86])  # :method POST, :scheme http
        for header in (self._paths[method], self._authority, *self._constant):
            if header in self._table:
                block += bytes([0x80 | _NEWEST + self._table.index(header)])
            else:
                block += header
                self._table.insert(0, header)
        if len(self._table) > size:
            self._known.clear()  # older entries have moved
        else:
            self._known[method] = block
        return block


class GrpcConnection(asyncio.Protocol):
    """Many calls in flight. A request is the gRPC message with its 5-byte prefix (see `message`).

    `answer` stays empty: what is said through gRPC does not depend on answers.
    """

    answer = b""

    def __init__(self, paths: tuple[str, ...], authority: str, on_answer: OnAnswer, on_lost: OnLost) -> None:
        self._on_answer = on_answer
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._blocks = _HeaderBlocks(paths, authority)
        self._next_stream = 1
        self._sent_ns: dict[int, int] = {}  # stream → when its request was sent
        self._with_message: dict[int, bool] = {}
        self._send_window = _WINDOW_INITIAL
        self._unacknowledged = 0  # bytes received since the receive window was last opened
        self._waiting: deque[bytes] = deque()  # requests the send window has no room for
        self._out: list[bytes] = []
        self._reading = False  # answers of one read are collected into one write

    def send(self, request: bytes) -> None:
        if len(request) > self._send_window:
            self._waiting.append(request)
            return
        self._send_window -= len(request)
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        block = self._blocks.of(request[0])
        if request[0]:
            request = b"\0" + request[1:]
        number = stream.to_bytes(4)
        self._out += (len(block).to_bytes(3), b"\x01\x04", number, block)  # HEADERS, END_HEADERS
        while len(request) > _FRAME_MAX:
            self._out += (_FRAME_MAX.to_bytes(3), b"\x00\x00", number, request[:_FRAME_MAX])
            request = request[_FRAME_MAX:]
        self._out += (len(request).to_bytes(3), b"\x00\x01", number, request)  # DATA, END_STREAM
        self._sent_ns[stream] = perf_counter_ns()
        if not self._reading:
            self._flush()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        self._transport.write(_opening())

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
                self._unacknowledged += end - position - 9
            elif kind != _HEADERS:
                self._on_control(kind, flags, stream, received[position + 9 : end])
            elif flags & _END_STREAM:
                self._on_answer(self, self._sent_ns.pop(stream), self._with_message.pop(stream, False))
            position = end
        self._received = received[position:]
        if self._unacknowledged > _WINDOW_MAX // 2:
            self._out.append(_frame(_WINDOW_UPDATE, 0, 0, self._unacknowledged.to_bytes(4)))
            self._unacknowledged = 0
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


async def connect(paths: tuple[str, ...], address: Address, on_answer: OnAnswer, on_lost: OnLost) -> GrpcConnection:
    """A connection for calls of the gRPC methods `paths`. Raises: OSError."""
    loop = asyncio.get_running_loop()
    authority = f"{address[0]}:{address[1]}"
    _, connection = await loop.create_connection(lambda: GrpcConnection(paths, authority, on_answer, on_lost), *address)
    return connection


def open_call(path: str, address: Address, request: bytes) -> bytes:
    """All that begins a call whose answers come as a stream, on a connection of its own; `Messages` reads them."""
    block = _HeaderBlocks((path,), f"{address[0]}:{address[1]}").of(0)
    return _opening() + _frame(_HEADERS, _END_HEADERS, 1, block) + _frame(_DATA, 0, 1, request)


class Messages:
    """What has come of a stream of gRPC messages: whole ones only, prefixes included."""

    def __init__(self) -> None:
        self._received = b""
        self._unfinished = b""

    def take(self, data: bytes) -> bytes:
        """→ the messages that `data` has made whole, one behind the other."""
        received, stream = self._received + data, self._unfinished
        position = 0
        while position + 9 <= len(received):
            end = position + 9 + int.from_bytes(received[position : position + 3])
            if end > len(received):
                break
            if received[position + 3] == _DATA:
                stream += received[position + 9 : end]
            position = end
        self._received = received[position:]
        whole = 0
        while whole + 5 <= len(stream):
            end = whole + 5 + int.from_bytes(stream[whole + 1 : whole + 5])
            if end > len(stream):
                break
            whole = end
        self._unfinished = stream[whole:]
        return stream[:whole]


def message(*fields: bytes | int, method: int = 0) -> bytes:
    """A gRPC request whose protobuf message has the given bytes or integers in fields 1, 2, …; empty ones are left out.

    `method`: which of the connection's paths it calls. It stands where the prefix says that nothing is compressed, and
    goes out as that.
    """
    return prefixed(encoded(*fields), method=method)


def prefixed(content: bytes, *, method: int = 0) -> bytes:
    """As `message`, of a protobuf message that is encoded already."""
    return bytes([method]) + len(content).to_bytes(4) + content


def encoded(*fields: bytes | int) -> bytes:
    """A protobuf message, as `message` takes its fields."""
    return b"".join(_field(number, content) for number, content in enumerate(fields, start=1) if content)


def _field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return bytes([number << 3]) + _varint(content)
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)
