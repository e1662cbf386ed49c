"""A cluster to break whose nodes cost nothing."""

from __future__ import annotations

from typing import ClassVar

from scripts.faults.nodes import ChaosCluster


class Scripted(ChaosCluster):
    """Its nodes are shell commands."""

    scripts: ClassVar[dict[int, str]] = {}

    def command(self, node: int) -> list[str]:
        return [*self.prefixes.get(node, []), "sh", "-c", self.scripts.get(node, "exec sleep 60")]
