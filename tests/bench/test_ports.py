"""Ports for servers of tests and benches: one that a process was given nobody else gets, even before it listens."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from kvnode.bench import process
from kvnode.bench.process import free_ports

_ONE_OF_TWO = """
import sys
from kvnode.bench import process
process.random.Random.randrange = lambda self, *_: next(drawn)
drawn = iter([int(port) for port in sys.argv[1:]])
print(process.free_ports(1)[0])
"""


def test_each_port_is_given_once() -> None:
    ports = free_ports(3) + free_ports(3)
    assert len(set(ports)) == 6
    assert all(10_000 <= port < 16_000 for port in ports)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has names that bind processes and leave no file")
def test_another_process_is_not_given_it() -> None:
    mine, other = free_ports(2)
    process._reserved.pop().close()  # the other is nobody's again
    said = subprocess.run(
        [sys.executable, "-c", _ONE_OF_TWO, str(mine), str(other)], capture_output=True, text=True, check=True
    )
    assert int(said.stdout) == other


def test_a_port_with_a_listener_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    (free,) = free_ports(1)
    process._reserved.pop().close()
    process._given.discard(free)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        drawn = iter([taken.getsockname()[1], free])
        monkeypatch.setattr(process.random.Random, "randrange", lambda *_: next(drawn))
        assert free_ports(1) == [free]
