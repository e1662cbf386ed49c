"""Shapes of partitions: which directed links are cut."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

Link = tuple[int, int]
"""(from node, to node): the direction in which packets, or bytes, travel."""

SHAPES = ("isolate", "deaf", "mute", "one way", "split", "bridge", "ring", "chain", "star", "two pairs")


def cut_links(shape: str, nodes: Sequence[int], leader: int, rng: random.Random) -> list[Link]:
    """The links that `shape` cuts among `nodes`; what is not drawn follows from the leader (0: nobody leads)."""
    order = rng.sample(list(nodes), len(nodes))
    one = leader if leader in nodes and rng.random() < 0.6 else order[0]
    others = [node for node in order if node != one]
    match shape:
        case "isolate":
            return _without(nodes, ()) if rng.random() < 0.15 else _both((one, other) for other in others)
        case "deaf":  # sends, hears nothing
            return [(other, one) for other in others]
        case "mute":  # hears, sends nothing
            return [(one, other) for other in others]
        case "one way":
            return [(one, others[0])]
        case "split":
            size = rng.randrange(1, len(order))
            return _both((a, b) for a in order[:size] for b in order[size:])
        case "bridge":  # two halves that only `one` sees
            half = len(others) // 2
            return _both((a, b) for a in others[:half] for b in others[half:])
        case "ring":
            return _without(nodes, [(order[i], order[i - 1]) for i in range(len(order))])
        case "chain":
            return _without(nodes, [(order[i], order[i - 1]) for i in range(1, len(order))])
        case "star":  # quorum loss: everybody sees the middle only
            return _without(nodes, [(others[0], node) for node in nodes if node != others[0]])
        case "two pairs":  # one sees only a second, another only a third; the rest see each other
            if len(order) < 5:
                return cut_links("chain", nodes, leader, rng)
            a, b, c, d, _ = order
            lonely = _both((a, node) for node in nodes if node not in (a, c))
            return sorted({*lonely, *_both((b, node) for node in nodes if node not in (b, d))})
    raise ValueError(shape)


def _both(pairs: Iterable[Link]) -> list[Link]:
    return sorted({link for a, b in pairs for link in ((a, b), (b, a))})


def _without(nodes: Sequence[int], kept: Iterable[Link]) -> list[Link]:
    """Every link but those between the pairs in `kept`."""
    left = set(_both(kept))
    return [(a, b) for a in nodes for b in nodes if a != b and (a, b) not in left]
