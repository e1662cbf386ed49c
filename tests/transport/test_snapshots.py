"""The snapshot lane: in pieces, bounded, resumed where it broke, refused with a reason, never in the way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from kvnode.config import PeerSection
from kvnode.errors import SnapshotRefused, StorageFailed
from kvnode.ids import NodeId
from kvnode.sim.loop import run_virtual
from kvnode.transport.pace import BURST_BYTES, Pace
from kvnode.transport.snapshots import FINISH_MS_MAX, PIECE_BYTES, STALLS, WINDOW_BYTES, Incoming, Sending, Stream
from kvnode.wire.frames import HEAD_BYTES, FrameKind, encode_frame
from kvnode.wire.limits import CodecError
from tests.transport.cluster import Cluster, append, reply, settings, until
from tests.transport.snapshot_ends import HEADER, BlockSource, KeepingSink, limits, streams

ONE, TWO, THREE = NodeId(1), NodeId(2), NodeId(3)
LIMITS = PeerSection()


def now_ms() -> int:
    return round(asyncio.get_running_loop().time() * 1e3)


def sending(stream: Stream, source: Any, found: PeerSection = LIMITS) -> Coroutine[Any, Any, None]:
    pace = Pace(found.snapshot_bytes_per_s)
    return Sending(stream, source, settings=found, pace=pace, now_ms=now_ms).run()


async def exchange(
    source: Any,
    sink: KeepingSink,
    *,
    found: PeerSection = LIMITS,
    incoming: Incoming | None = None,
    **how: Any,
) -> list[Any]:
    """One connection: what became of it at the sender, and at the receiver."""
    out, into, _ = streams(found, **how)
    incoming = incoming or Incoming(lambda: sink)
    return await asyncio.gather(sending(out, source, found), incoming.serve(into), return_exceptions=True)


@pytest.mark.parametrize("count", [0, 1, 7, 200])
def test_a_snapshot_arrives_whole_and_in_order(count: int) -> None:
    source, sink = BlockSource(count), KeepingSink()
    assert run_virtual(exchange(source, sink)) == [None, True]
    assert sink.blocks == source.blocks
    assert sink.begun == [(1, 0)]
    assert sink.finished == 1
    if count == 200:
        assert max(sink.writes) == 27  # several blocks share a message of 256 KiB
        assert source.asked == [*range(200), 200]


def test_what_is_on_its_way_is_bounded() -> None:
    """A receiver whose disk is slow holds the sender back at the window."""

    async def scenario() -> None:
        source, sink = BlockSource(500), KeepingSink()
        most = 0

        async def look() -> None:
            nonlocal most
            await asyncio.sleep(0.5)
            most = max(most, len(source.asked) - len(sink.blocks))

        sink.before_write = look
        assert await exchange(source, sink) == [None, True]
        assert sink.blocks == source.blocks
        assert most * 10_000 <= WINDOW_BYTES + 2 * PIECE_BYTES  # beside it what has been read ahead

    run_virtual(scenario())


def test_a_broken_connection_goes_on_where_the_receiver_stands() -> None:
    """Wherever it breaks, in either direction; what was durable is not sent again."""
    rng = random.Random(2)

    async def scenario() -> None:
        for _ in range(60):
            source, sink = BlockSource(rng.randrange(60), size=40_000), KeepingSink()
            for _ in range(50):
                breaks, back = rng.randrange(1, 12), rng.randrange(1, 12)
                had, source.asked = len(sink.blocks), []
                found = await exchange(
                    source,
                    sink,
                    change=lambda n, m, at=breaks: m if n < at else None,
                    change_back=lambda n, m, at=back: m if n < at else None,
                )
                assert not source.asked or source.asked[0] == had
                if found[0] is None:
                    break
                assert isinstance(found[0], OSError), found
            assert found[0] is None
            assert sink.blocks == source.blocks

    run_virtual(scenario())


def test_a_damaged_message_ends_the_connection_and_nothing_of_it_is_used() -> None:
    rng = random.Random(5)

    def damage(number: int, message: bytes, at: int) -> bytes:
        if number != at:
            return message
        position = rng.randrange(len(message))
        return message[:position] + bytes([message[position] ^ 1 << rng.randrange(8)]) + message[position + 1 :]

    async def scenario() -> None:
        for at in range(1, 5):
            source, sink = BlockSource(30), KeepingSink()
            out, into, _ = streams(limits(), change=lambda n, m, at=at: damage(n, m, at))
            sender = asyncio.ensure_future(sending(out, source))
            with pytest.raises(CodecError):
                await Incoming(lambda sink=sink: sink).serve(into)  # type: ignore[misc]
            sender.cancel()
            assert sink.blocks == source.blocks[: len(sink.blocks)]
            assert sink.finished == 0

    run_virtual(scenario())


def test_a_receiver_says_why_it_refuses() -> None:
    async def scenario() -> None:
        sink = KeepingSink()
        source = BlockSource(50)
        source.blocks[30] = b"\xff" * 10_000  # damaged before it was framed: only the sink can tell
        found = await exchange(source, sink)
        assert isinstance(found[0], SnapshotRefused)
        assert (found[0].message, found[1]) == ("block 30 is damaged", False)
        assert sink.finished == 0
        sink.refuses = "the snapshot is of another cluster"
        found = await exchange(BlockSource(5, header=b"other"), sink)
        assert "of another cluster" in str(found[0])
        out, into, _ = streams(limits())
        nobody = await asyncio.gather(sending(out, source), Incoming(lambda: None).serve(into), return_exceptions=True)
        assert "takes no snapshot now" in str(nobody[0])

        async def refuse() -> None:
            raise SnapshotRefused("the digest differs")

        sink = KeepingSink()
        sink.before_finish = refuse
        found = await exchange(BlockSource(5), sink)
        assert "the digest differs" in str(found[0])

    run_virtual(scenario())


def test_a_failed_disk_is_the_receiving_nodes_own_affair() -> None:
    async def scenario() -> None:
        sink = KeepingSink()

        async def fail() -> None:
            raise StorageFailed("no disk")

        sink.before_write = fail
        out, into, _ = streams(limits())
        sender = asyncio.ensure_future(sending(out, BlockSource(5)))
        with pytest.raises(StorageFailed):
            await Incoming(lambda: sink).serve(into)
        sender.cancel()

    run_virtual(scenario())


def test_a_later_offer_replaces_an_earlier_one() -> None:
    """The same leader dialled again, or a newer leader came: the older connection is closed."""

    async def scenario() -> None:
        sink = KeepingSink()
        incoming = Incoming(lambda: sink)
        hangs = asyncio.Event()

        async def hang() -> None:
            await hangs.wait()

        sink.before_write = hang
        first = asyncio.ensure_future(exchange(BlockSource(50, header=b"older"), sink, incoming=incoming))
        await asyncio.sleep(1)
        assert sink.header == b"older"
        sink.before_write = None
        newer = BlockSource(20)
        assert await exchange(newer, sink, incoming=incoming) == [None, True]
        assert (sink.header, sink.blocks, sink.finished) == (HEADER, newer.blocks, 1)
        found = await first
        assert isinstance(found[0], OSError)  # nothing came any more
        assert isinstance(found[1], ConnectionAbortedError)

    run_virtual(scenario())


def test_while_one_is_taken_over_a_further_offer_is_refused() -> None:
    async def scenario() -> None:
        sink = KeepingSink()
        incoming = Incoming(lambda: sink)
        begun = asyncio.Event()

        async def build() -> None:
            begun.set()
            await asyncio.sleep(100)

        sink.before_finish = build
        first = asyncio.ensure_future(exchange(BlockSource(5), sink, incoming=incoming))
        await begun.wait()
        found = await exchange(BlockSource(5, header=b"newer"), sink, incoming=incoming)
        assert "another snapshot is being taken over" in str(found[0])
        assert await first == [None, True]
        assert await exchange(BlockSource(5, header=b"newer"), sink, incoming=incoming) == [None, True]

    run_virtual(scenario())


def test_what_has_come_whole_is_taken_over_even_if_the_sender_goes() -> None:
    async def scenario() -> None:
        sink = KeepingSink()

        async def build() -> None:
            await asyncio.sleep(50)

        sink.before_finish = build
        # messages of the receiver: WANT, acknowledgements, PINGs while it builds; from the 5th on nothing arrives
        found = await exchange(BlockSource(5), sink, change_back=lambda n, m: m if n < 5 else None)
        assert isinstance(found[0], ConnectionResetError)
        assert sink.finished == 1

    run_virtual(scenario())


@pytest.mark.parametrize(
    ("hangs", "limit_ms"),
    [
        ("write", LIMITS.silence_ms_max * STALLS),
        ("finish", FINISH_MS_MAX),
    ],
)
def test_a_receiver_that_lives_and_does_not_get_on_is_given_up(hangs: str, limit_ms: int) -> None:
    async def scenario() -> None:
        sink = KeepingSink()

        async def hang() -> None:
            await asyncio.Event().wait()

        setattr(sink, f"before_{hangs}", hang)
        out, into, _ = streams(limits())
        receiver = asyncio.ensure_future(Incoming(lambda: sink).serve(into))
        with pytest.raises(TimeoutError, match=f"no progress with member 2 for {limit_ms} ms"):
            await sending(out, BlockSource(50))
        assert asyncio.get_running_loop().time() < limit_ms / 1e3 + 5
        receiver.cancel()
        await asyncio.wait({receiver})

    run_virtual(scenario())


def test_a_silent_peer_is_given_up_on_both_sides() -> None:
    async def scenario() -> None:
        silence_ms = limits().silence_ms_max
        for first in (False, True):
            out, into, _ = streams(limits())
            work = sending(out, BlockSource(5)) if first else Incoming(KeepingSink).serve(into)
            began = asyncio.get_running_loop().time()
            with pytest.raises(TimeoutError, match=f"for {silence_ms} ms"):
                await work
            assert asyncio.get_running_loop().time() - began < silence_ms / 1e3 + 1

    run_virtual(scenario())


def test_a_source_that_hangs_is_given_up() -> None:
    class Hanging(BlockSource):
        async def block(self, number: int) -> bytes | None:
            if number == 3:
                await asyncio.Event().wait()
            return await super().block(number)

    found = run_virtual(exchange(Hanging(5), KeepingSink()))
    assert isinstance(found[0], TimeoutError)


def frame(kind: int, payload: bytes = b"") -> Callable[[int], bytes]:
    return lambda number: encode_frame(kind, payload, number)


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([frame(FrameKind.WANT, bytes(8))], id="no offer"),
        pytest.param([frame(FrameKind.OFFER, b"h"), frame(FrameKind.OFFER, b"h")], id="two offers"),
        pytest.param([frame(FrameKind.OFFER, b"h"), frame(FrameKind.BLOCK, (1).to_bytes(8, "big"))], id="a gap"),
        pytest.param([frame(FrameKind.OFFER, b"h"), frame(FrameKind.BLOCK, b"short")], id="no number"),
        pytest.param([frame(FrameKind.OFFER, b"h"), frame(FrameKind.END, (3).to_bytes(8, "big"))], id="ends early"),
        pytest.param([frame(FrameKind.OFFER, b"h"), frame(FrameKind.MESSAGE, b"")], id="a message"),
        pytest.param([frame(FrameKind.OFFER, b"h"), frame(FrameKind.DONE)], id="done"),
    ],
)
def test_what_a_sender_may_not_say_ends_the_connection(frames: list[Callable[[int], bytes]]) -> None:
    async def scenario() -> None:
        left = [made(number) for number, made in enumerate(frames, start=1)]

        async def take() -> bytes:
            return left.pop(0)

        async def put(_message: bytes) -> None: ...

        stream = Stream(ONE, put=put, take=take, settings=limits(), counters=streams(limits())[2])
        sink = KeepingSink()
        with pytest.raises(CodecError):
            await Incoming(lambda: sink).serve(stream)
        assert sink.blocks == []
        assert sink.finished == 0

    run_virtual(scenario())


def test_who_has_all_that_the_snapshot_has_says_so_and_gets_nothing() -> None:
    async def scenario() -> None:
        sent: list[bytes] = []

        async def take() -> bytes:
            return frame(FrameKind.DONE)(1)

        async def put(message: bytes) -> None:
            sent.append(message)

        await sending(Stream(TWO, put=put, take=take, settings=limits(), counters=streams(limits())[2]), BlockSource(3))
        assert len(sent) == 1, "the offer"

    run_virtual(scenario())


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(frame(FrameKind.END, bytes(8)), id="its own end"),
        pytest.param(frame(FrameKind.WANT, bytes(9)), id="more than a number"),
        pytest.param(frame(FrameKind.WANT, b""), id="no number"),
    ],
)
def test_what_a_receiver_may_not_say_ends_the_connection(answer: Callable[[int], bytes]) -> None:
    async def scenario() -> None:
        async def take() -> bytes:
            return answer(1)

        async def put(_message: bytes) -> None: ...

        stream = Stream(TWO, put=put, take=take, settings=limits(), counters=streams(limits())[2])
        with pytest.raises(CodecError):
            await sending(stream, BlockSource(3))

    run_virtual(scenario())


def test_an_acknowledgement_of_something_else_ends_the_connection() -> None:
    async def scenario() -> None:
        answers = [frame(FrameKind.WANT, bytes(8))(1), frame(FrameKind.WANT, (2).to_bytes(8, "big"))(2)]

        async def take() -> bytes:
            return answers.pop(0)

        async def put(_message: bytes) -> None: ...

        stream = Stream(TWO, put=put, take=take, settings=limits(), counters=streams(limits())[2])
        with pytest.raises(CodecError, match="block 2 is wanted where 3 must be"):
            await sending(stream, BlockSource(3))

    run_virtual(scenario())


def test_a_block_that_fits_no_message_is_refused_where_it_is_made() -> None:
    most = limits().message_bytes_max - HEAD_BYTES - 8
    assert run_virtual(exchange(BlockSource(2, size=most // 4 * 4), KeepingSink())) == [None, True]
    found = run_virtual(exchange(BlockSource(2, size=most + 4), KeepingSink()))
    assert isinstance(found[0], SnapshotRefused)
    assert "peer.message_bytes_max" in found[0].message


def test_the_rate_is_kept_over_any_time() -> None:
    rng = random.Random(8)
    for _ in range(50):
        rate = rng.randrange(64 << 10, 64 << 20)
        pace, now_ms, total = Pace(rate), rng.randrange(1_000_000), 0
        began_ms = now_ms
        for _ in range(200):
            size = rng.randrange(1, 200_000)
            now_ms += pace.delay_ms(size, now_ms)
            total += size
            assert total <= BURST_BYTES + size + rate * (now_ms - began_ms + 1) // 1_000
        assert total >= rate * (now_ms - began_ms) // 1_000  # and not slower than that either
        assert pace.delay_ms(1_000, now_ms + 3_600_000) == 0  # after a pause a burst goes at once


def test_a_snapshot_keeps_the_rate() -> None:
    async def scenario() -> None:
        found = limits(snapshot_bytes_per_s=1 << 20)
        began = asyncio.get_running_loop().time()
        assert await exchange(BlockSource(1_000), KeepingSink(), found=found) == [None, True]
        assert 9.0 < asyncio.get_running_loop().time() - began < 10.5  # 10 MB at 1 MiB/s

    run_virtual(scenario())


# ── over real connections ───────────────────────────────────────────────────────────────────────────


async def test_a_snapshot_goes_from_member_to_member_beside_their_messages() -> None:
    """Either id may send. What is said meanwhile on the other lanes arrives in order."""
    async with Cluster(1, 2, 3) as cluster:
        await cluster.connected()
        for sender, receiver in ((1, 2), (3, 2)):
            source, sink = BlockSource(300, size=60_000, header=bytes([sender])), KeepingSink()
            cluster.receivers[receiver].snapshot_sink = sink
            cluster.receivers[receiver].messages.clear()
            work = asyncio.ensure_future(cluster.nodes[sender].send_snapshot(NodeId(receiver), source))
            said = 0
            while not work.done():
                said += 1
                cluster.nodes[sender].send(NodeId(receiver), reply(sender, said))
                await asyncio.sleep(0.001)
            await work
            assert sink.blocks == source.blocks
            assert sink.begun == [(sender, 0)]
            await until(lambda at=receiver, count=said: len(cluster.receivers[at].messages) == count)  # type: ignore[misc]
            assert cluster.receivers[receiver].messages == [reply(sender, number + 1) for number in range(said)]
        counters = cluster.nodes[2].counters
        assert counters["snapshots_received"] == 2
        assert counters["bytes_received_snapshot"] > 36_000_000
        assert cluster.nodes[1].counters["snapshots_sent"] == 1
        assert cluster.nodes[1].links()[TWO].epoch == 1


async def test_it_is_refused_with_the_receivers_reason() -> None:
    async with Cluster(1, 2) as cluster:
        await cluster.connected()
        with pytest.raises(SnapshotRefused, match="takes no snapshot now"):
            await cluster.nodes[1].send_snapshot(TWO, BlockSource(3))
        sink = cluster.receivers[2].snapshot_sink = KeepingSink()
        source = BlockSource(3)
        source.blocks[1] = b"\xff" * 100
        with pytest.raises(SnapshotRefused, match="block 1 is damaged"):
            await cluster.nodes[1].send_snapshot(TWO, source)
        assert sink.finished == 0
        assert cluster.is_connected()


async def test_it_resumes_after_the_connection_was_cut() -> None:
    async with Cluster(1, 2) as cluster:
        await cluster.connected()
        source, sink = BlockSource(200, size=60_000), KeepingSink()
        cluster.receivers[2].snapshot_sink = sink

        async def cut() -> None:
            if len(sink.blocks) > 50 and len(sink.begun) == 1:
                cluster.nodes[2]._snapshots.abort()

        sink.before_write = cut
        with pytest.raises(OSError, match=r"ended|reset|closing"):
            await cluster.nodes[1].send_snapshot(TWO, source)
        await cluster.nodes[1].send_snapshot(TWO, source)
        assert sink.blocks == source.blocks
        assert sink.begun[1][1] > 50
        assert cluster.nodes[1].links()[TWO].epoch == 1  # the pair beside it never noticed


async def test_a_member_that_goes_takes_its_snapshot_with_it() -> None:
    """Removed at the sender, gone, or closed here: an error, never a wait."""
    async with Cluster(1, 2, 3) as cluster:
        await cluster.connected()
        sink = KeepingSink()

        async def hang() -> None:
            await asyncio.Event().wait()

        sink.before_write = hang
        with pytest.raises(ConnectionAbortedError, match="no link to member 9"):
            await cluster.nodes[1].send_snapshot(NodeId(9), BlockSource(3))
        for receiver in (2, 3):
            cluster.receivers[receiver].snapshot_sink = sink
        first = asyncio.ensure_future(cluster.nodes[1].send_snapshot(TWO, BlockSource(100)))
        second = asyncio.ensure_future(cluster.nodes[1].send_snapshot(THREE, BlockSource(100)))
        await until(lambda: len(sink.begun) == 2)
        cluster.nodes[1].set_members({ONE: cluster.ports[1], THREE: cluster.ports[3]})
        with pytest.raises(OSError, match=r"ended|reset|closing"):
            await first
        await cluster.nodes[3].close()
        with pytest.raises(OSError, match=r"ended|reset|closing"):
            await second
        with pytest.raises(OSError):
            await cluster.nodes[1].send_snapshot(THREE, BlockSource(3))


async def test_a_failed_disk_under_a_snapshot_fails_the_node() -> None:
    async with Cluster(1, 2) as cluster:
        await cluster.connected()
        sink = cluster.receivers[2].snapshot_sink = KeepingSink()

        async def fail() -> None:
            raise StorageFailed("no disk")

        sink.before_write = fail
        with pytest.raises(OSError):
            await cluster.nodes[1].send_snapshot(TWO, BlockSource(3))
        await until(lambda: cluster.failures)
        assert isinstance(cluster.failures.pop(), StorageFailed)


async def test_a_stranger_cannot_offer_a_snapshot() -> None:
    cluster = Cluster(1, 2)
    cluster.make(1, secret=b"?" * 32)
    cluster.make(2)
    await cluster.begin(1)
    await cluster.begin(2)
    try:
        sink = cluster.receivers[2].snapshot_sink = KeepingSink()
        with pytest.raises(ConnectionAbortedError, match="secret"):
            await cluster.nodes[1].send_snapshot(TWO, BlockSource(3))
        assert sink.begun == []
    finally:
        await cluster.__aexit__()


async def test_closing_does_not_wait_for_a_snapshot() -> None:
    async with Cluster(1, 2, settings=settings()) as cluster:
        await cluster.connected()
        sink = cluster.receivers[2].snapshot_sink = KeepingSink()

        async def hang() -> None:
            await asyncio.Event().wait()

        sink.before_finish = hang
        work = asyncio.ensure_future(cluster.nodes[1].send_snapshot(TWO, BlockSource(3)))
        await until(lambda: len(sink.blocks) == 3)
        cluster.nodes[1].send(TWO, append(1, 1))
        async with asyncio.timeout(4):
            await cluster.nodes[1].close()
            await cluster.nodes[2].close()
        with pytest.raises(OSError):
            await work
        assert sink.finished == 0
