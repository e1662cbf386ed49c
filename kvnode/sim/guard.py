"""Guard: while a simulated cluster runs, whatever would make it depend on more than its seed raises.

Real time, the operating system's randomness, the shared generators of `random`, sockets, threads and processes. Static
rules keep them out of the pure packages; here it is seen that the runtime around those takes them from its ports only.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

_TIME = ("time", "time_ns", "monotonic", "monotonic_ns", "clock_gettime", "clock_gettime_ns")
_MORE_TIME = ("perf_counter", "perf_counter_ns", "sleep")
_SHARED_GENERATOR = ("random", "uniform", "randint", "randrange", "choice", "choices", "sample", "shuffle", "gauss")
_MORE_OF_IT = ("expovariate", "triangular", "betavariate", "getrandbits", "randbytes", "seed")

REAL: tuple[tuple[Any, str], ...] = (
    *((time, name) for name in (*_TIME, *_MORE_TIME)),
    *((random, name) for name in (*_SHARED_GENERATOR, *_MORE_OF_IT)),
    (random, "_urandom"),  # under `secrets` and SystemRandom
    (os, "urandom"),
    (socket.socket, "__init__"),
    (socket, "getaddrinfo"),
    (threading.Thread, "start"),
    (subprocess.Popen, "__init__"),
)
"""(owner, name) of everything that must not be called."""


class NotSimulated(AssertionError):
    """Something real was asked for inside a simulation."""


@contextmanager
def nothing_real() -> Iterator[None]:
    """Have every name of `REAL` raise NotSimulated inside. For the whole process: one simulation at a time."""
    with ExitStack() as undo:
        for owner, name in REAL:
            real = getattr(owner, name)
            undo.callback(setattr, owner, name, real)
            setattr(owner, name, _refusing(f"{owner.__name__}.{name}", real))
        yield


def _refusing(what: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def refuse(*arguments: Any, **more: Any) -> Any:
        if sys._getframe(1).f_globals.get("__name__") == "logging":  # stamps each record, and no run reads them
            return real(*arguments, **more)
        raise NotSimulated(f"{what} in a simulation: the run would depend on more than its seed")

    return refuse
