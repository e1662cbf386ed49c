"""Peer boots: which start of each peer was seen last, and whether a directory went back in time since.

Each start of a data directory raises its boot counter and draws a nonce. A peer whose counter is below the one seen
last is an old backup. One that is equal with another nonce is a copy of the directory that runs as well. One that is
above, but does not have the start seen last among its own, is such a copy, started more often since.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
        refusal = self.compare(hello.member, hello.boot_counter, hello.boot_nonce, hello.earlier_boots)
        if refusal is not None:
            self._alarms[hello.member, refusal.code] = refusal.sentence
        return refusal

    def compare(self, member: NodeId, counter: int, nonce: int, earlier: Sequence[int] = ()) -> Refusal | None:
        """None if this can be the start of `member` seen last, or a later one. Changes nothing.

        `earlier`: nonces of the starts before it, newest first, as far as they are told.
        """
        if member not in self._boots:
            return None
        seen_counter, seen_nonce = self._boots[member]
        starts_since = counter - seen_counter
        if starts_since < 0:
            return Refusal(
                "stale_boot",
                f"member {member} started for the {counter}. time, but its {seen_counter}. start has been "
                "seen: its data directory is an old backup or a copy; remove the member and add it as a new one",
            )
        if starts_since == 0 and nonce != seen_nonce:
            return Refusal(
                "cloned",
                f"member {member} runs twice: start {counter} has been seen from another copy of its data "
                "directory; stop both, remove the member and add it as a new one",
            )
        if 0 < starts_since <= len(earlier) and earlier[starts_since - 1] != seen_nonce:
            return Refusal(
                "stale_boot",
                f"member {member} started for the {counter}. time, but its {seen_counter}. start was not "
                "the one that has been seen: its data directory is an old backup or a copy; remove the member and add "
                "it as a new one",
            )
        return None
