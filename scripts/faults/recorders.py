"""Recorders: clients that ask the nodes for work, and write down what they asked, when, and what they were told.

Raw HTTP/1.1, one request a connection: nothing here ever sends a request twice by itself, so one recorded operation is
one request. What an answer does not settle (no answer, a broken one, `unknown`) is `info`, and the recorder goes on
under a new client number. Rate and count are bounded.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic_ns
from typing import Any
from urllib.parse import quote

import msgspec

from kvnode.bench import http1
from kvnode.bench.load import Address
from kvnode.check.history import ANY, Operation, Seen, encode_lines

KEYS = 8
"""Keys in use at a time: few, so that clients meet on them."""

KEY_AGE_OPERATIONS = 1500
"""After this many operations new keys come into use, so that no key's history grows without bound."""

_TIMEOUTS_MS = (500, 1000, 2000)
"""Deadlines that requests name. Short: a client that waits at a node that is cut off asks nobody else meanwhile."""

_ANSWER_S = 3.0


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def outcome(self) -> str:
        return self.headers.get("kv-outcome", "")

    @property
    def revision(self) -> int:
        return int(self.headers.get("kv-revision", "0"))


class NotSent(Exception):
    """There was no connection: not a byte of the request has left."""


async def ask(address: Address, method: str, path: str, body: bytes = b"", *, limit_s: float = _ANSWER_S) -> Answer:
    """One request on a connection of its own.

    Raises: NotSent; OSError, TimeoutError, ValueError (outcome unknown).
    """
    async with asyncio.timeout(limit_s):
        try:
            reader, writer = await asyncio.open_connection(*address)
        except OSError as error:
            raise NotSent(str(error)) from error
        try:
            writer.write(http1.request(method, path, address, body, headers="Connection: close\r\n"))
            raw = await reader.read()
        finally:
            writer.close()
    head_bytes, end, content = raw.partition(b"\r\n\r\n")
    if not end or not head_bytes.startswith(b"HTTP/1.1 "):
        raise ConnectionResetError("no whole answer")
    lines = head_bytes.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if len(content) != int(headers.get("content-length", "-1")):
        raise ConnectionResetError("an answer cut short")
    return Answer(int(lines[0].split()[1]), headers, content)


class Journal:
    """All operations of one run, in memory and line by line in a file; counts by status."""

    def __init__(self, file: Path) -> None:
        self.operations: list[Operation] = []
        self.counts: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self._sink = file.open("wb")
        self._clients = 0
        self._values = 0

    def new_client(self) -> int:
        self._clients += 1
        return self._clients

    def new_value(self) -> str:
        self._values += 1
        return f"v{self._values}"

    def prefix(self) -> str:
        return f"c/{len(self.operations) // KEY_AGE_OPERATIONS}/"

    def add(self, operation: Operation) -> None:
        self.operations.append(operation)
        self.counts[operation.status] += 1
        self.kinds[operation.op] += operation.status == "ok"
        self._sink.writelines(encode_lines([operation]))

    def close(self) -> None:
        self._sink.close()


