"""Footprint: what a node holds in memory and on disk, once it has nothing to do.

Both systems map their store into memory. Those pages are the kernel's: it takes them back when anybody needs memory,
and until then they count as resident. *Private* memory is what the process has for itself: its heap and stacks.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from kvnode.bench.cluster import Cluster
from kvnode.bench.large.figures import Figures

MEBIBYTE = 1 << 20


async def measure(cluster: Cluster, system: str, figures: Figures, *, settle_s: float) -> None:
    """Of each running node."""
    await asyncio.sleep(settle_s)
    for node in cluster.running():
        memory = cluster.processes[node].memory()
        figures.add("private_memory", system, memory.private / MEBIBYTE)
        figures.add("mapped_memory", system, memory.mapped / MEBIBYTE)
        figures.add("resident_memory", system, memory.resident / MEBIBYTE)
        figures.add("disk", system, disk_bytes(cluster.data_dir(node)) / MEBIBYTE)


def disk_bytes(directory: Path) -> int:
    """Blocks that the files below have on disk; a file that goes meanwhile counts nothing."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.lstat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total
