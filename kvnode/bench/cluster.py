"""Clusters to measure: three kvnode nodes, or three etcd nodes, as real processes on loopback.

Both are started with their defaults, data on the disk under `home`, fsync on. A cluster owns its processes and
its directory: `stop` ends the former, the caller removes the latter.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvnode.bench import http1
from kvnode.bench.load import Address
from kvnode.bench.process import Process, free_ports
from kvnode.config.sections import StorageSection

READY_S = 30.0
_POLL_S = 0.02
_REMOVE_S = 60.0
_ETCD_SNAPSHOT_COUNT = 100_000  # etcd's default: entries between two cuts of its log
_SEGMENT_MIN = 8_192  # the least `storage.segment_bytes` may be


class ClusterFailed(Exception):
    """A cluster did not come up, or has no leader in time. Carries the end of a node's output."""


@dataclass(frozen=True)
class Position:
    """Where a node stands in the log. `committed`, `applied`: indexes."""

    term: int
    committed: int
    applied: int


class Cluster(ABC):
    """Nodes 1..n. Subclasses say how one is started and how it is asked whether it leads."""

    def __init__(self, home: Path, nodes: int) -> None:
        self.home = home
        self.ids = range(1, nodes + 1)
        ports = free_ports(2 * nodes)
        self.clients: dict[int, Address] = {i: ("127.0.0.1", ports[i - 1]) for i in self.ids}
        self.peers: dict[int, Address] = {i: ("127.0.0.1", ports[nodes + i - 1]) for i in self.ids}
        self.processes: dict[int, Process] = {}
        home.mkdir(parents=True, exist_ok=True)

    def data_dir(self, node: int) -> Path:
        return self.home / f"n{node}"

    @abstractmethod
    def command(self, node: int) -> list[str]: ...

    @abstractmethod
    async def leader_seen_by(self, node: int) -> int:
        """Id of the leader that a ready node knows; 0 if it knows none or is not ready. Raises: OSError."""

    @abstractmethod
    async def compact(self, node: int) -> None:
        """Give up all history there is, through that node. Raises: OSError."""

    @abstractmethod
    def shorten_log(self, writes: int, content_bytes: int) -> None:
        """Before the start: so many writes, with so many bytes in all, are to be more than the log keeps."""

    @abstractmethod
    async def has_trimmed_log(self, node: int) -> bool:
        """Whether a follower that has nothing needs a snapshot from it. Raises: OSError."""

    @abstractmethod
    async def position(self, node: int) -> Position:
        """Raises: OSError, ValueError, KeyError: it does not answer, or not yet with all of that."""

    @abstractmethod
    async def snapshots_taken(self, node: int) -> float:
        """How many snapshots have become that node's store since it started. Raises: OSError."""

    @abstractmethod
    async def join(self, leader: int) -> int:
        """Start one node more, with a directory of its own, as a learner → its number. Raises: OSError."""

    @abstractmethod
    async def forget(self, node: int, leader: int) -> None:
        """Take a member that has joined, and has been killed, out of the cluster. Raises: OSError."""

    async def remove(self, node: int, leader: int) -> None:
        """Undo `join`; what is under way may be in the way, for a time. Raises: OSError, TimeoutError."""
        self.processes[node].kill()
        async with asyncio.timeout(_REMOVE_S):
            while True:
                try:
                    await self.forget(node, leader)
                    break
                except OSError:
                    await asyncio.sleep(1.0)
        for known in (self.processes, self.clients, self.peers):
            del known[node]

    def _add_node(self) -> int:
        node = max(self.clients) + 1
        client, peer = free_ports(2)
        self.clients[node], self.peers[node] = ("127.0.0.1", client), ("127.0.0.1", peer)
        return node

    async def metric(self, node: int, name: bytes) -> float:
        """Sum over its labels; 0 where there is none."""
        _, body = await http1.ask("GET", "/metrics", self.clients[node])
        lines = (line.rpartition(b" ") for line in body.splitlines())
        return sum(float(number) for found, _, number in lines if found.partition(b"{")[0] == name)

    def start(self, node: int) -> Process:
        assert node not in self.processes or self.processes[node].exit_code is not None, f"node {node} runs already"
        self.processes[node] = Process(self.command(node), self.home / f"{node}.out")
        return self.processes[node]

    def start_all(self) -> None:
        for node in self.ids:
            self.start(node)

    def stop(self) -> None:
        """End all processes of this cluster at once."""
        for process in self.processes.values():
            process.kill()

    def running(self) -> list[int]:
        return [node for node, process in self.processes.items() if process.exit_code is None]

    async def wait_ready(self, limit_s: float = READY_S) -> int:
        """Until every running node is ready and all name one leader → its id. Raises: ClusterFailed."""
        leaders: dict[int, int] = {}
        try:
            async with asyncio.timeout(limit_s):
                while True:
                    leaders = {node: await self.ask_leader(node) for node in self.running()}
                    [leader, *others] = set(leaders.values()) or {0}
                    if leader in leaders and not others:
                        return leader
                    self._check_alive()
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise ClusterFailed(f"not ready after {limit_s} s; leaders seen: {leaders}\n{self._outputs()}") from None

    async def ask_leader(self, node: int) -> int:
        """As `leader_seen_by`; 0 also if it does not answer."""
        try:
            async with asyncio.timeout(1.0):
                return await self.leader_seen_by(node)
        except (OSError, TimeoutError):
            return 0

    def _check_alive(self) -> None:
        for node, process in self.processes.items():
            if process.exit_code not in {None, -9}:
                raise ClusterFailed(f"node {node} ended with {process.exit_code}\n{process.last_output()}")

    def _outputs(self) -> str:
        return "\n".join(f"node {node}: {process.last_output(5)}" for node, process in self.processes.items())


