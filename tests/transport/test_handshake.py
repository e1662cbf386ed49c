"""Who is let in: sans-IO conversations between two handshakes, then the same over real connections."""

from __future__ import annotations

import asyncio
import random

import aiohttp
import msgspec
import pytest

from kvnode.ids import NodeId
from kvnode.raft.messages import Lane, PeerMessage
from kvnode.transport.handshake import Handshake
from kvnode.wire.codec import encode_message
from kvnode.wire.frames import FrameKind, Hello, Refusal, encode_frame, encode_hello, split_frames
from tests.transport.cluster import SECRET, Cluster, Directory, addresses, append, reply, settings, until

ONE, TWO = NodeId(1), NodeId(2)


class Side:
    """A directory that has been started, and handshakes in its name."""

    def __init__(self, member: int, *, secret: bytes = SECRET, scope: dict[str, object] | None = None) -> None:
        self.directory = Directory(member)
        self.directory.start(nonce=member)
        self.roster = self.directory.roster(addresses(1, 2), scope=scope)
        self.secret = secret

    def handshake(
        self, role: str, *, expected: int | None = None, lane: Lane = "control", nonce: int = 1, **changes: object
    ) -> Handshake:
        hello = self.roster.hello(lane, link=int(role == "dialler"), nonce=bytes([nonce]) * 32)
        return Handshake(
            role,  # type: ignore[arg-type]
            secret=self.secret,
            hello=msgspec.structs.replace(hello, **changes),
            roster=self.roster,
            expected=None if expected is None else NodeId(expected),
        )


def converse(dialler: Handshake, acceptor: Handshake) -> None:
    """Carry answers back and forth until nobody has anything to say."""
    flight, to = dialler.begin(), acceptor
    while flight and to.outcome is None:
        flight = to.receive(flight)
        to = dialler if to is acceptor else acceptor


def test_two_members_accept_each_other_and_both_have_recorded_it() -> None:
    one, two = Side(1), Side(2)
    dialler, acceptor = one.handshake("dialler", expected=2), two.handshake("acceptor")
    converse(dialler, acceptor)
    assert dialler.outcome == acceptor.outcome == "accepted"
    assert dialler.proven
    assert acceptor.proven
    assert one.directory.identity.cluster_id == two.directory.identity.cluster_id != 0
    assert one.directory.peer_boots[2].counter == 1


def test_another_secret_is_refused_before_anything_is_judged() -> None:
    one, two = Side(1), Side(2, secret=b"?" * 32)
    dialler, acceptor = one.handshake("dialler", expected=2), two.handshake("acceptor")
    converse(dialler, acceptor)
    assert dialler.outcome == acceptor.outcome == "refused"
    assert dialler.refusal is not None
    assert dialler.refusal.code == "not_proven"
    assert "cluster.secret_file" in dialler.refusal.sentence
    assert acceptor.refused_by_peer
    assert not acceptor.proven
    assert one.directory.saves == two.directory.saves == 0


def test_a_stranger_who_dials_learns_nothing_that_helps_it() -> None:
    """Reflection: the acceptor's own proof, sent back, is not the dialler's."""
    two = Side(2)
    acceptor = two.handshake("acceptor")
    hello = encode_hello(Side(1).handshake("dialler").own)
    answer = acceptor.receive(encode_frame(FrameKind.HELLO, hello))
    proof = next(bytes(payload) for kind, payload in split_frames(answer, 65_536) if kind == FrameKind.PROOF)
    acceptor.receive(encode_frame(FrameKind.PROOF, proof) + encode_frame(FrameKind.WELCOME))
    assert acceptor.outcome == "refused"
    assert acceptor.refusal is not None
    assert acceptor.refusal.code == "not_proven"


def test_a_recorded_conversation_cannot_be_replayed() -> None:
    one, two = Side(1), Side(2)
    dialler, acceptor = one.handshake("dialler", expected=2), two.handshake("acceptor", nonce=2)
    first = dialler.begin()
    second = dialler.receive(acceptor.receive(first))
    again = two.handshake("acceptor", nonce=3)  # another connection, another nonce
    again.receive(first)
    again.receive(second)
    assert again.outcome == "refused"
    assert not again.proven


