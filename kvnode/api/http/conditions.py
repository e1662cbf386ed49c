"""Conditional requests: HTTP's entity tags over mod revisions. The tag of revision 7 is ``"7"``."""

from __future__ import annotations

import re

from aiohttp import hdrs

from kvnode.api import query
from kvnode.api.call import Call
from kvnode.errors import BadRequest
from kvnode.kv.requests import ANY_REVISION, MUST_EXIST

_OUR_TAG = re.compile(r'"([1-9]\d{0,18})"')
_ANY_TAG = re.compile(r'\s*(W/)?("[\x21\x23-\x7e\x80-\xff]*")\s*')


def write_condition(call: Call) -> int:
    """`if_revision` of a put or delete: ``if_rev=N``, ``If-Match: "N"`` or ``*``, ``If-None-Match: *``."""
    headers = call.headers
    condition = ANY_REVISION
    given = 0
    if "if_rev" in call.parameters:
        condition = query.parse_integer(call.parameters["if_rev"], "if_rev")
        given += 1
    if hdrs.IF_MATCH in headers:
        condition = _parse_if_match(_single(headers.getall(hdrs.IF_MATCH), "If-Match"))
        given += 1
    if hdrs.IF_NONE_MATCH in headers:
        if _single(headers.getall(hdrs.IF_NONE_MATCH), "If-None-Match").strip() != "*":
            raise BadRequest("a write takes If-None-Match: * only, which means: must not exist")
        condition = 0
        given += 1
    if given > 1:
        raise BadRequest("give one condition: if_rev, If-Match or If-None-Match")
    return condition


def _parse_if_match(value: str) -> int:
    text = value.strip()
    if text == "*":
        return MUST_EXIST
    match = _OUR_TAG.fullmatch(text)
    if match is None or int(match[1]) > query.INTEGER_MAX:
        raise BadRequest('If-Match takes one entity tag as this server gives it, such as "7", or *')
    return int(match[1])


def is_known_to_caller(call: Call, mod_revision: int) -> bool:
    """Whether ``If-None-Match`` of a read names this version: answer 304."""
    values = call.headers.getall(hdrs.IF_NONE_MATCH, ())
    return bool(values) and _matches(_single(values, "If-None-Match"), mod_revision, weak=True)


def is_unwanted(call: Call, mod_revision: int) -> bool:
    """Whether ``If-Match`` of a read rules this version out: answer 412."""
    values = call.headers.getall(hdrs.IF_MATCH, ())
    return bool(values) and not _matches(_single(values, "If-Match"), mod_revision, weak=False)


def _matches(text: str, mod_revision: int, *, weak: bool) -> bool:
    if text.strip() == "*":
        return True
    wanted = f'"{mod_revision}"'
    found = False
    for part in text.split(","):
        tag = _ANY_TAG.fullmatch(part)
        if tag is None:
            raise BadRequest('an entity tag is written "7"')
        found = found or (tag[2] == wanted and (weak or tag[1] is None))
    return found


def _single(values: list[str] | tuple[str, ...], name: str) -> str:
    if len(values) != 1:
        raise BadRequest(f"{name} is given twice")
    return values[0]
