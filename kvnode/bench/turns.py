"""Turns: closed-loop load where a request follows from an answer, so that each client has a connection of its own.

A turn is what counts: a lock taken and released, a lease begun and ended. Its time runs from its first request to its
last answer. A client whose request fails begins anew, with a new number.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns

from kvnode.bench.fronts import Talk
from kvnode.bench.load import ClosedLoop, Connection


class _Client:
    """What one client is in the middle of."""

    __slots__ = ("began_ns", "ends_turn", "talk")

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.ends_turn = False
        self.began_ns = perf_counter_ns()


class Turns(ClosedLoop):
    """`begin` gives each client its talk."""

    def __init__(self, begin: Callable[[], Talk]) -> None:
        super().__init__(iter(()))
        self._begin = begin
        self._clients: dict[Connection, _Client] = {}

    def first(self, connection: Connection) -> bytes:
        client = self._clients[connection] = _Client(self._begin())
        request, client.ends_turn = next(client.talk)
        return request

    def following(self, connection: Connection, sent_ns: int, succeeded: bool) -> bytes:
        if not succeeded:
            self.failures += 1
            return self.first(connection)
        client = self._clients[connection]
        if client.ends_turn:
            now_ns = perf_counter_ns()
            self.latencies_ns.append(now_ns - client.began_ns)
            client.began_ns = now_ns
        request, client.ends_turn = client.talk.send(connection.answer)
        return request
