"""What a running node counts is what `/metrics` can say: one undeclared name would fail every scrape."""

from __future__ import annotations

from kvnode.observe import metrics
from kvnode.sim.runtime.cluster import Cluster
from tests.node.scenario import simulate


def test_everything_that_a_node_counts_is_declared() -> None:
    async def scenario(cluster: Cluster) -> None:
        for node in cluster.nodes().values():
            values = node.counters()
            text = metrics.render(values).decode()
            assert [name for name in values if name not in text] == []

    simulate(scenario)
