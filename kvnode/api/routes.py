"""Every call there is, once: method, path, parameters, shapes, errors, a sentence.

The router (`Router`), ``/openapi.json`` (`kvnode.api.openapi`) and the tests read this table; nothing else
registers a path. A path may have one variable part, ``{key}`` at its end or ``{name}`` before a last word: everything
there belongs to it, slashes included. Of two paths that fit the longer ending wins.
"""

from __future__ import annotations

from kvnode.api import shapes
from kvnode.api.etcd import plain
from kvnode.api.http import (
    batch,
    events,
    eventual,
    history,
    kv,
    leases,
    listing,
    locks,
    members,
    node,
    sessions,
    snapshot,
    txn,
    watches,
)
from kvnode.api.route import (
    AFTER_REV,
    AT_REV,
    AT_TIME,
    CONSISTENCY,
    CONTEXT,
    CURSOR,
    FENCE,
    FORCE,
    HOLD_TTL,
    HOLDER_TOKEN,
    IDEMPOTENCY_KEY,
    IF_MATCH,
    IF_NONE_MATCH_READ,
    IF_NONE_MATCH_WRITE,
    IF_REV,
    LEASE,
    MAX_STALENESS,
    META,
    NAMES,
    NO_FORWARD,
    OWN_TTL,
    PLAIN_CONSISTENCY,
    PREV,
    QUEUE_WAIT,
    RANGE,
    SEEN,
    TIMEOUT,
    TOKEN,
    TTL,
    WAIT,
    Handler,
    Parameter,
    Route,
)
from kvnode.errors import MethodNotAllowed, NotFound
from kvnode.kv.available import RESOLUTIONS
from kvnode.kv.interface import Members, MembersChanged, Status
from kvnode.kv.requests import HashReply

_READ = ("compacted", "clock_drift", "no_leader", "not_ready", "stale_bound_unmet", "overloaded", "timeout")
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
_CHANGE = ("conflict", "member_not_found", *(code for code in _WRITE if code != "no_space"))
VERBOSE = Parameter("verbose", "text", "As etcd answers: text, with a line for each check.")
EXCLUDE = Parameter("exclude", "text", "As etcd answers: text, and this check does not count.")
_AP_WRITE = ("not_ready", "overloaded", "no_space", "timeout")
_ONCE = ("conflict", "sequence_too_old", "session_expired")


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


def _get_ap(method: str, sentence: str) -> Route:
    return Route(
        method,
        "/v1/ap/{key}",
        eventual.get_ap,
        sentence,
        parameters=(
            META,
            Parameter("resolve", "choice", "One value instead of siblings, chosen or merged.", RESOLUTIONS),
            TIMEOUT,
        ),
        headers=(SEEN,),
        reply=bytes,
        errors=("bad_key", "key_not_found", "conflict", "too_large", "not_ready"),
    )


def _queue(kind: str, field: str, words: str, ways: tuple[Handler, str, Handler, str, type]) -> tuple[Route, ...]:
    """Locks and elections are alike but for words."""
    enter, enter_words, show, show_words, shown = ways
    path = f"/v1/{kind}/{{name}}"
    return (
        Route(
            "POST", path, enter, enter_words,
            (HOLD_TTL, QUEUE_WAIT, Parameter(field, "bytes", words), TIMEOUT), (*NAMES, NO_FORWARD), "", locks.Holder,
            ("bad_key", "lock_held", "lease_not_found", "too_large", *_ONCE, *_WRITE),
        ),
        Route(
            "GET", path, show, show_words, (PLAIN_CONSISTENCY, TIMEOUT), (NO_FORWARD,), "", shown,
            ("bad_key", "not_found", "too_large", *_READ),
        ),
        Route(
            "POST", f"{path}/keepalive", locks.keep_alive, "Hold it for the whole time to live from now on.",
            (HOLDER_TOKEN, TIMEOUT), (NO_FORWARD,), "", leases.LeaseAnswer, ("bad_key", "fenced", "too_large", *_WRITE),
            name=f"keep_{kind}",
        ),
        Route(
            "DELETE", path, locks.release, "Let it go, or leave the queue.",
            (HOLDER_TOKEN, TIMEOUT), (NO_FORWARD,), "", leases.LeaseEndedAnswer,
            ("bad_key", "fenced", "too_large", *_WRITE), name=f"leave_{kind}",
        ),
    )  # fmt: skip


