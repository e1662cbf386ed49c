"""The key that ends a path: ``/v1/kv/{key}``, ``/v1/history/{key}``."""

from __future__ import annotations

from kvnode.api import query
from kvnode.api.call import Call
from kvnode.errors import BadKey, TooLarge


def path_key(call: Call) -> bytes:
    """The key that ends the path, as bytes. Raises: BadEncoding, BadKey, TooLarge."""
    return check_key(query.percent_decode(call.rest), call.app.config.limits.key_bytes_max)


def check_key(key: bytes, size_max: int) -> bytes:
    if not key:
        raise BadKey("a key has at least one byte")
    if len(key) > size_max:
        raise TooLarge(f"the key is over the limit of {size_max} bytes", limit=size_max)
    return key
