"""Protocol buffers' JSON form, read as etcd's gateway reads it, into msgspec Structs; and what responses are made of.

Requests. A field is known by its proto name and by that name in lowerCamelCase; an unknown one is ignored, `null`
means "not set". Integers come as numbers or as decimal strings, bytes as base64 of either alphabet, padded or not,
enums by name or by number, booleans as booleans. Annotations of a request's Struct say which is meant: `int` is an
int64, `UInt64` and `Int32` are themselves, an `IntEnum` an enum, `bytes` base64, `list[X]` repeated, a Struct (or None)
a message.

Responses. Default values are left out (`omit_defaults`), 64-bit integers are strings: a response's Struct holds `str`
with the default "0" there. msgspec writes bytes as standard, padded base64.

Source: the JSON mapping of protocol buffers version 3, and what etcd 3.4 to 3.6 take of it.
"""

from __future__ import annotations

import asyncio
import binascii
import functools
import json
import re
import types
import typing
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from enum import IntEnum
from itertools import chain, islice
from typing import Annotated, Any, NoReturn, TypeVar, Union

import msgspec

from kvnode.api.etcd.errors import Code, EtcdError, UnreadableRequest, invalid

UInt64 = Annotated[int, "uint64"]
Int32 = Annotated[int, "int32"]

DEPTH_MAX = 100
"""How deep a request may be nested, as in protocol buffers' own readers."""

LIST_MAX = 1_000
"""Elements of a list of anything but messages."""

FIELDS_MAX = 16
"""A message has fewer fields."""

STREAM_OBJECTS = 4_096
"""Values of a stream's body are bounded as if it had so many full messages; of most streams they have one field."""

AT_ONCE = 64
"""Requests of one body carried out without letting others have their turn."""

_SPACE = re.compile(r"[ \t\r\n]*")
_INTEGER = re.compile(r"-?[0-9]{1,20}")
_URL_SAFE = str.maketrans("-_", "+/")

Message = TypeVar("Message", bound=msgspec.Struct)
Reader = Callable[..., Any]
"""Takes the parsed value and its place in the request; of a message, also how deep it lies."""


class Request(msgspec.Struct, kw_only=True):
    """Base of all requests: every field has the default of its kind."""


