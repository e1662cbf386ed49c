"""A conversation over a WebSocket: each text frame of the client is a request, each of ours a message.

The handshake and what the client sends are aiohttp's; what we send goes out as a body would, with its bounds and its
deadline for a client that does not read. The handshake is made before the handler returns: afterwards aiohttp's
connection takes an Upgrade that nobody has accepted as declined, and reads HTTP again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, hdrs, web

from kvnode.api.answer import Answer
from kvnode.api.call import Call
from kvnode.api.etcd.context import Context
from kvnode.api.etcd.errors import EtcdError, UnreadableRequest, stream_body, translated, unary_body
from kvnode.api.etcd.method import Carriage, Duplex
from kvnode.api.etcd.proto_json import check_extent, decode_all, in_turns, malformed
from kvnode.api.streaming import Outlet, StreamingAnswer, TooSlow
from kvnode.errors import KvnodeError

PROTOCOL = "Bearer"
"""As a sub-protocol it announces a token, which is the next."""

FRAME_FACTOR = 2
"""A message may be so many times `limits.request_bytes_max`, as a body may."""

CLOSE_S = 2.0
"""A client has so long to answer our close."""

_FINAL_TEXT = 0x81
_SHORT_MAX, _MEDIUM_MAX = 125, 0xFFFF


async def answer(call: Call, context: Context, method: Duplex) -> Answer:
    """Raises: EtcdError if this is no proper handshake."""
    limits = context.config.limits
    offered = call.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL)
    if offered is not None and PROTOCOL not in {each.strip() for each in offered.split(",")}:
        raise malformed(f"the only sub-protocol here is {PROTOCOL}")
    socket = web.WebSocketResponse(
        protocols=(PROTOCOL,),
        timeout=CLOSE_S,
        compress=False,
        max_msg_size=FRAME_FACTOR * limits.request_bytes_max,
    )
    if not socket.can_prepare(call.request):
        raise malformed("this is not a WebSocket handshake")
    socket.headers.update({"X-Request-Id": call.request_id, hdrs.SERVER: "kvnode"})
    await socket.prepare(call.request)

    async def produce(outlet: Outlet) -> None:
        conversation = method.conversation(context)
        frames = _Frames(outlet)
        try:
            await conversation.run(_requests(socket, method), frames, ends=True)
        except TooSlow:
            outlet.cut()
        except UnreadableRequest as error:
            await _end(socket, frames, unary_body(error), WSCloseCode.INVALID_TEXT)
        except (EtcdError, KvnodeError) as error:
            told = error if isinstance(error, EtcdError) else translated(error)
            await _end(socket, frames, stream_body(told), WSCloseCode.TRY_AGAIN_LATER)
        else:
            await socket.close()

    return StreamingAnswer(101, "", Outlet(call.request, limits, chunked=False), produce)


async def _requests(socket: web.WebSocketResponse, method: Duplex) -> AsyncIterator[Any]:
    """Until the client closes, or sends what cannot be read. Raises: UnreadableRequest."""
    async for frame in socket:
        if frame.type is WSMsgType.ERROR:  # too large, or against the protocol: aiohttp has told the client
            return
        try:
            body = frame.data if frame.type is WSMsgType.BINARY else frame.data.encode()
            check_extent(body, 0)
            async for request in in_turns(decode_all(method.request, body)):
                yield request
        except EtcdError as error:
            raise UnreadableRequest(error.message) from None


async def _end(socket: web.WebSocketResponse, frames: _Frames, words: bytes, code: WSCloseCode) -> None:
    await frames.write(frames.frame(words))
    await socket.close(code=code)


class _Frames(Carriage):
    """Each message is one text frame. A server's are not masked. Source: RFC 6455 §5.2."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet

    def frame(self, message: bytes) -> bytes:
        length = len(message)
        if length <= _SHORT_MAX:
            head = bytes((_FINAL_TEXT, length))
        elif length <= _MEDIUM_MAX:
            head = bytes((_FINAL_TEXT, 126)) + length.to_bytes(2, "big")
        else:
            head = bytes((_FINAL_TEXT, 127)) + length.to_bytes(8, "big")
        return head + message

    async def write(self, framed: bytes) -> None:
        await self._outlet.write(framed)
