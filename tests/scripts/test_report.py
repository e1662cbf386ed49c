"""A summary tells the verdict, what happened, and how to do it again; problems are shown, within bounds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from scripts.faults import report
from scripts.faults.run import Leg
from scripts.faults.scenarios import Outcome
from scripts.faults.stage import Setting

SETTING = Setting(seed="7", nodes=3, network="hosts", home=Path("data/chaos/here"))


def leg(**fields: object) -> Leg:
    return Leg(SETTING, seconds=10.0, faults=Counter(kill=2), operations=Counter(ok=50, info=1), **fields)  # type: ignore[arg-type]


def test_what_passed_says_what_it_did_and_what_failed_where_it_lies():
    text = report.text([leg(verdict="passed")], [], "repeat me")
    assert "hosts, 3 nodes, seed 7: PASSED" in text
    assert "faults that struck: 2 (kill 2)" in text
    assert "ok 50, 5/s" in text
    assert text.endswith("verdict: hosts passed\nrepeat with: repeat me")
    assert "data/chaos/here" not in text
    text = report.text([leg(verdict="failed", problems=["lost: …"])], [], "repeat me")
    assert "PROBLEM lost: …" in text
    assert "data/chaos/here" in text


def test_many_problems_are_counted_and_long_ones_cut():
    text = report.text([leg(verdict="failed", problems=["x" * 10_000] * 30)], [], "")
    assert text.count("PROBLEM") == 12
    assert "and 18 more" in text
    assert len(text) < 25_000


def test_a_scenario_passed_failed_or_was_skipped_for_a_reason():
    home = Path("data/chaos/there")
    skipped = Outcome("power", home, skipped="needs root")
    failed = Outcome("power", home, problems=["lost"], notes=["20 cuts"])
    passed = Outcome("power", home)
    assert report.outcome(skipped) == "power: skipped (needs root)"
    assert report.outcome(failed).splitlines()[1:] == [
        "    20 cuts",
        "    PROBLEM lost",
        f"    history, logs and data: {home}",
    ]
    summary = report.text([], [skipped, failed, passed, passed], "")
    assert "no mixed faults; scenarios: passed 2, skipped 1, FAILED 1" in summary
