"""The processes of a cluster that is about to suffer: where each listens and lives, how it is started, who has died.

An exit that no fault has announced is a finding of its own: a node may stop for what was done to it, never by itself.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvnode.bench.cluster import KvnodeCluster
from kvnode.bench.load import Address
from kvnode.bench.process import Process

SETTINGS: dict[str, Any] = {
    "cluster.name": "chaos",
    "log.level": "info",
    "log.format": "json",
    "storage.allow_unsafe_filesystem": True,
    "storage.segment_bytes": 65_536,  # so that segments roll, and the calls that roll them can be hit
    "storage.flush_versions": 200,
    "storage.map_bytes": 268_435_456,
    "storage.free_bytes_min": 4_194_304,
    "storage.abort_ms": 10_000,
    "storage.scrub_bytes_per_s": 8_388_608,
}


class ChaosCluster(KvnodeCluster):
    """Nodes 1..n. Networks and disks change `clients`, `peers`, `listen_at`, `prefixes`, `homes` before `configure`."""

    def __init__(self, home: Path, nodes: int, settings: Mapping[str, Any] | None = None) -> None:
        self.homes: dict[int, Path] = {}
        super().__init__(home, nodes, {**SETTINGS, **(settings or {})})
        self.listen_at: dict[int, Address] = dict(self.peers)
        self.prefixes: dict[int, list[str]] = {}  # the command that starts the node's command, of its network
        self.restarts = 0
        self.exits: Counter[str] = Counter()
        self.unexpected: list[str] = []
        self._excused: dict[int, str] = {}
        self._buried: dict[int, Process] = {}

    def configure(self) -> None:
        for node in self.ids:
            listen = "{}:{}".format(*self.listen_at[node])
            self.write_config(node, peer__listen=listen)

    def data_dir(self, node: int) -> Path:
        return self.homes.get(node, self.home) / f"n{node}"

    def output(self, node: int) -> Path:
        """Everything that the node's processes have said."""
        return self.home / f"{node}.out"

    def command(self, node: int) -> list[str]:
        return [*self.prefixes.get(node, []), *super().command(node)]

    def start(self, node: int, under: Sequence[str] = ()) -> Process:
        """`under`: a command line that runs the rest of it, and becomes it (strace -D, prlimit)."""
        assert node not in self.running(), f"node {node} runs already"
        self.restarts += node in self.processes
        self._excused.pop(node, None)
        command = self.command(node)
        prefix = self.prefixes.get(node, [])
        self.processes[node] = Process([*prefix, *under, *command[len(prefix) :]], self.output(node), own_session=True)
        return self.processes[node]

    # ── deaths ──────────────────────────────────────────────────────────────────────────────────────

    def excuse(self, node: int, reason: str) -> None:
        """From here to its next start the node may end, for this reason."""
        self._excused[node] = reason

    def kill(self, node: int) -> None:
        if node in self.running():
            self.excuse(node, "kill")
            self.processes[node].kill()

    def signal(self, node: int, number: signal.Signals) -> None:
        if node in self.running():
            self.processes[node].signal(number)

    def bury(self) -> list[int]:
        """Nodes that do not run; each death is counted once, and noted if nothing excuses it."""
        dead = [node for node in self.ids if node not in self.running()]
        for node in dead:
            process = self.processes[node]
            if self._buried.get(node) is process:
                continue
            self._buried[node] = process
            self.exits[str(process.exit_code)] += 1
            if node not in self._excused:
                self.unexpected.append(
                    f"node {node} ended by itself with {process.exit_code}:\n{process.last_output(6)}"
                )
        return dead

    def revive(self) -> list[int]:
        """Start whoever is dead → who was."""
        dead = self.bury()
        for node in dead:
            self.start(node)
        return dead

    async def wait_level(self, limit_s: float) -> dict[int, dict[str, Any]]:
        """Until every node runs, is ready, and all have applied the same index under one leader → their statuses.

        A node that dies again meanwhile is started again. Raises: TimeoutError.
        """
        async with asyncio.timeout(limit_s):
            while True:
                self.revive()
                found: dict[int, dict[str, Any]] = {}
                for node in self.ids:
                    if await self.ask_leader(node):
                        try:
                            found[node] = await self.status(node)
                        except (OSError, ValueError):
                            break
                if len(found) == len(self.ids) and _are_level(list(found.values())):
                    return found
                await asyncio.sleep(0.05)


def _are_level(statuses: list[dict[str, Any]]) -> bool:
    marks = {(status["leader"], status["applied_index"], status["commit_index"]) for status in statuses}
    return len(marks) == 1 and all(status["applied_index"] == status["commit_index"] for status in statuses)
