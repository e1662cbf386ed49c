"""Canaries of the available plane's store."""

from __future__ import annotations

from canary import Canary

_STORE = ("tests/storage/test_available_store.py",)
_SHELF = ("tests/sim/test_available_shelf.py",)
_ROWS = ("tests/node/test_available_log.py",)

CANARIES = (
    Canary(
        "row-told-before-it-is-durable",
        "whoever waits for a row of the available plane is told before it is durable",
        "kvnode/node/available_log.py",
        "        last.waiting.append(on_durable)\n",
        "        on_durable()\n",
        _ROWS,
        sim=("runtime", 100),
    ),
    Canary(
        "row-told-with-the-write-before",
        "whoever waits for a row of the available plane is told when the write before it is durable",
        "kvnode/node/available_log.py",
        "        for on_durable in batch.waiting:\n            on_durable()\n",
        "        for one in (batch, *self._gathered):\n"
        "            while one.waiting:\n"
        "                one.waiting.pop(0)()\n",
        _ROWS,
    ),
    Canary(
        "available-write-after-a-failed-one",
        "the available plane's store goes on after a write has failed",
        "kvnode/storage/available_store.py",
        "        self._failed = True  # until the opposite is known\n",
        "",
        _STORE,
    ),
    Canary(
        "available-checksum-unchecked",
        "a row of the available plane is taken whatever its checksum says",
        "kvnode/storage/available_store.py",
        "    if value[-CRC_BYTES:] != _crc(key, content):",
        "    if False:",
        _STORE,
    ),
    Canary(
        "incarnation-kept-after-damage",
        "the store that takes the place of a damaged one goes on under its incarnation",
        "kvnode/storage/available_store.py",
        "    while not incarnation:\n        incarnation = random_u64()\n",
        "    incarnation = owner.cluster_id\n",
        (*_STORE, *_SHELF),
        sim=("runtime", 100),
    ),
    Canary(
        "older-available-state-taken",
        "a state of the available plane's store from before its last commit is taken",
        "kvnode/storage/available_store.py",
        "    if commits is not None and commits != header.commits:",
        "    if False:",
        _STORE,
    ),
    Canary(
        "available-store-trusts-the-page-cache",
        "what a start reads of the available plane's store is shown before it is known to be durable",
        "kvnode/storage/available_store.py",
        "            store.write((), ())\n",
        "",
        _SHELF,
    ),
    Canary(
        "newer-available-store-set-aside",
        "a store that a newer version wrote is taken for damaged",
        "kvnode/storage/available_store.py",
        "        if type(version) is int and version > FORMAT:",
        "        if False:",
        _STORE,
    ),
    Canary(
        "free-page-in-use",
        "a page that is in use and listed as free is not noticed: the next commits write over it",
        "kvnode/storage/lmdb_walk.py",
        "            _check(number not in self._used and number not in free,",
        "            _check(number not in free,",
        ("tests/storage/test_lmdb_walk.py",),
    ),
)
