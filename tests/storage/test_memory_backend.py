"""The memory backend keeps the same contract as the one on disk, power loss included."""

from __future__ import annotations

import pytest

from kvnode.storage.memory_backend import MemoryBackend
from tests.backend_suite import BackendSuite, Rows, all_rows, commit


class TestMemoryBackend(BackendSuite):
    @pytest.fixture
    def backend(self) -> MemoryBackend:
        return MemoryBackend()


def test_what_is_not_synced_is_lost_with_the_power() -> None:
    backend = MemoryBackend()
    commit(backend, (b"a", b"1"), (b"meta", b"1"))
    backend.stage(Rows([(b"b", b"2"), (b"meta", b"2")]))
    assert all_rows(backend) == [(b"a", b"1"), (b"b", b"2"), (b"meta", b"2")], "staged rows are visible"
    used = backend.bytes_used
    backend.lose_power()
    assert all_rows(backend) == [(b"a", b"1"), (b"meta", b"1")]
    assert backend.bytes_used == used - 2


def test_what_is_synced_survives() -> None:
    backend = MemoryBackend()
    backend.stage(Rows([(b"b", b"2")]))
    backend.stage(Rows([(b"b", b"3")]))
    backend.sync()
    backend.lose_power()
    assert all_rows(backend) == [(b"b", b"3")]
