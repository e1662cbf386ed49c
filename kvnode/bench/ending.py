"""Ending: SIGTERM ends a run as Ctrl-C does: processes stopped, data removed."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

Found = TypeVar("Found")


async def ended_by_sigterm(run: Callable[[], Awaitable[Found]]) -> Found:
    """What `run` finds. Raises: asyncio.CancelledError, and what it raises."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run()
