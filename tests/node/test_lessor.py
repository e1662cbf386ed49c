"""The lessor alone: what it decides and when, by a clock of the test's own; bounds; a hundred thousand leases."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from kvnode.config import LimitsSection
from kvnode.errors import Overloaded
from kvnode.ids import Index
from kvnode.kv.requests import (
    TTL_MS_MAX,
    ApplyResult,
    LeaseGrant,
    LeaseList,
    LeaseRenew,
    LeaseRevoke,
    LeaseUpkeep,
    Put,
    WriteRequest,
)
from kvnode.machine.machine import StateMachine
from kvnode.node import leases as module
from kvnode.node.leases import Lessor, Told
from kvnode.storage.memory_backend import MemoryBackend

TTL_MS = 10_000


class Stand:
    """A lessor whose leadership, read rounds and proposals the test decides."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000
        self.machine = StateMachine(MemoryBackend(), LimitsSection())
        self.is_leading = True
        self.rounds: list[asyncio.Future[None]] = []
        self.proposed: list[tuple[WriteRequest, asyncio.Future[ApplyResult]]] = []
        self.is_overloaded = False
        self.lessor = Lessor(machine=self.machine, reads=self, clock=self, margin_ms=300)  # type: ignore[arg-type]
        self.lessor.connect(self)
        self.lessor.begin(self.now_ms)
        self.told: list[Told] = []

    # What the lessor asks of its surroundings.

    def monotonic_ms(self) -> int:
        return self.now_ms

    def look(self) -> None:
        pass

    def wait(self) -> asyncio.Future[None]:
        if self.is_overloaded:
            raise Overloaded("full")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.rounds.append(future)
        return future

    def propose(self, request: WriteRequest) -> asyncio.Future[ApplyResult]:
        fate: asyncio.Future[ApplyResult] = asyncio.get_running_loop().create_future()
        self.proposed.append((request, fate))
        return fate

    # What the test does.

    def apply(self, request: WriteRequest) -> ApplyResult:
        index = Index(self.machine.applied_index + 1)
        return self.machine.apply(index, index, request).result

    def grant(self, ttl_ms: int = TTL_MS) -> int:
        return self.apply(LeaseGrant(ttl_ms)).id

    def renewals(self, lease: int) -> int:
        return self.machine.leases.get(lease).renewals

    def ask(self, lease: int, *, renew: bool = True) -> None:
        self.lessor.ask(lease, renew=renew, answer=self.told.append)

    async def confirm(self) -> None:
        for future in self.rounds:
            if not future.done():
                future.set_result(None)
        self.rounds.clear()
        await asyncio.sleep(0)

    async def carry_out(self) -> None:
        for request, fate in self.proposed:
            fate.set_result(self.apply(request))
        self.proposed.clear()
        await asyncio.sleep(0)


@pytest.fixture
def stand() -> Stand:
    return Stand()


async def test_a_renewal_is_answered_after_a_round_that_began_after_it(stand: Stand) -> None:
    lease = stand.grant()
    stand.lessor.decide(stand.now_ms)
    stand.now_ms += 9_000
    stand.ask(lease)
    assert stand.told == []
    stand.now_ms += 2_000
    await stand.confirm()
    assert stand.told == [Told("", TTL_MS, TTL_MS)]
    stand.ask(lease, renew=False)
    await stand.confirm()
    assert stand.told[-1].remaining_ms == TTL_MS - 2_000, "it counts from its arrival"


async def test_nobody_is_answered_by_who_does_not_lead(stand: Stand) -> None:
    lease = stand.grant()
    stand.is_leading = False
    stand.ask(lease)
    stand.is_leading = True
    stand.ask(lease)
    stand.is_leading = False
    await stand.confirm()
    stand.is_leading = True
    stand.ask(lease)
    stand.rounds[0].set_exception(RuntimeError("the round failed"))
    await asyncio.sleep(0)
    stand.is_overloaded = True
    stand.ask(lease)
    assert [told.code for told in stand.told] == ["no_leader", "no_leader", "no_leader", "overloaded"]