def test_a_changed_hello_does_not_prove() -> None:
    """The proof covers the exact bytes: settings, ids and nonces as sent."""
    one, two = Side(1), Side(2)
    dialler, acceptor = one.handshake("dialler", expected=2), two.handshake("acceptor")
    forged = msgspec.structs.replace(dialler.own, client_url="evil:1")
    dialler.receive(acceptor.receive(encode_frame(FrameKind.HELLO, encode_hello(forged))))
    assert dialler.outcome == "refused"
    assert dialler.refusal is not None
    assert dialler.refusal.code == "not_proven"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"protocol_min": 2, "protocol_max": 3}, "protocol"),
        ({"lane": "data"}, "malformed"),
        ({"member": NodeId(3)}, "unknown_member"),
    ],
)
def test_what_the_acceptor_refuses_by_itself(changes: dict[str, object], code: str) -> None:
    dialler, acceptor = Side(1).handshake("dialler", expected=2, **changes), Side(2).handshake("acceptor")
    converse(dialler, acceptor)
    assert acceptor.refusal is not None or dialler.refusal is not None
    assert code in {handshake.refusal.code for handshake in (acceptor, dialler) if handshake.refusal is not None}


def test_another_member_behind_the_address_is_refused() -> None:
    dialler, acceptor = Side(1).handshake("dialler", expected=3), Side(2).handshake("acceptor")
    converse(dialler, acceptor)
    assert dialler.refusal == Refusal("wrong_member", "dialled member 3, found member 2 at its address")
    assert acceptor.refused_by_peer
    assert acceptor.proven  # so the refusal may be shown as member 1's


def test_nonsense_instead_of_a_handshake_is_refused_and_nothing_else_happens() -> None:
    rng = random.Random(7)
    hello = encode_frame(FrameKind.HELLO, encode_hello(Side(1).handshake("dialler").own))
    message = encode_frame(FrameKind.MESSAGE, encode_message(append(1, 1)))
    for number in range(500):
        two = Side(2)
        acceptor = two.handshake("acceptor")
        data = bytearray(hello if number % 2 else rng.randbytes(rng.randrange(200)))
        if number % 2:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        answer = acceptor.receive(bytes(data))
        assert acceptor.outcome == "refused"
        assert next(split_frames(answer, 65_536))[0] == FrameKind.REFUSAL
        assert two.directory.saves == 0
    acceptor = Side(2).handshake("acceptor")
    acceptor.receive(message)
    assert acceptor.outcome == "refused"


# ── over real connections ───────────────────────────────────────────────────────────────────────────


async def refused(cluster: Cluster, member: int, peer: int) -> str:
    """The sentence `member` shows for `peer`."""
    await until(lambda: cluster.nodes[member].links()[NodeId(peer)].refused)
    return cluster.nodes[member].links()[NodeId(peer)].refused


async def test_a_wrong_secret_keeps_a_node_out() -> None:
    cluster = Cluster(1, 2)
    cluster.make(1)
    cluster.make(2, secret=b"?" * 32)
    await asyncio.gather(cluster.begin(1), cluster.begin(2))
    async with cluster_of(cluster):
        assert "secret" in await refused(cluster, 1, 2)
        assert cluster.receivers[1].changes == cluster.receivers[2].changes == []
        assert cluster.nodes[2].links()[ONE].refused == ""  # an unproven stranger writes nothing into the status


async def test_a_differing_setting_is_named_with_both_values() -> None:
    cluster = Cluster(1, 2)
    cluster.make(1, scope={"raft.heartbeat_ms": 50, "limits.key_bytes_max": 4096})
    cluster.make(2, scope={"raft.heartbeat_ms": 60, "limits.key_bytes_max": 4096})
    await asyncio.gather(cluster.begin(1), cluster.begin(2))
    async with cluster_of(cluster):
        for member, peer in ((1, 2), (2, 1)):
            sentence = await refused(cluster, member, peer)
            assert "raft.heartbeat_ms differs" in sentence
            assert "50 on member 1, 60 on member 2" in sentence


