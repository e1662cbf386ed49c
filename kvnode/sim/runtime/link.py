"""A connection of two simulated process lives, from its handshake to its end.

It begins with the real handshake (`kvnode.transport.handshake`), bytes in and bytes out, so production code decides who
may talk to whom. In a cluster without process loops everything that is not a message happens at once.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING
from zlib import crc32

from kvnode.ids import NodeId
from kvnode.transport.handshake import Handshake, Role
from kvnode.wire.frames import NONCE_BYTES

if TYPE_CHECKING:
    from kvnode.sim.runtime.network import Network
    from kvnode.sim.runtime.transport import VirtualTransport

REDIAL_S = (0.02, 0.5)


class Link:
    """A connection of two process lives, from its handshake to its end."""

    def __init__(
        self, network: Network, dialler: VirtualTransport, acceptor: VirtualTransport, *, replaces: Link | None
    ) -> None:
        self.ends = (dialler, acceptor)
        self._network = network
        self._replaces = replaces
        self._is_closed = False
        self._is_up = False
        self._handshakes: dict[NodeId, Handshake] = {}
        self._lanes: dict[tuple[NodeId, str], deque[bytes]] = {}
        self._due_s: dict[tuple[NodeId, str], float] = {}

    def other(self, end: VirtualTransport) -> VirtualTransport:
        return self.ends[1] if end is self.ends[0] else self.ends[0]

    # the handshake

    def begin(self) -> None:
        dialler, acceptor = self.ends
        for end, role in ((dialler, "dialler"), (acceptor, "acceptor")):
            hello = end.roster.hello("control", link=1, nonce=self._network.random_bytes(NONCE_BYTES))
            side: Role = "dialler" if role == "dialler" else "acceptor"
            expected = acceptor.node if side == "dialler" else None
            self._handshakes[end.node] = Handshake(
                side, secret=end.secret, hello=hello, roster=end.roster, expected=expected
            )
        self._pass(dialler, self._handshakes[dialler.node].begin())

    def _pass(self, sender: VirtualTransport, data: bytes) -> None:
        """One message of the handshake; it may get lost, and then the two try again."""
        target = self.other(sender)
        network = self._network
        if sender.loop is None:
            self._prove(target, data)
        elif network.is_silenced(sender.node, target.node):
            network.later(REDIAL_S[1], network.drop, self, "handshakes_unfinished")
        else:
            network.later(network.draw_delay_s(), target.tell, self._prove, target, data)

    def _prove(self, end: VirtualTransport, data: bytes) -> None:
        if self._is_closed or end.closed:
            return
        handshake = self._handshakes[end.node]
        if handshake.outcome is not None:
            return
        try:
            answer = handshake.receive(data)
        except Exception as error:  # noqa: BLE001 - what breaks here breaks the node: its disk, or a bug
            end.on_failed(error)
            return
        network = self._network
        if handshake.refusal is not None:
            end.refusals[self.other(end).node] = handshake.refusal.code
            network.count(f"refused_{handshake.refusal.code}")
            if answer:
                self._pass(end, answer)
            if handshake.refused_by_peer or not answer:
                network.drop(self, "handshakes_refused")
            return
        if answer:
            self._pass(end, answer)
        if _is_accepted(handshake) and end is self.ends[0]:
            self._come_up()

    def _come_up(self) -> None:
        if self._replaces is not None:
            self._replaces.close()
            self._replaces = None
        if self._is_closed or any(end.closed for end in self.ends):
            return
        self._is_up = True
        for end in self.ends:
            hello = self._handshakes[end.node].peer
            assert hello is not None
            end.come_up(self.other(end).node, hello.feature_level)

    def close(self) -> None:
        if self._replaces is not None:
            self._replaces.close()
            self._replaces = None
        self._is_closed = True
        self._lanes.clear()
        if self._is_up:
            self._is_up = False
            for end in self.ends:
                end.go_down(self.other(end).node)

    def is_refused_by(self, end: VirtualTransport) -> bool:
        """Whether it would not let the other in any more."""
        hello = self._handshakes[end.node].peer if self._is_up else None
        return hello is not None and end in self.ends and end.roster.judge(hello) is not None

    # messages

    def send(self, sender: VirtualTransport, lane_: str, data: bytes) -> None:
        if not self._is_up:
            return
        network, target = self._network, self.other(sender)
        due_s = network.now_s() + network.draw_delay_s()
        if network.reorder:
            network.later(due_s - network.now_s(), self._arrive, sender, target, data)
            return
        key = (sender.node, lane_)
        due_s = self._due_s[key] = max(due_s, self._due_s.get(key, 0.0))
        self._lanes.setdefault(key, deque()).append(data)
        network.later(due_s - network.now_s(), self._next, sender, key)

    def _next(self, sender: VirtualTransport, key: tuple[NodeId, str]) -> None:
        queue = self._lanes.get(key)
        target = self.other(sender)
        if queue and not self._network.is_clogged(sender.node, target.node):
            self._arrive(sender, target, queue.popleft())

    def flush(self, sender_node: NodeId) -> None:
        """What was held back arrives, lane by lane."""
        for key in sorted(key for key in self._lanes if key[0] == sender_node):
            queue = self._lanes[key]
            sender = next(end for end in self.ends if end.node == sender_node)
            while queue:
                self._arrive(sender, self.other(sender), queue.popleft())

    def _arrive(self, sender: VirtualTransport, target: VirtualTransport, data: bytes) -> None:
        if not self._is_up or target.closed:
            return
        network = self._network
        network.delivered += 1
        network.note(sender.node, target.node, crc32(data))
        target.tell(self._take, sender, target, data)

    def _take(self, sender: VirtualTransport, target: VirtualTransport, data: bytes) -> None:
        if not self._is_up or target.closed:
            return
        if not target.receive(sender.node, data):
            self._network.drop(self, "frames_refused")


def _is_accepted(handshake: Handshake) -> bool:
    # Not in place: the type checker does not see that `receive` changes the outcome.
    return handshake.outcome == "accepted"
