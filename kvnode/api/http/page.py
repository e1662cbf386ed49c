"""The JSON of a page of many items, made in slices: a whole one takes longer than the loop may be held up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from kvnode.api import shapes

_SLICE_ITEMS = 250
"""Rendered in less than a millisecond. A write takes several turns of the loop, and waits for a slice in each."""

T = TypeVar("T")


async def encode_page(head: msgspec.Struct, items: Sequence[T], shape: Callable[[T], msgspec.Struct]) -> bytes:
    """`head`, whose last field is an empty list, with the shapes of `items` in that list."""
    slices = []
    for at in range(0, len(items), _SLICE_ITEMS):
        if at:
            await asyncio.sleep(0)
        slices.append(shapes.encode([shape(item) for item in items[at : at + _SLICE_ITEMS]])[1:-1])
    return shapes.encode(head).removesuffix(b"]}") + b",".join(slices) + b"]}\n"
