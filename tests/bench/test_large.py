"""Parts of the benchmark of a large store that need no cluster."""

from __future__ import annotations

import asyncio
import json
import tomllib
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from random import Random
from typing import cast

import pytest

from kvnode.bench import load
from kvnode.bench.cluster import Cluster, EtcdCluster, KvnodeCluster
from kvnode.bench.etcd_fronts import ETCD_GRPC
from kvnode.bench.fronts import Front
from kvnode.bench.kvnode_front import KVNODE_HTTP
from kvnode.bench.large import bulk, footprint, learner, report
from kvnode.bench.large.bulk import Way
from kvnode.bench.large.figures import Figures
from kvnode.bench.large.run import Plan
from tests.bench.test_connections import serving


@pytest.mark.parametrize("size", [1, 2, 10, 4_096, 10_007])
def test_scattered_numbers_come_once_each(size: int) -> None:
    assert sorted(bulk.scattered(5, size)) == list(range(5, 5 + size))


class _OneNode:
    def __init__(self, address: load.Address) -> None:
        self.clients = {1: address}

    async def wait_ready(self) -> int:
        return 1


async def _load(front: Front, way: Way, address: load.Address, numbers: Iterator[int]) -> bulk.Loaded:
    cluster = cast(Cluster, _OneNode(address))
    return await bulk.load(cluster, front, way, numbers, rng=Random(1), limit_s=10.0)


@pytest.mark.parametrize(("keys", "in_flight"), [(7, 1), (7, 2), (3, 8), (0, 2)])
async def test_every_key_is_put_and_a_refused_batch_is_sent_again(keys: int, in_flight: int) -> None:
    seen: list[str] = []
    calls = count()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(int(head.rpartition(b"Content-Length: ")[2]))
                answer = b'{"results":[{"status":429,"error":{}}]}'
                if next(calls) != 1:
                    answer = b'{"results":[]}'
                    seen.extend(operation["put"]["key"] for operation in json.loads(body))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async with serving(handler) as address:
        loaded = await _load(KVNODE_HTTP, Way("batch", 2, in_flight), address, iter(range(keys)))
    assert sorted(seen) == [bulk.key(number).decode() for number in range(keys)]
    assert (loaded.failed, loaded.repeated) == (0, int(keys > 2))


async def test_a_server_that_goes_away_is_no_success() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async with serving(handler) as address:
        loaded = await _load(KVNODE_HTTP, Way("batch", 1, 2), address, iter(range(9)))
    assert loaded.failed == 2


def test_a_transaction_of_etcd_holds_its_puts() -> None:
    request = ETCD_GRPC.calls["txn"].write(("127.0.0.1", 1), [(b"a", b"x"), (b"b", b"y")])
    put = [b"\x12\x08\x12\x06\x0a\x01%b\x12\x01%b" % pair for pair in ((b"a", b"x"), (b"b", b"y"))]
    assert request == b"\0" + (20).to_bytes(4) + b"".join(put)


def test_disk_counts_blocks(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "file").write_bytes(bytes(10_000))
    assert 10_000 <= footprint.disk_bytes(tmp_path) - tmp_path.joinpath("below").stat().st_blocks * 512 <= 65_536


@pytest.mark.parametrize(("keys", "tail_bytes"), [(500, 135_000 // 8), (1_000_000, None), (10, 8_192)])
def test_a_small_store_gets_a_log_shorter_than_it(tmp_path: Path, keys: int, tail_bytes: int | None) -> None:
    cluster = KvnodeCluster(tmp_path)
    learner.prepare(cluster, keys)
    for node in cluster.ids:
        storage = tomllib.loads(cluster.config_file(node).read_text()).get("storage", {})
        assert storage.get("tail_bytes") == storage.get("segment_bytes") == tail_bytes


def test_a_small_store_has_etcd_cut_its_log_early(tmp_path: Path) -> None:
    few, many = EtcdCluster(tmp_path / "few"), EtcdCluster(tmp_path / "many")
    learner.prepare(few, 40_000)
    learner.prepare(many, 1_000_000)
    assert few.command(1)[-2:] == ["--snapshot-count", "10000"]
    assert "--snapshot-count" not in many.command(1)


def test_the_table_shows_ratios_and_aims() -> None:
    figures = Figures(lambda _: None)
    for row, ours, theirs in (
        ("load_rate", 30_000, 10_000),
        ("private_memory", 100, 300),
        ("restart_node", 900, 9_000),
    ):
        figures.add(row, "kvnode", ours)
        figures.add(row, "etcd", theirs)
    figures.add("put64_p99", "few", 10.0)
    figures.add("put64_p99", "many", 14.0)
    text = report.text(figures, Plan(), [])
    assert "kvnode is 3.00 × etcd; aim ≥ 2.00: met" in text
    assert "kvnode is 0.33 × etcd; aim ≤ 0.25: NOT MET" in text
    assert "aim ≤ 1,500: met" in text
    assert "many is 1.40 × few; aim ≤ 1.30: NOT MET" in text
