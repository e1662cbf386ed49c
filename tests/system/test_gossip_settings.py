"""What the operator chose under `[gossip]` is what the node gossips by: every setting of the section."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from kvnode import open_node
from kvnode.config import GossipSection
from kvnode.gossip.settings import GossipSettings

pytestmark = pytest.mark.system

CHOSEN = GossipSection(
    probe_interval_ms=2_000,
    probe_timeout_ms=700,
    helpers=2,
    gossip_interval_ms=300,
    fanout=4,
    suspicion_factor=5,
    push_pull_ms=20_000,
)


async def test_every_setting_reaches_the_core(tmp_path: Path) -> None:
    defaults = msgspec.structs.asdict(GossipSection())
    assert [name for name, value in msgspec.structs.asdict(CHOSEN).items() if value == defaults[name]] == []
    settings = {f"gossip.{name}": value for name, value in msgspec.structs.asdict(CHOSEN).items()}
    own = {
        "node.data_dir": str(tmp_path / "n1"),
        "peer.listen": "127.0.0.1:0",
        "storage.allow_unsafe_filesystem": True,
    }
    async with open_node(settings=own | settings) as node:
        await node.ready()
        plane = node._running.available
        assert plane is not None
        assert plane._driver.gossip._settings == GossipSettings.of(CHOSEN)
