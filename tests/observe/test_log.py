"""Logging never stalls the node, and an embedded node leaves the host program's logging alone."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading

import pytest

from kvnode.config import LogSection
from kvnode.observe import log


@pytest.fixture(autouse=True)
def _embedded_again():
    yield
    log.shutdown()


def test_a_process_writes_one_json_object_a_line(tmp_path):
    path = tmp_path / "log"
    log.setup(LogSection(format="json", file=str(path)), node=3)
    log.get_logger("raft").info("election.won", term=7, blob=b"\x00\xff")
    log.get_logger("raft").debug("vote.granted")
    assert log.flush()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["event"], line["node"], line["component"], line["term"]) for line in lines] == [
        ("election.won", 3, "raft", 7)
    ]
    assert lines[0]["level"] == "info"
    assert lines[0]["time"].endswith("Z")
    log.set_node(4)
    log.get_logger("join").info("join.finished")
    assert log.flush()
    assert json.loads(path.read_text().splitlines()[-1])["node"] == 4


def test_console_lines_are_for_people(tmp_path):
    path = tmp_path / "log"
    log.setup(LogSection(format="console", file=str(path)), node=1)
    log.get_logger("raft").bind(peer=2).warning("peer.lost")
    assert log.flush()
    line = path.read_text()
    assert "peer.lost" in line
    assert "peer=2" in line
    assert "\x1b" not in line


def test_a_logger_made_before_setup_follows_it(tmp_path):
    early = log.get_logger("wal")
    path = tmp_path / "log"
    log.setup(LogSection(format="json", file=str(path)), node=1)
    early.info("wal.recovered", last_index=9)
    assert log.flush()
    assert json.loads(path.read_text())["last_index"] == 9


def test_an_exception_carries_its_traceback(tmp_path):
    path = tmp_path / "log"
    log.setup(LogSection(format="json", file=str(path)), node=1)
    try:
        raise LookupError("lost")
    except LookupError:
        log.get_logger("api").exception("request.failed", request_id="r1")
    assert log.flush()
    entry = json.loads(path.read_text())
    assert "LookupError: lost" in entry["exception"]
    assert entry["request_id"] == "r1"


def test_libraries_are_written_through_the_same_queue(tmp_path):
    path = tmp_path / "log"
    log.setup(LogSection(format="json", file=str(path)), node=1)
    logging.getLogger("aiohttp.server").error("a %s request", "bad")
    assert log.flush()
    entry = json.loads(path.read_text())
    assert (entry["event"], entry["component"], entry["text"]) == ("library.logged", "aiohttp.server", "a bad request")


def test_embedded_events_go_to_the_hosts_logging(caplog):
    with caplog.at_level(logging.WARNING):
        log.get_logger("raft").info("election.won", term=1)
        log.get_logger("raft").warning("disk.stalled", ms=5)
    assert [(record.name, record.getMessage()) for record in caplog.records] == [("kvnode.raft", "disk.stalled ms=5")]


def test_p8_a_blocked_reader_drops_lines_and_the_loss_is_reported():
    """Trap P8: the writer is stuck in write(); putting lines still returns at once, memory stays bounded."""
    blocked, release = threading.Event(), threading.Event()
    written = io.StringIO()

    def write(text: str) -> None:
        blocked.set()
        assert release.wait(10)
        written.write(text)

    writer = log.LineWriter(write, lines_max=100, report_dropped=lambda count: f"dropped {count}\n")
    writer.put("first\n")
    assert blocked.wait(10)
    for number in range(1_000):
        writer.put(f"{number}\n")
    assert not writer.flush(timeout_ms=1)
    release.set()
    assert writer.flush(timeout_ms=10_000)
    writer.close()
    assert written.getvalue().splitlines() == ["first", *map(str, range(100)), "dropped 900"]


def test_a_reader_that_is_gone_is_not_an_error():
    failures = [BrokenPipeError(), None]
    written: list[str] = []
    done = threading.Event()

    def write(text: str) -> None:
        failure = failures.pop(0)
        done.set()
        if failure is not None:
            raise failure
        written.append(text)

    writer = log.LineWriter(write, lines_max=100, report_dropped=lambda count: f"dropped {count}\n")
    writer.put("lost\n")
    assert done.wait(10)
    assert writer.flush(timeout_ms=10_000)
    writer.put("kept\n")
    assert writer.flush(timeout_ms=10_000)
    writer.close()
    assert written == ["kept\ndropped 1\n"]


STALLED = """
import time
from kvnode.config import LogSection
from kvnode.observe import log
log.setup(LogSection(format="json", queue_lines_max=1000), node=1)
logger = log.get_logger("raft")
began = time.monotonic()
for number in range(20_000):
    logger.info("leader.known", term=number, filler="x" * 200)
print(time.monotonic() - began, flush=True)
"""


@pytest.mark.slow
def test_p8_a_process_whose_stderr_nobody_reads_goes_on_and_ends_cleanly():
    process = subprocess.Popen([sys.executable, "-c", STALLED], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        assert float(process.stdout.read()) < 20
        assert process.wait(20) == 0
