"""One served node a module, and the command line pointed at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result

from kvnode.cli.main import cli
from tests.cli.cluster import ServedNode, serving

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def shared() -> Iterator[ServedNode]:
    with serving() as served:
        yield served


@pytest.fixture
def run(shared: ServedNode, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("KVNODE_ENDPOINTS", shared.endpoint)

    def invoke(*arguments: str, stdin: bytes = b"") -> Result:
        return CliRunner().invoke(cli, arguments, input=stdin)

    return invoke
