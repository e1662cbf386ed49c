"""Inside a simulation nothing real is to be had, and outside everything is as before."""

from __future__ import annotations

import logging
import random
import secrets
import socket
import subprocess
import threading
import time

import pytest

from kvnode.clocks.system import SystemClock
from kvnode.node.driver import Driver
from kvnode.sim.guard import REAL, NotSimulated, nothing_real
from kvnode.sim.runtime.run import run_seed

ASKED = {
    "wall clock": lambda: time.localtime(time.time()),
    "the clock of production": lambda: SystemClock().monotonic_ms(),
    "sleep": lambda: time.sleep(0),
    "shared generator": lambda: random.uniform(0, 1),
    "shared choice": lambda: random.choice((1, 2)),
    "random bits of the system": lambda: secrets.randbits(64),
    "random bytes of the system": lambda: secrets.token_bytes(8),
    "socket": lambda: socket.socket(socket.AF_INET),
    "pair of sockets": lambda: socket.socketpair(socket.AF_UNIX),
    "name": lambda: socket.getaddrinfo("localhost", 1),
    "thread": lambda: threading.Thread(target=print).start(),
    "process": lambda: subprocess.Popen(["true"]),
}


@pytest.mark.parametrize("what", ASKED)
def test_what_is_real_raises(what: str) -> None:
    with nothing_real(), pytest.raises(NotSimulated, match="more than its seed"):
        ASKED[what]()


def test_afterwards_everything_is_as_before() -> None:
    before = [getattr(owner, name) for owner, name in REAL]
    with pytest.raises(ZeroDivisionError), nothing_real():
        1 / 0  # noqa: B018 - it is to be left by an exception
    assert [getattr(owner, name) for owner, name in REAL] == before


def test_generators_with_a_seed_and_log_records_go_on() -> None:
    with nothing_real():
        assert random.Random(1).random() == random.Random(1).random()
        assert logging.makeLogRecord({}).created > 0


def test_a_runtime_that_reads_the_real_time_fails_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    due = Driver._due

    def reading(driver: Driver) -> None:
        time.monotonic()
        due(driver)

    monkeypatch.setattr(Driver, "_due", reading)
    report = run_seed(3)
    assert report.verdict == "failed"
    assert "time.monotonic in a simulation" in report.failure
