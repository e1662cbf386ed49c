"""Model: the KV part of the etcd v3 API on a dictionary, as the book of rules says it, errors and their order included.

What it answers is what any server has to answer: JSON objects without what only a cluster knows (of a header, the
revision stays). It knows the state at every revision since it began, one dictionary each.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.etcd.target import INVALID_ARGUMENT, NOT_FOUND, OUT_OF_RANGE, Refusal
from tests.etcd.words import b64, unb64

Message = dict[str, Any]


class Refused(Exception):
    """How a request is refused."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.refusal = Refusal(code, f"etcdserver: {message}")


class Undecided(Exception):
    """A request on which servers may differ.

    One nested transaction puts a key, a later one deletes it: etcd takes that (and refuses it the other way round),
    although the key then changes twice in one revision.
    """


@dataclass(frozen=True)
class Item:
    """A key's version."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int

    def shown(self, *, keys_only: bool = False) -> Message:
        numbers = {name: getattr(self, name) for name in ("create_revision", "mod_revision", "version", "lease")}
        found = {name: str(number) for name, number in numbers.items() if number}
        value = {"value": b64(self.value)} if self.value and not keys_only else {}
        return {"key": b64(self.key), **found, **value}


State = dict[bytes, Item]

_FIELDS = {"KEY": "key", "VERSION": "version", "CREATE": "create_revision", "MOD": "mod_revision", "VALUE": "value"}
"""Of an item, by what ranges are sorted by and conditions ask about; these may ask about LEASE too."""
_RESULTS: dict[str, Callable[[Any, Any], bool]] = {
    "EQUAL": operator.eq,
    "GREATER": operator.gt,
    "LESS": operator.lt,
    "NOT_EQUAL": operator.ne,
}
OPERATIONS_MAX = 128


class Model:
    """A store that is at `revision`, empty as far as anybody looks. `leases`: those that there are."""

    def __init__(self, revision: int, leases: Sequence[int] = ()) -> None:
        self.revision = revision
        self.compacted = 0
        self.leases = set(leases)
        self._states: dict[int, State] = {revision: {}}

    def call(self, path: str, body: Message) -> Message:
        """Raises: Refused, Undecided."""
        calls = {
            "kv/range": self._range,
            "kv/put": self._put,
            "kv/deleterange": self._delete,
            "kv/txn": self._txn,
            "kv/compaction": self._compact,
        }
        return calls[path](body)

    # Each of these: what needs no state, then what does, then the work.

    def _range(self, body: Message) -> Message:
        _check_key(body)
        self._check_revision(body)
        return {**_shown(body, self.at(body, self.state())), "header": _header(self.revision)}

    def _put(self, body: Message) -> Message:
        _check_put(body)
        self._check_lease(body)
        self._check_kept(body)
        change = _Change(self)
        found = change.put(body)
        change.commit()
        return found

    def _delete(self, body: Message) -> Message:
        _check_key(body)
        change = _Change(self)
        found = change.delete(body)
        change.commit()
        return found

    def _txn(self, body: Message) -> Message:
        _check_txn(body, OPERATIONS_MAX)
        for branch in ("success", "failure"):
            _check_duplicates(body.get(branch, []))
        running = list(self._running(body))
        for operation in running:
            if "request_put" in operation:
                self._check_kept(operation["request_put"])
                self._check_lease(operation["request_put"])
        for operation in running:
            if "request_range" in operation:
                self._check_revision(operation["request_range"])
        change = _Change(self)
        found = change.txn(body)
        change.commit()
        found["header"] = _header(self.revision)
        return found

    def _compact(self, body: Message) -> Message:
        revision = int(body.get("revision", 0))
        if revision <= self.compacted:
            raise Refused(OUT_OF_RANGE, "mvcc: required revision has been compacted")
        if revision > self.revision:
            raise Refused(OUT_OF_RANGE, "mvcc: required revision is a future revision")
        self.compacted = revision
        return {"header": _header(self.revision)}

    def _running(self, body: Message) -> list[Message]:
        """The operations that will run, those of nested ones in their places."""
        found: list[Message] = []
        for operation in body.get(self.branch(body), []):
            found += self._running(operation["request_txn"]) if "request_txn" in operation else [operation]
        return found

    def branch(self, body: Message) -> str:
        """Judged by the state before the transaction."""
        return "success" if all(_holds(compare, self.state()) for compare in body.get("compare", [])) else "failure"

    def state(self) -> State:
        """The newest."""
        return self._states[self.revision]

    def become(self, state: State) -> None:
        """At the next revision."""
        self.revision += 1
        self._states[self.revision] = state

    def at(self, body: Message, now: State) -> State:
        """The state that a range looks at. `now`: the one at no revision."""
        revision = int(body.get("revision", 0))
        return self._states[revision] if revision > 0 else now

    def _check_revision(self, body: Message) -> None:
        revision = int(body.get("revision", 0))
        if revision > self.revision:
            raise Refused(OUT_OF_RANGE, "mvcc: required revision is a future revision")
        if 0 < revision < self.compacted:
            raise Refused(OUT_OF_RANGE, "mvcc: required revision has been compacted")

    def _check_lease(self, body: Message) -> None:
        if int(body.get("lease", 0)) not in {0, *self.leases}:
            raise Refused(NOT_FOUND, "requested lease not found")

    def _check_kept(self, body: Message) -> None:
        keeps = body.get("ignore_value") or body.get("ignore_lease")
        if keeps and unb64(body["key"]) not in self.state():
            raise Refused(INVALID_ARGUMENT, "key not found")


class _Change:
    """A write under way: operations see what those before them did, and all of it is one revision."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._state = dict(model.state())
        self._has_changed = False

    def commit(self) -> None:
        if self._has_changed:
            self._model.become(self._state)

    def _header(self) -> Message:
        return _header(self._model.revision + self._has_changed)

    def put(self, body: Message) -> Message:
        key = unb64(body["key"])
        before = self._state.get(key)
        self._has_changed = True
        revision = self._model.revision + 1
        self._state[key] = Item(
            key,
            before.value if body.get("ignore_value") and before else unb64(body.get("value", "")),
            before.create_revision if before else revision,
            revision,
            before.version + 1 if before else 1,
            before.lease if body.get("ignore_lease") and before else int(body.get("lease", 0)),
        )
        previous = {"prev_kv": before.shown()} if body.get("prev_kv") and before else {}
        return {"header": self._header(), **previous}

    def delete(self, body: Message) -> Message:
        gone = _inside(body, self._state)
        for item in gone:
            del self._state[item.key]
        self._has_changed = self._has_changed or bool(gone)
        deleted: Message = {"deleted": str(len(gone))} if gone else {}
        previous = {"prev_kvs": [item.shown() for item in gone]} if gone and body.get("prev_kv") else {}
        return {"header": self._header(), **deleted, **previous}

    def txn(self, body: Message) -> Message:
        branch = self._model.branch(body)
        responses = [self._operation(operation) for operation in body.get(branch, [])]
        return {
            "header": {},
            **({"succeeded": True} if branch == "success" else {}),
            **({"responses": responses} if responses else {}),
        }

    def _operation(self, operation: Message) -> Message:
        [(name, body)] = operation.items()
        match name:
            case "request_put":
                return {"response_put": self.put(body)}
            case "request_delete_range":
                return {"response_delete_range": self.delete(body)}
            case "request_txn":
                return {"response_txn": self.txn(body)}
        shown = _shown(body, self._model.at(body, self._state))
        return {"response_range": {**shown, "header": self._header()}}


