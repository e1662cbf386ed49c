"""A pool of worker processes for seeds: as many jobs under way as there are workers, answers as they come.

A worker that dies or stops answering is a failure of the seed it had; another takes its place. Workers know nothing of
Ctrl-C; when the pool is left, by whatever way, they are ended.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from itertools import islice
from typing import IO

import msgspec

from kvnode.sim.worker import Done, Job, failed

TICK_S = 0.5
SILENCE_FACTOR = 20
"""A worker interrupts itself by processor time; one silent for this many times that, in real time, is beyond help."""

_decode = msgspec.json.Decoder(Done).decode
_encode = msgspec.json.Encoder().encode


class _Worker:
    """One child process and the job it is at."""

    def __init__(self, hash_seed: str) -> None:
        self.job: Job | None = None
        self.silent_until = 0.0
        self._buffer = bytearray()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kvnode.sim.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            start_new_session=True,  # a Ctrl-C at the terminal is for the parent
        )

    @property
    def answers(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def give(self, job: Job) -> None:
        assert self.job is None, self.job
        self.job = job
        self.silent_until = time.monotonic() + SILENCE_FACTOR * job.cpu_limit_s
        assert self.process.stdin is not None
        with suppress(
            BrokenPipeError
        ):  # it is dead: its end of file on the other pipe says so next, and fails this job
            self.process.stdin.write(_encode(job) + b"\n")
            self.process.stdin.flush()

    def read(self) -> Done | None:
        """The answer, if it is complete now. Raises: EOFError when the process has ended."""
        chunk = os.read(self.answers.fileno(), 1 << 20)
        if not chunk:
            raise EOFError
        self._buffer += chunk
        if not self._buffer.endswith(b"\n"):
            return None
        done = _decode(self._buffer)
        self._buffer.clear()
        self.job = None
        return done

    def end(self) -> int:
        """Kill and reap; the exit status, negative for a signal."""
        self.process.kill()
        status = self.process.wait()
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # what was not written went to nobody
            self.process.stdin.close()
        self.answers.close()
        return status


def run_jobs(jobs: Iterator[Job], workers: int, hash_seed: str = "random") -> Generator[Done | None, None, None]:
    """Every job's answer, in the order they come; None now and then, so that the caller can say where we are."""
    selector = selectors.DefaultSelector()
    pool: list[_Worker] = []

    def hire(job: Job) -> None:
        worker = _Worker(hash_seed)
        pool.append(worker)
        selector.register(worker.answers, selectors.EVENT_READ, worker)
        worker.give(job)

    def dismiss(worker: _Worker) -> int:
        selector.unregister(worker.answers)
        pool.remove(worker)
        return worker.end()

    def lose(worker: _Worker, why: str) -> Done:
        """A replacement is hired with the next job, if there is one."""
        job = worker.job
        status = dismiss(worker)
        assert job is not None, "a worker without a job has ended"
        if (following := next(jobs, None)) is not None:
            hire(following)
        return Done(failed(job, f"{why} (exit status {status})"))

    try:
        for first in islice(jobs, workers):
            hire(first)
        while pool:
            ready = [key.data for key, _ in selector.select(TICK_S)]
            for worker in ready:
                try:
                    done = worker.read()
                except EOFError:
                    yield lose(worker, "the worker process died")
                    continue
                if done is None:
                    continue
                if (job := next(jobs, None)) is not None:
                    worker.give(job)
                else:
                    dismiss(worker)
                yield done
            now = time.monotonic()
            for worker in [worker for worker in pool if now > worker.silent_until]:
                yield lose(worker, "the worker process hangs")
            yield None
    finally:
        while pool:
            dismiss(pool[-1])
        selector.close()
