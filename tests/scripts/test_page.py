"""docs/chaos.md names every fault, scenario, shape and capability there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.faults.capability import WORDS
from scripts.faults.kinds import KINDS
from scripts.faults.scenarios import SCENARIOS
from scripts.faults.shapes import SHAPES

PAGE = (Path(__file__).parent.parent.parent / "docs" / "chaos.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*KINDS, *SCENARIOS])
def test_every_fault_and_scenario_has_its_row(name: str):
    assert f"\n| `{name}` | " in PAGE


@pytest.mark.parametrize("name", WORDS)
def test_every_capability_has_its_row(name: str):
    assert f"\n| {name} | " in PAGE


def test_every_shape_is_named():
    assert [shape for shape in SHAPES if shape not in PAGE] == []
