"""Gossip on loopback: what comes through, what never reaches a receiver, and every bound."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import aiohttp
import pytest
import uvloop

from kvnode.ids import Index, NodeId
from kvnode.raft.messages import Configuration, Member
from kvnode.transport import exchanges
from kvnode.transport.addresses import LOOKUPS_MAX, Addresses
from kvnode.transport.datagrams import Datagrams
from kvnode.transport.gossip_net import EXCHANGES_MAX
from kvnode.wire.gossip_seal import DATAGRAM_BYTES_MAX, REPLY_BYTES_MAX, REQUEST_BYTES_MAX, SealKind, body_bytes_max
from tests.transport.cluster import settings, until
from tests.transport.gossip_nets import Gossips, stranger

ONE, TWO, THREE = NodeId(1), NodeId(2), NodeId(3)


def datagram(gossips: Gossips, member: int, to: NodeId, body: bytes = b"forged", number: int = 9, **how: Any) -> bytes:
    """Sealed in `member`'s name, but for what `how` says; on no way yet."""
    net = gossips.make_net(member, **how)
    return sealer_of(net, gossips.rosters[member].cluster_id).seal(SealKind.DATAGRAM, to, body, number=number)


def sealer_of(net: Any, cluster_id: int) -> Any:
    from kvnode.wire.gossip_seal import Sealer  # noqa: PLC0415

    incarnation, boot_counter, boot_nonce = net._start
    return Sealer(
        secret=net._secret,
        cluster_id=cluster_id,
        node=net._node,
        incarnation=incarnation,
        boot_counter=boot_counter,
        boot_nonce=boot_nonce,
    )


async def talk() -> None:
    async with Gossips(1, 2, 3) as gossips:
        for number in range(50):
            gossips.nets[1].send(TWO, b"%d" % number)
        gossips.nets[2].send(THREE, b"x" * body_bytes_max(SealKind.DATAGRAM))
        await until(lambda: len(gossips.heard[2].packets) == 50 and gossips.heard[3].packets)
        assert sorted(gossips.heard[2].packets) == sorted((1, b"%d" % number) for number in range(50))
        assert gossips.heard[3].packets == [(2, b"x" * body_bytes_max(SealKind.DATAGRAM))]
        answers = await asyncio.gather(gossips.nets[1].exchange(TWO, b"a"), gossips.nets[2].exchange(ONE, b"b"))
        assert answers == [b"aa", b"bb"]
        large = bytes(body_bytes_max(SealKind.REQUEST))
        assert await gossips.nets[3].exchange(ONE, large) == large * 2
        assert gossips.heard[1].requests == [(2, b"b"), (3, large)]
        assert not any(gossips.counters(member) for member in (1, 2, 3))
        assert gossips.counters(1, "datagrams_sent", "exchanges_sent", "exchanges_failed", "datagrams_dropped") == {
            "datagrams_sent": 50,
            "exchanges_sent": 1,
        }


async def test_three_nodes_gossip() -> None:
    await talk()


def test_the_same_on_uvloop() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(talk())


async def test_nothing_of_a_stranger_reaches_the_receiver() -> None:
    rng = random.Random(2)
    async with Gossips(1, 2) as gossips, stranger(gossips.ports[2]) as send:
        cluster_id = gossips.rosters[1].cluster_id
        good = datagram(gossips, 1, TWO)
        foreign = sealer_of(gossips.make_net(1), cluster_id ^ 1).seal(SealKind.DATAGRAM, TWO, b"", number=1)
        flipped = good[:70] + bytes([good[70] ^ 1]) + good[71:]
        bad = [
            datagram(gossips, 1, TWO, secret=b"?" * 32),
            datagram(gossips, 1, THREE),
            foreign,
            flipped,
            good[:-1],
            *(rng.randbytes(rng.randrange(1, 200)) for _ in range(20)),
            bytes(DATAGRAM_BYTES_MAX + 1),
        ]
        for data in bad:
            send(data)
        await until(lambda: gossips.counters(2) == {"gossip_bad": len(bad)})
        send(good)
        await until(lambda: gossips.heard[2].packets == [(1, b"forged")])
        assert gossips.counters(2) == {"gossip_bad": len(bad)}


