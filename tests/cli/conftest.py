"""One served node a module, or one a test, and the command line pointed at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result

from kvnode.cli.main import cli
from tests.api.fake_available import FakeAvailable
from tests.cli.cluster import ServedNode, serving

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def shared() -> Iterator[ServedNode]:
    with serving() as served:
        yield served


@pytest.fixture
def run(shared: ServedNode, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("KVNODE_ENDPOINTS", shared.endpoint)
    return _invoke


@pytest.fixture
def alone() -> Iterator[ServedNode]:
    """Of one test: nothing is on it yet."""
    with serving() as served:
        yield served


@pytest.fixture
def plane(alone: ServedNode) -> FakeAvailable:
    return alone.node.plane


@pytest.fixture
def run_alone(alone: ServedNode, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("KVNODE_ENDPOINTS", alone.endpoint)
    return _invoke


def _invoke(*arguments: str, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(cli, arguments, input=stdin)
