"""Real processes: members are replaced while clients write; what those were told is judged (scripts/life.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.life import play

pytestmark = pytest.mark.system


@pytest.mark.timeout(300)
async def test_a_leader_is_replaced_and_a_wiped_follower_comes_back_while_clients_write(tmp_path: Path) -> None:
    story = await play(tmp_path, "1", short=True)
    assert story.problems == [], "\n".join(story.lines)
    assert any("which led: replaced by 4" in line for line in story.lines)
    assert any("a follower: replaced by 5" in line for line in story.lines)