async def test_what_was_decided_makes_the_next_renewal_a_logged_one(stand: Stand) -> None:
    lease = stand.grant()
    assert stand.lessor.decide(stand.now_ms) is None
    stand.now_ms += 3_800
    noted = stand.lessor.decide(stand.now_ms)
    assert isinstance(noted, LeaseUpkeep)
    assert noted.checkpoints == ((lease, stand.renewals(lease), TTL_MS - 3_800),)
    stand.ask(lease)  # the checkpoint is under way: it may be in the log, and be found there by the next leader
    await stand.confirm()
    assert stand.told == []
    assert [request for request, _ in stand.proposed] == [LeaseRenew(lease)]
    stand.apply(noted)
    await stand.carry_out()
    assert stand.told == [Told("", TTL_MS, TTL_MS)]
    assert stand.machine.leases.get(lease).remaining_ms == 0
    stand.ask(lease)
    await stand.confirm()
    assert len(stand.told) == 2
    assert not stand.proposed, "nothing has been decided since"


async def test_an_end_whose_fate_is_unknown_does_not_end_what_was_renewed_since(stand: Stand) -> None:
    lease = stand.grant()
    stand.lessor.decide(stand.now_ms)
    stand.now_ms += 5_000
    stand.lessor.decide(stand.now_ms)
    stand.now_ms += TTL_MS
    ended = stand.lessor.decide(stand.now_ms)
    assert isinstance(ended, LeaseUpkeep)
    assert ended.expired == ((lease, stand.renewals(lease)),)
    stand.ask(lease)
    await stand.confirm()
    assert stand.told == [], "it waits for the fate of the end"
    assert stand.lessor.decide(stand.now_ms) is None, "there is none: given up as unknown; the renewal is logged"
    await stand.carry_out()
    assert stand.told == [Told("", TTL_MS, TTL_MS)]
    stand.apply(ended)  # it came true after all, behind the renewal
    assert stand.machine.leases.get(lease) is not None


async def test_a_new_leader_believes_checkpoints_and_gives_all_others_their_whole_time(stand: Stand) -> None:
    whole, noted = stand.grant(), stand.grant()
    stand.apply(LeaseUpkeep((), ((noted, stand.renewals(noted), 2_000),)))
    stand.lessor.end()
    stand.lessor.begin(stand.now_ms)
    ends: dict[int, int] = {}
    began = stand.now_ms
    while len(ends) < 2:
        request = stand.lessor.decide(stand.now_ms)
        if request is not None:
            stand.apply(request)
            ends |= {lease: stand.now_ms - began for lease, _ in request.expired}
        stand.now_ms += 100
    assert 2_300 <= ends[noted] <= 2_500
    assert TTL_MS + 300 <= ends[whole] <= TTL_MS + 500


async def test_renewals_that_wait_are_told_when_leadership_ends(stand: Stand) -> None:
    lease = stand.grant()
    stand.lessor.decide(stand.now_ms)
    stand.now_ms += TTL_MS + 1
    assert stand.lessor.decide(stand.now_ms) is not None
    stand.ask(lease)
    await stand.confirm()
    stand.lessor.end()
    assert [told.code for told in stand.told] == ["no_leader"]


