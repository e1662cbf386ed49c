"""Rows of the plane that needs no quorum: what gossip costs, and how soon a write on one node can be read on another.

Only kvnode has such a plane; etcd has nothing to put beside these rows. What its writes cost is measured as any other
(`kvnode.bench.workloads`), on one node of three.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from time import perf_counter_ns, process_time

from kvnode.bench import http1
from kvnode.bench.cluster import Cluster
from kvnode.bench.load import Address, Connection
from kvnode.sim.gossip.measure import idle_cost

SIMULATED_MEMBERS = 100
SIMULATED_S = 180  # so many members exchange whole tables every minute and a half
_ACQUAINTED_S = 5  # they run for so long before it counts
PAUSE_S = 0.1  # between two writes whose arrival is measured: each is a change after a quiet time
GOSSIP_BYTES = (b"kvnode_gossip_packets_sent_bytes_total", b"kvnode_gossip_exchange_sent_bytes_total")
_TOKEN = re.compile(rb"\r\nKv-Token: ([^\r\n]+)\r\n")


async def gossip_bytes(cluster: Cluster) -> dict[int, float]:
    """Bytes of gossip that each running node has sent since it started, headers not included. Raises: OSError."""
    return {node: sum([await cluster.metric(node, name) for name in GOSSIP_BYTES]) for node in cluster.running()}


@dataclass(frozen=True)
class Simulated:
    """One of many members while nothing happens: its pure core alone, on virtual time."""

    bytes_per_s: float  # datagrams and tables, without seals and headers
    cpu_percent: float  # of a core, if the virtual time were real; what simulates the network included


def simulated(seed: int) -> Simulated:
    """`SIMULATED_MEMBERS` of them. Takes three seconds."""
    began_s = process_time()
    cost = idle_cost(seed, SIMULATED_MEMBERS, SIMULATED_S)
    cpu_s = process_time() - began_s
    node_seconds = SIMULATED_MEMBERS * (SIMULATED_S + _ACQUAINTED_S)
    return Simulated(cost.datagram_bytes_per_s + cost.exchange_bytes_per_s, 100 * cpu_s / node_seconds)


class Talker:
    """One connection, one request at a time. Raises: OSError for what is not answered by a 2xx."""

    def __init__(self) -> None:
        self._answered: asyncio.Future[bool] | None = None
        self._connection: http1.Http1Connection | None = None

    async def connect(self, address: Address) -> None:
        self._connection = await http1.connect(address, self._on_answer, self._on_lost)

    async def ask(self, request: bytes) -> tuple[bytes, int]:
        """→ its answer, and how long it took in ns."""
        assert self._connection is not None
        self._answered = asyncio.get_running_loop().create_future()
        began_ns = perf_counter_ns()
        self._connection.send(request)
        await self._answered
        took_ns = perf_counter_ns() - began_ns
        answer = self._connection.answer
        if answer[9:10] != b"2":
            raise OSError(f"refused: {answer[:200]!r}")
        return answer, took_ns

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _on_answer(self, _: Connection, __: int, succeeded: bool) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(succeeded)

    def _on_lost(self, _: Connection) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(ConnectionResetError("the connection was lost"))


@dataclass
class Convergence:
    """Times in ns, one each round."""

    arrived: list[int]  # from the acknowledgement on one node until another has answered a read that shows the write
    read: list[int]  # the same read once more: what of that is the request itself
    put: list[int]  # a linearizable put of the same value, on the same node as the write


async def converge(writer: Address, reader: Address, content: bytes, rounds: int) -> Convergence:
    """Write on one node, read on the other with the token of that write, which waits there until it is shown.

    Raises: OSError.
    """
    found = Convergence([], [], [])
    writing, reading = Talker(), Talker()
    try:
        await writing.connect(writer)
        await reading.connect(reader)
        for number in range(rounds):
            path = f"/v1/ap/converge/{number:06d}"
            answer, _ = await writing.ask(http1.request("PUT", path, writer, content))
            token = _TOKEN.search(answer)
            if token is None:
                raise OSError("the answer of a write has no token")
            read = http1.request("GET", path, reader, headers=f"Kv-Token: {token[1].decode()}\r\n")
            found.arrived.append((await reading.ask(read))[1])
            found.read.append((await reading.ask(read))[1])
            put = http1.request("PUT", f"/v1/kv/converge/{number:06d}", writer, content)
            found.put.append((await writing.ask(put))[1])
            await asyncio.sleep(PAUSE_S)
    finally:
        writing.close()
        reading.close()
    return found
