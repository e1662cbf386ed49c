"""Stored answers: what a write was answered, kept as bytes beside the fingerprint of what was asked.

A repeat gets the stored answer; the same name (a sequence of a session, an Idempotency-Key) with another request gets
none of it. Refusals are answers like others: a repeat of what was refused once is refused with the same words.
"""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from kvnode.kv.requests import ApplyResult, Command, Refusal
from kvnode.kv.stored import stored_form

FINGERPRINT_BYTES = 16

OVERHEAD_BYTES = 250
"""What an answer costs in memory beside its own bytes. Decides what is dropped: equal on all nodes, for ever."""

_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[ApplyResult] = msgspec.msgpack.Decoder(ApplyResult)


class Answer(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """As it stands in memory and in the store."""

    fingerprint: bytes
    result: bytes

    @property
    def bytes_used(self) -> int:
        return len(self.result) + OVERHEAD_BYTES

    def to(self, fingerprint: bytes, name: str, revision: int) -> ApplyResult:
        """What somebody who asks again under this name is told."""
        if fingerprint != self.fingerprint:
            return Refusal("conflict", f"{name} was used for another request", revision)
        return _decoder.decode(self.result)


def fingerprint_of(command: Command) -> bytes:
    """Of what is asked, not of the name it is asked under; equal on members of different versions."""
    return blake2b(_encode((stored_form(command.request), command.fence)), digest_size=FINGERPRINT_BYTES).digest()


def answer(fingerprint: bytes, result: ApplyResult) -> Answer:
    return Answer(fingerprint, _encode(result))
