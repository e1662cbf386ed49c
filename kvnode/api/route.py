"""What one call is made of: `Route`, and the parameters and headers that several of them take."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec

from kvnode.api.answer import Answer
from kvnode.api.call import Call

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
    body: Literal["", "bytes", "txn", "batch", "new member", "member address", "event"] = ""
    reply: Any = None  # a Struct type, bytes, str (plain text), or None for no body
    errors: tuple[str, ...] = ()  # codes beside those every call may answer
    redirects: bool = False  # 307 to the leader even when not asked for
    success: int = 200
    name: str = ""  # in the description, where the handler's is not one of its own

    @property
    def names(self) -> frozenset[str]:
        return frozenset(parameter.name for parameter in self.parameters)

    @property
    def variable(self) -> str:
        """Name of the variable part of the path; "" if it has none."""
        return self.path.partition("{")[2].partition("}")[0]


TIMEOUT = Parameter("timeout", "duration", "Deadline of the call: 500ms, 30s; default 5s, at most 60s.")
CONSISTENCY = Parameter(
    "consistency",
    "choice",
    "linearizable (default); causal: at least the Kv-Token sent; bounded: nothing older than max_staleness is missing; "
    "stale: this node's applied state, without asking anybody.",
    ("linearizable", "causal", "bounded", "stale"),
)
PLAIN_CONSISTENCY = Parameter(
    "consistency", "choice", "linearizable (default) or stale: this node's applied state.", ("linearizable", "stale")
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
LEASE = Parameter("lease", "integer", "The key goes when this lease ends; without it the key is on no lease.")
OWN_TTL = Parameter("ttl", "duration", "The key gets a lease of its own that lives so long; Kv-Lease names it.")
TTL = Parameter("ttl", "duration", "How long the lease lives without being renewed: 1s to 366 days.", required=True)
HOLD_TTL = Parameter("ttl", "duration", "How long it is held without being renewed; default 30s.")
QUEUE_WAIT = Parameter("wait", "duration", "Wait in the queue so long; 409 if that was in vain. Default: do not.")
HOLDER_TOKEN = Parameter("token", "integer", "The token that the POST answered.", required=True)
NO_FORWARD = Parameter("Kv-No-Forward", "flag", "1: answer 307 with the leader's address instead of forwarding.")
IF_MATCH = Parameter("If-Match", "text", 'Only if the key is at this entity tag ("7"), or exists at all (*).')
IF_NONE_MATCH_WRITE = Parameter("If-None-Match", "text", "* : only if there is no such key.")
IF_NONE_MATCH_READ = Parameter("If-None-Match", "text", "304 without a body if the key is still at this entity tag.")
SESSION = Parameter(
    "Kv-Session", "integer", "With Kv-Sequence: the session it is numbered under; it takes effect once."
)
SEQUENCE = Parameter("Kv-Sequence", "integer", "With Kv-Session: the write's number, from 1; a repeat has the same.")
ACKNOWLEDGED = Parameter("Kv-Acknowledged", "integer", "With Kv-Session: no answer up to this sequence is needed more.")
IDEMPOTENCY_KEY = Parameter("Idempotency-Key", "text", "Any text of up to 255 bytes: takes effect once under it.")
FENCE = Parameter("fence", "text", "NAME:TOKEN: only while that lock or election is held under that token.")
FORCE = Parameter("force", "flag", "Do it although the cluster may lose its majority by it.")
SEEN = Parameter("Kv-Token", "text", "Of an answer that must not be gone back behind.")
CONTEXT = Parameter("Kv-Context", "text", "Of the answer that was read: the write replaces that. Else nothing.")
NAMES = (SESSION, SEQUENCE, ACKNOWLEDGED, IDEMPOTENCY_KEY)