async def test_logged_renewals_are_bounded(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOGGING_MAX", 2)
    lease = stand.grant()
    stand.lessor.decide(stand.now_ms)
    stand.now_ms += 5_000
    stand.lessor.decide(stand.now_ms)
    for _ in range(3):
        stand.ask(lease)
    await stand.confirm()
    assert [told.code for told in stand.told] == ["overloaded"]
    await stand.carry_out()
    assert len(stand.told) == 3


async def test_mass_expiry_100k_leaves_in_bounded_batches(stand: Stand) -> None:
    """F86: nothing is lost, nothing is early, no batch is longer than its bound, each turn's work is bounded."""
    leases = [stand.grant(5_000) for _ in range(100_000)]
    for lease in leases[:20_000]:
        stand.apply(Put(b"k%d" % lease, b"v", lease))
    stand.lessor.end()
    stand.lessor.begin(stand.now_ms)
    began = stand.now_ms
    requests: list[LeaseUpkeep] = []

    def turns() -> Iterator[LeaseUpkeep]:
        while len(stand.machine.leases):
            request = stand.lessor.decide(stand.now_ms)
            if isinstance(request, LeaseUpkeep):
                yield request
                stand.apply(request)
            stand.now_ms += 100

    for request in turns():
        assert len(request.expired) <= module.ENDED_AT_ONCE
        assert len(request.checkpoints) <= module.NOTED_AT_ONCE
        assert not request.expired or stand.now_ms - began >= 5_000
        requests.append(request)
    ended = [lease for request in requests for lease, _ in request.expired]
    assert sorted(ended) == leases
    assert not stand.machine.look_up(LeaseList()).leases


async def test_very_many_leases_that_were_renewed_are_put_off_in_bounded_turns(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All were taken over at once, so all come up at once; nobody is late by more than the turns that it takes."""
    monkeypatch.setattr(module, "LOOKED_AT_ONCE", 10)
    leases = [stand.grant() for _ in range(95)]
    stand.lessor.begin(stand.now_ms)
    stand.lessor.decide(stand.now_ms)
    for lease in leases[:-1]:
        stand.ask(lease)
    await stand.confirm()
    stand.now_ms += TTL_MS // 4
    noted = []
    turns = 0
    while not noted:
        request = stand.lessor.decide(stand.now_ms)
        noted = list(request.checkpoints) if isinstance(request, LeaseUpkeep) else []
        turns += 1
    assert [lease for lease, _, _ in noted] == leases[-1:]
    assert turns == 10
    assert stand.lessor.decide(stand.now_ms) is None


async def test_what_ended_leaves_nothing_behind_however_long_its_time(stand: Stand) -> None:
    for _ in range(20):
        for lease in [stand.grant(TTL_MS_MAX) for _ in range(10)]:
            stand.apply(LeaseRevoke(lease))
        stand.lessor.decide(stand.now_ms)
        stand.now_ms += 100
    lease = stand.grant(TTL_MS_MAX)
    stand.lessor.decide(stand.now_ms)
    assert stand.lessor.held == 1
    stand.apply(LeaseRevoke(lease))
    stand.lessor.decide(stand.now_ms)
    assert stand.lessor.held == 0


async def test_a_lease_has_its_whole_time_before_the_lessor_has_had_its_turn(stand: Stand) -> None:
    stand.now_ms += 10 * TTL_MS
    stand.ask(stand.grant(), renew=False)
    await stand.confirm()
    assert stand.told == [Told("", TTL_MS, TTL_MS)]


@pytest.mark.parametrize("is_ending", [False, True])
async def test_a_later_lease_of_the_same_id_has_its_own_time(stand: Stand, is_ending: bool) -> None:
    stand.apply(LeaseGrant(100 * TTL_MS, 7))
    stand.lessor.decide(stand.now_ms)
    stand.now_ms += 101 * TTL_MS if is_ending else 100
    before = stand.lessor.decide(stand.now_ms)
    assert (before is not None) == is_ending
    stand.apply(LeaseRevoke(7))
    stand.apply(LeaseGrant(TTL_MS, 7))
    if before is not None:
        stand.ask(7)
        await stand.confirm()
        stand.apply(before)
    began = stand.now_ms
    ended = False
    while not ended:
        request = stand.lessor.decide(stand.now_ms)
        ended = isinstance(request, LeaseUpkeep) and bool(request.expired)
        stand.now_ms += 100
    assert TTL_MS <= stand.now_ms - began <= TTL_MS + 200
    assert [told.code for told in stand.told] == [""] * is_ending


async def test_many_keys_make_smaller_batches(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEYS_AT_ONCE", 5)
    leases = [stand.grant() for _ in range(4)]
    for number, lease in enumerate(leases):
        for key in range(3 if number else 7):
            stand.apply(Put(b"%d/%d" % (number, key), b"v", lease))
    stand.lessor.decide(stand.now_ms)
    sizes = []
    stand.now_ms += 2 * TTL_MS
    while len(stand.machine.leases):
        request = stand.lessor.decide(stand.now_ms)
        assert isinstance(request, LeaseUpkeep)
        sizes.append(len(request.expired))
        stand.apply(request)
    assert sizes == [1, 1, 1, 1], "one with too many goes alone"
