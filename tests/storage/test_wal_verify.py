"""`verify` and `compare` find what the writer's own code might overlook; `dump` shows what stands there."""

from __future__ import annotations

import ast
import json
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from kvnode.errors import LogCorrupted
from kvnode.kv.requests import Compare, Delete, Put, Txn
from kvnode.raft.messages import Configuration, Entry, EntryKind
from kvnode.raft.output import Persist
from kvnode.storage import wal_verify
from kvnode.storage.realdisk import RealDisk
from kvnode.storage.wal import Stamp
from kvnode.storage.wal_dump import dump
from kvnode.storage.wal_verify import compare, verify
from kvnode.wire.codec import encode_configuration, encode_request
from tests.storage.wal_world import STAMP, entry, open_wal, persist


def make(home: Path, *batches: Sequence[Persist], close: bool = True, member: int = 2) -> str:
    home.mkdir(parents=True, exist_ok=True)
    stamp = Stamp(STAMP.cluster_id, member, STAMP.incarnation + member)
    wal, _ = open_wal(RealDisk(), create=True, home=str(home), stamp=stamp, salts=member)
    for batch in batches:
        wal.write(batch)
    if close:
        wal.close()
    return str(home)


def noop(index: int, term: int, leader: int) -> Entry:
    return msgspec.structs.replace(entry(index, term, b"%d" % leader), kind=EntryKind.NOOP)


def simple(count: int = 60, text: bytes = b"") -> list[list[Persist]]:
    first = [persist(1, noop(1, 1, 1), state=(1, 1))]
    return [first, *([persist(i, entry(i, text=text), commit=i - 2)] for i in range(2, count + 1))]


def problems(*paths: str) -> list[str]:
    logs = [verify(path) for path in paths]
    found = [problem for log in logs for problem in log.problems] + compare(logs)
    return [f"{problem.where}: {problem.what}" for problem in found]


