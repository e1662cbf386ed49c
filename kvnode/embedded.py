"""Embedding: a node inside your program, spoken to through the same `KV` as everywhere else.

By default the node runs on an event loop of its own in a thread of its own, so a host program that blocks its
loop causes no election; `loop="host"` runs it on the caller's loop. It installs no signal handlers and no
logging (events go to the standard loggers ``kvnode.*``), and listens for clients only when told to.

    async with kvnode.open_node(settings={"node.data_dir": "data/app"}) as node:
        await node.put("greeting", "hello")
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from kvnode.config import Config, load
from kvnode.errors import ConnectionLost, NotReady
from kvnode.ids import NOBODY, NodeId
from kvnode.kv.available import AliveMember
from kvnode.kv.available_calls import AvailableCalls, AvailableRequest, perform
from kvnode.kv.events import WatchPart
from kvnode.kv.interface import DEFAULT_OPTIONS, KV, Members, MembersChanged, Options, Status, WatchStream
from kvnode.kv.members import MemberChange
from kvnode.kv.requests import Request, Watch
from kvnode.recipes import hold
from kvnode.recipes.hold import TTL_MS_DEFAULT, Held
from kvnode.server import RunningNode

Result = TypeVar("Result")

READY_POLL_S = 0.01


class EmbeddedNode(KV, AvailableCalls):
    """A node of this process. Obtained from `open_node`; usable from the loop that opened it."""

    def __init__(self, running: RunningNode, call: Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]) -> None:
        self._running = running
        self._call = call

    async def execute(self, request: Request, options: Options = DEFAULT_OPTIONS) -> Any:
        """Carry out one request; see `KV.execute`."""
        return await self._call(lambda: self._running.node.execute(request, options))

    def watch(self, request: Watch, options: Options = DEFAULT_OPTIONS) -> WatchStream:
        """Stream changes; see `KV.watch`."""
        return _StreamElsewhere(self._running.node.watch(request, options), self._call)

    def lock(
        self, name: str | bytes, *, ttl_ms: int = TTL_MS_DEFAULT, wait_ms: int = 0, owner: str | bytes = b""
    ) -> AbstractAsyncContextManager[Held]:
        """Hold a lock while a block runs: ``async with node.lock("deploy") as held``. See `kvnode.recipes.hold`."""
        return hold.lock(self, name, ttl_ms=ttl_ms, wait_ms=wait_ms, owner=owner)

    def elect(
        self, name: str | bytes, *, ttl_ms: int = TTL_MS_DEFAULT, wait_ms: int = 0, value: str | bytes = b""
    ) -> AbstractAsyncContextManager[Held]:
        """Lead while a block runs, announcing `value`; like `lock`."""
        return hold.lock(self, name, ttl_ms=ttl_ms, wait_ms=wait_ms, owner=value)

    async def status(self) -> Status:
        """What this node knows of itself and of its cluster."""

        async def ask() -> Status:
            return self._running.node.status()

        status: Status = await self._call(ask)
        return status

    async def ready(self, timeout_ms: int = 10_000) -> None:
        """Wait until the node has a leader and has caught up. Raises: NotReady, ConnectionLost if it failed."""

        async def wait() -> None:
            try:
                async with asyncio.timeout(timeout_ms / 1e3):
                    while not self._running.node.is_ready():
                        if self._running.failed.done():
                            raise ConnectionLost(f"the node failed: {self._running.failed.result()}")
                        await asyncio.sleep(READY_POLL_S)
            except TimeoutError as error:
                if isinstance(error, ConnectionLost):
                    raise
                raise NotReady(f"the node was not ready within {timeout_ms} ms") from None

        await self._call(wait)

    async def handover(self, to: int = NOBODY) -> int:
        """Give leadership to member `to`, or to the best one, before a planned stop; returns who leads then.

        Raises: NoLeader, MemberNotFound, Conflict if there is nobody, Timeout.
        """
        leader: int = await self._call(lambda: self._running.node.transfer_leadership(NodeId(to)))
        return leader

    async def members(self) -> Members:
        """The members as this node sees them; never waits."""

        async def ask() -> Members:
            return self._running.node.members()

        found: Members = await self._call(ask)
        return found

    async def change_members(self, change: MemberChange, options: Options = DEFAULT_OPTIONS) -> MembersChanged:
        """Add, promote, move or remove a member; see `Admin.change_members`."""
        changed: MembersChanged = await self._call(lambda: self._running.node.change_members(change, options))
        return changed

    async def ask_available(self, request: AvailableRequest, options: Options) -> Any:
        """What `ap_get` and the others do."""
        return await self._call(lambda: perform(self._running.available, request, options))

    async def alive_members(self) -> tuple[AliveMember, ...]:
        """The members as gossip on this node sees them; never waits."""

        async def ask() -> tuple[AliveMember, ...]:
            return self._running.available.alive_members()

        found: tuple[AliveMember, ...] = await self._call(ask)
        return found

    @property
    def failure(self) -> BaseException | None:
        """Why the node stopped by itself; None while it is well."""
        return self._running.failed.result() if self._running.failed.done() else None


class _StreamElsewhere(WatchStream):
    """A watch on the node's loop, read from the host's."""

    def __init__(self, stream: WatchStream, call: Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]) -> None:
        self._stream = stream
        self._call = call
        self._reading: asyncio.Task[WatchPart] | None = None  # on the node's loop

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchPart:
        async def read() -> WatchPart | None:
            self._reading = asyncio.ensure_future(anext(self._stream))
            try:
                return await self._reading
            except StopAsyncIteration:  # no future carries that
                return None
            finally:
                self._reading = None

        part: WatchPart | None = await self._call(read)
        if part is None:
            raise StopAsyncIteration
        return part

    async def aclose(self) -> None:
        async def close() -> None:
            if self._reading is not None:  # its reader gave up; it did not
                self._reading.cancel()
            await self._stream.aclose()

        try:
            await self._call(close)
        except (NotReady, ConnectionLost):  # the node has ended, and the watch with it
            return


@asynccontextmanager
async def open_node(
    config: Config | str | Path | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    loop: Literal["own", "host"] = "own",
    listen: bool = False,
) -> AsyncIterator[EmbeddedNode]:
    """Run a node for the duration of the ``async with`` block; it has started when the block is entered.

    Args:
        config: settings, or the path of a TOML file; None takes the defaults, a cluster of one in ``data/n1``.
        settings: single settings by dotted name, e.g. ``{"node.data_dir": "data/app"}``; they win over the file.
        loop: ``own`` = a loop and a thread of its own; ``host`` = the running loop, which must never block.
        listen: also serve HTTP clients on ``client.listen``.

    Raises: Fatal (and its subclasses) when data, identity or configuration forbid a start.
    """
    if not isinstance(config, Config):
        config = load(config, overrides=settings)
    elif settings:
        raise ValueError("give either a Config or single settings, not both")
    if loop == "host":
        running = await RunningNode.start(config, serve_clients=listen)
        try:
            yield EmbeddedNode(running, lambda make: make())
        finally:
            await _to_its_end(running.stop())
        return
    thread = _LoopThread(f"kvnode-{config.node.id}")
    try:
        running = await thread.call(lambda: RunningNode.start(config, serve_clients=listen))
        try:
            yield EmbeddedNode(running, thread.call)
        finally:
            await _to_its_end(thread.call(running.stop))
    finally:
        await _to_its_end(thread.close())


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """A node half stopped would keep its directory and its port: finish, and be cancelled only then."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()


class _LoopThread:
    """An event loop in a thread, and a way to run coroutines there and await them here."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        left = asyncio.all_tasks(self._loop)  # a start that was given up, calls that still wait: they end in order
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.close()
        self._ended.set_result(None)

    async def call(self, make: Callable[[], Awaitable[Result]]) -> Result:
        """Run `make()` on the other loop; a cancelled caller does not stop what it started. Raises: ConnectionLost."""

        async def run() -> Result:
            return await make()

        work: Coroutine[Any, Any, Result] = run()
        try:
            found = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            raise NotReady("the node has been stopped") from None
        try:
            return await asyncio.shield(asyncio.wrap_future(found))
        except asyncio.CancelledError:
            if found.cancelled():  # not our caller: the other loop has ended
                raise ConnectionLost("the node was stopped before it answered") from None
            raise

    async def close(self) -> None:
        """Cancel what is still running there, let it clean up, and wait for the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.wrap_future(self._ended)
        self._thread.join()  # its last instruction is behind it
