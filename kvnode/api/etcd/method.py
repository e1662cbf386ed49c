"""What a path of the etcd API stands for."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import msgspec

from kvnode.api.etcd.context import Context


class Unary(msgspec.Struct, frozen=True):
    """One request, one answer. `waits`: it may wait for long, and is cancelled when its client leaves."""

    request: type[msgspec.Struct]
    handler: Callable[[Context, Any], Awaitable[msgspec.Struct]]
    waits: bool = False


class Stream(msgspec.Struct, frozen=True):
    """The requests of the body, and messages in answer to them. The body has ended before the first is answered.

    `None` as the first message: there is nothing to say yet, and the head of the answer is sent without it.
    """

    request: type[msgspec.Struct]
    handler: Callable[[Context, AsyncIterator[Any]], AsyncGenerator[Any, None]]


class Carriage(Protocol):
    """Takes messages to a client: the chunks of a body, or the frames of a WebSocket."""

    def frame(self, message: bytes) -> bytes:
        """A message as it goes out; several may be written as one."""

    async def write(self, framed: bytes) -> None:
        """Waits for room. Raises: TooSlow, then it is not written; ConnectionError."""


class Conversation(Protocol):
    """Of one client, until either side ends it."""

    async def begin(self, request: Any) -> None:
        """Take the first request, before there is a carriage. Raises: EtcdError, KvnodeError; then it is closed."""

    async def run(self, requests: AsyncIterator[Any], carriage: Carriage, *, ends: bool) -> None:
        """Take the others and say everything. `ends`: with the requests. Closed when this returns or raises.

        Raises: EtcdError, KvnodeError, TooSlow, ConnectionError.
        """

    async def aclose(self) -> None:
        """Give back what it holds, if it is not run. Idempotent."""


class Duplex(msgspec.Struct, frozen=True):
    """Requests and messages, each when they come. Over HTTP/1.1 the requests are those of the body, and it goes on."""

    request: type[msgspec.Struct]
    conversation: Callable[[Context], Conversation]


Method = Unary | Stream | Duplex
