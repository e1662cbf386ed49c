"""The export format: what is written is read back; what was cut off, damaged, edited or foreign is refused by name."""

from __future__ import annotations

import io
import json

import pytest

from kvnode.client.export_file import BadExport, Item, Reader, Writer, header
from kvnode.kv.requests import KeyValue

TIME = "2026-11-22T10:00:00.123Z.0007"


def item(key: str, value: str = "v", **more: str) -> Item:
    return Item(key=key, value=value, create_revision=2, mod_revision=3, version=2, lease=0, time=TIME, **more)


def written(*items: Item, prefix: bytes = b"") -> bytes:
    file = io.BytesIO()
    writer = Writer(file, header(cluster_id="00aa", revision=7, time="2026-11-22T10:00:00.123Z", prefix=prefix))
    writer.write(items)
    writer.end()
    assert writer.size == len(file.getvalue())
    return file.getvalue()


def read(data: bytes, *, partial: bool = False) -> list[KeyValue]:
    return [entry.kv for entry in Reader(io.BytesIO(data), partial=partial)]


THREE = written(item("a"), item("b", "two\nlines"), item("/////w==", key_encoding="base64"))


def test_what_is_written_is_read() -> None:
    reader = Reader(io.BytesIO(THREE))
    entries = list(reader)
    assert [(each.line, each.kv.key, each.kv.value) for each in entries] == [
        (2, b"a", b"v"),
        (3, b"b", b"two\nlines"),
        (4, b"\xff\xff\xff\xff", b"v"),
    ]
    assert (reader.header.revision, reader.header.cluster_id, reader.items, reader.is_whole) == (7, "00aa", 3, True)
    assert entries[0].kv.version == 2
    assert sum(each.size for each in entries) < len(THREE)


def test_the_lines_are_as_documented() -> None:
    head, first, *_, end = [json.loads(line) for line in THREE.splitlines()]
    assert head == {
        "kvnode_export": 1,
        "cluster_id": "00aa",
        "revision": 7,
        "time": "2026-11-22T10:00:00.123Z",
        "prefix": "",
    }
    assert list(first) == ["key", "value", "create_revision", "mod_revision", "version", "lease", "time"]
    assert (end["end"], end["items"], list(end)) == (True, 3, ["end", "items", "digest"])


def test_a_prefix_that_is_no_text() -> None:
    data = written(item("/2E=", key_encoding="base64"), prefix=b"\xff")
    assert json.loads(data.splitlines()[0])["key_encoding"] == "base64"
    assert [kv.key for kv in read(data)] == [b"\xffa"]


def test_an_export_of_nothing() -> None:
    assert read(written()) == []


def test_wherever_it_is_cut_off_that_is_noticed() -> None:
    for length in range(len(THREE) - 1):  # without its last newline it is whole
        with pytest.raises(BadExport):
            read(THREE[:length])
    assert len(read(THREE[:-1])) == 3


@pytest.mark.slow
def test_whichever_bit_flips_that_is_noticed() -> None:
    for at in range(len(THREE)):
        for bit in range(8):
            damaged = bytearray(THREE)
            damaged[at] ^= 1 << bit
            with pytest.raises(BadExport):
                read(bytes(damaged))


def test_partial_takes_what_is_there() -> None:
    lines = THREE.splitlines(keepends=True)
    assert len(read(b"".join(lines[:3]), partial=True)) == 2
    assert len(read(b"".join(lines[:3]) + lines[3][:10], partial=True)) == 2, "the line that was cut is left out"
    edited = THREE.replace(b'"v"', b'"w"')
    reader = Reader(io.BytesIO(edited), partial=True)
    assert [entry.kv.value for entry in reader] == [b"w", b"two\nlines", b"w"]
    assert not reader.is_whole
    with pytest.raises(BadExport, match="digest differs"):
        read(edited)


def line(number: int, **changes: object) -> bytes:
    """THREE with other fields in one of its lines."""
    lines = THREE.splitlines(keepends=True)
    fields = {**json.loads(lines[number - 1]), **changes}
    lines[number - 1] = (
        json.dumps({name: value for name, value in fields.items() if value is not None}).encode() + b"\n"
    )
    return b"".join(lines)


@pytest.mark.parametrize(
    ("data", "words", "is_damaged"),
    [
        (b"", "no export of kvnode", False),
        (b"\x1f\x8b\x08\x00", "no export of kvnode", False),
        (b"[1]\n", "no export of kvnode", False),
        (b"[" * 100_000, "no export of kvnode", False),
        (b'{"key":"a"}\n', "no export of kvnode", False),
        (line(1, kvnode_export=2), "an export of version 2; this kvnode reads 1", False),
        (line(1, revision="seven"), "line 1: the header is damaged", True),
        (line(1, prefix="x", key_encoding="base64"), "line 1: the header is damaged", True),
        (line(1, prefix="c"), "line 2: the key b'a' does not start with the prefix", True),
        (line(2, key=""), "line 2: the key b'' does not start", True),
        (line(2, value=None), "line 2: no item: .*value", True),
        (line(2, value=7), "line 2: no item: .*value", True),
        (line(2, key="!", key_encoding="base64"), "line 2: no item: not base64", True),
        (line(2, key_encoding="rot13"), "line 2: no item: .*rot13", True),
        (line(2, time="yesterday"), "line 2: no item", True),
        (line(3, key="a"), "line 3: the key b'a' does not come after", True),
        (line(5, items="3"), "line 5: the end is damaged", True),
        (line(5, items=4), "3 keys, and the end says 4", True),
        (line(5, digest="sha256:00"), "digest differs", True),
        (THREE.replace(b'{"key":"b"', b'{"key":"\xff"'), "line 3: not JSON", True),
        (THREE + THREE, "line 6: something follows the end", True),
    ],
)
def test_what_is_wrong_is_named(data: bytes, words: str, is_damaged: bool) -> None:
    with pytest.raises(BadExport, match=words) as caught:
        read(data)
    assert caught.value.is_damaged == is_damaged


def test_a_line_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvnode.client.export_file.LINE_BYTES_MAX", 400)
    with pytest.raises(BadExport, match="line 3: longer than 400 bytes"):
        read(written(item("a"), item("b", "x" * 400)))
