"""What a change looks like to those who watch: one event per key and revision."""

from __future__ import annotations

import msgspec

from kvnode.kv.requests import KeyValue


class Event(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A version came to be. `kv.version == 0` says the key was deleted at `kv.mod_revision`."""

    kv: KeyValue
    previous: KeyValue | None = None
