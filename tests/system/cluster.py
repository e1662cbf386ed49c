"""Real clusters for tests: kvnode processes on free loopback ports, and a raw HTTP client that hides nothing.

The processes are those the benchmark starts; here the settings are for tests (any file system will do, logs as JSON)
and every answer is kept whole. Whatever a test does, its processes are gone when it ends.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvnode.bench.cluster import KvnodeCluster
from kvnode.bench.load import Address
from kvnode.bench.process import Process, free_ports

SETTINGS = {"log.level": "info", "log.format": "json", "storage.allow_unsafe_filesystem": True}


@dataclass(frozen=True)
class Answer:
    """One HTTP answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class RawClient:
    """One connection, one request at a time. Any failure of the connection is an OSError: outcome unknown."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def call(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        limit_s: float = 10.0,
    ) -> Answer:
        """Raises: OSError, TimeoutError (the connection is closed then)."""
        try:
            async with asyncio.timeout(limit_s):
                return await self._call(method, path, body, headers or {})
        except asyncio.IncompleteReadError as error:
            self.close()
            raise ConnectionResetError("the connection ended within an answer") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def _call(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(*self.address)
        lines = [f"{method} {path} HTTP/1.1", "Host: {}:{}".format(*self.address), f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        found = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        content = b""
        if method != "HEAD":
            content = await self._reader.readexactly(int(found.get("content-length", "0")))
        if found.get("connection", "").lower() == "close":
            self.close()
        return Answer(int(head[0].split()[1]), found, content)


class RealCluster(KvnodeCluster):
    """A cluster of processes in a temporary directory."""

    def __init__(self, home: Path, nodes: int = 3, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__(home, nodes, {**SETTINGS, **(settings or {})})
        self._extra: list[Process] = []

    async def started(self) -> int:
        """Start every node that does not run, wait until all are ready → the leader's id."""
        for node in self.ids:
            if node not in self.running():
                self.start(node)
        return await self.wait_ready()

    def client(self, node: int) -> RawClient:
        return RawClient(self.clients[node])

    async def call(self, node: int, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        """One request on a connection of its own. Header names: underscores stand for dashes."""
        client = self.client(node)
        try:
            return await client.call(
                method, path, body, {name.replace("_", "-"): value for name, value in headers.items()}
            )
        finally:
            client.close()

    async def put(self, node: int, key: str, value: bytes) -> Answer:
        return await self.call(node, "PUT", f"/v1/kv/{key}", value)

    async def get(self, node: int, key: str) -> Answer:
        return await self.call(node, "GET", f"/v1/kv/{key}")

    async def wait_applied(self, index: int, limit_s: float = 10.0) -> dict[int, dict[str, Any]]:
        """Until every running node has applied `index` → their statuses."""
        async with asyncio.timeout(limit_s):
            while True:
                found = {node: await self.status(node) for node in self.running()}
                if all(status["applied_index"] >= index for status in found.values()):
                    return found
                await asyncio.sleep(0.02)

    def start_copy(self, node: int, name: str, data_dir: Path) -> Process:
        """One more process that claims to be `node`, on `data_dir` and a client port of its own."""
        (port,) = free_ports(1)
        self.write_config(node, node__data_dir=str(data_dir), client__listen=f"127.0.0.1:{port}")
        file = self.config_file(node).rename(self.home / f"{name}.toml")
        self.write_config(node)
        command = [*self.command(node)[:-1], str(file)]
        process = Process(command, self.home / f"{name}.out")
        self._extra.append(process)
        return process

    def stop(self) -> None:
        for process in [*self._extra, *self.processes.values()]:
            process.kill()

    def events(self, node: int) -> list[dict[str, Any]]:
        """What the node has logged so far."""
        return logged(self.processes[node])


def logged(process: Process) -> list[dict[str, Any]]:
    """The JSON lines of a process's output; other lines (a traceback) are left out."""
    found = []
    for line in process.output.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("{"):
            try:
                found.append(json.loads(line))
            except ValueError:  # the last line may be incomplete while the process runs
                continue
    return found
