"""JSON from strangers: one meaning or none.

CPython's parser takes NaN, duplicate names (the last wins), UTF-16, lone surrogates and any depth. Here a body
is strict UTF-8, no deeper than `limits.json_depth_max`, without duplicate names, and (unless asked for) without
anything but integers for numbers; the size of what is built is bounded *before* it is built.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any, NoReturn

from kvnode.api.query import INTEGER_MAX
from kvnode.errors import BadEncoding, BadRequest, TooLarge, UnknownParameter
from kvnode.kv.requests import LEASE_IDS

_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_NOT_STRUCTURE = bytes(set(range(256)) - set(b"[]{},"))

JsonObject = dict[str, Any]


def loads(body: bytes, *, depth_max: int, items_max: int, fractions: bool = False) -> Any:
    """The parsed body; `fractions`: numbers need not be integers.

    Raises: BadRequest, BadEncoding (not UTF-8), TooLarge (more than `items_max` values).
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise BadEncoding("the body is not UTF-8") from None
    structure = _structure(body, items_max)
    # One kind of bracket will do: the parser sees to it that they match.
    brackets = structure.translate(_ONE_KIND, b",")
    if b"[" * (depth_max + 1) in brackets:  # so deep on the face of it; more than it may hold, too, perhaps
        raise _too_deep(depth_max)
    if structure.count(b",") + structure.count(b"[") + structure.count(b"{") > items_max:
        raise TooLarge(f"the body holds more than {items_max} values", limit=items_max)
    _check_depth(brackets, depth_max)
    try:
        return json.loads(
            text,
            object_pairs_hook=_without_duplicates,
            parse_float=float if fractions else _refuse_number,
            parse_constant=_refuse_constant,
        )
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None


def _structure(body: bytes, items_max: int) -> bytes:
    """Brackets and commas of the body, without those inside strings. Whole-buffer steps only: this runs on the loop."""
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # what quotes are left begin or end a string
    if plain.count(b'"') > 4 * items_max + 2:  # a value is at most a name and a string
        raise TooLarge(f"the body holds more than {items_max} values", limit=items_max)
    return b"".join(plain.split(b'"')[::2]).translate(None, _NOT_STRUCTURE)


def _check_depth(brackets: bytes, depth_max: int) -> None:
    # Each round takes away the innermost pairs: what n rounds leave is nested deeper than n, or unbalanced.
    for _ in range(depth_max):
        if not brackets:
            return
        brackets = brackets.replace(b"[]", b"")
    if brackets:
        raise _too_deep(depth_max)


def _too_deep(depth_max: int) -> BadRequest:
    return BadRequest(f"the body is nested deeper than {depth_max}, or its brackets do not match", limit=depth_max)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> JsonObject:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadRequest("the body names a field twice in one object")
    return found


def _refuse_number(text: str) -> NoReturn:
    raise BadRequest(f"{text[:32]}: numbers here are integers")


def _refuse_constant(text: str) -> NoReturn:
    raise BadRequest(f"{text} is no number of JSON")


def expect_object(value: Any, place: str, known: frozenset[str]) -> JsonObject:
    """`value` as an object with no field outside `known`. `place` names it in the refusal."""
    if not isinstance(value, dict):
        raise BadRequest(f"{place} must be an object")
    unknown = value.keys() - known
    if unknown:
        name = min(unknown)[:64]
        raise UnknownParameter(f"{place} has an unknown field {name!r}; known: {', '.join(sorted(known))}", field=name)
    return value


def expect_list(value: Any, place: str, length_max: int) -> list[Any]:
    if not isinstance(value, list):
        raise BadRequest(f"{place} must be an array")
    if len(value) > length_max:
        raise TooLarge(f"{place} holds {len(value)} elements, at most {length_max} are taken", limit=length_max)
    return value


def expect_integer(value: Any, place: str, *, least: int = 0, most: int = INTEGER_MAX) -> int:
    if type(value) is not int or not least <= value <= most:
        raise BadRequest(f"{place} must be an integer from {least} to {most}")
    return value


def expect_lease(value: Any, place: str) -> int:
    if type(value) is not int or not value or value not in LEASE_IDS:
        raise BadRequest(f"{place} must be the number of a lease, a 64-bit integer other than 0")
    return value


def expect_flag(value: Any, place: str) -> bool:
    if not isinstance(value, bool):
        raise BadRequest(f"{place} must be true or false")
    return value


def expect_choice(value: Any, place: str, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise BadRequest(f"{place} must be one of: {', '.join(choices)}")
    return value


def expect_bytes(value: Any, encoding: Any, place: str) -> bytes:
    """A key or value: text, or canonical base64 when `encoding` says so."""
    if not isinstance(value, str):
        raise BadRequest(f"{place} must be a string")
    if encoding is None or encoding == "utf-8":
        try:
            return value.encode()
        except UnicodeEncodeError:
            raise BadEncoding(f"{place} holds a lone surrogate, which no UTF-8 text can") from None
    if encoding != "base64":
        raise BadEncoding(f'the encoding of {place} must be "utf-8" or "base64"')
    try:
        text = value.encode("ascii")
        raw = binascii.a2b_base64(text)
        if binascii.b2a_base64(raw, newline=False) == text:
            return raw
        base64.b64decode(text, validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise BadEncoding(f"{place} is not base64") from None
    raise BadEncoding(f"{place} is not canonical base64")
