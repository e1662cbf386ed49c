"""Aside: carry a job out in a process of its own, as long as it gives signs of life, and never wait for it in vain."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import msgspec

from kvnode.doctor.directory_facts import Unread
from kvnode.doctor.reader import Job, Line

T = TypeVar("T", bound=msgspec.Struct)

SILENCE_S = 60.0
"""A reader that has said nothing for so long waits for a disk that does not answer."""


def carry_out_aside(
    job: Job, kind: type[T], *, seconds: float, on_sign: Callable[[str], None], silence_s: float = SILENCE_S
) -> T | Unread:
    """The result of `job`, or why there is none. Returns within `seconds` and a moment."""
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "kvnode.doctor.reader"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError as error:
        return Unread(f"its reader cannot be started: {error}")
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with suppress(BrokenPipeError):  # it is dead: the end of its output says so
            process.stdin.write(msgspec.json.encode(job) + b"\n")
            process.stdin.close()
        return _listen(process, kind, time.monotonic() + seconds, silence_s, on_sign)
    finally:
        if process.poll() is None:
            process.kill()  # one that hangs in the disk goes when the disk answers; it is not waited for
        process.stdout.close()


def _listen(
    process: subprocess.Popen[bytes], kind: type[T], deadline: float, silence_s: float, on_sign: Callable[[str], None]
) -> T | Unread:
    assert process.stdout is not None
    selector = selectors.DefaultSelector()
    selector.register(process.stdout, selectors.EVENT_READ)
    unread = b""
    with selector:
        while True:
            now = time.monotonic()
            if now >= deadline:
                return Unread("it takes longer than --time-limit", is_fault=False)
            if not selector.select(min(silence_s, deadline - now)):
                if time.monotonic() < deadline:
                    return Unread(f"the disk has not answered for {silence_s:.0f} s")
                continue
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            if not chunk:
                return Unread(_how_it_ended(process))
            *lines, unread = (unread + chunk).split(b"\n")
            for line in map(msgspec.json.Decoder(Line).decode, lines):
                if line.kind == "sign":
                    on_sign(line.text)
                elif line.kind == "unread":
                    return Unread(line.text)
                else:
                    return msgspec.json.decode(line.result, type=kind)


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    status = process.wait()
    if status in {-signal.SIGBUS, -signal.SIGSEGV, -signal.SIGABRT}:
        return f"whoever reads it is killed ({signal.Signals(-status).name}): a page is damaged, or the file is cut off"
    return f"its reader ended with status {status}"
