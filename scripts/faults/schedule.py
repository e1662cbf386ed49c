"""Schedule: a seed decides which faults come, in which company, how long they last and how long the calm after them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from scripts.faults.kinds import KINDS, NETWORK


@dataclass(frozen=True)
class Episode:
    """Faults that strike together, then calm. `seed` feeds the strikes' own choices, one fork for each."""

    number: int
    kinds: tuple[str, ...]
    hold_s: float
    calm_s: float
    seed: str

    def rng(self, kind: str) -> random.Random:
        return random.Random(f"{self.seed}:{kind}")


def episodes(seed: str, available: frozenset[str]) -> Iterator[Episode]:
    """Without end. `available`: names of kinds that this leg can strike with. Equal arguments, equal episodes."""
    network = [name for name in KINDS if name in available and name in NETWORK]
    others = [name for name in KINDS if name in available and name not in NETWORK]
    number = 0
    while True:
        number += 1
        own = f"{seed}:episode:{number}"
        rng = random.Random(own)
        wanted = rng.choices(("node", "network", "both", "two nodes"), (40, 25, 25, 10))[0]
        chosen: list[str] = []
        if wanted != "network" or not network:
            chosen += _draw(rng, others, 2 if wanted == "two nodes" else 1)
        if network and (wanted in {"network", "both"} or not chosen):
            chosen += _draw(rng, network, 1)
        hold_s = rng.choice((0.3, 0.7, 1.2, 2.0, 3.5))
        yield Episode(number, tuple(chosen), hold_s, rng.uniform(1.0, 2.5), own)


def _draw(rng: random.Random, names: list[str], count: int) -> list[str]:
    """`count` different ones (or all there are), by weight."""
    left, drawn = list(names), []
    for _ in range(min(count, len(left))):
        name = rng.choices(left, [KINDS[name].weight for name in left])[0]
        left.remove(name)
        drawn.append(name)
    return drawn
