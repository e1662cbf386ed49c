"""The request target, taken apart by hand: keys and ranges are bytes, so no text decoding may stand in between.

RFC 3986 rules: ``%XX`` is a byte, ``+`` is a plus (not a space, as in HTML forms). A ``%`` without two hex
digits, a repeated or unknown parameter and a value outside its range are refused, never guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote_to_bytes

from kvnode.clocks import hybrid
from kvnode.errors import BadEncoding, BadRequest, UnknownParameter
from kvnode.kv.requests import LEASE_IDS

INTEGER_MAX = (1 << 63) - 1

_BAD_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_DURATION = re.compile(rb"(\d{1,9})(ms|s|m|h)")
_UNIT_MS = {b"ms": 1, b"s": 1_000, b"m": 60_000, b"h": 3_600_000}
_HYBRID_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\.\d{4,5}")
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_COUNTER = (1 << hybrid.COUNTER_BITS) - 1
AGE_MS_MAX = 100 * 365 * 86_400_000
_FLAGS = {b"1": True, b"true": True, b"0": False, b"false": False}


def percent_decode(text: str) -> bytes:
    """The bytes a percent-encoded part of the target stands for. Raises: BadEncoding."""
    raw = text.encode("utf-8", "surrogateescape")  # undoes the parser's decoding, byte for byte
    if b"%" not in raw:
        return raw
    if _BAD_PERCENT.search(raw):
        raise BadEncoding("a % must be followed by two hexadecimal digits")
    return unquote_to_bytes(raw)


def parse(query: str, known: Collection[str]) -> dict[str, bytes]:
    """Parameters by name. Raises: UnknownParameter, BadRequest for a repeated one, BadEncoding."""
    found: dict[str, bytes] = {}
    for part in query.split("&"):
        if not part:
            continue
        name, _, value = part.partition("=")
        if name not in known:
            wanted = ", ".join(sorted(known)) or "none"
            raise UnknownParameter(f"unknown parameter {name[:64]!r}; this call takes: {wanted}", parameter=name[:64])
        if name in found:
            raise BadRequest(f"parameter {name!r} is given twice", parameter=name)
        found[name] = percent_decode(value)
    return found


def parse_flag(value: bytes, name: str) -> bool:
    if value not in _FLAGS:
        raise BadRequest(f"{name}= takes 1 or 0", parameter=name)
    return _FLAGS[value]


def parse_integer(value: bytes, name: str, *, least: int = 0, most: int = INTEGER_MAX) -> int:
    number = int(value) if value.isdigit() and len(value) <= 19 else -1
    if not least <= number <= most:
        raise BadRequest(f"{name}= takes an integer from {least} to {most}", parameter=name)
    return number


def parse_lease(value: bytes, name: str) -> int:
    """The id of a lease: a signed 64-bit integer other than 0; those that clients of etcd choose may be negative."""
    digits = value.removeprefix(b"-")
    number = int(value) if digits.isdigit() and len(digits) <= 19 else 0
    if not number or number not in LEASE_IDS:
        raise BadRequest(f"{name}= takes the number of a lease, a 64-bit integer other than 0", parameter=name)
    return number


def parse_duration_ms(value: bytes, name: str, *, most_ms: int, least_ms: int = 1) -> int:
    """``500ms``, ``30s``, ``5m``, ``1h`` → milliseconds."""
    match = _DURATION.fullmatch(value)
    if match is None:
        raise BadRequest(f"{name}= takes a duration such as 500ms, 30s, 5m or 1h", parameter=name)
    duration_ms = int(match[1]) * _UNIT_MS[match[2]]
    if not least_ms <= duration_ms <= most_ms:
        raise BadRequest(f"{name}= must lie between {least_ms}ms and {most_ms}ms", parameter=name)
    return duration_ms


def parse_time(value: bytes, name: str, now_ms: int) -> int:
    """A moment as the last hybrid timestamp in it: ``2026-11-22T10:00:00.123Z.0007`` as `Kv-Time` shows it, RFC 3339,
    or ``-5m``: so long before `now_ms`, in Unix milliseconds.
    """
    text = value.decode("ascii", "replace")
    if text.startswith("-"):
        age_ms = parse_duration_ms(value[1:], name, most_ms=AGE_MS_MAX)
        return max(0, now_ms - age_ms) << hybrid.COUNTER_BITS | _LAST_COUNTER
    try:
        if _HYBRID_TIME.fullmatch(text):
            return max(1, hybrid.from_text(text))  # 0 would mean "now"
        if _RFC_3339.fullmatch(text):
            moment = datetime.fromisoformat(text.upper())
            ms = (moment - _EPOCH) // timedelta(milliseconds=1)
            if ms >= 0:
                return ms << hybrid.COUNTER_BITS | _LAST_COUNTER
    except (ValueError, OverflowError):
        pass  # said below
    raise BadRequest(
        f"{name}= takes a time such as 2026-11-22T10:00:00Z, one that Kv-Time showed, or an age such as -5m",
        parameter=name,
    )


def parse_choice(value: bytes, name: str, choices: Collection[str]) -> str:
    text = value.decode("ascii", "replace")
    if text not in choices:
        raise BadRequest(f"{name}= takes one of: {', '.join(sorted(choices))}", parameter=name)
    return text
