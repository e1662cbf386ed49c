"""Idempotency-Keys: one-off names for writes, without a session; the answer under a key is kept for a stated time.

Keys are forgotten in the order of their first use, by an entry of the log (`SessionEnd.keys_through`), which the
leader's clock brings about (`node.sessions`). A table that is full refuses new keys; it drops none before its time.

Source: IETF draft "The Idempotency-Key HTTP Header Field"; requirement IR5 of the pattern catalogue.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from kvnode.config import LimitsSection
from kvnode.kv.requests import ApplyResult, Command, Refusal
from kvnode.machine import keycode
from kvnode.machine.answers import Answer, answer
from kvnode.machine.backend import Backend
from kvnode.machine.pace import Pace, Work
from kvnode.machine.side_rows import SideRows, rows_of


class KeyRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The row's own key is the index of the entry that used it first."""

    key: bytes
    fingerprint: bytes
    result: bytes


class IdempotencyKeys:
    """All kept keys, in the order of their first use."""

    def __init__(self, backend: Backend, side: SideRows, limits: LimitsSection) -> None:
        self._side = side
        self._limits = limits
        self._kept: OrderedDict[bytes, tuple[int, Answer]] = OrderedDict()  # key → (index of its first use, answer)
        self.bytes_used = 0
        self.newest = 0
        """Index of the first use of the newest key there ever was, as far as is known here."""
        decode = msgspec.msgpack.Decoder(KeyRow).decode
        for row_key, value in rows_of(backend, keycode.IDEMPOTENCY_KEYS):
            row = decode(value)
            self._add(row.key, int.from_bytes(row_key[1:], "big"), Answer(row.fingerprint, row.result))

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def oldest(self) -> int:
        """Index of the first use of the oldest key; 0: there is none."""
        return next(iter(self._kept.values()))[0] if self._kept else 0

    def admit(self, command: Command, fingerprint: bytes, revision: int) -> ApplyResult | None:
        """The answer to a command that must not be executed; None: execute it, and `keep` what comes of it."""
        known = self._kept.get(command.key)
        if known is not None:
            return known[1].to(fingerprint, "this Idempotency-Key", revision)
        limits = self._limits
        if len(self._kept) >= limits.idempotency_keys_max or self.bytes_used >= limits.answers_bytes_max:
            return Refusal("overloaded", f"{len(self._kept)} Idempotency-Keys are kept, no more fit", revision)
        return None

    def keep(self, index: int, command: Command, fingerprint: bytes, result: ApplyResult) -> None:
        """The command was executed and refused or done: that is its answer from now on."""
        kept = answer(fingerprint, result)
        self._add(command.key, index, kept)
        self._side.put(_row_key(index), KeyRow(command.key, kept.fingerprint, kept.result))

    def forget(self, through: int, pace: Pace) -> Work[int]:
        """Drop the keys first used at or before that index; how many that are."""
        forgotten = 0
        while self._kept and self.oldest <= through:
            if pace.left <= 0:
                yield
            pace.left -= 1
            key, (index, kept) = self._kept.popitem(last=False)
            self.bytes_used -= kept.bytes_used + len(key)
            self._side.remove(_row_key(index))
            forgotten += 1
        return forgotten

    def _add(self, key: bytes, index: int, kept: Answer) -> None:
        self._kept[key] = (index, kept)
        self.bytes_used += kept.bytes_used + len(key)
        self.newest = index


def _row_key(index: int) -> bytes:
    return keycode.IDEMPOTENCY_KEYS + index.to_bytes(8, "big")
