"""Links: what carries messages between simulated nodes, and how it misbehaves.

Messages are dropped, delayed, duplicated, reordered, cut off in one direction, held back by a clogged link, and dug out
again when nobody thinks of them any more. Proposals on their way to a leader are the one thing never delivered twice: a
connection is a stream, and only they are not idempotent.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial

from kvnode.ids import NodeId
from kvnode.raft.messages import ForwardProposals, RaftMessage
from kvnode.sim.core.shape import Shape

Link = tuple[NodeId, NodeId]  # (sender, receiver)

GRAVES_MAX = 64


class Links:
    """`at(delay_ms, event)` is the world's clock, `put(to, message)` its inboxes."""

    def __init__(
        self,
        rng: random.Random,
        shape: Shape,
        at: Callable[[int, Callable[[], None]], None],
        put: Callable[[NodeId, RaftMessage], None],
        counts: Counter[str],
    ) -> None:
        self.drop, self.duplicate = shape.drop, shape.duplicate
        self.bury, self.straggle = shape.bury, shape.straggle
        self.delay_ms = shape.delay_ms
        self.cuts: dict[Link, bool] = {}
        self.clogs: dict[Link, bool] = {}  # what is sent there waits
        self._waiting: list[tuple[Link, RaftMessage]] = []
        self._graves: list[tuple[NodeId, RaftMessage]] = []
        self._timeout = shape.timeout
        self._random = rng.random
        self._at = at
        self._put = put
        self._counts = counts

    def send(self, sender: NodeId, to: NodeId, message: RaftMessage) -> None:
        random = self._random
        counts = self._counts
        counts["messages"] += 1
        may_repeat = not isinstance(message, ForwardProposals)
        if self.bury and may_repeat and random() < self.bury:
            self._bury(to, message)
        if (sender, to) in self.cuts:
            counts["messages cut off"] += 1
            return
        if self.drop and random() < self.drop:
            counts["messages dropped"] += 1
            return
        self._carry(sender, to, message)
        if self.duplicate and may_repeat and random() < self.duplicate:
            counts["messages duplicated"] += 1
            self._carry(sender, to, message)

    def _carry(self, sender: NodeId, to: NodeId, message: RaftMessage) -> None:
        wait = int(self._random() * (self.delay_ms + 1))
        if self.straggle and self._random() < self.straggle:
            self._counts["messages late"] += 1
            wait += int(self._random() * 3 * self._timeout)
        self._at(wait, partial(self._arrive, sender, to, message))

    def _arrive(self, sender: NodeId, to: NodeId, message: RaftMessage) -> None:
        link = (sender, to)
        if link in self.cuts:
            self._counts["messages cut off"] += 1
        elif link in self.clogs:
            self._counts["messages clogged"] += 1
            self._waiting.append((link, message))
        else:
            self._put(to, message)

    def cut(self, links: Iterable[Link]) -> None:
        self.cuts.update(dict.fromkeys(links, True))

    def mend(self, links: Iterable[Link]) -> None:
        for link in links:
            self.cuts.pop(link, None)

    def clog(self, links: Iterable[Link]) -> None:
        self.clogs.update(dict.fromkeys(links, True))

    def unclog(self, links: Iterable[Link]) -> None:
        """What has waited arrives now, in order."""
        for link in links:
            self.clogs.pop(link, None)
        waiting, self._waiting = self._waiting, []
        for link, message in waiting:
            self._arrive(*link, message)

    def heal(self) -> None:
        self.cuts.clear()
        self.unclog(list(self.clogs))

    def _bury(self, to: NodeId, message: RaftMessage) -> None:
        if len(self._graves) >= GRAVES_MAX:
            self._graves.pop(int(self._random() * GRAVES_MAX))
        self._graves.append((to, message))

    def resurrect(self, count: int) -> None:
        """Old messages arrive once more, some of them not for the last time."""
        for _ in range(min(len(self._graves), count)):
            position = int(self._random() * len(self._graves))
            to, message = self._graves[position]
            if self._random() < 0.5:
                self._graves.pop(position)
            self._counts["messages resurrected"] += 1
            self._put(to, message)
