"""Where a log lives, whose it is, and how its files are made: what everything that opens or writes one is given."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from kvnode.storage.disk import Disk
from kvnode.storage.segment import Stamp


def system_random() -> int:
    """64 bits of the operating system's generator."""
    return int.from_bytes(os.urandom(8), "little")


@dataclass(frozen=True, slots=True)
class LogPlace:
    """See the module docstring."""

    disk: Disk
    directory: str
    stamp: Stamp
    segment_bytes: int
    batch_bytes_max: int  # most bytes of payloads in one write
    random_u64: Callable[[], int] = system_random  # salts of new segments