async def test_a_wiped_node_is_refused_and_told_why() -> None:
    async with Cluster(1, 2, 3) as cluster:
        await cluster.connected()
        await cluster.restart(2, directory=Directory(2, incarnation=99))
        for member in (1, 3):
            assert "member 2 was wiped or replaced" in await refused(cluster, member, 2)
        assert "member 2 was wiped or replaced" in await refused(cluster, 2, 3)
        assert not cluster.rosters[2].is_bootstrapped
        assert cluster.receivers[2].changes == []


async def test_an_old_backup_is_refused_and_raises_an_alarm() -> None:
    async with Cluster(1, 2, 3) as cluster:
        await cluster.connected()
        for _ in range(2):
            await cluster.restart(2)
            await cluster.connected()
        old = cluster.directories[2]
        old.boot.counter = 0  # a copy made before the second start, started now
        await cluster.restart(2, directory=old)
        assert "old backup or a copy" in await refused(cluster, 1, 2)
        assert "its 3. start has been seen" in cluster.rosters[1].alarms[0]


async def test_another_cluster_at_the_address_is_refused() -> None:
    """R15, F63: re-used ports."""
    async with Cluster(1, 2, 3) as cluster:
        await cluster.connected()
        stranger = Directory(2, incarnation=1002)
        stranger.save_identity(77, {member: (1000 + member, address) for member, address in addresses(1, 2, 3).items()})
        await cluster.restart(2, directory=stranger)
        assert "cluster id differs" in await refused(cluster, 1, 2)


class cluster_of:
    """Close nodes that were started one by one."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *error: object) -> None:
        await self.cluster.__aexit__(*error)


# ── hostile connections ─────────────────────────────────────────────────────────────────────────────


class Impostor:
    """Knows the secret and speaks for member 1, by hand."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        directory = Directory(1)
        directory.start(nonce=5)
        self.roster = directory.roster(addresses(1, 2))

    async def __aenter__(self) -> Impostor:
        self.session = aiohttp.ClientSession()
        self.sockets = {}
        for lane in ("control", "data"):
            socket = await self.session.ws_connect(f"http://{self.cluster.ports[2]}/peer/v1/{lane}", compress=0)
            hello: Hello = self.roster.hello(lane, link=1, nonce=bytes(32))  # type: ignore[arg-type]
            handshake = Handshake("dialler", secret=SECRET, hello=hello, roster=self.roster, expected=TWO)
            await socket.send_bytes(handshake.begin())
            while handshake.outcome is None:
                answer = handshake.receive((await socket.receive()).data)
                if answer:
                    await socket.send_bytes(answer)
            assert handshake.outcome == "accepted", handshake.refusal
            self.sockets[lane] = socket
        await until(lambda: self.cluster.nodes[2].links()[ONE].connected)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()


async def listening() -> Cluster:
    """Node 2 of (1, 2), without node 1."""
    cluster = Cluster(1, 2)
    cluster.ports[1] = "127.0.0.1:1"
    cluster.make(2)
    await cluster.begin(2)
    return cluster


def message_frame(message: PeerMessage, number: int) -> bytes:
    """The `number`th frame of a connection."""
    return encode_frame(FrameKind.MESSAGE, encode_message(message), number)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(message_frame(reply(3, 1), 2), id="another sender"),
        pytest.param(encode_frame(FrameKind.MESSAGE, b"\x91\x63", 2), id="unknown tag"),
        pytest.param(message_frame(reply(1, 1), 2)[:-1], id="cut short"),
        pytest.param(encode_frame(FrameKind.MESSAGE, encode_message(reply(1, 1)) + b"\0", 2), id="trailing byte"),
        pytest.param(bytes([*message_frame(reply(1, 1), 2)[:-1], 0x55]), id="damage"),
        pytest.param(message_frame(reply(1, 1), 1), id="repeated"),
        pytest.param(message_frame(reply(1, 5), 3), id="one before it is missing"),
        pytest.param(encode_frame(FrameKind.HELLO, b"", 2), id="a hello now"),
        pytest.param(encode_frame(9, b"", 2), id="unknown kind"),
        pytest.param(b"", id="nothing"),
    ],
)
async def test_what_cannot_be_believed_closes_the_connection_and_reaches_nobody(data: bytes) -> None:
    cluster = await listening()
    async with cluster_of(cluster), Impostor(cluster) as impostor:
        await impostor.sockets["control"].send_bytes(message_frame(reply(1, 1), 1))
        await impostor.sockets["control"].send_bytes(data)
        await impostor.sockets["control"].send_bytes(message_frame(reply(1, 2), 3))
        await until(lambda: ("disconnected", 1) in cluster.receivers[2].changes)
        assert cluster.receivers[2].messages == [reply(1, 1)]
        assert cluster.nodes[2].counters["frames_bad"] == 1


