"""Connection: HTTP/1.1 on one socket, with nothing hidden: the bytes sent, every header, every chunk as it came.

Blocking, with a limit on every wait. Requests and answers are apart (`send`, then `answer` or `chunk`), so that a test
can hold several calls open and act in between.
"""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvnode.bench.load import Address

LIMIT_S = 15.0


@dataclass(frozen=True)
class Head:
    """Status and headers of an answer; header names in lower case."""

    status: int
    headers: dict[str, str]

    @property
    def is_chunked(self) -> bool:
        return self.headers.get("transfer-encoding", "").lower() == "chunked"


@dataclass(frozen=True)
class Answer:
    """One whole HTTP answer."""

    status: int
    headers: dict[str, str] = field(repr=False)
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """Opened at once. Raises: OSError (also TimeoutError, ConnectionError) from every method."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._socket = socket.create_connection(address, LIMIT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = bytearray()

    def send(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        """`headers` come after Host and Content-Length, and replace them."""
        named = {"Host": "{}:{}".format(*self.address), "Content-Length": str(len(body)), **(headers or {})}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items())]
        self.send_raw("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    def send_raw(self, content: bytes) -> None:
        """Whoever answers before all has been sent may have closed its side: the answer tells."""
        self._socket.settimeout(LIMIT_S)
        try:
            self._socket.sendall(content)
        except (BrokenPipeError, ConnectionResetError):
            if not self._received and not select.select([self._socket], [], [], 0)[0]:
                raise

    def head(self, limit_s: float = LIMIT_S) -> Head:
        """The next one, of whatever status."""
        lines = self._until(b"\r\n\r\n", time.monotonic() + limit_s).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        return Head(int(lines[0].split()[1]), headers)

    def answer(self, limit_s: float = LIMIT_S) -> Answer:
        """The whole answer to the request sent last."""
        head = self.head(limit_s)
        if head.is_chunked:
            body = b"".join(iter(lambda: self.chunk(limit_s) or b"", b""))
        else:
            body = self.exactly(int(head.headers.get("content-length", "0")), limit_s)
        return Answer(head.status, head.headers, body)

    def chunk(self, limit_s: float = LIMIT_S) -> bytes | None:
        """The next chunk of a chunked body, as it was cut; None at the end. Raises: TimeoutError, nothing lost."""
        deadline = time.monotonic() + limit_s
        begin = self._find(b"\r\n", deadline) + 2
        length = int(bytes(self._received[: begin - 2]).partition(b";")[0], 16)
        if length:
            self._receive_until(lambda: len(self._received) >= begin + length + 2, deadline)
            content = self._take(begin + length + 2)
            assert content.endswith(b"\r\n"), content[-20:]
            return content[begin:-2]
        self._until(b"\r\n\r\n", deadline)  # etcd's gateway has trailers after its refusals
        return None

    def exactly(self, length: int, limit_s: float = LIMIT_S) -> bytes:
        self._receive_until(lambda: len(self._received) >= length, time.monotonic() + limit_s)
        return self._take(length)

    def has_more(self, within_s: float = 0.0) -> bool:
        """Whether there is something to read, or the other side has closed."""
        return bool(self._received) or bool(select.select([self._socket], [], [], within_s)[0])

    def close(self) -> None:
        self._socket.close()

    def _until(self, mark: bytes, deadline: float) -> bytes:
        """What stands before `mark`, which is taken too."""
        end = self._find(mark, deadline)
        return self._take(end + len(mark))[:end]

    def _find(self, mark: bytes, deadline: float) -> int:
        self._receive_until(lambda: mark in self._received, deadline)
        return self._received.find(mark)

    def _take(self, length: int) -> bytes:
        content = bytes(self._received[:length])
        del self._received[:length]
        return content

    def _receive_until(self, is_enough: Any, deadline: float) -> None:
        while not is_enough():
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            content = self._socket.recv(1 << 16)
            if not content:
                raise ConnectionResetError(f"the connection ended after {bytes(self._received[-200:])!r}")
            self._received += content


class Stream:
    """An open streaming call. Every chunk must hold exactly one JSON object and a newline, as clients expect.

    `is_newline_apart`: the newline may also come as a chunk of its own, as etcd sends it after a message of some KiB.
    """

    def __init__(self, connection: Connection, *, is_newline_apart: bool = False) -> None:
        self.connection = connection
        self._is_newline_apart = is_newline_apart
        self._head: Head | None = None

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def head(self, limit_s: float = LIMIT_S) -> Head:
        """Status and headers. etcd sends them with the first message only: there is nothing before it."""
        if self._head is None:
            self._head = self.connection.head(limit_s)
        return self._head

    def message(self, limit_s: float = LIMIT_S) -> dict[str, Any]:
        """The next one, whole: `{"result": …}` or `{"error": …}`. Raises: EOFError at the end, TimeoutError."""
        head = self.head(limit_s)
        assert head.is_chunked, head
        content = self.connection.chunk(limit_s)
        if content is None:
            raise EOFError("the stream has ended")
        if self._is_newline_apart and not content.endswith(b"\n"):
            content += self.connection.chunk(limit_s) or b""
        assert content.endswith(b"\n"), content[-200:]
        found = json.loads(content)
        assert isinstance(found, dict), content
        return found

    def result(self, limit_s: float = LIMIT_S) -> dict[str, Any]:
        """The next message's `result`."""
        message = self.message(limit_s)
        assert list(message) == ["result"], message
        found: dict[str, Any] = message["result"]
        return found

    def error(self, limit_s: float = LIMIT_S) -> dict[str, Any]:
        """The next message's `error`."""
        message = self.message(limit_s)
        assert list(message) == ["error"], message
        found: dict[str, Any] = message["error"]
        return found

    def assert_end(self, limit_s: float = LIMIT_S) -> None:
        """Nothing follows, and the body has been ended properly."""
        self.head(limit_s)
        assert self.connection.chunk(limit_s) is None

    def close(self) -> None:
        """Go away, as a client does to cancel."""
        self.connection.close()
