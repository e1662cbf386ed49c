"""kvnode: a replicated key-value server for coordination.

    async with kvnode.connect("127.0.0.1:7401,127.0.0.1:7402") as kv:     # a client of a running cluster
        await kv.put("greeting", "hello")

    async with kvnode.open_node(config) as node:                          # a node inside this program
        await node.put("greeting", "hello")

Both are a `KV`. Importing this package starts nothing and loads nothing: each public name is loaded when it is
first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kvnode.version import __version__

if TYPE_CHECKING:
    from kvnode import errors
    from kvnode.client.client import Client, connect
    from kvnode.config import Config
    from kvnode.embedded import open_node
    from kvnode.kv.interface import KV
    from kvnode.node.node import Node

__all__ = ["KV", "Client", "Config", "Node", "__version__", "connect", "errors", "open_node"]

_HOMES = {
    "Client": "kvnode.client.client",
    "Config": "kvnode.config",
    "KV": "kvnode.kv.interface",
    "Node": "kvnode.node.node",
    "connect": "kvnode.client.client",
    "open_node": "kvnode.embedded",
}


def __getattr__(name: str) -> Any:
    """PEP 562: the first use of a public name loads its module."""
    if name == "errors":
        return importlib.import_module("kvnode.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'kvnode' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
