"""Canaries of transactions, and of what members of an older version must not be asked."""

from __future__ import annotations

from canary import Canary

_TXN = ("tests/machine/test_txn.py",)
_LEVEL = ("tests/node/test_new_forms.py",)
_STORED = ("tests/wire/test_stored_forms.py",)

CANARIES = (
    Canary(
        "compare-sees-the-draft",
        "compares see what the transaction around them has done",
        "kvnode/machine/txn.py",
        "        reply = yield from self._run(plan, course)\n        if",
        "        yield from self._run(plan, course)\n        plan = yield from self._decide(request, course)\n"
        "        events.clear()\n        self._recent.drop()\n        self._recent.begin()\n"
        "        reply = yield from self._run(plan, course)\n        if",
        _TXN,
        sim=("runtime", 20),
    ),
    Canary(
        "inner-compares-not-asked",
        "compares of a transaction inside another decide nothing",
        "kvnode/machine/txn.py",
        "            inner = yield from self._decide(operation, course)",
        "            inner = yield from self._decide(Txn((), operation.success, operation.failure), course)",
        _TXN,
    ),
    Canary(
        "found-wrong-at-its-turn",
        "what the state does not allow in a nested transaction is found when its turn comes, behind other refusals",
        "kvnode/machine/txn.py",
        "        if level_of(request) == NESTED_LEVEL:",
        "        if False:",
        _TXN,
    ),
    Canary(
        "older-version-refuses-otherwise",
        "a transaction that older versions know gets another refusal than they give it",
        "kvnode/machine/txn.py",
        "        if level_of(request) == NESTED_LEVEL:",
        "        if True:",
        _TXN,
    ),
    Canary(
        "inner-puts-not-counted",
        "a key that a nested transaction puts may be put again around it",
        "kvnode/machine/txn.py",
        "        case Txn():\n            one, other = _changes_of(operation.success), _changes_of(operation.failure)\n"
        "            return _Changes(sorted({*one.puts, *other.puts}), one.deletes + other.deletes)\n"
        "        case Range():",
        "        case Range() | Txn():",
        _TXN,
    ),
    Canary(
        "nesting-unbounded",
        "transactions are nested as deep as somebody likes",
        "kvnode/machine/txn.py",
        "        if depth > TXN_DEPTH_MAX:",
        "        if False:",
        (*_TXN, *_LEVEL),
    ),
    Canary(
        "compare-of-any-range",
        "a compare looks at any number of keys",
        "kvnode/machine/txn.py",
        "                    if course.compared > most:",
        "                    if False:",
        _TXN,
    ),
    Canary(
        "nothing-compares-well",
        "a compare of a range without keys holds whatever it asks",
        "kvnode/machine/txn.py",
        "                return holds(compare, None) if is_empty else True",
        "                return True",
        _TXN,
    ),
    Canary(
        "counted-to-the-limit",
        "the count of a page is that of what it shows",
        "kvnode/machine/operations.py",
        "        if not (request.counted and page.more):",
        "        if True:",
        _TXN,
    ),
    Canary(
        "level-not-asked",
        "a write is proposed that members of an older version take for another",
        "kvnode/node/request_path.py",
        "        return committed.feature_level < NESTED_LEVEL and level_of(request) > committed.feature_level",
        "        return False",
        _LEVEL,
        sim=("runtime", 40),
    ),
    Canary(
        "level-that-may-be-taken-back",
        "a feature level counts as soon as it stands in this node's log",
        "kvnode/node/request_path.py",
        "        _, committed = self._raft.committed_configuration\n",
        "        committed = self._raft.configuration\n",
        _LEVEL,
    ),
    Canary(
        "stored-at-its-full-length",
        "a write is stored with fields that older versions do not have",
        "kvnode/wire/codec.py",
        "_encoder.encode(stored_form(request))",
        "_encoder.encode(request)",
        _STORED,
    ),
    Canary(
        "fingerprint-of-one-version",
        "the fingerprint of a named write depends on the version that takes it",
        "kvnode/machine/answers.py",
        "_encode((stored_form(command.request), command.fence))",
        "_encode((command.request, command.fence))",
        _STORED,
    ),
)
