"""A seed is a schedule: the same one gives the same faults, and only such as can be had."""

from __future__ import annotations

from itertools import islice

import pytest

from scripts.faults.capability import WORDS
from scripts.faults.kinds import KINDS, NETWORK
from scripts.faults.scenarios import SCENARIOS
from scripts.faults.schedule import Episode, episodes

ALL = frozenset(KINDS)


def drawn(seed: str, available: frozenset[str] = ALL, count: int = 200) -> list[Episode]:
    return list(islice(episodes(seed, available), count))


def test_a_seed_repeats_and_another_differs():
    assert drawn("7") == drawn("7")
    assert drawn("7") != drawn("8")
    first = drawn("7")[0]
    assert first.rng("kill").random() == first.rng("kill").random()
    assert first.rng("kill").random() != first.rng("pause").random()


def test_every_kind_is_drawn_and_the_network_suffers_one_fault_at_a_time():
    found = drawn("1", count=2000)
    assert {name for episode in found for name in episode.kinds} == ALL
    assert all(episode.kinds for episode in found)
    assert all(len(NETWORK & set(episode.kinds)) <= 1 for episode in found)


@pytest.mark.parametrize("available", [frozenset({"kill"}), frozenset({"partition"}), frozenset({"kill", "partition"})])
def test_only_what_is_available_is_drawn(available: frozenset[str]):
    found = drawn("1", available)
    names = {name for episode in found for name in episode.kinds}
    assert all(episode.kinds for episode in found)
    assert names == available


def test_every_need_is_a_capability_that_is_probed():
    needs = {kind.needs for kind in KINDS.values()} | {need for s in SCENARIOS.values() for need in s.needs}
    assert needs - {"network"} <= set(WORDS)
