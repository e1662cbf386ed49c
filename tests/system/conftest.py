from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.living import LivingCluster
from tests.system.cluster import RealCluster

MakeCluster = Callable[..., RealCluster]
MakeLiving = Callable[..., LivingCluster]


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[MakeCluster]:
    """Makes clusters (not started yet) that are ended with the test."""
    made: list[RealCluster] = []

    def make(nodes: int = 3, **settings: Any) -> RealCluster:
        """`settings`: dotted names with two underscores for the dot."""
        named = {name.replace("__", "."): value for name, value in settings.items()}
        made.append(RealCluster(tmp_path / f"cluster{len(made)}", nodes, named))
        return made[-1]

    yield make
    for cluster in made:
        cluster.stop()


@pytest.fixture
def make_living(tmp_path: Path) -> Iterator[MakeLiving]:
    """Makes clusters of three whose members come and go (not started yet), ended with the test."""
    made: list[LivingCluster] = []

    def make(**settings: Any) -> LivingCluster:
        """`settings`: dotted names with two underscores for the dot."""
        named = {name.replace("__", "."): value for name, value in settings.items()}
        made.append(LivingCluster(tmp_path / f"living{len(made)}", settings=named))
        return made[-1]

    yield make
    for cluster in made:
        cluster.stop()
