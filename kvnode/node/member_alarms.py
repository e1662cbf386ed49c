"""What about the members an operator has to look into: who is unreachable, what change does not come to its end.

What has to last to be worth an alarm is judged by this node's own clock, from when it first saw it: a restart begins
the grace anew. Alarms are sentences that stay the same as long as the matter does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from kvnode.clocks.clock import Clock
from kvnode.ids import NOBODY, NodeId
from kvnode.node.ports import Transport
from kvnode.raft.core import Raft
from kvnode.raft.messages import Configuration, Member

LOOK_MS = 1_000

UNREACHABLE_MS = 5_000
"""A restart takes less."""

CHANGE_MS = 600_000
"""A large store takes minutes to reach a learner."""


class MemberAlarms:
    """Lives on the node's loop; looks once in a while from `start` to `stop`."""

    def __init__(
        self,
        *,
        raft: Raft,
        transport: Transport,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        on_failed: Callable[[BaseException], None],
    ) -> None:
        self._raft = raft
        self._transport = transport
        self._loop = loop
        self._clock = clock
        self._on_failed = on_failed
        self._since_ms: dict[tuple[str, NodeId], int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.alarms: tuple[str, ...] = ()

    def start(self) -> None:
        self._timer = self._loop.call_later(LOOK_MS / 1e3, self._look)

    def stop(self) -> None:
        """Idempotent."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = self._loop.call_later(LOOK_MS / 1e3, self._look)
        try:
            self.alarms = tuple(self._find(self._clock.monotonic_ms()))
        except BaseException as error:  # noqa: BLE001 - a bug must end the node, not go unseen in a timer
            self._on_failed(error)

    def _find(self, now_ms: int) -> list[str]:
        configuration, links = self._raft.configuration, self._transport.links()
        members = {member.id: member for member in configuration.members}
        self._since_ms = {key: since for key, since in self._since_ms.items() if key[1] in members}
        found = []
        for member in members.values():
            is_voter = member.id in configuration.voters
            link = links.get(member.id)
            is_down = member.id != self._raft.node and (link is None or not link.connected)
            if self._lasts("down", member.id, is_down, UNREACHABLE_MS, now_ms):
                kind = "voter" if is_voter else "learner"
                found.append(f"{kind} {_words(member)} cannot be reached from here")
            if self._lasts("waits", member.id, member.wants_vote and not is_voter, CHANGE_MS, now_ms):
                found.append(
                    f"learner {_words(member)} has not caught up, so it has no vote: see its log, or remove it"
                )
            replaced = members.get(member.replaces)
            if self._lasts("replaced", member.id, is_voter and replaced is not None, CHANGE_MS, now_ms):
                assert replaced is not None
                found.append(f"member {member.id} has replaced member {_words(replaced)}, which is not removed yet")
        return [*found, *_even_voters(configuration, members)]

    def _lasts(self, what: str, member: NodeId, holds: bool, grace_ms: int, now_ms: int) -> bool:
        if not holds:
            self._since_ms.pop((what, member), None)
            return False
        return now_ms - self._since_ms.setdefault((what, member), now_ms) >= grace_ms


def _words(member: Member) -> str:
    return f"{member.id} ({member.name}, {member.address})" if member.name else f"{member.id} ({member.address})"


def _even_voters(configuration: Configuration, members: Mapping[NodeId, Member]) -> list[str]:
    """Not while a change goes on that passes an even number on its way."""
    count = len(configuration.voters)
    replaced = {member.replaces for member in members.values()} - {NOBODY}
    goes_on = any(member.wants_vote for member in members.values()) or not replaced.isdisjoint(members)
    if count % 2 or goes_on:
        return []
    return [f"there are {count} voters, which can lose no more of them than {count - 1} could: add or remove one"]
