"""A scenario on a started cluster that has elected, in virtual time; nothing may have failed behind its back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from kvnode.sim.loop import run_virtual
from kvnode.sim.runtime.cluster import Cluster


def simulate(scenario: Callable[[Cluster], Awaitable[None]], *, size: int = 3, **settings: object) -> None:
    """`settings`: two underscores stand for the dot.

    At the first feature level, unless they say otherwise: nobody appends anything of its own accord.
    """
    chosen = {"cluster__feature_level_max": 1, **settings}

    async def main() -> None:
        cluster = Cluster(1, size, {name.replace("__", "."): value for name, value in chosen.items()})
        await cluster.start_all()
        await cluster.elect()
        await scenario(cluster)
        assert not cluster.failures, cluster.failures

    run_virtual(main())
