"""``/openapi.json``: the table of `kvnode.api.routes` as OpenAPI 3.1, built once at start."""

from __future__ import annotations

from functools import cache
from http import HTTPStatus
from typing import Any

import msgspec

from kvnode.api import shapes
from kvnode.api.errors import STATUS, ErrorBody
from kvnode.api.http import members, operations, txn
from kvnode.api.route import Parameter, Route
from kvnode.api.routes import COMMON_ERRORS, TABLE
from kvnode.version import __version__

Json = dict[str, Any]

_REFERENCE = "#/components/schemas/"
_RESULTS = (shapes.PutResult, shapes.GetResult, shapes.DeleteResult, shapes.FailedResult)

_SCHEMA_OF_KIND: dict[str, Json] = {
    "integer": {"type": "integer", "minimum": 0},
    "flag": {"enum": ["1", "0", "true", "false"]},
    "duration": {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"},
    "bytes": {"type": "string", "description": "Percent-encoded bytes; + is a plus."},
    "choice": {"type": "string"},
    "text": {"type": "string"},
}
_VARIABLES: dict[str, tuple[str, Json]] = {
    "key": ("The rest of the path, percent-decoded: any bytes, slashes included, at least one.", {"type": "string"}),
    "name": ("Any bytes, percent-encoded; slashes may stand as they are.", {"type": "string"}),
    "check": ("Name of a check.", {"type": "string"}),
    "id": ("Of a lease, session or member: as the call that made it answered.", {"type": "integer", "minimum": 1}),
}
_ANSWER_HEADERS = {
    "Kv-Node": "Member id of the node that answers.",
    "Kv-Term": "Its current term.",
    "Kv-Revision": "The store's revision the answer reflects.",
    "Kv-Token": "Opaque: names at least this state.",
    "X-Request-Id": "The caller's id, or one made up.",
}
_AP_HEADERS = {
    "Kv-Context": "Goes back with the write that replaces this; a 404 has it, too, if something was there.",
    "Kv-Time": "Hybrid time of the write, if it is one.",
}
_KEY_HEADERS = {
    "ETag": 'The mod revision as an entity tag, such as "7".',
    "Kv-Mod-Revision": "Revision of this version.",
    "Kv-Create-Revision": "Revision at which the key came to be.",
    "Kv-Version": "1 for the creating put, one more for each later one.",
    "Kv-Time": "Hybrid time of the write.",
}


@cache
def build() -> bytes:
    """The document as it is served; the same for every node of a process."""
    return msgspec.json.format(msgspec.json.encode(document()), indent=1) + b"\n"


def document() -> Json:
    """The whole description, as plain objects."""
    structs = {r.reply for r in TABLE if isinstance(r.reply, type) and issubclass(r.reply, msgspec.Struct)}
    ordered = sorted(structs | {ErrorBody, shapes.ApItem, *_RESULTS}, key=lambda struct: struct.__name__)
    _, components = msgspec.json.schema_components(ordered, ref_template=_REFERENCE + "{name}")
    of_txn = [{"$ref": _REFERENCE + result.__name__} for result in _RESULTS if result is not shapes.FailedResult]
    components["TxnAnswer"]["properties"]["results"]["items"] = {"oneOf": of_txn}
    of_batch = [{"$ref": _REFERENCE + result.__name__} for result in _RESULTS]
    components["BatchAnswer"]["properties"]["results"]["items"] = {"oneOf": of_batch}
    paths: dict[str, Json] = {}
    for route in TABLE:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kvnode",
            "version": __version__,
            "description": "A replicated key-value store for coordination. Any node takes any request.",
        },
        "paths": paths,
        "components": {"schemas": {**components, **_request_schemas()}},
    }


def _operation(route: Route) -> Json:
    parameters = [_parameter(parameter, "query") for parameter in route.parameters]
    parameters += [_parameter(header, "header") for header in route.headers]
    if route.variable:
        words, of_variable = _VARIABLES[route.variable]
        in_path = {"name": route.variable, "in": "path", "required": True, "description": words, "schema": of_variable}
        parameters.insert(0, in_path)
    operation: Json = {
        "summary": route.sentence,
        "operationId": route.method.lower() + "_" + (route.name or route.handler.__name__),
        "parameters": parameters,
        "responses": _responses(route),
    }
    if route.body:
        kind, schema = {
            "bytes": ("application/octet-stream", {"type": "string", "format": "binary"}),
            "txn": ("application/json", {"$ref": _REFERENCE + "Txn"}),
            "batch": ("application/json", {"type": "array", "items": {"$ref": _REFERENCE + "BatchOperation"}}),
            "new member": ("application/json", {"$ref": _REFERENCE + "NewMember"}),
            "member address": ("application/json", {"$ref": _REFERENCE + "MemberAddress"}),
            "event": ("application/json", {"type": "object", "description": "Any fields, at most 4 KiB."}),
        }[route.body]
        operation["requestBody"] = {"required": True, "content": {kind: {"schema": schema}}}
    return operation


def _parameter(parameter: Parameter, place: str) -> Json:
    schema = dict(_SCHEMA_OF_KIND[parameter.kind])
    if parameter.choices:
        schema["enum"] = list(parameter.choices)
    return {
        "name": parameter.name,
        "in": place,
        "required": parameter.required,
        "description": parameter.sentence,
        "schema": schema,
    }


