"""Insistent clients: they name their writes and send each until they are told something, wherever, again and again.

Every sending is an attempt of the record that `kvnode.check.sessions` judges: at most one effect a write, and all
answers equal. Some writes are asked for again although they were answered, at the same time at two members, or under a
number that was acknowledged long ago. Keys are their own, beside those of the other clients.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import msgspec

from kvnode.check import sessions
from kvnode.check.sessions import Attempt
from kvnode.errors import CompareFailed, Conflict, KvnodeError
from kvnode.ids import NodeId
from kvnode.kv.requests import Command, Compare, Put, Range, SessionEnd, SessionOpen, StoreWrite, Txn, TxnReply
from kvnode.sim.runtime.witness import Witness
from kvnode.sim.runtime.workload import PATIENCE_S, Workload

PREFIX = "named-"
CLIENTS = 2
SENDINGS_MAX = 12
"""A client gives a write up after so many."""


class Insistent:
    """All such clients of a run."""

    def __init__(
        self, load: Workload, members: list[NodeId], fork: Callable[[str], random.Random], *, repeats_keys: bool
    ) -> None:
        """`repeats_keys`: an Idempotency-Key is kept for longer than the run lasts; after that it may act again."""
        self.repeats_keys = repeats_keys
        self.attempts: list[Attempt] = []
        self.given_again = 0  # answers that came after one had been lost
        self._load = load
        self._members = members
        self._fork = fork

    def start(self) -> None:
        for number in range(CLIENTS):
            client = _Client(self, self._load, self._members, self._fork, number)
            self._load.join(client.live(), f"insistent-{number}")

    def judge(self, witness: Witness) -> None:
        """Raises: AssertionError with what is wrong."""
        effects = {value: [revision] for value, (revision, _) in witness.places.items()}
        problems = sessions.check(self.attempts, effects)
        assert not problems, problems


class _Client:
    """One write after the other, each sent as often as it takes."""

    def __init__(
        self,
        shared: Insistent,
        load: Workload,
        members: list[NodeId],
        fork: Callable[[str], random.Random],
        number: int,
    ) -> None:
        self._shared = shared
        self._load = load
        self._members = members
        self._rng = fork(f"insistent-{number}")
        self._forms = fork(f"insistent-forms-{number}")
        self._name = number
        self._session = 0
        self._sequence = 0
        self._keys = 0
        self._settled: list[tuple[Command, str]] = []  # with the value written

    async def live(self) -> None:
        rng = self._rng
        while not self._load.is_over:
            await asyncio.sleep(rng.expovariate(1.0 / self._load.pause_s))
            if not self._session and not await self._open():
                continue
            if self._settled and rng.random() < 0.2:
                await self._send(*rng.choice(self._settled[-20:]))
                continue
            command, value = self._make()
            if await self._insist(command, value):
                self._settled.append((command, value))
            if self._session and rng.random() < 0.02:
                await self._ask(SessionEnd(((self._session, 0),)))

    async def _open(self) -> bool:
        reply = await self._ask(SessionOpen(self._rng.choice((1_000, 3_600_000))))
        if isinstance(reply, KvnodeError | TimeoutError):
            return False
        self._session, self._sequence = reply.session, 0
        return True

    def _make(self) -> tuple[Command, str]:
        rng, load = self._rng, self._load
        key, value = f"{PREFIX}{rng.randrange(3)}".encode(), load.value(rng)
        condition = rng.choice((-1, -1, -2, 0))
        write: StoreWrite = Put(key, value.encode(), if_revision=condition, return_previous=rng.random() < 0.3)
        if rng.random() < 0.3:
            write = Txn((Compare(key, "version", "<", rng.randrange(60)),), (Put(key, value.encode()), Range(key)))
            if self._forms.random() < 0.3:
                write = Txn((), (write,))
        if rng.random() < 0.3:
            self._keys += 1
            return Command(write, key=b"%d.%d" % (self._name, self._keys)), value
        self._sequence += 1
        acknowledged = rng.choice((0, self._sequence - 1, max(0, self._sequence - 3)))
        return Command(write, self._session, self._sequence, acknowledged), value

    async def _insist(self, command: Command, value: str) -> bool:
        """Until an answer has come, and sometimes once more; whether one has."""
        lost = False
        for _ in range(SENDINGS_MAX):
            found = [await self._send(command, value)]
            if command.key and not self._shared.repeats_keys:
                return False
            if self._rng.random() < 0.2:
                found += await asyncio.gather(self._send(command, value), self._send(command, value))
            if "ok" in found:
                self._shared.given_again += lost
                return True
            lost = lost or "info" in found
            if command.session and command.session != self._session:
                return False
            if self._load.is_over:
                return False
            await asyncio.sleep(self._rng.uniform(0.0, 0.2))
        return False

    async def _send(self, command: Command, value: str) -> str:
        """One attempt, at any member; its status."""
        name = f"key {command.key.decode()}" if command.key else str(command.session)
        attempt = Attempt(session=name, sequence=command.sequence, value=value, call=self._load.now_ns())
        reply = await self._ask(command)
        attempt = msgspec.structs.replace(attempt, ret=self._load.now_ns())
        if isinstance(reply, CompareFailed):
            attempt = msgspec.structs.replace(attempt, answer=f"{reply.message} {reply.detail}")
        elif isinstance(reply, KvnodeError) and not reply.may_have_applied:
            assert not isinstance(reply, Conflict), (command, reply)
            attempt = msgspec.structs.replace(attempt, status="fail", code=reply.code)
            if reply.code == "session_expired" and command.session == self._session:
                self._session = 0
        elif isinstance(reply, KvnodeError | TimeoutError):
            attempt = msgspec.structs.replace(attempt, status="info", ret=None)
        else:
            did = not isinstance(reply, TxnReply) or _did(reply)
            attempt = msgspec.structs.replace(attempt, answer=repr(reply), rev=reply.revision if did else 0)
        self._shared.attempts.append(attempt)
        return attempt.status

    async def _ask(self, request: Any) -> Any:
        """The reply, or the error."""
        options = self._load.options(self._rng)
        try:
            async with asyncio.timeout(options.timeout_ms / 1e3 + PATIENCE_S):
                return await self._load.ask(self._rng.choice(self._members), request, options, lambda: None)
        except (KvnodeError, TimeoutError) as error:
            return error


def _did(reply: TxnReply) -> bool:
    """Whether it wrote, or the transaction that is all there is inside it."""
    return reply.succeeded and all(_did(result) for result in reply.results if isinstance(result, TxnReply))
