"""For all tests: the garbage collector leaves what was imported and collected alone, and comes less often.

A worker holds some four thousand tests and their modules for as long as it lives. To walk over them again and again
took a sixth of the time of simulations and sweeps, which make many objects that end by themselves.
"""

from __future__ import annotations

import gc

THRESHOLDS = (20_000, 20, 20)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