def _responses(route: Route) -> Json:
    names = dict(_ANSWER_HEADERS)
    is_eventual = route.path == "/v1/ap/{key}"
    if is_eventual:
        names |= _AP_HEADERS
    elif route.variable == "key" and route.method != "DELETE":
        names |= _KEY_HEADERS
    ok: Json = {
        "description": route.sentence,
        "headers": {name: {"description": words, "schema": {"type": "string"}} for name, words in names.items()},
    }
    if route.reply is not None and route.method != "HEAD":
        ok["content"] = _content(route.reply)
    responses: Json = {str(route.success): ok}
    if is_eventual and route.method in {"GET", "HEAD"}:
        responses["300"] = {"description": "Several values, written without knowing of each other."}
        if route.method == "GET":
            responses["300"]["content"] = _content(shapes.ApItem)
    if any(header.name == "If-None-Match" for header in route.headers) and route.method in {"GET", "HEAD"}:
        responses["304"] = {"description": "The caller has this version already."}
    if any(header.name == "Kv-No-Forward" for header in route.headers) or route.redirects:
        responses["307"] = {"description": "The leader is elsewhere; Location says where."}
    by_status: dict[HTTPStatus, list[str]] = {}
    for code in (*COMMON_ERRORS, *route.errors):
        by_status.setdefault(STATUS[code], []).append(code)
    for status, codes in sorted(by_status.items()):
        responses[str(status.value)] = {
            "description": ", ".join(codes),
            "content": {"application/json": {"schema": {"$ref": _REFERENCE + "ErrorBody"}}},
        }
    return responses


def _content(reply: type) -> Json:
    if reply is bytes:
        return {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    if reply is str:
        return {"text/plain": {"schema": {"type": "string"}}}
    if reply is dict:
        return {"application/json": {"schema": {"type": "object"}}}
    schema: Json = {"schema": {"$ref": _REFERENCE + reply.__name__}}
    if reply is shapes.WatchLine:
        return {"application/x-ndjson": schema, "text/event-stream": schema}
    if reply is shapes.Events:
        lines: Json = {"schema": {"$ref": _REFERENCE + shapes.EventLine.__name__}}
        return {"application/json": schema, "application/x-ndjson": lines, "text/event-stream": lines}
    return {"application/json": schema}


_TEXT: Json = {"type": "string"}
_ENCODING: Json = {"enum": ["utf-8", "base64"], "default": "utf-8"}
_FLAG: Json = {"type": "boolean", "default": False}
_REVISION: Json = {"type": "integer", "minimum": 0}
_FIELD_SCHEMAS: dict[str, Json] = {
    "key": _TEXT,
    "prefix": _TEXT,
    "start": _TEXT,
    "end": _TEXT,
    "value": _TEXT,
    "key_encoding": _ENCODING,
    "encoding": _ENCODING,
    "prev": _FLAG,
    "keys_only": _FLAG,
    "count_only": _FLAG,
    "limit": {"type": "integer", "minimum": 1},
    "order": {"enum": ["asc", "desc"], "default": "asc"},
    "if_rev": _REVISION,
    "lease": {"type": "integer", "minimum": 1},
    "peer": {"type": "string", "description": "host:port of its peer listener."},
    "name": {"type": "string", "maxLength": members.NAME_LENGTH_MAX},
    "incarnation": {"type": "string", "pattern": "^[0-9a-fA-F]{16}$"},
    "promote": {"type": "boolean", "description": "Give it a vote once it has caught up. Default: if it replaces one."},
    "replaces": {"type": "integer", "minimum": 1, "description": "Remove this member once the new one votes."},
}


def _request_schemas() -> Json:
    """Request bodies are parsed by hand (`strict_json`), so their schemas are drawn from the same field sets."""
    operation = _one_of_verbs(operations.PUT_FIELDS, operations.DELETE_FIELDS)
    in_batch = _one_of_verbs(operations.PUT_FIELDS | {"if_rev"}, operations.DELETE_FIELDS | {"if_rev"})
    compare = _object(txn.COMPARE_FIELDS, required=("key", "target"))
    compare["properties"] |= {
        "target": {"enum": list(txn.TARGETS)},
        "op": {"enum": list(txn.OPS), "default": "="},
        "value": {"type": ["string", "integer", "boolean"]},
    }
    several = {"type": "array", "items": {"$ref": _REFERENCE + "Operation"}}
    return {
        "Operation": operation,
        "BatchOperation": in_batch,
        "Compare": compare,
        "NewMember": _object(members.ADD_FIELDS, required=("peer",)),
        "MemberAddress": _object(members.UPDATE_FIELDS, required=("peer",)),
        "Txn": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "compare": {"type": "array", "items": {"$ref": _REFERENCE + "Compare"}},
                "success": several,
                "failure": several,
            },
        },
    }


def _one_of_verbs(put: frozenset[str], delete: frozenset[str]) -> Json:
    verbs = {
        "put": _object(put, required=("key", "value")),
        "get": _object(operations.GET_FIELDS),
        "delete": _object(delete),
    }
    return {
        "oneOf": [
            {"type": "object", "additionalProperties": False, "required": [verb], "properties": {verb: schema}}
            for verb, schema in verbs.items()
        ]
    }


def _object(fields: frozenset[str], required: tuple[str, ...] = ()) -> Json:
    properties = {name: _FIELD_SCHEMAS.get(name, {}) for name in sorted(fields)}
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": properties}
