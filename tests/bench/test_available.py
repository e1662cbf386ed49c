"""Rows of the plane that needs no quorum: how a write's arrival is measured, and what its answers look like."""

from __future__ import annotations

import pytest

from kvnode.bench import available, load
from kvnode.bench.http1 import Http1Connection
from kvnode.observe.metrics import DECLARED


def test_quantiles() -> None:
    times = [number * 1_000_000 for number in range(100, 0, -1)]
    assert (load.quantile_ms(times, 0.5), load.quantile_ms(times, 0.99)) == (51.0, 100.0)
    assert load.quantile_ms([], 0.5) == 0.0


def test_what_counts_as_gossip_is_a_metric_of_the_node() -> None:
    assert set(available.GOSSIP_BYTES) <= {metric.name.encode() for metric in DECLARED}, "one of no such name reads 0"


@pytest.mark.parametrize("cut", [0, 10, 40])
def test_an_answer_without_content_is_whole_where_its_head_ends(cut: int) -> None:
    answer = b"HTTP/1.1 204 No Content\r\nKv-Token: Ag\r\nKv-Context: Ac\r\n\r\n"
    heard: list[bool] = []
    connection = Http1Connection(lambda _, __, succeeded: heard.append(succeeded), lambda _: None)
    if cut:
        connection.data_received(answer[:cut])
    assert heard == []
    connection.data_received(answer[cut:])
    assert heard == [True]
    assert connection.answer == answer
