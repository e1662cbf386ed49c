"""What a course raises is a failure that is judged and kept; what lacks a capability is skipped."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.faults import scenarios, scene
from scripts.faults.capability import WORDS
from scripts.faults.scenarios import SCENARIOS, Scenario, play
from scripts.faults.scene import Failed, Scene
from tests.scripts.scripted import Scripted

ALL_THERE = dict.fromkeys(WORDS, "")


class Where:
    """Of a field, what a scene asks."""

    def __init__(self) -> None:
        self.pulse = self
        self.statuses: dict[int, dict[str, Any]] = {}
        self.healed = 0

    async def heal(self) -> None:
        self.healed += 1


class StagePlayed:
    """Of a stage, what a scene and `play` ask. Calm does not come if `problem` says so."""

    def __init__(self, home: Path) -> None:
        self.where = Where()
        self.cluster = Scripted(home, 1)
        (home / "1.out").touch()
        self.journal = self
        self.counts = self.kinds = Counter[str]()
        self.problem = ""

    async def __aenter__(self) -> StagePlayed:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def calm(self, seconds: float) -> tuple[float, str]:
        return seconds, self.problem

    async def judge(self) -> list[str]:
        return ["found by the judgement"] if self.problem else []


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StagePlayed:
    made = StagePlayed(tmp_path / "cluster")
    monkeypatch.setattr(scenarios, "Stage", lambda *_: made)
    monkeypatch.setattr(scene, "LEADER_S", 0.1)
    return made


def scene_of(stage: Any) -> Scene:
    return Scene(stage, random.Random(1), [])


async def play_one(course: Callable[[Scene], Any], home: Path, monkeypatch: pytest.MonkeyPatch) -> scenarios.Outcome:
    monkeypatch.setitem(SCENARIOS, "one", Scenario(("images",), 3, "loopback", course))
    return await play("one", "7", home, ALL_THERE)


async def test_a_failure_is_judged_and_its_evidence_stays(
    stage: StagePlayed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async def course(of: Scene) -> None:
        of.note("three cuts")
        stage.problem = "no service"
        await of.recover(0.1, "the third cut")

    outcome = await play_one(course, tmp_path / "run", monkeypatch)
    assert outcome.verdict == "FAILED"
    assert outcome.problems == ["after the third cut: no service", "found by the judgement"]
    assert outcome.notes == ["three cuts"]
    assert outcome.home.is_dir()
    assert stage.where.healed == 1


async def test_what_passed_leaves_nothing(stage: StagePlayed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def course(of: Scene) -> None:
        assert await of.recover(0.1) == 0.1

    outcome = await play_one(course, tmp_path / "run", monkeypatch)
    assert outcome.verdict == "passed"
    assert not outcome.home.exists()


async def test_without_a_capability_nothing_is_tried(tmp_path: Path):
    outcome = await play("cluster_power_cut", "7", tmp_path / "run", {**ALL_THERE, "images": "needs root"})
    assert (outcome.verdict, outcome.skipped) == ("skipped", "needs root")
    assert not outcome.home.exists()


async def test_a_leader_is_who_says_so_itself(stage: StagePlayed):
    stage.where.statuses = {
        1: {"role": "follower", "leader": 2},
        2: {"role": "leader", "leader": 2},
        3: {"role": "leader", "leader": 3},
    }
    assert await scene_of(stage).leader() == 2
    assert await scene_of(stage).leader(other_than=2) == 3
    stage.where.statuses = {1: {"role": "follower", "leader": 2}}
    with pytest.raises(Failed, match="no leader but 2"):
        await scene_of(stage).leader(other_than=2)


async def test_service_means_writes(stage: StagePlayed):
    stage.kinds["get"] = 100
    with pytest.raises(Failed, match="no service without node 3"):
        await scene_of(stage).served("without node 3")