class Recorder:
    """One client after another, until `run` is cancelled or `count_max` operations are done."""

    def __init__(self, journal: Journal, addresses: Callable[[], dict[int, Address]], rng: random.Random) -> None:
        self._journal = journal
        self._addresses = addresses
        self._rng = rng
        self._client = journal.new_client()
        self._known: dict[str, int] = {}  # key → mod revision last seen by this recorder

    async def run(self, *, pause_s: float, count_max: int) -> None:
        for _ in range(count_max):
            operation = await self._one()
            self._journal.add(operation)
            if operation.status == "info":
                self._client = self._journal.new_client()
            longer = 3 if operation.note == "not sent" else 1
            await asyncio.sleep(self._rng.uniform(0.5, 1.5) * pause_s * longer)

    async def _one(self) -> Operation:
        """Draw an operation, carry it out → what came of it."""
        addresses = self._addresses()
        node = self._rng.choice(sorted(addresses))
        asked = self._draw(node)
        method, path, body = _request(asked, self._rng.choice(_TIMEOUTS_MS))
        try:
            answer = await ask(addresses[node], method, path, body)
        except NotSent:
            return msgspec.structs.replace(asked, status="fail", ret=monotonic_ns(), note="not sent")
        except (OSError, TimeoutError, ValueError) as error:
            return _unsettled(asked, type(error).__name__)
        except asyncio.CancelledError:
            self._journal.add(_unsettled(asked, "the run ended"))
            raise
        done = settle(asked, answer)
        self._learn(done)
        return done

    def _draw(self, node: int) -> Operation:
        rng, journal = self._rng, self._journal
        prefix = journal.prefix()
        key = f"{prefix}{rng.randrange(KEYS)}"
        asked = Operation(client=self._client, op="get", call=monotonic_ns(), key=key, node=node)
        kind = rng.choices(("put", "cas", "get", "delete", "range", "txn"), (30, 17, 28, 7, 9, 9))[0]
        if kind == "put":
            return msgspec.structs.replace(asked, op="put", arg=journal.new_value())
        if kind == "cas":
            return msgspec.structs.replace(asked, op="put", arg=journal.new_value(), exp=self._expected(key))
        if kind == "delete":
            exp = self._expected(key) if rng.random() < 0.4 else ANY
            return msgspec.structs.replace(asked, op="delete", exp=exp)
        if kind == "range":
            return msgspec.structs.replace(asked, op="range", key=prefix)
        if kind == "txn":
            return msgspec.structs.replace(asked, op="txn", key="", parts=self._parts(asked, prefix))
        return asked

    def _parts(self, asked: Operation, prefix: str) -> tuple[Operation, ...]:
        """Two or three keys: a condition on the first (mostly), writes of the others, now and then a get."""
        rng = self._rng
        numbers = rng.sample(range(KEYS), rng.choice((2, 3)))
        parts = []
        for place, number in enumerate(numbers):
            key = f"{prefix}{number}"
            exp = self._expected(key) if place == 0 and rng.random() < 0.7 else ANY
            kind = rng.choices(("put", "delete", "get"), (6, 1, 2))[0] if place else "put"
            part = msgspec.structs.replace(asked, key=key, exp=exp)
            if kind == "put":
                part = msgspec.structs.replace(part, op="put", arg=self._journal.new_value())
            elif kind == "delete":
                part = msgspec.structs.replace(part, op="delete")
            parts.append(part)
        return tuple(parts)

    def _expected(self, key: str) -> int:
        """What this recorder believes; sometimes that there is nothing."""
        return 0 if self._rng.random() < 0.15 else self._known.get(key, 0)

    def _learn(self, done: Operation) -> None:
        if done.status != "ok":
            return
        if done.op == "put":
            self._known[done.key] = done.rev if done.held else done.mod
        elif done.op == "get" or not done.held:
            self._known[done.key] = done.mod
        for item in done.items:
            self._known[item.key] = item.mod


def _request(asked: Operation, timeout_ms: int) -> tuple[str, str, bytes]:
    """(method, path and query, body) of a recorded operation."""
    condition = f"&if_rev={asked.exp}" if asked.exp != ANY else ""
    path = f"/v1/kv/{quote(asked.key)}?timeout={timeout_ms}ms{condition}"
    match asked.op:
        case "put":
            assert asked.arg is not None
            return "PUT", path, asked.arg.encode()
        case "delete":
            return "DELETE", path, b""
        case "get":
            return "GET", path, b""
        case "range":
            return "GET", f"/v1/kv?prefix={quote(asked.key)}&limit=1000&timeout={timeout_ms}ms", b""
        case "txn":
            compare = [
                {"key": part.key, "target": "mod_revision", "op": "=", "value": part.exp}
                for part in asked.parts
                if part.exp != ANY
            ]
            body = {"compare": compare, "success": [_part_request(part) for part in asked.parts]}
            return "POST", f"/v1/txn?timeout={timeout_ms}ms", json.dumps(body).encode()


