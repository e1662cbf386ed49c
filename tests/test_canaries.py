"""The canaries of `scripts/mutants.py` are complete and can be applied; whether they are caught, that script tells."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = str(ROOT / "scripts")
ROW = re.compile(r"^\| (\d+|–) \| `([a-z-]+)` \| (.+?) \| .+ \|$", re.MULTILINE)


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import mutants  # noqa: PLC0415 (a script: not on the path outside this test)

    yield mutants
    for name in [name for name in sys.modules if name.startswith(("mutants", "canar"))]:
        del sys.modules[name]


def test_every_canary_of_the_list_is_there(canaries) -> None:
    assert {canary.number for canary in canaries.CANARIES} - {0} == set(range(1, 43))


def test_every_canary_can_be_applied(canaries) -> None:
    names = [canary.name for canary in canaries.CANARIES]
    assert len(names) == len(set(names)) > 60
    for canary in canaries.CANARIES:
        text = (ROOT / canary.file).read_text(encoding="utf-8")
        assert text.count(canary.old) == 1, f"{canary.name} has gone stale: see {canary.file}"
        assert canary.old != canary.new
        assert canary.tests, canary.name
        assert [test for test in canary.tests if not (ROOT / test).exists()] == [], canary.name
        compile(text.replace(canary.old, canary.new), canary.file, "exec")


def test_the_page_has_a_row_for_each_in_their_order(canaries) -> None:
    rows = ROW.findall((ROOT / "docs" / "testing.md").read_text(encoding="utf-8"))
    assert rows == [(str(canary.number or "–"), canary.name, canary.rule) for canary in canaries.CANARIES]
