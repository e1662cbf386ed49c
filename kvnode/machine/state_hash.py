"""State hash: what one revision shows, in 16 bytes: equal on all nodes, whatever each has compacted or flushed.

Unlike the rolling digest it says nothing about how the state came to be, so it can be asked for at any revision that is
kept, on nodes that have applied different entries since, and of a restored cluster against the one it was taken from.
Hashed is each key that exists at the revision, in byte order: its MessagePack form as `KeyValue`.
"""

from __future__ import annotations

from contextlib import closing
from hashlib import blake2b

import msgspec

from kvnode.kv.keys import TO_THE_END
from kvnode.kv.requests import HashReply
from kvnode.machine.mvcc import Versions
from kvnode.machine.pace import STEP_BYTES, Pace, Work

HASH_BYTES = 16

_encode = msgspec.msgpack.Encoder().encode


def state_hash(versions: Versions, revision: int, pace: Pace) -> Work[HashReply]:
    """At `revision`, which the caller has checked to be readable."""
    scan = versions.scan(b"", TO_THE_END, revision)
    hashed = blake2b(digest_size=HASH_BYTES)
    items = 0
    while True:
        with closing(scan.slice(pace)) as shown:
            for kv in shown:
                hashed.update(_encode(kv))
                items += 1
                pace.left -= len(kv.value) // STEP_BYTES
        if scan.done:
            return HashReply(revision, items, hashed.hexdigest())
        yield