async def test_who_is_no_member_in_its_newest_start_is_refused() -> None:
    """All of them prove the secret."""
    async with Gossips(1, 2) as gossips, stranger(gossips.ports[2]) as send:
        boot = gossips.directories[1].boot
        gossips.directories[4], gossips.rosters[4] = gossips.directories[1], gossips.rosters[1]
        gossips.nodes[4] = gossips.nodes[1]
        saves, alarms = gossips.directories[2].saves, gossips.rosters[2].alarms
        bad = [
            datagram(gossips, 4, TWO),  # never heard of
            datagram(gossips, 1, TWO, incarnation=77),  # wiped
            datagram(gossips, 1, TWO, boot_counter=boot.counter - 1),  # an old backup
            datagram(gossips, 1, TWO, boot_nonce=boot.nonce ^ 1),  # a copy that runs as well
        ]
        del gossips.nodes[4]
        for data in bad:
            send(data)
        await until(lambda: gossips.counters(2) == {"gossip_refused": len(bad)})
        assert gossips.heard[2].packets == []
        assert (gossips.directories[2].saves, gossips.rosters[2].alarms) == (saves, alarms), "read-only"


async def test_a_removed_member_is_refused() -> None:
    async with Gossips(1, 2, 3) as gossips:
        gossips.nets[3].send(TWO, b"still there")
        await until(lambda: gossips.heard[2].packets)
        roster, directory = gossips.rosters[2], gossips.directories
        left = tuple(Member(NodeId(one), directory[one].identity.incarnation, gossips.ports[one]) for one in (1, 2))
        without = Configuration((ONE, TWO), members=left, last_id=THREE)
        roster.on_configuration(without, Index(9), without)
        gossips.nets[3].send(TWO, b"gone")
        with pytest.raises(OSError, match="403"):
            await gossips.nets[3].exchange(TWO, b"gone")
        await until(lambda: gossips.counters(2) == {"gossip_refused": 2})
        assert (gossips.heard[2].packets, gossips.heard[2].requests) == ([(3, b"still there")], [])


async def test_what_is_sent_again_counts_once() -> None:
    async with Gossips(1, 2) as gossips, stranger(gossips.ports[2]) as send:
        gossips.nets[1].send(TWO, b"once")
        await until(lambda: gossips.heard[2].packets)
        for _ in range(5):
            send(gossips.sent[0][1])
        await until(lambda: gossips.counters(2) == {"gossip_replayed": 5})
        assert gossips.heard[2].packets == [(1, b"once")]


async def test_what_an_earlier_start_sent_is_refused_after_the_next_one() -> None:
    async with Gossips(1, 2) as gossips:
        gossips.nets[1].send(TWO, b"early")
        await until(lambda: gossips.heard[2].packets)
        early = gossips.sent[0][1]
        await gossips.reboot(1)
        gossips.nets[1].send(TWO, b"late")  # under the same number
        await until(lambda: len(gossips.heard[2].packets) == 2)
        async with stranger(gossips.ports[2]) as send:
            send(early)
            await until(lambda: gossips.counters(2) == {"gossip_refused": 1})
        await gossips.reboot(2)  # what it heard in memory is gone, what a handshake showed is not
        async with stranger(gossips.ports[2]) as send:
            send(early)
            await until(lambda: gossips.counters(2) == {"gossip_refused": 1})
        assert gossips.heard[2].packets == []


async def test_a_newer_start_counts_from_its_first_datagram_on() -> None:
    """Before any handshake of it; and from then on the one before is over."""
    async with Gossips(1, 2) as gossips, stranger(gossips.ports[2]) as send:
        boot = gossips.directories[1].boot
        gossips.nets[1].send(TWO, b"old")
        await until(lambda: gossips.heard[2].packets)
        send(datagram(gossips, 1, TWO, b"new", number=1, boot_counter=boot.counter + 1, boot_nonce=5))
        await until(lambda: len(gossips.heard[2].packets) == 2)
        gossips.nets[1].send(TWO, b"old")
        send(datagram(gossips, 1, TWO, b"copy", number=2, boot_counter=boot.counter + 1, boot_nonce=6))
        await until(lambda: gossips.counters(2) == {"gossip_refused": 2})
        assert gossips.heard[2].packets == [(1, b"old"), (1, b"new")]


