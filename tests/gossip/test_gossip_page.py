"""docs/gossip.md names every setting with its default."""

from __future__ import annotations

import re
from pathlib import Path

from kvnode.config import GossipSection
from kvnode.gossip.settings import GossipSettings

PAGE = Path(__file__).parent.parent.parent / "docs" / "gossip.md"


def test_every_setting_stands_on_the_page_with_its_default():
    rows = re.findall(r"^\| `(\w+)` \| ([\d_]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    defaults = GossipSettings()
    assert [(name, int(value)) for name, value in rows] == [
        (name, getattr(defaults, name)) for name in defaults.__struct_fields__
    ]


def test_the_section_of_the_configuration_has_the_same_names_and_defaults():
    assert GossipSettings.of(GossipSection()) == GossipSettings()
    assert GossipSettings.of(GossipSection(probe_interval_ms=2_000)).probe_interval_ms == 2_000
