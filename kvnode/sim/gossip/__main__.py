"""``python -m kvnode.sim.gossip``: the figures of docs/gossip.md, in about a minute."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from kvnode.sim.gossip.measure import false_positives, idle_cost, spread


def lines(seed: int = 1) -> Iterator[str]:
    """One figure a line, as Markdown tables."""
    yield "| members | packets/s | datagram bytes/s | table bytes/s |\n|---|---|---|---|"
    for size in (3, 5, 30, 100):
        cost = idle_cost(seed, size)
        yield (
            f"| {size} | {cost.packets_per_s:.1f} | {cost.datagram_bytes_per_s:.0f} | {cost.exchange_bytes_per_s:.0f} |"
        )
    yield "\n| members | bound | rumor, rounds | item, rounds | pulls |\n|---|---|---|---|---|"
    for size in (30, 100, 500):
        told = spread(seed, size)
        yield (
            f"| {size} | {told.rounds_bound:.1f} | {told.rumor_rounds:.1f} | {told.item_rounds:.1f} | {told.pulls} |"
        )
    yield "\n| members | loss | fallback | probes | suspected | held dead |\n|---|---|---|---|---|---|"
    for size, seconds in ((3, 3_600), (30, 300)):
        for has_fallback in (True, False):
            found = false_positives(seed, size, 0.2, seconds, has_fallback=has_fallback)
            yield (
                f"| {size} | 20 % | {'yes' if has_fallback else 'no'} | {found.probes} | {found.accusations} "
                f"| {found.deaths} |"
            )


def main() -> None:
    for line in lines():
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