# ── what needs no state ─────────────────────────────────────────────────────────────────────────────


def _check_key(body: Message) -> None:
    if not body.get("key"):
        raise Refused(INVALID_ARGUMENT, "key is not provided")


def _check_put(body: Message) -> None:
    _check_key(body)
    if body.get("ignore_value") and body.get("value"):
        raise Refused(INVALID_ARGUMENT, "value is provided")
    if body.get("ignore_lease") and int(body.get("lease", 0)):
        raise Refused(INVALID_ARGUMENT, "lease is provided")


def _check_txn(body: Message, allowed: int) -> None:
    lists = [body.get(name, []) for name in ("compare", "success", "failure")]
    longest = max(map(len, lists))
    if longest > allowed:
        raise Refused(INVALID_ARGUMENT, "too many operations in txn request")
    for compare in lists[0]:
        _check_key(compare)
    for operation in [*lists[1], *lists[2]]:
        if not operation:
            raise Refused(INVALID_ARGUMENT, "key not found")
        [(name, inner)] = operation.items()
        match name:
            case "request_put":
                _check_put(inner)
            case "request_txn":
                _check_txn(inner, allowed - longest)
            case _:
                _check_key(inner)


def _check_duplicates(operations: list[Message]) -> tuple[set[bytes], list[Message]]:
    """→ (keys that the list may put, intervals that it may delete). Those of a nested txn count as the list's own."""
    deletes = [operation["request_delete_range"] for operation in operations if "request_delete_range" in operation]
    puts: set[bytes] = set()

    def add(keys: set[bytes], besides: set[bytes]) -> None:
        nonlocal puts
        if keys & (puts - besides) or any(_contains(bounds, key) for bounds in deletes for key in keys):
            raise Refused(INVALID_ARGUMENT, "duplicate key given in txn request")
        puts |= keys

    for operation in operations:
        if "request_txn" in operation:
            then_puts, then_deletes = _check_duplicates(operation["request_txn"].get("success", []))
            else_puts, else_deletes = _check_duplicates(operation["request_txn"].get("failure", []))
            if any(_contains(bounds, key) for bounds in (*then_deletes, *else_deletes) for key in puts):
                raise Undecided
            add(then_puts, set())
            add(else_puts, then_puts)  # only one of them will run
            deletes = [*deletes, *then_deletes, *else_deletes]
    for operation in operations:
        if "request_put" in operation:
            add({unb64(operation["request_put"]["key"])}, set())
    return puts, deletes


