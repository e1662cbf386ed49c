"""Real processes: an import goes on through the death of the leader, and writes each key once."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from kvnode.client.export_file import Item, Writer, header
from tests.system.conftest import MakeCluster

pytestmark = pytest.mark.system

KEYS = 6_000
TIME = "2026-11-22T10:00:00.123Z.0007"


def write_export(path: Path) -> None:
    with path.open("wb") as file:
        writer = Writer(file, header(cluster_id="00aa", revision=7, time="2026-11-22T10:00:00Z", prefix=b"app/"))
        writer.write(
            Item(
                key=f"app/{number:05}",
                value=f"value {number}",
                create_revision=2,
                mod_revision=2,
                version=1,
                lease=0,
                time=TIME,
            )
            for number in range(KEYS)
        )
        writer.end()


async def run(endpoints: str, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "kvnode", *arguments, "--endpoint", endpoints,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def test_the_leader_dies_under_an_import(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster()
    leader = await cluster.started()
    other = next(node for node in cluster.ids if node != leader)
    endpoints = ",".join(f"{host}:{port}" for host, port in [cluster.clients[leader], cluster.clients[other]])
    write_export(tmp_path / "made.jsonl")
    importing = await run(endpoints, "import", str(tmp_path / "made.jsonl"), "--on-conflict", "skip")
    try:
        while (await cluster.call(other, "GET", "/v1/kv/app/00500?consistency=stale")).status != 200:
            await asyncio.sleep(0.01)
        assert importing.returncode is None
        cluster.processes[leader].kill()
        out, err = await asyncio.wait_for(importing.communicate(), 60)
    finally:
        if importing.returncode is None:
            importing.kill()
    assert (importing.returncode, out) == (0, b"%d created\n" % KEYS), err
    exporting = await run(endpoints, "export", "--prefix", "app/", "-f", str(tmp_path / "back.jsonl"))
    out, err = await asyncio.wait_for(exporting.communicate(), 60)
    assert exporting.returncode == 0, err
    assert out.startswith(b"%d keys at revision %d in " % (KEYS, KEYS + 1)), "as many revisions as keys: each once"
