"""`kvnode lease`, `put --lease --ttl` and `txn` against the real front door."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from click.testing import Result

from kvnode import errors
from kvnode.kv.requests import LeaseKeepAlive, LeaseRevoke
from tests.cli.cluster import ServedNode

Run = Callable[..., Result]


def test_a_lease_from_its_grant_to_its_end(run: Run, shared: ServedNode) -> None:
    granted = run("lease", "grant", "30s")
    lease = granted.stdout.strip()
    assert lease.isdigit()
    other = json.loads(run("lease", "grant", "1h", "-o", "json").stdout)
    assert other["ttl_ms"] == 3_600_000
    assert run("put", "workers/7", "alive", "--lease", lease).exit_code == 0
    assert run("put", "workers/ü", "alive", "--lease", lease).exit_code == 0
    shown = run("lease", "show", lease)
    assert shown.stdout.splitlines() == ["30000 of 30000 ms, 2 keys", "workers/7", "workers/ü"]
    assert json.loads(run("lease", "show", lease, "-o", "json").stdout)["count"] == 2
    assert run("lease", "list", "-o", "plain").stdout.split()[-2:] == [lease, str(other["id"])]
    listed = [json.loads(line) for line in run("lease", "list", "-o", "json").stdout.splitlines()]
    assert {"id": int(lease), "ttl_ms": 30_000, "count": 2} in listed
    assert run("lease", "list", "-o", "table").stdout.splitlines()[0].split() == ["lease", "ttl", "keys"]
    assert run("lease", "keepalive", lease, "--once").exit_code == 0
    assert isinstance(shared.node.executed[-1], LeaseKeepAlive)
    assert run("lease", "revoke", lease).stdout == "2\n"
    assert run("get", "workers/7").exit_code == 1
    for gone in (("show", lease), ("revoke", lease), ("keepalive", lease, "--once"), ("keepalive", lease)):
        refused = run("lease", *gone)
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert "[lease_not_found]" in refused.stderr
    refused = run("put", "k", "v", "--lease", lease)
    assert refused.exit_code == 1
    assert "Kv-Outcome: not-applied" in refused.stderr


def test_pages_of_leases_are_walked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvnode.cli.lease._PAGE_LEASES", 2)
    made = [run("lease", "grant", "30s").stdout.strip() for _ in range(5)]
    assert run("lease", "list", "-o", "plain").stdout.split()[-5:] == made


def test_a_put_with_a_time_to_live(run: Run, shared: ServedNode) -> None:
    put = run("put", "brief", "v", "--ttl", "30s", "--if-rev", "0")
    revision, lease = put.stdout.removeprefix("revision ").split(", lease ")
    assert json.loads(run("get", "brief", "-o", "json").stdout)["lease"] == int(lease)
    assert run("put", "brief", "v", "--ttl", "30s", "-o", "json").stdout == (
        f'{{"revision": {int(revision) + 1}, "created": false}}\n'
    )
    assert run("put", "k", "v", "--ttl", "30s", "--lease", "7").exit_code == 2
    assert run("put", "k", "v", "--ttl", "0s").exit_code == 2


def test_an_unknown_outcome_of_a_grant_is_told(run: Run, shared: ServedNode) -> None:
    shared.node.refuse_next(errors.Timeout("who knows"))
    granted = run("lease", "grant", "30s")
    assert granted.exit_code == 4
    assert "Kv-Outcome: unknown" in granted.stderr


def kept(endpoint: str, lease: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "KVNODE_ENDPOINTS": endpoint}
    command = [sys.executable, "-m", "kvnode", "lease", "keepalive", lease]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def until_renewed(shared: ServedNode, lease: str, times: int) -> None:
    deadline = time.monotonic() + 20
    while sum(request == LeaseKeepAlive(int(lease)) for request in shared.node.executed) < times:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_lease_is_kept_alive_until_interrupted(run: Run, shared: ServedNode, number: signal.Signals) -> None:
    lease = run("lease", "grant", "1s").stdout.strip()
    process = kept(shared.endpoint, lease)
    until_renewed(shared, lease, 3)
    process.send_signal(number)
    assert process.wait(20) == 0
    assert process.communicate()[1] == ""


@pytest.mark.slow
def test_a_lease_that_is_lost_while_it_is_kept(run: Run, shared: ServedNode) -> None:
    lease = run("lease", "grant", "1s").stdout.strip()
    process = kept(shared.endpoint, lease)
    until_renewed(shared, lease, 2)
    run("lease", "revoke", lease)
    assert isinstance(shared.node.executed[-1], LeaseRevoke | LeaseKeepAlive)
    assert process.wait(20) == 75
    assert f"lease {lease} was lost" in process.communicate()[1]


TXN = {
    "compare": [{"key": "t", "target": "exists", "op": "=", "value": False}],
    "success": [{"put": {"key": "t", "value": "1"}}],
    "failure": [{"get": {"key": "t"}}],
}


def test_a_transaction_from_a_file_or_standard_input(run: Run, tmp_path) -> None:
    file = tmp_path / "txn.json"
    file.write_text(json.dumps(TXN))
    done = run("txn", "-f", str(file))
    assert done.exit_code == 0
    assert json.loads(done.stdout)["succeeded"] is True
    again = run("txn", "-f", "-", stdin=json.dumps(TXN).encode())
    assert again.exit_code == 1, "the compares did not hold"
    answer = json.loads(again.stdout)
    assert answer["succeeded"] is False
    assert answer["results"][0]["items"][0]["value"] == "1"


def test_a_transaction_that_is_none(run: Run, shared: ServedNode, tmp_path) -> None:
    refused = run("txn", "-f", "-", stdin=b'{"compares": []}')
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "Kv-Outcome: not-applied" in refused.stderr
    assert "[unknown_parameter]" in refused.stderr
    assert run("txn", "-f", str(tmp_path / "missing")).exit_code == 2
    assert run("txn").exit_code == 2
    shared.node.refuse_next(errors.LeadershipLost("who knows"))
    unknown = run("txn", "-f", "-", stdin=json.dumps(TXN).encode())
    assert unknown.exit_code == 4
    assert "Kv-Outcome: unknown" in unknown.stderr
