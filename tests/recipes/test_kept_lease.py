"""What the holder of a lease may believe, to the millisecond, whatever becomes of its renewals. In virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest

from kvnode.errors import ConnectionLost, Fenced, KvnodeError, LeaseNotFound, NoLeader, PermissionDenied, Timeout
from kvnode.recipes.kept_lease import Belief, KeptLease, Standing
from kvnode.sim.loop import run_virtual

TTL_MS = 12_000
DOUBT_MS = 8_000
SURE, IN_DOUBT, LOST = Standing


class Clock:
    """Virtual time, and what a pause of the process or a suspended machine adds to it."""

    def __init__(self) -> None:
        self.pause_ms = 0

    def now_ms(self) -> int:
        return self.pause_ms + round(asyncio.get_running_loop().time() * 1e3)


class Server:
    """Answers renewals as it is told to, and notes when they came."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.came_ms: list[int] = []
        self.behaviour: Callable[[int], Awaitable[None]] = self.acknowledge

    async def renew(self, timeout_ms: int) -> None:
        self.came_ms.append(self.clock.now_ms())
        await self.behaviour(timeout_ms)

    async def acknowledge(self, timeout_ms: int) -> None:
        await asyncio.sleep(0.005)

    async def never(self, timeout_ms: int) -> None:
        await asyncio.sleep(timeout_ms / 1e3)
        raise Timeout("no answer")


def keeping(scenario: Callable[[Clock, Server, KeptLease], Awaitable[None]]) -> None:
    async def main() -> None:
        clock = Clock()
        server = Server(clock)
        kept = KeptLease(server.renew, TTL_MS, clock.now_ms(), now_ms=clock.now_ms)
        task = asyncio.ensure_future(kept.keep())
        try:
            await scenario(clock, server, kept)
        finally:
            task.cancel()

    run_virtual(main())


@pytest.mark.parametrize(
    ("age_ms", "standing"),
    [
        (0, SURE),
        (DOUBT_MS - 1, SURE),
        (DOUBT_MS, IN_DOUBT),
        (TTL_MS - 1, IN_DOUBT),
        (TTL_MS, LOST),
        (9 * TTL_MS, LOST),
    ],
)
def test_the_belief_counts_from_the_sending_of_what_was_acknowledged(age_ms: int, standing: Standing) -> None:
    assert Belief(TTL_MS, 5_000).standing(5_000 + age_ms) is standing
    renewed = Belief(TTL_MS, 0)
    renewed.on_renewed(sent_ms=5_000, now_ms=7_000)
    assert renewed.standing(5_000 + age_ms) is standing
    assert bool(renewed.why_lost) == (standing is LOST)


def test_a_failed_renewal_leaves_doubt_until_a_later_one_is_acknowledged() -> None:
    belief = Belief(TTL_MS, 0)
    belief.on_no_answer()
    assert belief.standing(1) is IN_DOUBT
    assert belief.standing(TTL_MS - 1) is IN_DOUBT
    belief.on_renewed(sent_ms=6_000, now_ms=TTL_MS - 1)
    assert belief.standing(TTL_MS) is SURE
    assert belief.standing(6_000 + TTL_MS) is LOST


def test_lost_is_final() -> None:
    late = Belief(TTL_MS, 0)
    late.on_renewed(sent_ms=6_000, now_ms=TTL_MS)
    assert late.standing(TTL_MS) is LOST
    refused = Belief(TTL_MS, 0)
    refused.on_refused("gone")
    assert refused.standing(1) is LOST
    refused.on_renewed(sent_ms=2, now_ms=3)
    refused.on_refused("something else")
    assert (refused.standing(4), refused.why_lost) == (LOST, "gone")