class KvnodeCluster(Cluster):
    """Configuration files as a person would write them. `settings`: further dotted settings for every node."""

    def __init__(self, home: Path, nodes: int = 3, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__(home, nodes)
        self.settings: dict[str, Any] = {"log.level": "warning", **(settings or {})}
        self.secret_file = home / "secret"
        self.secret_file.write_bytes(secrets.token_bytes(32))
        self.secret_file.chmod(0o600)
        for node in self.ids:
            self.write_config(node)

    def config_file(self, node: int) -> Path:
        return self.home / f"node{node}.toml"

    def write_config(self, node: int, **overrides: Any) -> None:
        """`overrides`: dotted names with two underscores for the dot."""
        members = [f"{i}={host}:{port}" for i, (host, port) in self.peers.items()]
        values: dict[str, Any] = {
            "node.id": node,
            "node.data_dir": str(self.data_dir(node)),
            "cluster.name": "bench",
            "cluster.members": members,
            "cluster.secret_file": str(self.secret_file),
            "client.listen": "{}:{}".format(*self.clients[node]),
            "peer.listen": "{}:{}".format(*self.peers[node]),
            **self.settings,
            **{name.replace("__", "."): value for name, value in overrides.items()},
        }
        self.config_file(node).write_text(_toml(values), encoding="utf-8")

    def command(self, node: int) -> list[str]:
        return [sys.executable, "-m", "kvnode", "serve", "--config", str(self.config_file(node))]

    async def status(self, node: int) -> dict[str, Any]:
        """`GET /v1/status`. Raises: OSError, ValueError."""
        _, body = await http1.ask("GET", "/v1/status", self.clients[node])
        found: dict[str, Any] = json.loads(body)
        return found

    async def compact(self, node: int) -> None:
        revision = (await self.status(node))["revision"]
        code, body = await http1.ask("POST", f"/v1/admin/compact?rev={revision}", self.clients[node])
        if code != 200:
            raise OSError(f"compaction was refused: {body.decode()}")

    def shorten_log(self, writes: int, content_bytes: int) -> None:
        kept = StorageSection()
        if content_bytes > kept.tail_bytes + kept.segment_bytes:
            return
        share = max(_SEGMENT_MIN, content_bytes // 8)
        self.settings |= {"storage.segment_bytes": share, "storage.tail_bytes": share}
        for node in self.ids:
            self.write_config(node)

    async def has_trimmed_log(self, node: int) -> bool:
        return await self.metric(node, b"kvnode_log_first_index") > 1

    async def position(self, node: int) -> Position:
        found = await self.status(node)
        return Position(found["term"], found["commit_index"], found["applied_index"])

    async def snapshots_taken(self, node: int) -> float:
        return await self.metric(node, b"kvnode_snapshots_installed_total")

    async def join(self, leader: int) -> int:
        """It is given its vote once it has caught up."""
        node = self._add_node()
        endpoint = "{}:{}".format(*self.clients[leader])
        self.write_config(node, node__id=0, cluster__members=[], cluster__join=[endpoint])
        self.start(node)
        return node

    async def forget(self, node: int, leader: int) -> None:
        peer = "{}:{}".format(*self.peers[node])
        for member in (await self.status(leader))["members"]:
            if member["peer_address"] == peer:
                code, body = await http1.ask("DELETE", f"/v1/members/{member['id']}", self.clients[leader])
                if code != 200:
                    raise OSError(f"the removal was refused: {body.decode()}")

    async def leader_seen_by(self, node: int) -> int:
        code, _ = await http1.ask("GET", "/readyz", self.clients[node])
        if code != 200:
            return 0
        return (await self.status(node)).get("leader") or 0


class EtcdCluster(Cluster):
    """etcd with its defaults (heartbeat 100 ms, election timeout 1 s)."""

    def __init__(self, home: Path, nodes: int = 3) -> None:
        super().__init__(home, nodes)
        self._member_ids: dict[int, int] = {}  # etcd's own id → node
        self._snapshot_count: list[str] = []
        self._learners: dict[int, str] = {}  # node → etcd's own id

    @staticmethod
    def version() -> str:
        """As `etcd --version` tells it; "" if there is no etcd on the PATH."""
        binary = shutil.which("etcd")
        if binary is None:
            return ""
        done = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)  # noqa: S603 - found on the PATH
        return done.stdout.partition("\n")[0].partition(":")[2].strip()

    def command(self, node: int) -> list[str]:
        client, peer = (f"http://{host}:{port}" for host, port in (self.clients[node], self.peers[node]))
        members = ",".join(f"n{i}=http://{host}:{port}" for i, (host, port) in self.peers.items())
        return [
            *("etcd", "--name", f"n{node}", "--data-dir", str(self.data_dir(node))),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", members, "--initial-cluster-token", "bench"),
            *("--initial-cluster-state", "existing" if node in self._learners else "new"),
            *("--logger", "zap", "--log-level", "warn", *self._snapshot_count),
        ]

    async def compact(self, node: int) -> None:
        revision = (await self._status(node))["header"]["revision"]
        body = json.dumps({"revision": revision}).encode()
        code, answer = await http1.ask("POST", "/v3/kv/compaction", self.clients[node], body)
        if code != 200:
            raise OSError(f"compaction was refused: {answer.decode()}")

    def shorten_log(self, writes: int, content_bytes: int) -> None:
        if writes < 2 * _ETCD_SNAPSHOT_COUNT:
            self._snapshot_count = ["--snapshot-count", str(max(1, writes // 4))]

    async def has_trimmed_log(self, node: int) -> bool:
        return any(self.data_dir(node).glob("member/snap/*.snap"))

    async def position(self, node: int) -> Position:
        found = await self._status(node)
        return Position(int(found["raftTerm"]), int(found["raftIndex"]), int(found["raftAppliedIndex"]))

    async def snapshots_taken(self, node: int) -> float:
        return await self.metric(node, b"etcd_network_snapshot_receive_success")

    async def join(self, leader: int) -> int:
        node = self._add_node()
        body = json.dumps({"peerURLs": ["http://{}:{}".format(*self.peers[node])], "isLearner": True}).encode()
        code, answer = await http1.ask("POST", "/v3/cluster/member/add", self.clients[leader], body)
        if code != 200:
            raise OSError(f"the learner was refused: {answer.decode()}")
        self._learners[node] = json.loads(answer)["member"]["ID"]
        self.start(node)
        return node

    async def forget(self, node: int, leader: int) -> None:
        body = json.dumps({"ID": self._learners[node]}).encode()
        code, answer = await http1.ask("POST", "/v3/cluster/member/remove", self.clients[leader], body)
        if code != 200:
            raise OSError(f"the removal was refused: {answer.decode()}")
        del self._learners[node]

    async def _status(self, node: int) -> Any:
        _, body = await http1.ask("POST", "/v3/maintenance/status", self.clients[node], b"{}")
        return json.loads(body)

    async def leader_seen_by(self, node: int) -> int:
        answer = await self._status(node)
        self._member_ids[int(answer["header"]["member_id"])] = node
        return self._member_ids.get(int(answer.get("leader", 0)), 0)


def _toml(values: Mapping[str, Any]) -> str:
    """Dotted names → a TOML document; JSON's strings, numbers, booleans and arrays are TOML's too."""
    sections: dict[str, list[str]] = {}
    for name, value in values.items():
        section, _, field = name.partition(".")
        sections.setdefault(section, []).append(f"{field} = {json.dumps(value)}")
    return "".join(f"[{section}]\n" + "\n".join(lines) + "\n\n" for section, lines in sections.items())
