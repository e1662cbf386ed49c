"""Exchanges: one request of gossip and its answer, as an HTTP POST to a peer's listener.

Both bodies are sealed (`kvnode.wire.gossip_seal`), which proves them; to this package they are bytes. A connection
serves one exchange. What is not proven yet is bounded like a handshake, in number, size and time; how many answers
may be on their way is bounded, and so is how long a peer may take to read one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import aiohttp
from aiohttp import web

from kvnode.config import PeerSection
from kvnode.transport.channel import Counters
from kvnode.wire.gossip_seal import REQUEST_BYTES_MAX
from kvnode.wire.limits import CodecError

EXCHANGE_PATH = "/peer/v1/gossip"
OK = 200
ANSWERS_MAX = 8
"""Answers that may be on their way out of one node at once; beyond it the caller is told to come later."""
ANSWER_TIMEOUT_MS = 5_000
"""A peer must have taken an answer within this."""
FAREWELL_MS = 1_000
"""… but for what the operating system had not taken yet, which may take so much longer."""

COUNTERS = (
    "exchanges_answered",
    "exchanges_refused",  # not proven, not of a member, cut short, too large or too slow
    "exchanges_turned_away",  # one too many
)

Answer = Callable[[bytes], bytes]
"""The sealed answer to a sealed request, at once. Raises: CodecError for what is not to be believed."""


class ExchangeRoute:
    """The listener's end. `answer` is None until somebody takes part in gossip."""

    def __init__(
        self, *, settings: PeerSection, counters: Counters, on_crashed: Callable[[BaseException], None]
    ) -> None:
        self.answer: Answer | None = None
        self._settings = settings
        self._counters = counters
        self._on_crashed = on_crashed
        self._unproven = 0
        self._answers = 0

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """One exchange; the connection ends with it, whoever does not read."""
        try:
            async with asyncio.timeout(self._settings.handshake_timeout_ms / 1e3):
                answer = await self._receive(request)
            async with asyncio.timeout(ANSWER_TIMEOUT_MS / 1e3):
                return await self._send(request, answer)
        except web.HTTPException:
            raise
        except (OSError, aiohttp.ClientError) as error:  # TimeoutError among them
            self._counters["exchanges_refused"] += 1
            raise ConnectionResetError("an exchange that came to no end") from error
        except Exception as error:
            self._on_crashed(error)
            raise
        finally:
            self._hang_up(request)

    async def _receive(self, request: web.Request) -> web.Response:
        if self.answer is None or request.headers.get("Origin") is not None:
            return _excuse(404, "peers only")
        if self._unproven >= self._settings.unproven_max or self._answers >= ANSWERS_MAX:
            self._counters["exchanges_turned_away"] += 1
            return _excuse(503, "too many exchanges")
        self._unproven += 1
        try:
            body = await read_bounded(request.content, REQUEST_BYTES_MAX)
        except CodecError:
            self._counters["exchanges_refused"] += 1
            return _excuse(413, "too large")
        finally:
            self._unproven -= 1
        return self._make(body)

    def _make(self, body: bytes) -> web.Response:
        if self.answer is None:
            return _excuse(404, "peers only")
        try:
            return web.Response(body=self.answer(body), content_type="application/octet-stream")
        except CodecError:
            self._counters["exchanges_refused"] += 1
            return _excuse(403, "refused")

    async def _send(self, request: web.Request, answer: web.Response) -> web.StreamResponse:
        answer.force_close()
        self._answers += 1
        try:
            await answer.prepare(request)
            await answer.write_eof()
        finally:
            self._answers -= 1
        self._counters["exchanges_answered"] += answer.status == OK
        return answer

    @staticmethod
    def _hang_up(request: web.Request) -> None:
        transport = request.transport
        if transport is not None:
            transport.close()
            asyncio.get_running_loop().call_later(FAREWELL_MS / 1e3, transport.abort)  # if the rest finds no reader


def _excuse(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=f"{text}\n")


async def read_bounded(content: aiohttp.StreamReader, bytes_max: int) -> bytes:
    """A whole body. Raises: CodecError as soon as it is longer than `bytes_max`; OSError, aiohttp.ClientError."""
    found = bytearray()
    while piece := await content.readany():
        found += piece
        if len(found) > bytes_max:
            raise CodecError(f"a body of more than {bytes_max} bytes")
    return bytes(found)
