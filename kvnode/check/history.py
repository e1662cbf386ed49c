"""History: what each client asked, when, and what it was told; one JSON object a line in a file.

A client has one operation open at a time. `call` is taken before the first byte is sent, `ret` after the last one has
arrived, both by one monotonic clock for all clients of a run, in nanoseconds. Every operation ended in one way:

    ok      it took effect between `call` and `ret`, and the answer says what it saw
    fail    it certainly had no effect, ever (the answer said `not-applied`)
    info    anything else: a time-out, a lost connection, `unknown`. It may take effect once, at any time after
            `call`, or never; `ret` is None. The client goes on under a new client number

A condition that did not hold is an answer (`ok`, with `held` false): it tells what the key's revision was.
Source: the history format of Knossos and Porcupine; Herlihy & Wing, "Linearizability" (1990), for the terms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, TypeVar

import msgspec

Kind = Literal["put", "get", "delete", "range", "txn"]
Status = Literal["ok", "fail", "info"]
_Line = TypeVar("_Line")

ANY = -1
"""`exp` of a write without a condition."""

MUST_EXIST = -2
"""`exp` of a write to a key that must exist, at whatever revision (HTTP's ``If-Match: *``)."""


class Seen(msgspec.Struct, frozen=True, omit_defaults=True):
    """One item that a read saw: the value, and the revision that wrote it."""

    key: str
    value: str
    mod: int
    version: int = 0  # 0: not recorded


class Operation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request of one client. Keys and values are text (the recorder makes them; it may use hex for bytes).

    put     `key`, `arg` (the value, unique in the run), `exp`; ok: `rev` is the revision it wrote
    delete  `key`, `exp`; ok: `rev`, and `count` deleted (0: there was nothing, and no revision was used)
    get     `key`; ok: `out` and `mod` of the item, or None and 0; `rev` is the store's revision answered
    range   `key` is a prefix; ok: `items` in key order, `rev`
    txn     `parts`: puts, gets and deletes that take effect at one revision if every part with an `exp` finds it
    """

    client: int
    op: Kind
    call: int
    status: Status = "ok"
    ret: int | None = None
    key: str = ""
    arg: str | None = None
    exp: int = ANY  # the mod revision asked for; 0: must not exist; ANY: unconditional
    held: bool = True  # whether the condition held; if not, `mod` is what was found instead (0: no such key)
    out: str | None = None
    mod: int = 0
    count: int = 0
    rev: int = 0  # 0: not known
    items: tuple[Seen, ...] = ()
    parts: tuple[Operation, ...] = ()  # of a transaction; `client`, `call` repeat; `ret`, `status`, `rev` do not matter
    node: int = 0
    session: str = ""
    sequence: int = 0
    consistency: Literal["linearizable", "stale"] = "linearizable"
    note: str = ""  # for people: the error's code, the request id

    @property
    def steps(self) -> tuple[Operation, ...]:
        """The parts of a transaction; of anything else, itself."""
        return self.parts or (self,)

    @property
    def last_known(self) -> int:
        """When it was heard of last: `ret`, or `call` if there was no answer."""
        return self.call if self.ret is None else self.ret


def first_call(operations: Iterable[Operation]) -> int:
    """When a history begins: what the times told to people count from."""
    return min((operation.call for operation in operations), default=0)


_encode = msgspec.json.Encoder().encode


def encode_lines(operations: Iterable[Operation]) -> Iterator[bytes]:
    """One line of JSON, with its newline, an operation."""
    return (_encode(operation) + b"\n" for operation in operations)


def decode_lines(lines: Iterable[bytes]) -> list[Operation]:
    """Raises: ValueError naming the line."""
    return list(_decoded(lines, msgspec.json.Decoder(Operation), "operation"))


def decode_final(lines: Iterable[bytes]) -> dict[str, Seen]:
    """What the store held in the end, by key. Raises: ValueError naming the line."""
    return {item.key: item for item in _decoded(lines, msgspec.json.Decoder(Seen), "item of a final state")}


def _decoded(lines: Iterable[bytes], decoder: msgspec.json.Decoder[_Line], what: str) -> Iterator[_Line]:
    for number, line in enumerate(lines, start=1):
        try:
            yield decoder.decode(line)
        except msgspec.MsgspecError as error:
            raise ValueError(f"line {number} is no {what}: {error}") from error
