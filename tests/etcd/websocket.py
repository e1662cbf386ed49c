"""WebSocketStream: a watch over WebSocket, where a client asks and hears at the same time. Source: RFC 6455.

Text frames of one piece, which is all that either side of this API sends.
"""

from __future__ import annotations

import base64
import json
import os
import time
from typing import Any

from tests.etcd.connection import LIMIT_S, Connection

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


class WebSocketStream:
    """Opened at once. Raises: OSError; AssertionError if the upgrade is refused."""

    def __init__(self, connection: Connection, path: str) -> None:
        self.connection = connection
        key = base64.b64encode(os.urandom(16)).decode()
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        connection.send("GET", path, headers={**upgrade, "Sec-WebSocket-Key": key})
        self.upgraded = connection.head()
        assert self.upgraded.status == 101, self.upgraded

    def __enter__(self) -> WebSocketStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def send(self, request: dict[str, Any] | bytes) -> None:
        """One text frame."""
        content = request if isinstance(request, bytes) else json.dumps(request).encode()
        self._send_frame(TEXT, content)

    def result(self, limit_s: float = LIMIT_S) -> dict[str, Any]:
        """The next message's `result`. Raises: EOFError if the stream has ended."""
        frame = self._frame(time.monotonic() + limit_s)
        if frame is None:
            raise EOFError("the stream has ended")
        message = json.loads(frame)
        assert list(message) == ["result"], message
        found: dict[str, Any] = message["result"]
        return found

    def assert_end(self, limit_s: float = LIMIT_S) -> None:
        """No result follows; an error may, before the end."""
        deadline = time.monotonic() + limit_s
        try:
            while (frame := self._frame(deadline)) is not None:
                assert "error" in json.loads(frame), frame
        except ConnectionResetError:
            return  # etcd's gateway hangs up without a close frame

    def _frame(self, deadline: float) -> bytes | None:
        """The content of the next text frame; None for a close."""
        while True:
            kind, length = self.connection.exactly(2, deadline - time.monotonic())
            assert kind & 0x80, "a message in pieces"
            assert not length & 0x80, "a server does not mask"
            if length >= 126:
                length = int.from_bytes(self.connection.exactly(2 if length == 126 else 8))
            content = self.connection.exactly(length)
            kind &= 0x0F
            if kind == TEXT:
                return content
            if kind == CLOSE:
                return None
            if kind == PING:
                self._send_frame(PONG, content)

    def _send_frame(self, kind: int, content: bytes) -> None:
        length = len(content)
        assert length < 1 << 16
        size = bytes([0x80 | length]) if length < 126 else bytes([0xFE]) + length.to_bytes(2)
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(content))
        self.connection.send_raw(bytes([0x80 | kind]) + size + mask + masked)
