"""Turns: what a client says next follows from the answer, and a turn is what is timed."""

from __future__ import annotations

import asyncio
import itertools

from kvnode.bench import http1, load
from kvnode.bench.fronts import Talk
from kvnode.bench.load import Address
from kvnode.bench.turns import Turns
from tests.bench.test_connections import serving


class TokenServer:
    """Gives a token to each POST and takes only that back; refuses the first POST of all."""

    def __init__(self) -> None:
        self.given = itertools.count(1)
        self.returned: list[int] = []
        self.wrong = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine = 0
        try:
            while True:
                line = (await reader.readuntil(b"\r\n\r\n")).split()
                if line[0] == b"POST":
                    mine = next(self.given)
                    answer = b"%d" % mine
                    status = b"503 No" if mine == 1 else b"200 OK"
                else:
                    self.wrong += int(line[1].rpartition(b"/")[2]) != mine
                    self.returned.append(mine)
                    answer, status = b"", b"200 OK"
                writer.write(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(answer), answer))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


async def test_a_turn_is_counted_when_its_last_answer_came() -> None:
    server = TokenServer()
    begun = itertools.count()

    def talk(address: Address) -> Talk:
        next(begun)
        while True:
            answer = yield http1.request("POST", "/token", address), False
            token = int(answer.rpartition(b"\r\n")[2])
            yield http1.request("DELETE", f"/token/{token}", address), True

    async with serving(server) as address:
        turns = Turns(lambda: talk(address))
        await turns.start(http1.connect, [address], 3, 1)
        while len(turns.latencies_ns) < 50:
            await asyncio.sleep(0)
        await turns.stop()
    assert server.wrong == 0
    assert turns.failures == 1
    assert next(begun) == 4  # three clients; the one that was refused began anew
    assert 0 <= len(server.returned) - len(turns.latencies_ns) <= 3
    assert min(turns.latencies_ns) > 0
    assert isinstance(turns, load.ClosedLoop)