def _part_request(part: Operation) -> dict[str, Any]:
    if part.op == "put":
        return {"put": {"key": part.key, "value": part.arg}}
    return {part.op: {"key": part.key}}


def settle(asked: Operation, answer: Answer) -> Operation:
    """What `answer` says came of `asked`. An answer that makes no sense is not believed: `info`."""
    replace = msgspec.structs.replace
    now = monotonic_ns()
    try:
        if answer.status == 412 and asked.exp != ANY and answer.outcome == "not-applied":
            found = json.loads(answer.body)["error"]["detail"]["revision"]
            return replace(asked, ret=now, held=False, mod=found)
        if answer.status == 404 and asked.op == "get" and json.loads(answer.body)["error"]["code"] == "key_not_found":
            return replace(asked, ret=now, rev=answer.revision)
        if answer.status == 200:
            return _settle_success(replace(asked, ret=now), answer)
    except (ValueError, KeyError, TypeError) as error:
        return _unsettled(asked, f"a wrong answer: {error!r}")
    if answer.outcome == "not-applied":
        return replace(asked, status="fail", ret=now, note=_code(answer))
    return _unsettled(asked, _code(answer))


def _settle_success(asked: Operation, answer: Answer) -> Operation:
    replace = msgspec.structs.replace
    if asked.op == "get":
        mod = int(answer.headers["kv-mod-revision"])
        return replace(asked, out=answer.body.decode(), mod=mod, rev=answer.revision)
    body = json.loads(answer.body)
    match asked.op:
        case "put":
            return replace(asked, rev=body["revision"])
        case "delete":
            return replace(asked, rev=body["revision"], count=body["deleted"])
        case "range":
            if body["more"]:
                raise ValueError("a page that was to hold everything does not")
            return replace(asked, rev=body["revision"], items=tuple(_seen(item) for item in body["items"]))
        case _:
            if not body["succeeded"]:
                return replace(asked, held=False, rev=body["revision"])
            parts = zip(asked.parts, body["results"], strict=True)
            return replace(asked, rev=body["revision"], parts=tuple(_settle_part(part, found) for part, found in parts))


def _settle_part(part: Operation, found: dict[str, Any]) -> Operation:
    if part.op == "delete":
        return msgspec.structs.replace(part, count=found["deleted"])
    if part.op == "get" and found["items"]:
        item = _seen(found["items"][0])
        return msgspec.structs.replace(part, out=item.value, mod=item.mod)
    return part


def _seen(item: dict[str, Any]) -> Seen:
    return Seen(item["key"], item["value"], item["mod_revision"], item["version"])


def _unsettled(asked: Operation, note: str) -> Operation:
    return msgspec.structs.replace(asked, status="info", note=note)


def _code(answer: Answer) -> str:
    try:
        return f"{answer.status} {json.loads(answer.body)['error']['code']}"
    except (ValueError, KeyError, TypeError):
        return str(answer.status)


async def read_all(address: Address, prefix: str = "c/") -> dict[str, Seen]:
    """Everything below `prefix` at one revision, page by page. Raises: NotSent, OSError, TimeoutError, ValueError."""
    found: dict[str, Seen] = {}
    cursor = ""
    while True:
        path = f"/v1/kv?prefix={prefix}&limit=1000" + (f"&cursor={quote(cursor)}" if cursor else "")
        answer = await ask(address, "GET", path)
        if answer.status != 200:
            raise ConnectionError(f"reading everything: {answer.status} {answer.body!r}")
        page = json.loads(answer.body)
        found.update({item["key"]: _seen(item) for item in page["items"]})
        if not page["more"]:
            return found
        cursor = page["cursor"]
