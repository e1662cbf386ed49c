"""Transports of one cluster in one process, on loopback, and a receiver that writes down what it is told."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec

from kvnode.clocks.system import SystemClock
from kvnode.config import PeerSection
from kvnode.ids import Index, NodeId, Term
from kvnode.node.ports import SnapshotSink
from kvnode.node.roster import Roster
from kvnode.raft.messages import AppendEntries, AppendReply, Configuration, Entry, Member, PeerMessage
from kvnode.storage.datadir import EARLIER_BOOTS_MAX
from kvnode.transport.peers import PeerTransport

SECRET = bytes(range(32))
SETTINGS = PeerSection(listen="127.0.0.1:0", reconnect_ms_min=5, reconnect_ms_max=40, handshake_timeout_ms=1_000)


class Recorder:
    """A receiver: everything it was told, in order."""

    def __init__(self) -> None:
        self.messages: list[PeerMessage] = []
        self.sizes: list[int] = []
        self.changes: list[tuple[str, int]] = []
        self.snapshot_sink: SnapshotSink | None = None

    def on_message(self, message: PeerMessage, size: int) -> None:
        self.messages.append(message)
        self.sizes.append(size)

    def on_connected(self, peer: NodeId) -> None:
        self.changes.append(("connected", peer))

    def on_disconnected(self, peer: NodeId) -> None:
        self.changes.append(("disconnected", peer))

    def on_refused(self, peer: NodeId) -> None:
        self.changes.append(("refused", peer))


class Directory:
    """What a node's data directory remembers, kept in memory."""

    def __init__(self, member: int, *, incarnation: int = 0, cluster_name: str = "local") -> None:
        self.identity = SimpleNamespace(
            cluster_name=cluster_name,
            member=member,
            incarnation=incarnation or 1000 + member,
            cluster_id=0,
            members={},
            configuration=None,
            configuration_index=0,
        )
        self.boot = SimpleNamespace(counter=0, nonce=0, earlier=())
        self.peer_boots: dict[int, Any] = {}
        self.saves = 0

    def save_identity(self, cluster_id: int, members: Mapping[int, tuple[int, str]]) -> None:
        self.saves += 1
        self.identity.cluster_id = cluster_id
        self.identity.members = {
            id_: SimpleNamespace(incarnation=incarnation, address=address)
            for id_, (incarnation, address) in members.items()
        }

    def save_configuration(self, configuration: Configuration, index: Index) -> None:
        self.saves += 1
        self.identity.configuration, self.identity.configuration_index = configuration, index

    def save_peer_boot(self, member: int, counter: int, nonce: int) -> None:
        self.saves += 1
        self.peer_boots[member] = SimpleNamespace(counter=counter, nonce=nonce)

    def start(self, nonce: int = 0) -> None:
        last = self.boot
        earlier = (last.nonce, *last.earlier) if last.counter else ()
        self.boot = SimpleNamespace(
            counter=last.counter + 1, nonce=nonce or random.getrandbits(60) + 1, earlier=earlier[:EARLIER_BOOTS_MAX]
        )

    def roster(
        self, members: Mapping[int, str], *, scope: Mapping[str, Any] | None = None, feature_level_max: int = 0
    ) -> Roster:
        return Roster(
            identity=self.identity,
            boot=self.boot,
            peer_boots=self.peer_boots,
            initial_members=members,
            cluster_scope=scope if scope is not None else {"raft.heartbeat_ms": 50},
            client_url=f"127.0.0.1:{7400 + self.identity.member}",
            save_identity=self.save_identity,
            save_peer_boot=self.save_peer_boot,
            save_configuration=self.save_configuration,
            feature_level_max=feature_level_max,
        )


def addresses(*members: int) -> dict[int, str]:
    """What the members are configured as; the tests dial the real ports."""
    return {member: f"127.0.0.1:{7500 + member}" for member in members}


class Cluster:
    """Nodes by id; `start` brings one up on its directory, at the port it had before."""

    def __init__(self, *members: int, settings: PeerSection = SETTINGS) -> None:
        self.members = members
        self.settings = settings
        self.directories = {member: Directory(member) for member in members}
        self.nodes: dict[int, PeerTransport] = {}
        self.rosters: dict[int, Roster] = {}
        self.receivers: dict[int, Recorder] = {}
        self.failures: list[BaseException] = []
        self.ports: dict[int, str] = {}

    async def __aenter__(self) -> Cluster:
        for member in self.members:
            self.make(member)
        for member in self.members:
            await self.begin(member)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(node.close() for node in self.nodes.values()))
        assert not self.failures, self.failures

    def make(
        self,
        member: int,
        *,
        directory: Directory | None = None,
        secret: bytes = SECRET,
        scope: Mapping[str, Any] | None = None,
        configured: Mapping[int, str] | None = None,
        joined: tuple[int, Sequence[Member]] | None = None,
        feature_level_max: int = 0,
    ) -> PeerTransport:
        """A node that has its port and does nothing yet. `joined`: by which entry, and the members beside it."""
        if directory is not None:
            self.directories[member] = directory
        directory = self.directories[member]
        directory.start()
        if joined is not None:
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.ports[member] = f"127.0.0.1:{free.getsockname()[1]}"
            index, others = joined
            found = (*others, Member(NodeId(member), directory.identity.incarnation, self.ports[member]))
            ids = tuple(one.id for one in found)
            directory.save_configuration(Configuration(ids, members=found, last_id=max(ids)), Index(index))
        roster = directory.roster(
            configured or addresses(*self.members), scope=scope, feature_level_max=feature_level_max
        )
        node = PeerTransport(
            node=NodeId(member),
            roster=roster,
            secret=secret,
            listen=self.ports.get(member, self.settings.listen),
            members={NodeId(id_): address for id_, address in addresses(*self.members).items()},
            settings=self.settings,
            clock=SystemClock(),
            rng=random.Random(member),
            on_failed=self.failures.append,
        )
        node.bind()
        self.ports[member] = node.address
        self.nodes[member], self.rosters[member] = node, roster
        return node

    async def begin(self, member: int) -> Recorder:
        self.nodes[member].set_members({NodeId(peer): self.ports[peer] for peer in (*self.members, member)})
        receiver = self.receivers[member] = Recorder()
        await self.nodes[member].start(receiver)
        return receiver

    async def restart(self, member: int, **how: Any) -> None:
        await self.nodes[member].close()
        self.make(member, **how)
        await self.begin(member)

    def is_connected(self, *members: int) -> bool:
        chosen = members or self.members
        return all(
            (link := self.nodes[one].links().get(NodeId(other))) is not None and link.connected
            for one in chosen
            for other in chosen
            if one != other
        )

    async def connected(self, *members: int) -> None:
        await until(lambda: self.is_connected(*members))


async def until(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    """Wait for something the loop is about to do."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


def append(sender: int, number: int, *, size: int = 10, term: int = 1) -> AppendEntries:
    """A data-lane message that carries `number`."""
    entry = Entry(Term(term), Index(number), number, 2, b"x" * size)
    return AppendEntries(
        Term(term), NodeId(sender), Index(number - 1), Term(term if number > 1 else 0), (entry,), Index(0)
    )


def reply(sender: int, number: int) -> AppendReply:
    """A control-lane message that carries `number`."""
    return AppendReply(Term(1), NodeId(sender), True, Index(number))


def settings(**changes: Any) -> PeerSection:
    return msgspec.structs.replace(SETTINGS, **changes)