async def test_text_on_a_proven_connection_closes_it() -> None:
    cluster = await listening()
    async with cluster_of(cluster), Impostor(cluster) as impostor:
        await impostor.sockets["data"].send_str("hello")
        await until(lambda: ("disconnected", 1) in cluster.receivers[2].changes)
        assert cluster.nodes[2].counters["frames_bad"] == 1


async def test_strangers_are_turned_away_in_time_and_in_number() -> None:
    """Silent connections, incomplete request heads, floods of handshakes: the listener stays open to members."""
    cluster = Cluster(1, 2, settings=settings(handshake_timeout_ms=150, unproven_max=3))
    cluster.ports[1] = "127.0.0.1:1"
    cluster.make(2)
    await cluster.begin(2)
    host, port = cluster.ports[2].split(":")
    counters = cluster.nodes[2].counters
    async with cluster_of(cluster), aiohttp.ClientSession() as session:
        url = f"http://{cluster.ports[2]}/peer/v1/data"
        idle = [await session.ws_connect(url) for _ in range(3)]
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await session.ws_connect(url)
        assert caught.value.status == 503
        slow_reader, slow_writer = await asyncio.open_connection(host, int(port))
        slow_writer.write(b"GET /peer/v1/data HTTP/1.1\r\nHost: x")
        assert await asyncio.wait_for(slow_reader.read(), 2) == b""
        slow_writer.close()
        await until(lambda: counters["handshakes_unfinished"] == 3)
        assert counters["connections_turned_away"] == 1
        for socket in idle:
            await socket.close()
        for path, headers, status in (
            ("/peer/v1/data", {}, 400),
            ("/v1/status", {}, 404),
            ("/peer/v1/gossips", {}, 404),
            ("/peer/v1/gossip", {}, 405),
        ):
            async with session.get(f"http://{cluster.ports[2]}{path}", headers=headers) as response:
                assert response.status == status
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await session.ws_connect(url, origin="http://page.example")
        async with Impostor(cluster):
            assert cluster.nodes[2].links()[ONE].connected


async def test_connections_are_bounded_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvnode.transport.peer_server._PROVEN_CONNECTIONS_MAX", 0)
    cluster = Cluster(1, 2, settings=settings(unproven_max=2))
    cluster.ports[1] = "127.0.0.1:1"
    cluster.make(2)
    await cluster.begin(2)
    host, port = cluster.ports[2].split(":")
    async with cluster_of(cluster):
        opened = [await asyncio.open_connection(host, int(port)) for _ in range(4)]
        await until(lambda: cluster.nodes[2].counters["connections_turned_away"] == 2)
        for _, writer in opened:
            writer.close()


async def test_a_late_lane_of_an_older_dial_does_not_disturb_the_newer_pair() -> None:
    cluster = await listening()
    async with cluster_of(cluster), Impostor(cluster) as impostor:
        hello: Hello = impostor.roster.hello("data", link=0, nonce=bytes(32))
        handshake = Handshake("dialler", secret=SECRET, hello=hello, roster=impostor.roster, expected=TWO)
        late = await impostor.session.ws_connect(f"http://{cluster.ports[2]}/peer/v1/data", compress=0)
        await late.send_bytes(handshake.begin())
        await late.send_bytes(handshake.receive((await late.receive()).data))
        handshake.receive((await late.receive()).data)
        assert handshake.outcome == "accepted"
        assert (await late.receive()).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
        assert cluster.nodes[2].links()[ONE].connected
        assert [change for change in cluster.receivers[2].changes if change[0] != "refused"] == [("connected", 1)]