# ── exchanges ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_request_counts_once_and_its_answer_is_good_for_it_alone() -> None:
    async with Gossips(1, 2) as gossips:
        requests, answers = [], []
        real = gossips.nodes[1].post_exchange

        async def post(address: str, body: bytes) -> bytes:
            requests.append(body)
            answers.append(await real(address, body))
            return answers[0]  # somebody on the way

        gossips.nodes[1].post_exchange = post  # type: ignore[method-assign]
        assert await gossips.nets[1].exchange(TWO, b"pull") == b"pullpull"
        with pytest.raises(OSError, match="not proven"):
            await gossips.nets[1].exchange(TWO, b"pull")
        with pytest.raises(OSError, match="403"):
            await real(gossips.ports[2], requests[0])
        assert gossips.counters(2) == {"gossip_replayed": 1}
        assert gossips.heard[2].requests == [(1, b"pull")] * 2


async def test_answers_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Gossips(1, 2, 3) as gossips:
        net = gossips.nets[1]
        with pytest.raises(OSError, match="403"):
            await net.exchange(TWO, b"unreadable")
        assert gossips.counters(2) == {"gossip_bad": 1}
        net.set_addresses({TWO: gossips.ports[3]})  # another member is there: it does not feel meant
        with pytest.raises(OSError, match="403"):
            await net.exchange(TWO, b"x")
        with pytest.raises(OSError, match="no way to member 3"):
            await net.exchange(THREE, b"x")
        net.set_addresses({TWO: "127.0.0.1:1", THREE: "no address"})
        for to in (TWO, THREE):
            with pytest.raises(OSError, match="an exchange with member"):
                await net.exchange(to, b"x")
        with pytest.raises(OSError, match="at most"):
            await net.exchange(TWO, bytes(REQUEST_BYTES_MAX))
        monkeypatch.setattr("kvnode.transport.gossip_net.EXCHANGE_TIMEOUT_MS", 50)
        silent = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        net.set_addresses({TWO: f"127.0.0.1:{silent.sockets[0].getsockname()[1]}"})
        with pytest.raises(OSError, match="TimeoutError"):
            await net.exchange(TWO, b"x")
        silent.close()


async def test_an_answer_is_read_no_further_than_it_may_be_long(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Gossips(1, 2) as gossips:
        gossips.heard[2].on_exchange = lambda *_: bytes(body_bytes_max(SealKind.REPLY))  # type: ignore[method-assign]
        assert len(await gossips.nets[1].exchange(TWO, b"x")) == body_bytes_max(SealKind.REPLY)
        monkeypatch.setattr("kvnode.transport.peers.REPLY_BYTES_MAX", REPLY_BYTES_MAX - 1)
        with pytest.raises(OSError, match="a body of more than"):
            await gossips.nets[1].exchange(TWO, b"x")


async def test_a_bug_of_the_receiver_ends_the_node_not_only_the_exchange() -> None:
    async with Gossips(1, 2) as gossips:
        with pytest.raises(OSError, match="an exchange with"):
            await gossips.nets[1].exchange(TWO, b"bug")
        assert [type(error) for error in gossips.failures] == [ZeroDivisionError]
        gossips.failures.clear()


async def test_exchanges_of_one_node_are_bounded_and_end_with_it() -> None:
    async with Gossips(1, 2) as gossips:
        net = gossips.nets[1]

        async def never(address: str, body: bytes) -> bytes:
            return await asyncio.get_running_loop().create_future()

        gossips.nodes[1].post_exchange = never  # type: ignore[method-assign]
        others = [NodeId(number) for number in range(10, 10 + EXCHANGES_MAX)]
        net.set_addresses(dict.fromkeys([TWO, *others], "127.0.0.1:1"))
        running = [asyncio.create_task(net.exchange(other, b"x")) for other in others]
        await asyncio.sleep(0)
        for to in (TWO, others[0]):
            with pytest.raises(OSError, match="too many exchanges"):
                await net.exchange(to, b"x")
        running[0].cancel()
        await asyncio.sleep(0.01)
        one_more = asyncio.create_task(net.exchange(TWO, b"x"))
        await asyncio.sleep(0)
        await net.close()
        found = await asyncio.gather(*running, one_more, return_exceptions=True)
        assert [type(error) for error in found] == [asyncio.CancelledError, *[ConnectionAbortedError] * EXCHANGES_MAX]
        assert net._exchanges == {}
        with pytest.raises(OSError, match="no way"):
            await net.exchange(TWO, b"x")


async def test_strangers_get_nothing_from_the_route() -> None:
    async with Gossips(1, 2, settings=settings(handshake_timeout_ms=150, unproven_max=2)) as gossips:
        url = f"http://{gossips.ports[2]}{exchanges.EXCHANGE_PATH}"
        counters = gossips.nodes[2].counters

        async def slow() -> bytes:
            """Begins a body and never ends it: what comes back before the connection ends."""
            host, port = gossips.ports[2].split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(f"POST {exchanges.EXCHANGE_PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx".encode())
            answer = await reader.read()
            writer.close()
            return answer

        async with aiohttp.ClientSession() as session:

            async def post(data: Any, **headers: str) -> int:
                async with session.post(url, data=data, headers=headers) as answer:
                    assert len(await answer.read()) < 30
                    return answer.status

            assert await post(b"") == await post(b"x" * 500) == 403
            assert await post(b"x", Origin="http://page.example") == 404
            assert await post(bytes(REQUEST_BYTES_MAX + 1)) == 413
            assert counters["exchanges_refused"] == 3
            lasting = [asyncio.create_task(slow()) for _ in range(2)]
            await until(lambda: gossips.nodes[2]._server.exchanges._unproven == 2)
            assert await post(b"x") == 503
            assert counters["exchanges_turned_away"] == 1
            assert await asyncio.gather(*lasting) == [b""] * 2
            assert counters["exchanges_refused"] == 5
            assert await post(b"x") == 403
            await gossips.nets[2].close()
            assert await post(b"x") == 404
        assert gossips.heard[2].requests == []


async def test_who_does_not_read_its_answer_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "ANSWER_TIMEOUT_MS", 100)
    monkeypatch.setattr(exchanges, "FAREWELL_MS", 10)
    async with Gossips(1, 2) as gossips:
        gossips.heard[2].on_exchange = lambda *_: bytes(body_bytes_max(SealKind.REPLY))  # type: ignore[method-assign]
        net = gossips.make_net(1)
        sealer = sealer_of(net, gossips.rosters[1].cluster_id)
        body = sealer.seal(SealKind.REQUEST, TWO, b"x", number=1)
        host, port = gossips.ports[2].split(":")
        route = gossips.nodes[2]._server.exchanges
        server = gossips.nodes[2]._server._runner.server  # type: ignore[union-attr]
        connections = len(server.connections)  # type: ignore[union-attr]
        _, writer = await asyncio.open_connection(host, int(port), limit=1)
        head = f"POST {exchanges.EXCHANGE_PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await until(lambda: route._answers == 1)
        await until(lambda: route._answers == 0)
        await until(lambda: len(server.connections) == connections)  # type: ignore[union-attr]
        writer.close()


