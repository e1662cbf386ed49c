"""Linearizability by search: is there one order of all operations that explains every answer and respects real time?

Wing & Gong's search, with Lowe's memo of (which operations are placed, state): a configuration that led nowhere once
is never entered again. What is placed is kept as the length of the prefix by call that is placed entirely, and bits for
the few beyond it; so at a quiescent point, where nothing is open, only the state tells configurations apart, and the
history is cut there by itself.

An operation that changes nothing is placed as soon as it fits: placing it earlier takes nothing away from any order.
Only writes branch. A write without an answer may be placed at any time after its call, or not at all; it is placed no
earlier than right before an operation that it makes possible (`_Lazy`).

Sources: Wing & Gong, "Testing and Verifying Concurrent Objects" (1993); Lowe, "Testing for Linearizability" (2017).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

import msgspec
from msgspec.structs import replace

from kvnode.check.history import Operation
from kvnode.check.partitions import GONE, Move, Partition

Config = tuple[int, int, int, tuple[int, ...]]
"""Placed: answered operations below a number, bits of those from it on, bits of unanswered ones; state of the keys."""


class Search(msgspec.Struct, frozen=True):
    """What came of one partition."""

    result: Literal["ok", "failed", "unknown"]
    states: int  # configurations entered
    prefix: tuple[Operation, ...] = ()  # if not ok: the order that explained most answers …
    stuck: tuple[Operation, ...] = ()  # … the operations of which one had to come next, and none could …
    state: dict[str, str] = {}  # … and what the keys held there


def search(partition: Partition, budget: int) -> Search:
    """`budget` bounds the configurations entered; beyond it the answer is unknown."""
    return _Searcher(partition, budget).run()


@dataclass(slots=True)
class _Frame:
    """A configuration on the way, and what may still be tried from it, best last."""

    config: Config
    length: int  # of the order that led here
    moves: list[tuple[Move, int]]  # with its number among the answered, or -1 - number among the unanswered


class _Searcher:
    def __init__(self, partition: Partition, budget: int) -> None:
        self.partition = partition
        self.budget = budget
        self.order: list[Move] = []
        self.visited: set[Config] = set()
        self.best = Search("failed", 0)
        self.best_answered = -1
        self.lazy = _Lazy(partition)

    def run(self) -> Search:
        frames: list[_Frame] = []
        config: Config = (0, 0, 0, (GONE,) * len(self.partition.keys))
        while True:
            config, open_moves = self._settle(config)
            if config[0] == len(self.partition.required):
                return Search("ok", len(self.visited) + 1)
            if config not in self.visited:
                if len(self.visited) >= self.budget:
                    self._remember(config, open_moves)
                    return replace(self.best, result="unknown", states=len(self.visited))
                self.visited.add(config)
                moves = self._writes(config, open_moves)
                if not moves:
                    self._remember(config, open_moves)
                frames.append(_Frame(config, len(self.order), moves))
            while frames and not frames[-1].moves:
                frames.pop()
            if not frames:
                return replace(self.best, states=len(self.visited))
            frame = frames[-1]
            del self.order[frame.length :]
            config = self._place(frame.config, *frame.moves.pop())

    def _settle(self, config: Config) -> tuple[Config, list[tuple[Move, int]]]:
        """Place everything that changes nothing and fits. Returns also the answered operations that may come next."""
        while True:
            open_moves = self._open(config)
            state = config[3]
            fitting = [(move, number) for move, number in open_moves if not move.sets and move.fits(state)]
            if not fitting:
                return config, open_moves
            for move, number in fitting:
                config = self._place(config, move, number)

    def _open(self, config: Config) -> list[tuple[Move, int]]:
        """Answered operations that nothing unplaced precedes in real time."""
        required = self.partition.required
        base, window = config[0], config[1]
        first_return = inf
        found = []
        for number in range(base, len(required)):
            move = required[number]
            if move.call > first_return:
                break
            if not window >> (number - base) & 1:
                found.append((move, number))
                first_return = min(first_return, move.ret)
        return found  # none was called after the first return: who was called later, returned later still

    def _writes(self, config: Config, open_moves: list[tuple[Move, int]]) -> list[tuple[Move, int]]:
        """What may be tried from here, best last."""
        state = config[3]
        ranked = [(move.rank, move.ret, number, move) for move, number in open_moves if move.sets and move.fits(state)]
        if self.partition.optional:
            ranked += self.lazy.useful(config, open_moves)
        ranked.sort(key=_worst_first)
        return [(move, number) for _, _, number, move in ranked]

    def _place(self, config: Config, move: Move, number: int) -> Config:
        base, window, taken, state = config
        self.order.append(move)
        if move.sets:
            changed = list(state)
            for slot, bit in move.sets:
                changed[slot] = bit
            state = tuple(changed)
        if number < 0:
            return (base, window, taken | 1 << (-1 - number), state)
        window |= 1 << (number - base)
        while window & 1:
            window >>= 1
            base += 1
        return (base, window, taken, state)

    def _remember(self, config: Config, open_moves: list[tuple[Move, int]]) -> None:
        """Keep the configuration in which most answers are explained."""
        answered = config[0] + config[1].bit_count()
        if answered > self.best_answered:
            self.best_answered = answered
            self.best = Search(
                "failed",
                0,
                tuple(move.operation for move in self.order),
                tuple(move.operation for move, _ in open_moves),
                self.partition.show(config[3]),
            )


Ranked = tuple[float, float, int, Move]
"""Rank, return, number among the answered or -1 - number among the unanswered, and the move."""


def _worst_first(candidate: Ranked) -> tuple[float, float]:
    return (-candidate[0], -candidate[1])


class _Lazy:
    """Which unanswered writes are worth a try.

    In an order that explains everything, take an unanswered write and what comes right after it. If that neither needs
    nor changes what the write needs and changes, the two can change places: the write may come later. If it overwrites
    all the write's effects unseen, the write can be left out. So only orders must be tried in which what
    comes next needs an effect of the write, or at least touches it where the write spans several keys.
    """

    def __init__(self, partition: Partition) -> None:
        self.optional = partition.optional
        self.slots = [tuple({slot: True for slot, _ in (*move.needs, *move.sets)}) for move in partition.optional]
        count = len(partition.keys)
        first: dict[tuple[object, object], int] = {}  # of several that need and do the same, the next to be tried …
        self.twin = [-1] * len(self.optional)  # … is the one whose earlier twin is placed
        for number, move in enumerate(self.optional):
            self.twin[number] = first.get((move.needs, move.sets), -1)
            first[move.needs, move.sets] = number
        self.chained = [0] * count  # states of a key that another unanswered write needs
        self.touched = [0] * count  # how many unanswered writes touch a key
        for move, slots in zip(self.optional, self.slots, strict=True):
            for slot, allowed in move.needs:
                self.chained[slot] |= allowed
            for slot in slots:
                self.touched[slot] += 1

    def useful(self, config: Config, open_moves: list[tuple[Move, int]]) -> list[Ranked]:
        """Those that fit, ranked like the best operation that they make possible."""
        _, _, taken, state = config
        first_return = min(move.ret for move, _ in open_moves)
        wanted: dict[int, list[tuple[int, float]]] = {}  # by key: states that an open operation needs, and its rank
        touching: dict[int, float] = {}
        for move, _ in open_moves:
            for slot, allowed in (*move.needs, *move.either):
                if not allowed & state[slot]:
                    wanted.setdefault(slot, []).append((allowed, move.rank))
                touching[slot] = min(touching.get(slot, inf), move.rank)
            for slot, _ in move.sets:
                touching[slot] = min(touching.get(slot, inf), move.rank)
        found = []
        for number, move in enumerate(self.optional):
            if move.call > first_return:
                break
            twin = self.twin[number]
            if taken >> number & 1 or (twin >= 0 and not taken >> twin & 1) or not move.fits(state):
                continue
            rank = self._rank(move, self.slots[number], wanted, touching)
            if rank is not None:
                found.append((rank, move.ret, -1 - number, move))
        return found

    def _rank(
        self,
        move: Move,
        slots: tuple[int, ...],
        wanted: dict[int, list[tuple[int, float]]],
        touching: dict[int, float],
    ) -> float | None:
        ranks = [
            min(rank, move.rank) for slot, bit in move.sets for allowed, rank in wanted.get(slot, ()) if allowed & bit
        ]
        if ranks:
            return min(ranks)
        if len(slots) > 1:
            near = any(slot in touching or self.touched[slot] > 1 for slot in slots)
            return move.rank if near else None
        slot, bit = move.sets[0]
        return move.rank if self.chained[slot] & bit else None