class Response(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Base of all responses. What is to be left out must be the default itself: see `decimal`, and `()` for lists."""


class Empty(Request):
    """A message without fields: as a request it takes any object, as an answer it is `{}`."""


def decimal(number: int) -> str:
    """A 64-bit integer as it is written; of 0 the very object that is the default, which is left out."""
    return str(number) if number else "0"


def malformed(text: str) -> EtcdError:
    """What cannot be read as the message that it should be."""
    return EtcdError(Code.INVALID_ARGUMENT, text)


def check_extent(body: bytes, objects_max: int) -> None:
    """Refuse what takes long to read, before it is read: a body of a few MiB may hold a million values.

    `objects_max`: in a body of one request; 0: of a stream, which may have any number of short ones. Raises: EtcdError.
    """
    if objects_max and body.count(b"{") > objects_max:
        raise invalid("too many operations in txn request")  # nothing else has so many
    if body.count(b",") > FIELDS_MAX * (objects_max or STREAM_OBJECTS):
        raise malformed("there are too many values in one body")


def decode(kind: type[Message], body: bytes) -> Message:
    """One request; an empty body has no field set. Raises: EtcdError."""
    if not body or body.isspace():
        return kind()
    try:
        value = msgspec.json.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        value = _decode_slowly(body)
    return read(kind, value)


def _decode_slowly(body: bytes) -> Any:
    """What only the other parser takes (numbers that no float can hold), or what is wrong. Raises: EtcdError."""
    try:
        return _DECODER.decode(body.decode())
    except (ValueError, RecursionError) as error:
        raise _no_json(error) from None


def decode_all(kind: type[Message], body: bytes) -> Iterator[Message]:
    """The requests of a stream's body, one after another, with or without space between. Raises: EtcdError."""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise malformed(f"the body is not JSON: {error}") from None
    at = _after_space(text, 0)
    while at < len(text):
        try:
            value, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise _no_json(error) from None
        yield read(kind, value)
        at = _after_space(text, at)


def decode_stream(kind: type[Message], body: bytes) -> Iterator[Message]:
    """The requests of a stream's body up to the first that cannot be read: etcd hears no more of that client then.

    Each is read when it is asked for, but the first, at once. Raises: UnreadableRequest if that cannot be read.
    """
    requests = decode_all(kind, body)
    try:
        first = list(islice(requests, 1))
    except EtcdError as error:
        raise UnreadableRequest(error.message) from None
    return chain(first, _readable(requests))


def _readable(requests: Iterator[Message]) -> Iterator[Message]:
    with suppress(EtcdError):
        yield from requests


async def in_turns(requests: Iterable[Message]) -> AsyncIterator[Message]:
    """One after another; others have their turn in between, whatever each of them comes to."""
    for number, request in enumerate(requests, 1):
        yield request
        if number % AT_ONCE == 0:
            await asyncio.sleep(0)


def _no_json(error: ValueError | RecursionError) -> EtcdError:
    """Where a value should begin and does not, in the very words of etcd's decoder; else in ours."""
    if not isinstance(error, json.JSONDecodeError) or error.msg != "Expecting value":
        return malformed(f"the body is not JSON: {error}")
    rest = error.doc[error.pos :][:8]
    if not rest:
        return malformed("unexpected EOF")
    for literal in ("null", "true", "false"):
        if rest[0] == literal[0]:
            place = next(at for at in range(len(literal)) if rest[at : at + 1] != literal[at])
            if place == len(rest):
                return malformed("unexpected EOF")
            return malformed(f"invalid character {rest[place]!r} in literal {literal} (expecting {literal[place]!r})")
    return malformed(f"invalid character {rest[0]!r} looking for beginning of value")


def _after_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    assert space is not None, at
    return space.end()


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def read(kind: type[Message], value: Any, place: str = "", depth: int = 0) -> Message:
    """A message of parsed JSON. Raises: EtcdError."""
    if type(value) is not dict:
        raise _mismatch(value, "message", place.removesuffix("."))
    if depth > DEPTH_MAX:
        raise malformed(f"nested deeper than {DEPTH_MAX}")
    fields = _fields(kind)
    found = {}
    for name, given in value.items():
        field = fields.get(name)
        if field is None or given is None:
            continue
        attribute, reader, is_message = field
        if is_message:
            found[attribute] = reader(given, f"{place}{name}.", depth + 1)
        else:
            found[attribute] = reader(given, f"{place}{name}")
    return kind(**found)


@functools.cache
def _fields(kind: type[msgspec.Struct]) -> dict[str, tuple[str, Reader, bool]]:
    """By each name that a field may have: its attribute, what reads it, whether that wants to know the depth."""
    hints = typing.get_type_hints(kind, include_extras=True)
    found = {}
    for field in msgspec.structs.fields(kind):
        reader, is_message = _reader(hints[field.name])
        for name in (field.encode_name, _camel(field.encode_name)):
            found[name] = (field.name, reader, is_message)
    return found


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(other[:1].upper() + other[1:] for other in others)


def _reader(hint: Any) -> tuple[Reader, bool]:
    if hint in _SCALARS:
        return _SCALARS[hint], False
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        (hint,) = (each for each in typing.get_args(hint) if each is not type(None))
        return _reader(hint)
    if origin is list:
        element, is_message = _reader(typing.get_args(hint)[0])
        return functools.partial(_read_list, element, is_message), True
    if isinstance(hint, type) and issubclass(hint, IntEnum):
        return functools.partial(_read_enum, hint), False
    assert isinstance(hint, type), hint
    assert issubclass(hint, msgspec.Struct), hint
    return functools.partial(read, hint), True


def _read_list(reader: Any, is_message: bool, value: Any, place: str, depth: int) -> list[Any]:
    if type(value) is not list:
        raise _mismatch(value, "array", place.removesuffix("."))
    name = place.removesuffix(".")
    if len(value) > LIST_MAX and not is_message:
        raise malformed(f"{name}: a list holds at most {LIST_MAX} values")
    if is_message:
        return [reader(each, f"{name}[{number}].", depth) for number, each in enumerate(value)]
    return [reader(each, f"{name}[{number}]") for number, each in enumerate(value)]


def _read_integer(low: int, high: int, value: Any, place: str) -> int:
    if type(value) is not int:
        is_text = type(value) is str and _INTEGER.fullmatch(value)
        is_whole = type(value) is float and value.is_integer() and abs(value) < 2**63
        if not (is_text or is_whole):
            raise _mismatch(value, "integer", place)
    number = int(value)
    if not low <= number <= high:
        raise malformed(f"{place}: {str(value)[:40]} is out of range")
    return number


def _read_bytes(value: Any, place: str) -> bytes:
    if type(value) is not str:
        raise _mismatch(value, "base64", place)
    try:
        return binascii.a2b_base64(value, strict_mode=True)
    except ValueError:
        return _read_other_base64(value, place)


def _read_other_base64(value: str, place: str) -> bytes:
    """Of the alphabet for URLs, or without its padding."""
    text = value.rstrip("=").translate(_URL_SAFE)
    is_padded_well = len(text) == len(value) or len(value) % 4 == 0
    try:
        if text and is_padded_well:
            return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except ValueError:
        pass
    raise malformed(f"{place}: illegal base64 data")


def _read_bool(value: Any, place: str) -> bool:
    if type(value) is not bool:
        raise _mismatch(value, "bool", place)
    return value


def _read_text(value: Any, place: str) -> str:
    if type(value) is not str:
        raise _mismatch(value, "string", place)
    return value


def _read_enum(kind: type[IntEnum], value: Any, place: str) -> int:
    """A number that the enum does not have stays a number: whoever acts on it refuses it."""
    if type(value) is str:
        found = kind.__members__.get(value)
        if found is None:
            raise malformed(f"{place}: unknown value {value[:40]!r} for enum {kind.__name__}")
        return found
    number = _read_integer(-(2**31), 2**31 - 1, value, place)
    return kind(number) if number in kind._value2member_map_ else number


def _mismatch(value: Any, wanted: str, place: str) -> EtcdError:
    kinds = {dict: "object", list: "array", str: "string", bool: "bool", int: "number", float: "number"}
    found = kinds.get(type(value), "null")
    return malformed(f"json: cannot unmarshal {found} into field {place or 'of the request'} of type {wanted}")


_INT64 = functools.partial(_read_integer, -(2**63), 2**63 - 1)
_SCALARS: dict[Any, Reader] = {
    int: _INT64,
    UInt64: functools.partial(_read_integer, 0, 2**64 - 1),
    Int32: functools.partial(_read_integer, -(2**31), 2**31 - 1),
    bytes: _read_bytes,
    bool: _read_bool,
    str: _read_text,
}