# ── datagrams ───────────────────────────────────────────────────────────────────────────────────────


async def test_what_cannot_be_sent_is_dropped_and_counted() -> None:
    async with Gossips(1, 2) as gossips:
        net = gossips.nets[1]
        net.send(NodeId(9), b"x")
        net.send(ONE, b"to itself")
        net.send(TWO, bytes(body_bytes_max(SealKind.DATAGRAM) + 1))
        net._datagrams.pause_writing()
        net.send(TWO, b"full")
        assert gossips.counters(1, "datagrams_dropped", "datagrams_sent") == {"datagrams_dropped": 4}
        net._datagrams.resume_writing()
        net.send(TWO, b"x")
        net.send(TWO, b"unreadable")
        await until(lambda: gossips.heard[2].packets == [(1, b"x")] and gossips.counters(2) == {"gossip_bad": 1})


async def test_nobody_there_is_no_error() -> None:
    """ICMP says so; that is counted at most."""
    async with Gossips(1, 2) as gossips:
        net = gossips.nets[1]
        net.set_addresses({TWO: gossips.ports[2], THREE: "127.0.0.1:1"})
        for _ in range(10):
            net.send(THREE, b"x")
            await asyncio.sleep(0)
        net._datagrams.error_received(ConnectionRefusedError())
        assert net.counters["datagrams_errors"] >= 1
        net.send(TWO, b"x")
        await until(lambda: gossips.heard[2].packets)


async def test_after_close_nothing_is_taken_and_the_port_is_free() -> None:
    async with Gossips(1, 2) as gossips:
        await gossips.nets[2].close()
        await gossips.nets[2].close()
        gossips.nets[2].send(ONE, b"x")
        gossips.nets[1].send(TWO, b"x")
        other = Datagrams(lambda _: None, dict.fromkeys(gossips.nets[2].counters, 0))
        host, port = gossips.ports[2].split(":")
        await other.open(host, int(port))
        second = Datagrams(lambda _: None, {})
        with pytest.raises(OSError, match="in use"):
            await second.open(host, int(port))
        await second.close()
        await other.close()
        assert gossips.heard[2].packets == gossips.heard[1].packets == []