# ── what a state shows ──────────────────────────────────────────────────────────────────────────────


def _header(revision: int) -> Message:
    return {"revision": str(revision)}


def _contains(bounds: Message, key: bytes) -> bool:
    start, end = unb64(bounds["key"]), unb64(bounds.get("range_end", ""))
    if not end:
        return key == start
    return start <= key and (end == b"\0" or key < end)


def _inside(bounds: Message, state: State) -> list[Item]:
    return [state[key] for key in sorted(state) if _contains(bounds, key)]


def _holds(compare: Message, state: State) -> bool:
    of = compare.get("target", "VERSION")
    field = _FIELDS.get(of, "lease")
    is_held = _RESULTS[compare.get("result", "EQUAL")]
    given = unb64(compare.get(field, "")) if of == "VALUE" else int(compare.get(field, 0))
    items = _inside(compare, state)
    if not items:
        return of != "VALUE" and is_held(0, given)
    return all(is_held(getattr(item, field), given) for item in items)


def _shown(body: Message, state: State) -> Message:
    """A range's answer without its header."""
    items = _inside(body, state)
    count: Message = {"count": str(len(items))} if items else {}
    if body.get("count_only"):
        return count
    for name, is_kept in (("min", operator.ge), ("max", operator.le)):
        for field in ("mod_revision", "create_revision"):
            bound = int(body.get(f"{name}_{field}", 0))
            items = [item for item in items if not bound or is_kept(getattr(item, field), bound)]
    of, order = body.get("sort_target", "KEY"), body.get("sort_order", "NONE")
    items.sort(key=operator.attrgetter(_FIELDS[of]), reverse=order == "DESCEND")
    limit = int(body.get("limit", 0))
    is_cut = 0 < limit < len(items)
    kvs = [item.shown(keys_only=body.get("keys_only", False)) for item in (items[:limit] if is_cut else items)]
    return {**({"kvs": kvs} if kvs else {}), **({"more": True} if is_cut else {}), **count}