TABLE: tuple[Route, ...] = (
    Route(
        "PUT", "/v1/kv/{key}", kv.put_key, "Set a key to the request's body.",
        (LEASE, OWN_TTL, IF_REV, FENCE, PREV, TIMEOUT), (IF_MATCH, IF_NONE_MATCH_WRITE, *NAMES, NO_FORWARD), "bytes",
        shapes.PutAnswer,
        ("bad_key", "compare_failed", "fenced", "lease_not_found", "too_large", *_ONCE, *_WRITE),
    ),
    _get_key("GET", "The value of a key, as raw bytes."),
    _get_key("HEAD", "The headers of the GET."),
    Route(
        "DELETE", "/v1/kv/{key}", kv.delete_key, "Delete a key; deleting an absent one answers deleted: 0.",
        (IF_REV, FENCE, PREV, TIMEOUT), (IF_MATCH, IF_NONE_MATCH_WRITE, *NAMES, NO_FORWARD), "", shapes.DeleteResult,
        ("bad_key", "compare_failed", "fenced", "too_large", *_ONCE, *_WRITE),
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
        (*RANGE, FENCE, PREV, TIMEOUT), (*NAMES, NO_FORWARD), "", shapes.DeleteResult,
        ("fenced", "too_large", *_ONCE, *_WRITE),
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
        "GET", "/v1/watch", watches.watch, "Changes as they happen: a JSON line each, or server-sent events.",
        (
            Parameter("key", "bytes", "Exactly this key, instead of a range."),
            *RANGE,
            Parameter("from_rev", "integer", "Changes of this revision and later; default: those from now on."),
            Parameter("list", "flag", "First the items that exist, a synced line, then every change after it."),
            Parameter("prev", "flag", "With what each change replaced."),
            Parameter("events", "text", "put, delete, or put,delete (default)."),
            Parameter("progress", "duration", "After so long without a line: a mark up to where everything has come."),
            CONSISTENCY,
            MAX_STALENESS,
            TIMEOUT,
        ),
        (
            Parameter("Accept", "text", "text/event-stream: server-sent events."),
            Parameter("Last-Event-ID", "integer", "Resume after this revision: sent by browsers that reconnect."),
            TOKEN,
            NO_FORWARD,
        ),
        "", shapes.WatchLine, ("bad_key", "too_large", *_READ),
    ),
    Route(
        "POST", "/v1/txn", txn.transact, "If every compare holds do success, else failure. All or nothing.",
        (FENCE, TIMEOUT), (*NAMES, NO_FORWARD), "txn", shapes.TxnAnswer,
        ("bad_key", "fenced", "lease_not_found", "too_large", *_ONCE, *_WRITE),
    ),
    Route(
        "POST", "/v1/batch", batch.execute_batch, "Many operations in order, each its own transaction. Not atomic.",
        (FENCE, TIMEOUT), (NO_FORWARD,), "batch", shapes.BatchAnswer, ("bad_key", "too_large"),
    ),
    Route(
        "POST", "/v1/leases", leases.grant, "Begin a lease: keys put under it go when it ends.",
        (TTL, TIMEOUT), (*NAMES, NO_FORWARD), "", leases.LeaseAnswer, (*_ONCE, *_WRITE),
    ),
    Route(
        "GET", "/v1/leases", leases.list_all, "A page of the leases there are, by id.",
        (
            Parameter("after", "integer", "Only leases with greater ids: the last of the page before."),
            Parameter("limit", "integer", "Most leases of a page; default 1000."),
            PLAIN_CONSISTENCY,
            TIMEOUT,
        ),
        (NO_FORWARD,), "", leases.LeaseListing, _READ,
    ),
    Route(
        "GET", "/v1/leases/{id}", leases.show, "What is left of a lease, and its keys.",
        (TIMEOUT,), (NO_FORWARD,), "", leases.LeaseShown, ("lease_not_found", *_READ),
    ),
    Route(
        "POST", "/v1/leases/{id}/keepalive", leases.keep_alive, "Let a lease live for its whole time from now on.",
        (TIMEOUT,), (NO_FORWARD,), "", leases.LeaseAnswer, ("lease_not_found", *_WRITE),
    ),
    Route(
        "DELETE", "/v1/leases/{id}", leases.revoke, "End a lease; its keys go in one revision.",
        (TIMEOUT,), (*NAMES, NO_FORWARD), "", leases.LeaseEndedAnswer, ("lease_not_found", *_ONCE, *_WRITE),
    ),
    *_queue("locks", "owner", "Who takes it, in words of its own.", (
        locks.acquire, "Take a lock, or a place in its queue.",
        locks.show_lock, "Who holds a lock, and who waits for it.", locks.Queue,
    )),
    *_queue("elections", "value", "What the others see of this candidate.", (
        locks.campaign, "Stand for election; answered once elected.",
        locks.show_leader, "Who leads.", locks.Holder,
    )),
    Route(
        "GET", "/v1/elections/{name}/observe", locks.observe, "Each new leader as a JSON line, the present one first.",
        (CONSISTENCY, MAX_STALENESS, TIMEOUT), (TOKEN, NO_FORWARD), "", locks.Observed,
        ("bad_key", "too_large", *_READ),
    ),
    Route(
        "POST", "/v1/sessions", sessions.open_session, "A session to number writes under.",
        (Parameter("ttl", "duration", "It ends when not used for so long; default 1h, 1s to 366 days."), TIMEOUT),
        (NO_FORWARD,), "", shapes.SessionOpened, _WRITE,
    ),
    Route(
        "DELETE", "/v1/sessions/{id}", sessions.end_session, "End a session; its answers are forgotten.",
        (TIMEOUT,), (NO_FORWARD,), "", shapes.SessionEnded, _WRITE,
    ),
    _get_ap("GET", "A key of the keyspace that needs no quorum: 200 its value, 300 several that were written apart."),
    _get_ap("HEAD", "The headers of the GET."),
    Route(
        "PUT", "/v1/ap/{key}", eventual.put_ap, "Write without a quorum; replaces what Kv-Context covers.",
        (TIMEOUT,), (CONTEXT, SEEN), "bytes", None, ("bad_key", "bad_context", "conflict", "too_large", *_AP_WRITE),
        success=204,
    ),
    Route(
        "DELETE", "/v1/ap/{key}", eventual.delete_ap, "Delete what Kv-Context covers; without it what this node has.",
        (TIMEOUT,), (CONTEXT, SEEN), "", None, ("bad_key", "bad_context", "too_large", *_AP_WRITE), success=204,
    ),
    Route(
        "GET", "/v1/ap", eventual.list_ap, "A page of the keys that need no quorum, in byte order.",
        (
            Parameter("prefix", "bytes", "Keys that start with these bytes; every key if left out."),
            Parameter("limit", "integer", "Most keys of a page; default 1000."),
            Parameter("cursor", "text", CURSOR.format(what="the prefix")),
            TIMEOUT,
        ),
        (SEEN,), "", shapes.ApListing, ("too_large", "not_ready"),
    ),
    Route(
        "GET", "/v1/events", events.show_events, "What happened in the cluster, causes before effects.",
        (
            Parameter("stable", "flag", "Only what can no longer be reordered: the same prefix on every node."),
            Parameter("allow_late", "flag", "With stable: also what has no place in the final order."),
            Parameter("cursor", "text", "Continue after this, on any node."),
            Parameter("limit", "integer", "Most events of a page; at most, and by default, 1000."),
            Parameter("wait", "duration", "Wait so long for something new, at most 60s."),
            Parameter("follow", "flag", "Go on for ever: a JSON line each, or server-sent events."),
            TIMEOUT,
        ),
        (
            Parameter("Accept", "text", "With follow: text/event-stream: server-sent events."),
            Parameter("Last-Event-ID", "text", "With follow: resume after this; sent by browsers that reconnect."),
            SEEN,
        ),
        "", shapes.Events, ("not_ready",),
    ),
    Route(
        "POST", "/v1/events", events.post_event, "Put an event of your own into the timeline: any JSON object.",
        (TIMEOUT,), (SEEN,), "event", shapes.EventLine, ("too_large", *_AP_WRITE), success=201,
    ),
    Route("GET", "/v1/status", node.show_status, "This node as it sees itself.", (TIMEOUT,), reply=Status),
    Route(
        "GET", "/v1/members", members.list_members, "The members as this node sees them. Asks nobody.",
        (Parameter("settings", "flag", "With the settings that all members must agree on."), TIMEOUT), reply=Members,
    ),
    Route(
        "POST", "/v1/members", members.add, "Add a learner: it gets the log, and no vote until it is promoted.",
        (TIMEOUT,), (NO_FORWARD,), "new member", MembersChanged, _CHANGE, name="add_member",
    ),
    Route(
        "PUT", "/v1/members/{id}", members.update, "Let the others reach a member at another peer address.",
        (TIMEOUT,), (NO_FORWARD,), "member address", MembersChanged, _CHANGE, name="update_member",
    ),
    Route(
        "POST", "/v1/members/{id}/promote", members.promote, "Give a learner a vote, once it has caught up.",
        (FORCE, TIMEOUT), (NO_FORWARD,), "", MembersChanged, _CHANGE, name="promote_member",
    ),
    Route(
        "DELETE", "/v1/members/{id}", members.remove, "Remove a member, for ever: its id is never given again.",
        (FORCE, TIMEOUT), (NO_FORWARD,), "", MembersChanged, _CHANGE, name="remove_member",
    ),
    Route(
        "POST", "/v1/admin/transfer", node.transfer_leadership, "Hand leadership to a member.",
        (Parameter("to", "integer", "Member id of the new leader; default: the voter with most of the log."), TIMEOUT),
        (), "", node.Transferred, ("member_not_found", "conflict", "no_leader", "timeout"), redirects=True,
    ),
    Route(
        "POST", "/v1/admin/compact", node.compact, "Give up the history below a revision, on all nodes.",
        (Parameter("rev", "integer", "The oldest revision that can be read from now on.", required=True), TIMEOUT),
        (NO_FORWARD,), "", node.Compacted, ("future_revision", *_WRITE),
    ),
    Route(
        "GET", "/v1/admin/hash", node.show_hash, "A hash of all items, the same on every node.",
        (Parameter("rev", "integer", "Of what this revision shows; default: the newest."), TIMEOUT),
        (NO_FORWARD,), "", HashReply, ("future_revision", *_READ),
    ),
    Route(
        "GET", "/v1/admin/snapshot", snapshot.take, "A backup: everything committed, as one consistent state.",
        (TIMEOUT,), (NO_FORWARD,), "", bytes, _READ,
    ),
    Route("GET", "/livez", node.show_live, "The process is alive.", (VERBOSE, EXCLUDE), reply=node.Live),
    Route(
        "GET", "/readyz", node.show_ready, "This node has a leader and has caught up.", (VERBOSE, EXCLUDE),
        reply=node.Ready, errors=("not_ready",),
    ),
    Route(
        "GET", "/livez/{check}", plain.show_live_check, "One check of etcd's, as text: serializable_read.", (VERBOSE,),
        reply=str, errors=("not_found",),
    ),
    Route(
        "GET", "/readyz/{check}", plain.show_ready_check,
        "One check of etcd's, as text: data_corruption, serializable_read, linearizable_read or non_learner.",
        (VERBOSE,), reply=str, errors=("not_found",),
    ),
    Route(
        "GET", "/health", plain.show_health, "Whether this node is healthy, as etcd says it: JSON as plain text.",
        (
            Parameter("serializable", "flag", "Only this node: no leader is needed."),
            Parameter("exclude", "text", "An alarm that does not count: NOSPACE or CORRUPT."),
        ),
        reply=str,
    ),
    Route("GET", "/metrics", node.show_metrics, "Metrics in the Prometheus text format.", reply=str),
    Route("GET", "/version", node.show_version, "The version of this node.", reply=node.Version),
    Route("GET", "/openapi.json", node.show_openapi, "This interface, as OpenAPI 3.1.", reply=dict),
)  # fmt: skip