async def test_a_node_without_a_secret_stays_shut() -> None:
    async with Gossips(1, 2) as gossips:
        net = gossips.make_net(1, secret=b"")
        await net.start(gossips.heard[1])
        net.send(TWO, b"x")
        with pytest.raises(OSError, match="no way"):
            await net.exchange(TWO, b"x")
        assert net.counters["datagrams_dropped"] == 1
        await net.close()


# ── names ───────────────────────────────────────────────────────────────────────────────────────────


class Now:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.ms = 0

    def monotonic_ms(self) -> int:
        return self.ms


async def test_names_are_looked_up_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked, answers = Now(), [], {"a": "10.0.0.1", "b": ""}
    held = asyncio.Event()
    held.set()

    async def look_up(host: str, port: int, **_: Any) -> Any:
        asked.append(host)
        await held.wait()
        if not answers.get(host):
            raise OSError(host)
        return [(2, 2, 17, "", (answers[host], port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
    addresses = Addresses(clock=clock)  # type: ignore[arg-type]
    addresses.set({ONE: "127.0.0.1:7", TWO: "a:7", THREE: "b:7", NodeId(4): "[::1]:7", NodeId(5): "nonsense"})
    assert addresses.find(ONE) == ("127.0.0.1", 7)
    assert [addresses.find(NodeId(one)) for one in (2, 2, 3, 4, 5, 6)] == [None] * 6
    await until(lambda: addresses.find(TWO))
    assert (addresses.find(TWO), addresses.find(THREE)) == (("10.0.0.1", 7), None)
    assert asked == ["a", "b"]
    answers["a"], answers["b"] = "", "10.0.0.2"
    clock.ms += 1_000
    assert addresses.find(THREE) is None
    await until(lambda: addresses.find(THREE) == ("10.0.0.2", 7))
    clock.ms += 10_000
    assert addresses.find(TWO) == ("10.0.0.1", 7), "what was known serves while it is looked up, and when that fails"
    await until(lambda: not addresses._lookups)
    assert addresses.find(TWO) == ("10.0.0.1", 7)
    assert asked == ["a", "b", "b", "a"]
    addresses.set({TWO: "a:7", THREE: "c:7"})
    assert addresses.find(TWO) == ("10.0.0.1", 7), "kept while the address stays"
    held.clear()
    addresses.set({NodeId(number): f"host{number}:7" for number in range(20)})
    assert [addresses.find(NodeId(number)) for number in range(20)] == [None] * 20
    assert len(addresses._lookups) == LOOKUPS_MAX
    await addresses.close()
    assert not addresses._lookups


async def test_a_name_leads_to_the_peer() -> None:
    async with Gossips(1, 2) as gossips:
        net = gossips.nets[1]
        net.set_addresses({TWO: gossips.ports[2].replace("127.0.0.1", "localhost")})
        net.send(TWO, b"too early")
        await until(lambda: net._addresses.find(TWO) is not None)
        net.send(TWO, b"x")
        await until(lambda: gossips.heard[2].packets == [(1, b"x")])


async def test_a_member_of_an_older_version_costs_a_count_and_nothing_else() -> None:
    """It has no socket for datagrams, and its listener knows no exchanges."""
    async with Gossips(1, 2) as gossips:
        await gossips.nets[TWO].close()
        before = dict(gossips.nets[ONE].counters)
        for _ in range(5):
            gossips.nets[ONE].send(TWO, b"ping")
            await asyncio.sleep(0)
        with pytest.raises(ConnectionAbortedError, match="404"):
            await gossips.nets[ONE].exchange(TWO, b"pull")
        after = gossips.nets[ONE].counters
        assert after["exchanges_failed"] == before["exchanges_failed"] + 1
        assert after["datagrams_sent"] + after["datagrams_errors"] >= before["datagrams_sent"] + 5
        assert gossips.heard[TWO].packets == []
        assert gossips.nodes[ONE].links()[TWO].connected
        assert not gossips.failures


async def test_there_is_one_for_each_start() -> None:
    async with Gossips(1, 2) as gossips:
        with pytest.raises(AssertionError, match="numbers begin at 1 once"):
            await gossips.nets[ONE].start(gossips.heard[ONE])
