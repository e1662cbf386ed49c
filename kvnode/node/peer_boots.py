"""Peer boots: which start of each peer was seen last, and whether a directory went back in time since.

Each start of a data directory raises its boot counter and draws a nonce. A peer whose counter is below the one seen
last is an old backup. One that is equal with another nonce is a copy of the directory that runs as well. One that is
above, but does not have the start seen last among its own, is such a copy, started more often since.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from kvnode.ids import NodeId
from kvnode.wire.frames import Hello, Refusal


class Boot(Protocol):
    """One start of a node."""

    @property
    def counter(self) -> int: ...
    @property
    def nonce(self) -> int: ...


class OwnBoot(Boot, Protocol):
    """This start of this node."""

    @property
    def earlier(self) -> tuple[int, ...]:
        """Nonces of the starts before it, newest first, as far as they are remembered."""
        ...


SavePeerBoot = Callable[[int, int, int], None]
"""(member, counter, nonce), durable on return."""


class PeerBoots:
    """Of all peers, by member id; survives restarts by `save`."""

    def __init__(self, seen: Mapping[int, Boot], *, save: SavePeerBoot) -> None:
        self._boots = {NodeId(id_): (boot.counter, boot.nonce) for id_, boot in seen.items()}
        self._alarms: dict[tuple[NodeId, str], str] = {}
        self._save = save

    @property
    def alarms(self) -> tuple[str, ...]:
        """A copied or restored data directory among the peers."""
        return tuple(self._alarms.values())

    def forgive(self, member: NodeId) -> None:
        """What was wrong with its directory is over, as it is let in."""
        self._alarms = {of: sentence for of, sentence in self._alarms.items() if of[0] != member}

    def note(self, hello: Hello) -> None:
        """Record this start, durably. Cheap when it is known already. Raises: StorageFailed."""
        boot = (hello.boot_counter, hello.boot_nonce)
        if self._boots.get(hello.member) != boot:
            self._save(hello.member, *boot)
            self._boots[hello.member] = boot

    def judge(self, hello: Hello) -> Refusal | None:
        """None if `hello` can be of a later start than the one seen last. Changes nothing but `alarms`."""
        if hello.member not in self._boots:
            return None
        counter, nonce = self._boots[hello.member]
        starts_since = hello.boot_counter - counter
        if starts_since < 0:
            return self._alarm(
                hello.member,
                "stale_boot",
                f"member {hello.member} started for the {hello.boot_counter}. time, but its {counter}. start has been "
                "seen: its data directory is an old backup or a copy; remove the member and add it as a new one",
            )
        if starts_since == 0 and hello.boot_nonce != nonce:
            return self._alarm(
                hello.member,
                "cloned",
                f"member {hello.member} runs twice: start {counter} has been seen from another copy of its data "
                "directory; stop both, remove the member and add it as a new one",
            )
        if 0 < starts_since <= len(hello.earlier_boots) and hello.earlier_boots[starts_since - 1] != nonce:
            return self._alarm(
                hello.member,
                "stale_boot",
                f"member {hello.member} started for the {hello.boot_counter}. time, but its {counter}. start was not "
                "the one that has been seen: its data directory is an old backup or a copy; remove the member and add "
                "it as a new one",
            )
        return None

    def _alarm(self, member: NodeId, code: str, sentence: str) -> Refusal:
        self._alarms[member, code] = sentence
        return Refusal(code, sentence)
