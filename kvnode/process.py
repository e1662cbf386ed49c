"""The process of one node: event loop, signals, garbage collector, exit code. What `kvnode serve` runs.

An embedded node (`kvnode.embedded`) has none of this: those belong to its host program.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import sys
from collections.abc import Callable

from kvnode.config import Config
from kvnode.errors import ConfigInvalid, Fatal
from kvnode.observe import log as observe_log
from kvnode.observe.log import get_logger
from kvnode.server import RunningNode

EXIT_OK = 0
EXIT_FATAL = 5

GC_THRESHOLD = 20_000
"""New objects before the youngest generation is looked through: a few hundred requests' worth."""

SWITCH_INTERVAL_S = 0.0001
"""How long a thread may keep the interpreter while the loop waits for it: bounds what a flush adds to a request."""

log = get_logger("server")


def run(config: Config, *, loop: str = "auto") -> int:
    """Run one node until SIGTERM or SIGINT; returns the process's exit code.

    Args:
        loop: ``uvloop``, ``asyncio``, or ``auto`` = uvloop where it is installed.

    A node that fails ends the process at once, without clean-up: after a failed fsync nothing may be written,
    and everything acknowledged is already durable.
    """
    observe_log.setup(config.log, node=config.node.id)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    _allow_many_files()
    try:
        with asyncio.Runner(loop_factory=_loop_factory(loop)) as runner:
            return runner.run(_serve(config))
    finally:
        observe_log.flush()


def _allow_many_files() -> None:
    """A connection is an open file, and many systems allow 1 024 unless more are asked for."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if name == "asyncio":
        return None
    try:
        import uvloop  # noqa: PLC0415 - not installed everywhere
    except ImportError:
        if name == "uvloop":
            raise ConfigInvalid("uvloop is not installed; use --loop asyncio") from None
        return None
    return uvloop.new_event_loop


async def _serve(config: Config) -> int:
    news, told_to_stop = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        told_to_stop.set()
        news.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    while (code := await _live(config, news, told_to_stop)) is None and not told_to_stop.is_set():
        news.clear()
    return EXIT_OK if code is None else code


async def _live(config: Config, news: asyncio.Event, told_to_stop: asyncio.Event) -> int | None:
    """One life of the node; None: it found damage in its log, noted it and is to start again, in quarantine."""
    starting = asyncio.get_running_loop().create_task(RunningNode.start(config))
    starting.add_done_callback(lambda _: news.set())
    await news.wait()
    if not starting.done():
        starting.cancel()
    try:
        running = await starting
    except asyncio.CancelledError:
        return EXIT_OK
    except Fatal as error:
        log.error("node.failed", node=config.node.id, code=error.code, message=error.message, **error.detail)
        return EXIT_FATAL
    tune_collector()
    news.clear()
    running.failed.add_done_callback(lambda _: news.set())
    if not told_to_stop.is_set():
        await news.wait()
    if running.failed.done():
        if await _ends_in_order(running):
            log.warning("node.restarting", node=config.node.id)
            return None
        observe_log.flush()
        os._exit(EXIT_FATAL)
    try:
        async with asyncio.timeout(config.limits.shutdown_ms / 1e3):
            await running.stop()
    except TimeoutError:
        log.error("node.failed", node=config.node.id, code="timeout", message="the clean shutdown took too long")
        observe_log.flush()
        os._exit(EXIT_FATAL)
    return EXIT_OK


async def _ends_in_order(running: RunningNode) -> bool:
    """Whether it failed of damage that peers can make good, and nothing of it runs any more."""
    if not running.node.has_noted_damage:
        return False
    try:
        async with asyncio.timeout(running.config.limits.shutdown_ms / 1e3):
            await running.stop()
    except TimeoutError:
        return False
    return running.node.has_ended


def tune_collector() -> None:
    """What recovery left behind lives as long as the process: keep the garbage collector from walking it.

    A full collection over some hundred thousand objects takes tens of milliseconds, a heartbeat's worth.
    """
    gc.unfreeze()  # of an earlier life of the node in this process
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 50)
