"""Values of the store's rows: golden bytes, read back by an independent MessagePack reader."""

from __future__ import annotations

import msgpack

from kvnode.ids import Index, Revision, Term
from kvnode.kv.requests import KeyValue
from kvnode.machine import keycode
from kvnode.machine.rows import Cut, Meta, decode_meta, decode_version

LONG = b"k" * 500


def test_golden_rows() -> None:
    changes = [
        KeyValue(b"b", b"v", 2, 2, 1, 0, 10),
        KeyValue(LONG, b"w", 3, 3, 1, 0, 20),
        KeyValue(b"b", b"", 0, 3, 0, 0, 20),
    ]
    meta = Meta(
        applied_index=Index(9),
        applied_time=20,
        revision=Revision(3),
        compact_revision=2,
        digest=b"d" * 16,
        logical_bytes=7,
        swept_revision=1,
        live_bytes=5,
        applied_term=Term(6),
        configuration=b"c",
        configuration_index=Index(8),
        installed=(Index(4), Term(3)),
        restored=(Revision(1), 10),
    )
    rows = Cut(meta, changes, 0).rows()
    assert [key for key, _ in rows] == sorted(key for key, _ in rows)
    assert {key: msgpack.unpackb(value) for key, value in rows} == {
        keycode.META_KEY: [2, 9, 20, 3, 2, b"d" * 16, 7, 1, 5, 6, b"c", 8, [4, 3], [1, 10]],
        keycode.version_row_key(b"b", 2): [b"v", 2, 1, 0, 10, b""],
        keycode.version_row_key(b"b", 3): [b"", 0, 0, 0, 20, b""],
        keycode.version_row_key(LONG, 3): [b"w", 3, 1, 0, 20, LONG],
        keycode.revision_row_key(2, 0): [10, 1, b"b"],
        keycode.revision_row_key(3, 0): [20, 1, LONG],
        keycode.revision_row_key(3, 1): [20, 2, b"b"],
    }
    assert rows[0][1].hex() == "9e02091403" + "02" + "c410" + "64" * 16 + "07" + "01" + "05" + "06c401630892040392010a"
    assert decode_meta(rows[0][1]) == meta
    assert [decode_version(row) for row in rows[1:4]] == [changes[2], changes[0], changes[1]]


def test_fields_appended_by_a_later_version_are_ignored() -> None:
    assert (
        decode_meta(msgpack.packb([2, 9, 20, 3, 0, b"d" * 16, 7, 0, 5, 1, b"", 0, None, None, "new"])).applied_index
        == 9
    )