COMMON_ERRORS = ("bad_request", "bad_encoding", "unknown_parameter", "permission_denied", "internal")
"""What any call may answer."""

Methods = dict[str, tuple[Handler, frozenset[str]]]


class Router:
    """Finds handler and known parameter names for a method and a raw path. Two dictionaries, no patterns."""

    def __init__(self, table: tuple[Route, ...] = TABLE) -> None:
        self._exact: dict[str, Methods] = {}
        self._variable: dict[tuple[str, str, str], Methods] = {}  # by what stands before, its name, what stands after
        self.takes_names = {route.handler for route in table if IDEMPOTENCY_KEY in route.headers}
        for route in table:
            before, _, rest = route.path.partition("{")
            if rest:
                variable, _, after = rest.partition("}")
                methods = self._variable.setdefault((before, variable, after), {})
            else:
                methods = self._exact.setdefault(before, {})
            assert route.method not in methods, route
            methods[route.method] = (route.handler, route.names)
        for methods in (*self._exact.values(), *self._variable.values()):
            if "GET" in methods:  # HTTP: what can be fetched has a head (RFC 9110 §9.3.2)
                methods.setdefault("HEAD", methods["GET"])
        # Keys come first, as they are asked for most; of paths that begin alike the longer ending.
        ordered = sorted(self._variable, key=lambda parts: -len(parts[2]))
        self._variables = [(before, after, self._variable[before, name, after]) for before, name, after in ordered]
        self._variables.sort(key=lambda parts: parts[0] != "/v1/kv/")

    def find(self, method: str, path: str) -> tuple[Handler, frozenset[str], str]:
        """(handler, parameter names, variable part of the path). Raises: NotFound, MethodNotAllowed."""
        rest = ""
        methods = self._exact.get(path)
        if methods is None:
            for before, after, candidate in self._variables:
                if path.startswith(before) and path.endswith(after):
                    methods, rest = candidate, path[len(before) : len(path) - len(after)]
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
        variable = {
            (method, f"{before}{{{name}}}{after}")
            for (before, name, after), methods in self._variable.items()
            for method in methods
        }
        return exact | variable
