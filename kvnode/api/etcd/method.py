"""What a path of the etcd API stands for."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

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
    handler: Callable[[Context, Any], AsyncGenerator[Any, None]]


Method = Unary | Stream
