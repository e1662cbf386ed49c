"""What is kept in memory is written with the cut it belongs to, and removed with it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from kvnode.ids import Term
from kvnode.kv.requests import Put
from kvnode.machine.side_rows import rows_of
from tests.machine.harness import BACKENDS, Store, opener

TABLE = b"\x2f"


class Thing(msgspec.Struct, frozen=True, array_like=True):
    number: int


@pytest.mark.parametrize("backend", BACKENDS)
def test_changed_rows_go_with_the_next_cut_and_no_later_change_with_it(backend: str, tmp_path: Path) -> None:
    store = Store(opener(backend, tmp_path))
    machine = store.machine
    side = machine._side
    side.put(TABLE + b"a", Thing(1))
    side.put(TABLE + b"b", Thing(1))
    side.put(TABLE + b"a", Thing(2))
    side.remove(TABLE + b"absent")
    store.apply(Put(b"k", b"v"))
    cut = machine.cut(Term(1))
    assert cut is not None
    side.put(TABLE + b"a", Thing(3))
    side.remove(TABLE + b"b")
    machine.backend.commit(cut)
    machine.evict(cut)
    assert [(key, msgspec.msgpack.decode(row)) for key, row in rows_of(machine.backend, TABLE)] == [
        (TABLE + b"a", [2]),
        (TABLE + b"b", [1]),
    ]
    store.apply(Put(b"k", b"w"))
    cut = machine.cut(Term(1))
    assert cut is not None
    machine.backend.commit(cut)
    machine.evict(cut)
    assert [(key, msgspec.msgpack.decode(row)) for key, row in rows_of(machine.backend, TABLE)] == [(TABLE + b"a", [3])]
    assert store.get(b"k") is not None
    machine.backend.close()
