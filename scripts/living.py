"""Living: a cluster of real processes whose members come and go.

Nodes are numbered by the ids that the cluster gives, so the next to join has the number after the highest ever. The
logs are cut short early, so whoever joins needs a snapshot.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvnode.bench import http1
from kvnode.bench.cluster import KvnodeCluster
from kvnode.bench.load import Address
from kvnode.bench.process import Process, free_ports

SETTINGS: dict[str, Any] = {
    "cluster.name": "living",
    "log.level": "info",
    "log.format": "json",
    "storage.allow_unsafe_filesystem": True,
    "storage.segment_bytes": 65_536,
    "storage.tail_bytes": 65_536,
    "storage.flush_versions": 200,
    "storage.flush_ms": 200,
    "storage.map_bytes": 268_435_456,
}

LEVEL_S = 60.0
"""How long anything may take that has to happen: generous, for a machine that has other work."""


class LivingCluster(KvnodeCluster):
    """Nodes 1..3 at first. `ids` are the members now, as far as this object made them come and go."""

    ids: list[int]  # type: ignore[assignment]

    def __init__(self, home: Path, nodes: int = 3, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__(home, nodes, {**SETTINGS, **(settings or {})})
        self.ids = list(self.ids)
        self._last_id = nodes

    # ── coming and going ────────────────────────────────────────────────────────────────────────────

    def start_joining(self, *, replaces: int = 0, peer: Address | None = None, **overrides: Any) -> int:
        """A new node with an empty directory that asks whoever runs to take it in → the id it will be given.

        `peer`: its address; a free one if left out. `overrides`: as for `write_config`.
        """
        seeds = ["{}:{}".format(*self.clients[node]) for node in self.running()]
        self._last_id += 1
        node = self._last_id
        ports = free_ports(2)
        self.clients[node], self.peers[node] = ("127.0.0.1", ports[0]), peer or ("127.0.0.1", ports[1])
        joining = {"node__id": 0, "cluster__members": [], "cluster__join": seeds, "cluster__replace": replaces}
        self.write_config(node, **{**joining, **overrides})
        self.start(node)
        self.ids.append(node)
        return node

    async def wait_joined(self, node: int) -> None:
        """Until it votes, and whom it replaces is gone."""

        def is_done(found: dict[str, Any]) -> bool:
            own = next((member for member in found["members"] if member["id"] == node), None)
            ids = {member["id"] for member in found["members"]}
            return own is not None and own["role"] == "voter" and own["replaces"] not in ids

        await self.wait_members(is_done, f"member {node} has joined")

    async def replace(self, old: int, **overrides: Any) -> int:
        """Put a new node in the place of one, dead or alive, by `--replace`; end the old one's process."""
        node = self.start_joining(replaces=old, **overrides)
        await self.wait_joined(node)
        self.forget(old)
        return node

    def forget(self, node: int) -> None:
        """It is no member any more. Its process goes by itself; one that is there still is left to the caller."""
        self.ids.remove(node)

    # ── asking ──────────────────────────────────────────────────────────────────────────────────────

    async def ask(self, node: int, method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
        """Status and JSON of an answer. Raises: OSError, ValueError, TimeoutError."""
        async with asyncio.timeout(10.0):
            code, content = await http1.ask(method, path, self.clients[node], body)
        return code, json.loads(content)

    async def fill(self, count: int, *, size: int = 8_192, writers: int = 4) -> None:
        """So many writes of so many bytes each, to 50 keys, through all that run. Raises: OSError."""
        value = b"f" * size
        numbers = iter(range(count))

        async def write() -> None:
            for number in numbers:
                running = [node for node in self.ids if node in self.running()]
                node = running[number % len(running)]
                code, answer = await self.ask(node, "PUT", f"/v1/kv/fill/{number % 50}", value)
                if code != 200:
                    raise OSError(f"a write through node {node} failed: {code} {answer}")

        async with asyncio.TaskGroup() as group:
            for _ in range(writers):
                group.create_task(write())

    async def wait_cut(self, index: int) -> None:
        """Write until the log of every node that runs begins after entry `index`. Raises: OSError, TimeoutError."""
        async with asyncio.timeout(LEVEL_S):
            while min(self.first_index(node) for node in self.running()) <= index:
                await self.fill(10)

    def first_index(self, node: int) -> int:
        """Of the oldest entry in its log: the second number in the name of a segment."""
        return min(int(file.stem.partition("-")[2]) for file in self.data_dir(node).glob("wal/*-*.wal"))

    async def wait_event(self, node: int, event: str, count: int = 1) -> dict[str, Any]:
        """Until the node has logged it so often → the last one. Raises: TimeoutError."""
        for _ in range(int(LEVEL_S / 0.05)):
            if len(found := self.events(node, event)) >= count:
                return found[-1]
            await asyncio.sleep(0.05)
        raise TimeoutError(f"node {node} did not log {event}:\n{self.processes[node].last_output()}")

    async def wait_members(self, is_done: Any, what: str, limit_s: float = LEVEL_S) -> dict[str, Any]:
        """Until `GET /v1/members` of some member satisfies it → that answer. Raises: TimeoutError naming `what`."""
        found: Any = None
        try:
            async with asyncio.timeout(limit_s):
                while True:
                    for node in [node for node in self.ids if node in self.running()]:
                        try:
                            code, found = await self.ask(node, "GET", "/v1/members")
                        except (OSError, ValueError, TimeoutError):
                            continue
                        if code == 200 and is_done(found):
                            return dict(found)
                    await asyncio.sleep(0.1)
        except TimeoutError:
            outputs = "\n".join(f"── {node}\n{self.processes[node].last_output(8)}" for node in self.ids)
            raise TimeoutError(f"not in {limit_s:.0f} s: {what}; last seen: {found}\n{outputs}") from None

    async def wait_leader(self) -> int:
        """Until every member that runs is ready and all name one leader → its id."""
        async with asyncio.timeout(LEVEL_S):
            while True:
                running = [node for node in self.ids if node in self.running()]
                leaders = {await self.ask_leader(node) for node in running}
                if len(leaders) == 1 and leaders <= set(running):
                    return leaders.pop()
                await asyncio.sleep(0.05)

    async def wait_level(self) -> dict[int, dict[str, Any]]:
        """Until all members that run have applied the same index, the last there is → their statuses."""
        found: dict[int, dict[str, Any]] = {}
        try:
            async with asyncio.timeout(LEVEL_S):
                while True:
                    await self.wait_leader()
                    try:
                        found = {node: await self.status(node) for node in self.ids if node in self.running()}
                    except (OSError, ValueError):
                        continue
                    indexes = {status[mark] for status in found.values() for mark in ("applied_index", "last_index")}
                    if len(indexes) == 1:
                        return found
                    await asyncio.sleep(0.05)
        except TimeoutError:
            marks = {node: (status["applied_index"], status["last_index"]) for node, status in found.items()}
            raise TimeoutError(f"not level in {LEVEL_S:.0f} s: {marks}") from None

    async def wait_exit(self, node: int, limit_s: float = LEVEL_S) -> int:
        """Until its process has ended → the exit code."""
        return await asyncio.to_thread(self.processes[node].wait, limit_s)

    def events(self, node: int, event: str = "") -> list[dict[str, Any]]:
        """What the node's processes have logged so far; of one kind only, if it is named."""
        return [line for line in logged(self.processes[node]) if not event or line.get("event") == event]


def logged(process: Process) -> list[dict[str, Any]]:
    """The JSON lines of a process's output; others (a traceback, half a line) are left out."""
    found = []
    for line in process.output.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("{"):
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found
