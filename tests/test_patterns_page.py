"""docs/patterns.md names modules that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_module_named_on_the_patterns_page_exists() -> None:
    page = (ROOT / "docs" / "patterns.md").read_text(encoding="utf-8")
    named = re.findall(r"`([a-z_/]+\.py)`", page)
    assert len(named) > 15
    assert [name for name in named if not (ROOT / "kvnode" / name).is_file()] == []
