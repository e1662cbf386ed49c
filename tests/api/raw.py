"""Ways to the front door: a tidy client, and a bare socket for what a tidy client would never send."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import msgspec
from yarl import URL


class Reply(msgspec.Struct):
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])

    @property
    def outcome(self) -> str | None:
        return self.headers.get("kv-outcome")


class Door:
    """One running front door."""

    def __init__(self, session: aiohttp.ClientSession, address: str) -> None:
        self.session = session
        self.address = address

    async def ask(self, method: str, target: str, body: Any = None, **headers: str) -> Reply:
        """One request; `target` is sent as written. Header names: If_Match stands for If-Match."""
        data = json.dumps(body).encode() if isinstance(body, dict | list) else body
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        url = URL(f"http://{self.address}{target}", encoded=True)
        async with self.session.request(method, url, data=data, headers=named, allow_redirects=False) as response:
            found = {name.lower(): value for name, value in response.headers.items()}
            return Reply(response.status, found, await response.read())

    async def send(self, *pieces: bytes, eof: bool = False) -> bytes:
        """Bytes as they are on a new connection; whatever comes back until the server closes or falls silent."""
        host, port = self.address.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            if eof:
                writer.write_eof()
            received = b""
            try:
                async with asyncio.timeout(0.25):
                    while part := await reader.read(65_536):
                        received += part
            except (TimeoutError, ConnectionError):
                pass
            return received
        finally:
            writer.close()
