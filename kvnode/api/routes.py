"""Every call there is, once: method, path, parameters, shapes, errors, a sentence.

The router (`Router`), ``/openapi.json`` (`kvnode.api.openapi`) and the tests read this table; nothing else
registers a path. A path may end in ``{key}``: everything after the slash is the key, slashes included.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec

from kvnode.api import shapes
from kvnode.api.answer import Answer
from kvnode.api.call import Call
from kvnode.api.http import batch, history, kv, listing, node, txn
from kvnode.errors import MethodNotAllowed, NotFound
from kvnode.kv.interface import Status

Handler = Callable[[Call], Awaitable[Answer]]


class Parameter(msgspec.Struct, frozen=True):
    """A query parameter or header."""

    name: str
    kind: Literal["integer", "flag", "duration", "bytes", "choice", "text"]
    sentence: str
    choices: tuple[str, ...] = ()
    required: bool = False


class Route(msgspec.Struct, frozen=True):
    """One method on one path."""

    method: str
    path: str
    handler: Handler
    sentence: str
    parameters: tuple[Parameter, ...] = ()
    headers: tuple[Parameter, ...] = ()
    body: Literal["", "bytes", "txn", "batch"] = ""
    reply: Any = None  # a Struct type, bytes, str (plain text), or None for no body
    errors: tuple[str, ...] = ()  # codes beside those every call may answer
    redirects: bool = False  # 307 to the leader even when not asked for

    @property
    def names(self) -> frozenset[str]:
        return frozenset(parameter.name for parameter in self.parameters)


TIMEOUT = Parameter("timeout", "duration", "Deadline of the call: 500ms, 30s; default 5s, at most 60s.")
CONSISTENCY = Parameter(
    "consistency",
    "choice",
    "linearizable (default); causal: at least the Kv-Token sent; bounded: nothing older than max_staleness is missing; "
    "stale: this node's applied state, without asking anybody.",
    ("linearizable", "causal", "bounded", "stale"),
)
MAX_STALENESS = Parameter("max_staleness", "duration", "With bounded: how old the state may be.")
TOKEN = Parameter("Kv-Token", "text", "With causal: of an answer whose state must not be missed.")
META = Parameter("meta", "flag", "A JSON item instead of the raw value.")
WAIT = Parameter("wait", "duration", "Wait so long for a newer version; 304 if none comes. On top of timeout.")
AFTER_REV = Parameter(
    "after_rev", "integer", "With wait: newer than this mod revision; default: than the one there now."
)
AT_REV = Parameter("at_rev", "integer", "The state as it was at this revision of the store; default: the newest.")
AT_TIME = Parameter("at_time", "text", "The state as it was at this time: RFC 3339, a Kv-Time, or an age such as -5m.")
CURSOR = "From the page before; {what} must be the same."
IF_REV = Parameter("if_rev", "integer", "Only if the key's mod revision is this; 0 = only if there is no such key.")
PREV = Parameter("prev", "flag", "Answer with what stood there before.")
RANGE = (
    Parameter("prefix", "bytes", "All keys that start with these bytes."),
    Parameter("start", "bytes", "First key of the range; from the first key when left out."),
    Parameter("end", "bytes", "First key after the range; to the last key when left out."),
)
NO_FORWARD = Parameter("Kv-No-Forward", "flag", "1: answer 307 with the leader's address instead of forwarding.")
IF_MATCH = Parameter("If-Match", "text", 'Only if the key is at this entity tag ("7"), or exists at all (*).')
IF_NONE_MATCH_WRITE = Parameter("If-None-Match", "text", "* : only if there is no such key.")
IF_NONE_MATCH_READ = Parameter("If-None-Match", "text", "304 without a body if the key is still at this entity tag.")

_READ = ("compacted", "no_leader", "not_ready", "stale_bound_unmet", "overloaded", "timeout")
_WRITE = (
    "no_leader",
    "not_ready",
    "overloaded",
    "not_applied",
    "no_space",
    "timeout",
    "leadership_lost",
    "connection_lost",
)


def _get_key(method: str, sentence: str) -> Route:
    return Route(
        method,
        "/v1/kv/{key}",
        kv.get_key,
        sentence,
        parameters=(META, WAIT, AFTER_REV, AT_REV, AT_TIME, CONSISTENCY, MAX_STALENESS, TIMEOUT),
        headers=(IF_NONE_MATCH_READ, IF_MATCH, TOKEN, NO_FORWARD),
        reply=bytes,
        errors=("bad_key", "key_not_found", "compare_failed", "too_large", "future_revision", *_READ),
    )


TABLE: tuple[Route, ...] = (
    Route(
        "PUT", "/v1/kv/{key}", kv.put_key, "Set a key to the request's body.",
        (IF_REV, PREV, TIMEOUT), (IF_MATCH, IF_NONE_MATCH_WRITE, NO_FORWARD), "bytes", shapes.PutAnswer,
        ("bad_key", "compare_failed", "too_large", *_WRITE),
    ),
    _get_key("GET", "The value of a key, as raw bytes."),
    _get_key("HEAD", "The headers of the GET."),
    Route(
        "DELETE", "/v1/kv/{key}", kv.delete_key, "Delete a key; deleting an absent one answers deleted: 0.",
        (IF_REV, PREV, TIMEOUT), (IF_MATCH, IF_NONE_MATCH_WRITE, NO_FORWARD), "", shapes.DeleteResult,
        ("bad_key", "compare_failed", "too_large", *_WRITE),
    ),
    Route(
        "GET", "/v1/kv", listing.list_keys, "A page of the keys of a range, in byte order, at one revision.",
        (
            *RANGE,
            Parameter("limit", "integer", "Most keys of a page; default 1000."),
            Parameter("cursor", "text", CURSOR.format(what="the range and order")),
            Parameter("order", "choice", "asc (default) or desc.", ("asc", "desc")),
            Parameter("keys_only", "flag", "Leave the values out."),
            Parameter("count_only", "flag", "Only count the range."),
            AT_REV,
            AT_TIME,
            CONSISTENCY,
            MAX_STALENESS,
            TIMEOUT,
        ),
        (TOKEN, NO_FORWARD), "", shapes.Listing, ("future_revision", "too_large", *_READ),
    ),
    Route(
        "DELETE", "/v1/kv", listing.delete_range, "Delete every key of a range, in one revision.",
        (*RANGE, PREV, TIMEOUT), (NO_FORWARD,), "", shapes.DeleteResult, ("too_large", *_WRITE),
    ),
    Route(
        "GET", "/v1/history/{key}", history.list_versions, "The versions of a key that are kept, newest first.",
        (
            Parameter("limit", "integer", "Most versions of a page; default 1000."),
            Parameter("cursor", "text", CURSOR.format(what="the key")),
            Parameter("before", "integer", "Only versions older than this mod revision."),
            AT_REV,
            AT_TIME,
            CONSISTENCY,
            MAX_STALENESS,
            TIMEOUT,
        ),
        (TOKEN, NO_FORWARD), "", shapes.Listing, ("bad_key", "key_not_found", "future_revision", "too_large", *_READ),
    ),
    Route(
        "POST", "/v1/txn", txn.transact, "If every compare holds do success, else failure. All or nothing.",
        (TIMEOUT,), (NO_FORWARD,), "txn", shapes.TxnAnswer, ("bad_key", "too_large", *_WRITE),
    ),
    Route(
        "POST", "/v1/batch", batch.execute_batch, "Many operations in order, each its own transaction. Not atomic.",
        (TIMEOUT,), (NO_FORWARD,), "batch", shapes.BatchAnswer, ("bad_key", "too_large"),
    ),
    Route("GET", "/v1/status", node.show_status, "This node as it sees itself.", (TIMEOUT,), reply=Status),
    Route(
        "POST", "/v1/admin/transfer", node.transfer_leadership, "Hand leadership to a member.",
        (Parameter("to", "integer", "Member id of the new leader.", required=True), TIMEOUT), (), "", node.Transferred,
        ("member_not_found", "no_leader", "timeout"), redirects=True,
    ),
    Route("GET", "/livez", node.show_live, "The process is alive.", reply=node.Live),
    Route(
        "GET", "/readyz", node.show_ready, "This node has a leader and has caught up.",
        reply=node.Ready, errors=("not_ready",),
    ),
    Route("GET", "/metrics", node.show_metrics, "Metrics in the Prometheus text format.", reply=str),
    Route("GET", "/version", node.show_version, "The version of this node.", reply=node.Version),
    Route("GET", "/openapi.json", node.show_openapi, "This interface, as OpenAPI 3.1.", reply=dict),
)  # fmt: skip

COMMON_ERRORS = ("bad_request", "bad_encoding", "unknown_parameter", "permission_denied", "internal")
"""What any call may answer."""

KEY_SUFFIX = "{key}"

Methods = dict[str, tuple[Handler, frozenset[str]]]


class Router:
    """Finds handler and known parameter names for a method and a raw path. Two dictionaries, no patterns."""

    def __init__(self, table: tuple[Route, ...] = TABLE) -> None:
        self._exact: dict[str, Methods] = {}
        self._prefix: dict[str, Methods] = {}
        for route in table:
            ends_in_key = route.path.endswith(KEY_SUFFIX)
            paths = self._prefix if ends_in_key else self._exact
            methods = paths.setdefault(route.path.removesuffix(KEY_SUFFIX), {})
            assert route.method not in methods, route
            methods[route.method] = (route.handler, route.names)
        for methods in (*self._exact.values(), *self._prefix.values()):
            if "GET" in methods:  # HTTP: what can be fetched has a head (RFC 9110 §9.3.2)
                methods.setdefault("HEAD", methods["GET"])
        self._prefixes = tuple(self._prefix.items())

    def find(self, method: str, path: str) -> tuple[Handler, frozenset[str], str]:
        """(handler, parameter names, rest of the path). Raises: NotFound, MethodNotAllowed."""
        rest = ""
        methods = self._exact.get(path)
        if methods is None:
            for prefix, candidate in self._prefixes:
                if path.startswith(prefix):
                    methods, rest = candidate, path[len(prefix) :]
                    break
            else:
                raise NotFound("there is no such path; /openapi.json lists them all")
        found = methods.get(method)
        if found is None:
            allow = ", ".join(methods)
            raise MethodNotAllowed(f"this path takes {allow}", allow=allow)
        return found[0], found[1], rest

    def paths(self) -> set[tuple[str, str]]:
        """(method, path) of all that is routed: `TABLE`, and a HEAD for each GET. For the test that compares them."""
        exact = {(method, path) for path, methods in self._exact.items() for method in methods}
        prefix = {(method, path + KEY_SUFFIX) for path, methods in self._prefix.items() for method in methods}
        return exact | prefix
