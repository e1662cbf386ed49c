"""Who is asked: where there is no etcd, one skipped test says so for all."""

from __future__ import annotations

from tests.etcd.target import Target


def test_etcd_itself_is_asked_too(etcd_targets: dict[str, Target]) -> None:
    assert etcd_targets["etcd"].version >= (3, 4), "the oldest version that the assertions are about"