def test_shares_no_code_with_the_writer() -> None:
    tree = ast.parse(Path(wal_verify.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert not [name for name in imported if name and name.startswith(("kvnode", "msgspec"))]


def test_a_sound_log_has_no_problems(tmp_path: Path) -> None:
    log = verify(
        make(tmp_path / "wal", *simple(), [persist(99, entry(40, 2), cut=40, state=(2, 0))][:0], *simple()[:0])
    )
    assert log.problems == []
    assert (log.first_index, log.last_index, log.member, log.commit) == (1, 60, 2, 58)
    assert log.segments >= 2
    assert verify(str(tmp_path)).terms == log.terms  # the data directory around it


def test_truncations_and_dropped_prefixes_are_followed(tmp_path: Path) -> None:
    home = tmp_path / "wal"
    make(home, *simple(), close=False)
    wal, _ = open_wal(RealDisk(), home=str(home), stamp=Stamp(STAMP.cluster_id, 2, STAMP.incarnation + 2))
    wal.write([persist(1, noop(59, 2, 2), cut=59, state=(2, 0))])
    wal.drop_prefix(wal.last_index)
    wal.close()
    log = verify(str(home))
    assert log.problems == []
    assert log.first_index > 1
    assert (log.last_index, log.terms[-1]) == (59, 2)


def test_every_flipped_byte_of_the_records_is_found_or_only_the_last_write(tmp_path: Path) -> None:
    path = Path(make(tmp_path / "wal", *simple(8)))
    (segment,) = path.glob("*.wal")
    data = segment.read_bytes()
    marks = len(data.rstrip(b"\0")) - 600
    for offset in [*range(0, 4096, 41), *range(4096, marks, 5)]:
        segment.write_bytes(data[:offset] + bytes([data[offset] ^ 4]) + data[offset + 1 :])
        assert problems(str(path)), offset


def test_an_unfinished_last_write_is_noted_not_held_against_the_log(tmp_path: Path) -> None:
    path = Path(make(tmp_path / "wal", *simple(8), close=False))
    (segment,) = path.glob("*.wal")
    data = segment.read_bytes()
    end = len(data.rstrip(b"\0"))
    segment.write_bytes(data[: end - 3] + bytes(3) + data[end:])
    log = verify(str(path))
    assert log.problems == []
    assert (log.last_index, log.unfinished_bytes > 0) == (7, True)


def test_a_missing_segment_and_a_short_file_are_found(tmp_path: Path) -> None:
    path = Path(make(tmp_path / "wal", *simple(150)))
    first, second, *_, last = sorted(path.glob("*.wal"))
    whole = last.read_bytes()
    last.write_bytes(whole[:-1])
    assert "has lost its end" in problems(str(path))[0]
    last.write_bytes(whole)
    assert problems(str(path)) == []
    second.unlink()
    assert "begins behind index" in problems(str(path))[0]
    assert first.exists()


def test_equal_logs_match_and_a_shorter_or_conflicting_end_is_legal(tmp_path: Path) -> None:
    one = make(tmp_path / "a", *simple(60), member=1)
    other = make(tmp_path / "b", *simple(40), [persist(9, noop(41, 2, 3), state=(2, 3))], member=2)
    assert problems(one, other) == []


def test_a_different_entry_of_one_term_is_a_violation(tmp_path: Path) -> None:
    one = make(tmp_path / "a", *simple(), member=1)
    changed = simple()
    changed[30] = [persist(31, entry(31, text=b"other"), commit=29)]
    other = make(tmp_path / "b", *changed, member=2)
    assert problems(one, other) == [f"{one} and {other}, index 31: different entries of one term 1"]


def test_a_different_prefix_below_an_equal_entry_is_a_violation(tmp_path: Path) -> None:
    batches = [[persist(1, entry(1), state=(3, 0))], [persist(2, entry(2, 2))], [persist(3, entry(3, 3))]]
    one = make(tmp_path / "a", *batches, member=1)
    batches[1] = [persist(2, entry(2, 1))]
    other = make(tmp_path / "b", *batches, member=2)
    (found,) = problems(one, other)
    assert found.endswith("index 2: terms 2 and 1, yet both agree on the term at 3")


def test_a_term_with_two_leaders_is_a_violation(tmp_path: Path) -> None:
    one = make(tmp_path / "a", [persist(1, noop(1, 4, 1), state=(4, 1))], member=1)
    other = make(tmp_path / "b", [persist(1, entry(1), noop(2, 4, 3), state=(4, 3))], member=2)
    assert any("term 4: more than one author: 1 at 1" in found for found in problems(one, other))


def test_time_that_does_not_increase_is_a_violation(tmp_path: Path) -> None:
    late = msgspec.structs.replace(entry(2), time=entry(1).time)
    (found,) = problems(make(tmp_path / "a", [persist(1, entry(1), late, state=(1, 1))]))
    assert found.endswith("the time of entry 2 is not after that of the entry before")


def test_no_log_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no log"):
        verify(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="holds no log"):
        list(dump(str(tmp_path)))


# dump


def command(index: int, request: Put | Delete | Txn, session: int = 0) -> Entry:
    return Entry(
        entry(index).term, entry(index).index, index << 16, EntryKind.COMMAND, encode_request(request), session, 3
    )


def test_dump_shows_what_each_entry_does(tmp_path: Path) -> None:
    txn = Txn((Compare(b"k", "version", "=", 1),), (Put(b"a", b"1"), Delete(b"b")), (Put(b"c\xff", b"2"),))
    configuration = msgspec.structs.replace(
        entry(6, text=encode_configuration(Configuration((1, 2, 3), (4,)))),  # type: ignore[arg-type]
        kind=EntryKind.CONFIGURATION,
        time=6 << 16,
    )
    entries = [
        msgspec.structs.replace(noop(1, 1, 3), time=1 << 16),
        command(2, Put("grüße".encode(), b"hello"), session=77),
        command(3, Put(b"\xff\x00", b"")),
        command(4, Delete(b"a", b"z")),
        command(5, txn),
        configuration,
        msgspec.structs.replace(entry(7, text=b"\xc1"), time=7 << 16),
    ]
    path = make(tmp_path / "wal", [persist(1, *entries, state=(1, 1))])
    lines = [json.loads(json.dumps(line)) for line in dump(path)]
    first = lines[0]
    assert (first["index"], first["term"], first["kind"], first["leader"]) == (1, 1, "noop", "3")
    assert first["time"] == "1970-01-01T00:00:00.001Z.0000"
    assert first["segment"] == "0000000001-00000000000000000001.wal"
    assert first["offset"] == 4096 + 56
    assert (lines[1]["op"], lines[1]["key"], lines[1]["session"], lines[1]["sequence"]) == ("put", "grüße", 77, 3)
    assert lines[1]["bytes"] == len(entries[1].payload)
    assert (lines[2]["key"], lines[2]["key_encoding"]) == ("/wA=", "base64")
    assert (lines[3]["op"], lines[3]["key"], lines[3]["end"]) == ("delete_range", "a", "z")
    assert lines[4]["op"] == "txn"
    assert lines[4]["keys"] == [{"key": "a"}, {"key": "b"}, {"key": "Y/8=", "key_encoding": "base64"}]
    assert (lines[5]["voters"], lines[5]["learners"]) == ([1, 2, 3], [4])
    assert "undecodable" in lines[6]


def test_dump_leaves_cut_entries_out_unless_everything_is_asked_for(tmp_path: Path) -> None:
    path = make(
        tmp_path / "wal",
        [persist(1, entry(1), entry(2), entry(3), state=(1, 1))],
        [persist(2, entry(2, 2), cut=2, state=(2, 1))],
    )
    assert [(line["index"], line["term"]) for line in dump(path)] == [(1, 1), (2, 2)]
    assert [line["index"] for line in dump(path, first_index=2)] == [2]
    everything = list(dump(path, everything=True))
    kinds = [line.get("record", line.get("index")) for line in everything]
    assert kinds == ["hard_state", 1, 2, 3, "hard_state", "truncate", 2, "mark", "mark"]
    assert [line["index"] for line in everything if line.get("truncated")] == [2, 3]


def test_dump_works_beside_a_running_node_and_crosses_segments(tmp_path: Path) -> None:
    path = make(tmp_path / "wal", *simple(150), close=False)
    assert [line["index"] for line in dump(path)] == list(range(1, 151))
    last = sorted(Path(path).glob("*.wal"))[-1]
    data = last.read_bytes()
    last.write_bytes(data[: len(data.rstrip(b"\0")) - 2] + b"\x07" * 50)
    assert [line["index"] for line in dump(path)] == list(range(1, 150))
    first = min(Path(path).glob("*.wal"))
    first.write_bytes(first.read_bytes()[:5000] + bytes(3192))
    with pytest.raises(LogCorrupted, match="no valid record"):
        list(dump(path))


def test_both_readers_work_while_a_node_writes(tmp_path: Path) -> None:
    home = str(tmp_path)
    wal, _ = open_wal(RealDisk(), create=True, home=home, segment_bytes=1 << 20, batch_bytes_max=1 << 18)
    done = threading.Event()

    def write() -> None:
        for number in range(1, 10_000):
            if done.is_set():
                break
            state = (1, 1) if number == 1 else None
            wal.write([persist(number, *(entry(number * 3 + i, text=b"x" * 300) for i in (-2, -1, 0)), state=state)])
        wal.close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = 0
        for _ in range(6):
            log = verify(home) if list(tmp_path.glob("*.wal")) else None
            assert log is not None
            assert log.problems == []
            assert log.last_index >= seen
            seen = log.last_index
            assert [line["index"] for line in dump(home, first_index=seen)][:1] in ([max(seen, 1)], [])
    finally:
        done.set()
        writer.join()
    assert verify(home).problems == []