def test_it_is_renewed_every_third_of_its_time_and_sure_all_along() -> None:
    async def scenario(clock: Clock, server: Server, kept: KeptLease) -> None:
        while clock.now_ms() < 10 * TTL_MS:
            assert kept.standing is SURE
            await asyncio.sleep(0.1)
        assert server.came_ms == pytest.approx([TTL_MS // 3 * n for n in range(1, 30)], abs=5)

    keeping(scenario)


def test_renewals_without_an_answer_leave_doubt_then_loss_at_the_ttl_of_the_last_acknowledged_sending() -> None:
    async def scenario(clock: Clock, server: Server, kept: KeptLease) -> None:
        await asyncio.sleep(5)
        [sent_ms] = server.came_ms
        server.behaviour = server.never
        while kept.standing is SURE:
            await asyncio.sleep(0.001)
        assert clock.now_ms() == pytest.approx(sent_ms + TTL_MS // 3 + TTL_MS // 6, abs=2), "the first is given up"
        why = await kept.lost()
        assert clock.now_ms() == pytest.approx(sent_ms + TTL_MS, abs=2)
        assert "no renewal was answered for 12000 ms" in why
        assert kept.standing is LOST
        asked = [came_ms - sent_ms for came_ms in server.came_ms[1:]]
        assert len(asked) == 4, "each node of three in time"
        assert all(later - earlier < TTL_MS // 4 for earlier, later in pairwise(asked))
        server.behaviour = server.acknowledge
        await asyncio.sleep(TTL_MS / 1e3)
        assert len(server.came_ms) == 5, "it is over: nothing is renewed any more"

    keeping(scenario)


def test_doubt_ends_with_an_answer() -> None:
    async def scenario(clock: Clock, server: Server, kept: KeptLease) -> None:
        server.behaviour = server.never
        await asyncio.sleep(7)
        assert kept.standing is IN_DOUBT
        server.behaviour = server.acknowledge
        await asyncio.sleep(3)
        assert kept.standing is SURE
        assert clock.now_ms() < TTL_MS
        await asyncio.sleep(20)
        assert kept.standing is SURE

    keeping(scenario)


@pytest.mark.parametrize("refusal", [LeaseNotFound("ended"), Fenced("ended")])
def test_a_refused_renewal_is_a_loss_at_once(refusal: KvnodeError) -> None:
    async def scenario(clock: Clock, server: Server, kept: KeptLease) -> None:
        async def refuse(timeout_ms: int) -> None:
            raise refusal

        server.behaviour = refuse
        assert await kept.lost() == "ended"
        assert clock.now_ms() == pytest.approx(TTL_MS // 3, abs=2)
        assert kept.standing is LOST

    keeping(scenario)


@pytest.mark.parametrize("error", [NoLeader("none"), ConnectionLost("cut"), PermissionDenied("not now")])
def test_any_other_error_leaves_doubt(error: KvnodeError) -> None:
    async def scenario(clock: Clock, server: Server, kept: KeptLease) -> None:
        async def fail(timeout_ms: int) -> None:
            raise error

        server.behaviour = fail
        await asyncio.sleep(5)
        assert kept.standing is IN_DOUBT
        await kept.lost()
        assert clock.now_ms() == pytest.approx(TTL_MS, abs=2)
        assert len(server.came_ms) < 20, "not in a tight loop"

    keeping(scenario)


def test_an_answer_that_comes_after_the_end_changes_nothing() -> None:
    async def scenario(clock: Clock, server: Server, kept: KeptLease) -> None:
        async def late(timeout_ms: int) -> None:
            await asyncio.sleep(TTL_MS / 1e3)

        server.behaviour = late
        await kept.lost()
        assert clock.now_ms() == pytest.approx(TTL_MS, abs=2), "though it is still under way"
        await asyncio.sleep(TTL_MS / 1e3)
        assert kept.standing is LOST

    keeping(scenario)


@pytest.mark.parametrize(
    ("pause_ms", "standing"), [(TTL_MS - 3_000 - 1_100, IN_DOUBT), (TTL_MS - 3_000, LOST), (5 * TTL_MS, LOST)]
)
def test_a_process_that_wakes_from_a_pause_knows_where_it_stands(pause_ms: int, standing: Standing) -> None:
    async def scenario(clock: Clock, server: Server, kept: KeptLease) -> None:
        await asyncio.sleep(3)
        clock.pause_ms += pause_ms
        assert kept.standing is standing, "at once, before any timer has run"
        if standing is LOST:
            await kept.lost()
            assert clock.now_ms() <= 3_000 + pause_ms + 1_000
            assert server.came_ms == []
        else:
            await asyncio.sleep(1.1)
            assert kept.standing is SURE, "renewed in time, though the timers stood still"

    keeping(scenario)


def test_a_pause_that_a_renewal_was_under_way_in_is_counted() -> None:
    """It was sent before the pause and is acknowledged after it: the lease lives from the sending on."""

    async def scenario(clock: Clock, server: Server, kept: KeptLease) -> None:
        async def pause(timeout_ms: int) -> None:
            server.behaviour = server.never
            clock.pause_ms += TTL_MS * 2 // 3 - 1

        server.behaviour = pause
        await asyncio.sleep(4.5)
        assert kept.standing is IN_DOUBT
        await kept.lost()
        assert clock.now_ms() == pytest.approx(TTL_MS // 3 + TTL_MS, abs=500)

    keeping(scenario)


def test_a_bug_in_renewing_is_a_loss_and_not_silence() -> None:
    async def scenario(clock: Clock, server: Server, kept: KeptLease) -> None:
        async def broken(timeout_ms: int) -> None:
            raise ZeroDivisionError

        server.behaviour = broken
        assert "ZeroDivisionError" in await kept.lost()

    keeping(scenario)
