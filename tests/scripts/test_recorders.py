"""What an answer, a broken one or none at all makes of an operation."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from kvnode.bench.load import Address
from kvnode.check.history import Operation, Seen, decode_lines
from scripts.faults.recorders import Answer, Journal, NotSent, Recorder, ask, read_all, settle

GET = Operation(client=1, op="get", call=1, key="c/0/1", node=1)
PUT = Operation(client=1, op="put", call=1, key="c/0/1", arg="v1", node=1)
CAS = Operation(client=1, op="put", call=1, key="c/0/1", arg="v1", exp=4, node=1)
DELETE = Operation(client=1, op="delete", call=1, key="c/0/1", node=1)
RANGE = Operation(client=1, op="range", call=1, key="c/0/", node=1)
TXN = Operation(
    client=1,
    op="txn",
    call=1,
    node=1,
    parts=(
        Operation(client=1, op="put", call=1, key="a", arg="v2", exp=0),
        Operation(client=1, op="delete", call=1, key="b"),
        Operation(client=1, op="get", call=1, key="d"),
    ),
)
ITEM = {"key": "d", "value": "w", "mod_revision": 3, "version": 2}


def answer(status: int, body: Any = None, **headers: str) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, raw)


def error(status: int, code: str, outcome: str, **detail: Any) -> Answer:
    return answer(status, {"error": {"code": code, "message": "…", "detail": detail}}, kv_outcome=outcome)


def test_what_an_answer_saw():
    done = settle(GET, answer(200, b"v9", kv_mod_revision="7", kv_revision="9"))
    assert (done.status, done.out, done.mod, done.rev) == ("ok", "v9", 7, 9)
    done = settle(GET, Answer(404, {"kv-revision": "9"}, b'{"error": {"code": "key_not_found"}}'))
    assert (done.status, done.out, done.mod, done.rev) == ("ok", None, 0, 9)
    assert settle(PUT, answer(200, {"revision": 5, "created": True})).rev == 5
    done = settle(DELETE, answer(200, {"revision": 5, "deleted": 0}))
    assert (done.status, done.rev, done.count) == ("ok", 5, 0)
    done = settle(RANGE, answer(200, {"revision": 9, "more": False, "items": [ITEM]}))
    assert (done.rev, done.items) == (9, (Seen("d", "w", 3, 2),))


def test_a_condition_that_did_not_hold_is_an_answer():
    done = settle(CAS, error(412, "compare_failed", "not-applied", revision=6))
    assert (done.status, done.held, done.mod) == ("ok", False, 6)


def test_a_transaction_tells_of_its_parts_or_that_it_did_not_take_place():
    results = [{"revision": 8}, {"revision": 8, "deleted": 1}, {"revision": 8, "count": 1, "items": [ITEM]}]
    done = settle(TXN, answer(200, {"revision": 8, "succeeded": True, "results": results}))
    assert (done.status, done.held, done.rev) == ("ok", True, 8)
    assert [part.count for part in done.parts] == [0, 1, 0]
    assert (done.parts[2].out, done.parts[2].mod) == ("w", 3)
    done = settle(TXN, answer(200, {"revision": 8, "succeeded": False, "results": []}))
    assert (done.status, done.held) == ("ok", False)


@pytest.mark.parametrize(
    ("found", "status"),
    [
        (error(503, "no_leader", "not-applied"), "fail"),
        (error(507, "no_space", "not-applied"), "fail"),
        (error(504, "timeout", "unknown"), "info"),
        (answer(503, {"error": {"code": "no_leader"}}), "info"),  # it does not say that nothing happened
        (answer(500, b"\x00"), "info"),
        (answer(200, b"no JSON"), "info"),
    ],
)
def test_only_what_is_said_to_be_not_applied_is_a_failure(found: Answer, status: str):
    done = settle(PUT, found)
    assert done.status == status
    assert (done.ret is None) == (status == "info")


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def served(handler: Handler, client: Callable[[Address], Awaitable[Any]]) -> Any:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await handler(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        return await client(server.sockets[0].getsockname())


async def test_an_answer_cut_short_is_no_answer():
    async def cut(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del writer

    for handler in (cut, silent):
        with pytest.raises(OSError, match="answer"):
            await served(handler, lambda address: ask(address, "GET", "/"))


async def test_a_refused_connection_has_sent_nothing(tmp_path: Path):
    address = await _closed_port()
    with pytest.raises(NotSent):
        await ask(address, "GET", "/")
    journal = Journal(tmp_path / "history.jsonl")
    await Recorder(journal, lambda: {1: address}, random.Random(1)).run(pause_s=0.0, count_max=5)
    journal.close()
    assert [operation.status for operation in journal.operations] == ["fail"] * 5


async def _closed_port() -> Address:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    address: Address = server.sockets[0].getsockname()
    server.close()
    await server.wait_closed()
    return address


async def test_after_an_unknown_outcome_the_client_is_a_new_one_and_all_is_on_disk(tmp_path: Path):
    async def nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del writer

    journal = Journal(tmp_path / "history.jsonl")

    async def record(address: Address) -> None:
        await Recorder(journal, lambda: {1: address}, random.Random(1)).run(pause_s=0.0, count_max=20)

    await served(nothing, record)
    journal.close()
    assert [operation.client for operation in journal.operations] == list(range(1, 21))
    assert {operation.status for operation in journal.operations} == {"info"}
    values = [part.arg for o in journal.operations for part in (o.parts or (o,)) if part.op == "put"]
    assert len(set(values)) == len(values) > 5
    with (tmp_path / "history.jsonl").open("rb") as lines:
        assert decode_lines(lines) == journal.operations


async def test_everything_is_read_page_by_page():
    pages = [
        {"revision": 9, "more": True, "cursor": "next", "items": [{**ITEM, "key": "a"}]},
        {"revision": 9, "more": False, "cursor": None, "items": [{**ITEM, "key": "b"}]},
    ]

    async def page(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = json.dumps(pages.pop(0)).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    found = await served(page, read_all)
    assert found == {"a": Seen("a", "w", 3, 2), "b": Seen("b", "w", 3, 2)}
