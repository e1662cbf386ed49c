"""What every Backend owes the state machine. A test class inherits `BackendSuite` and has a fixture `backend`."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from kvnode.machine.backend import KEY_BYTES_MAX, Backend, Row


@dataclass
class Rows:
    """A batch that is already encoded."""

    items: Sequence[Row]
    gone: Sequence[bytes] = ()

    def rows(self) -> Sequence[Row]:
        return self.items

    def removed(self) -> Sequence[bytes]:
        return self.gone


def commit(backend: Backend, *items: Row, gone: Sequence[bytes] = ()) -> None:
    backend.commit(Rows(sorted(items), gone))


def all_rows(backend: Backend, start: bytes = b"\x01") -> list[Row]:
    """Every row from `start` on, walked as a reader would. Rows below 0x01 are the backend's own."""
    found = []
    with backend.read() as cursor:
        row = cursor.seek(start)
        while row is not None:
            found.append(row)
            row = cursor.next()
    return found


class BackendSuite:
    def test_a_new_backend_is_empty(self, backend: Backend) -> None:
        assert all_rows(backend) == []
        assert backend.seek(b"\x01") is None

    def test_seek_finds_the_first_row_at_or_after(self, backend: Backend) -> None:
        commit(backend, (b"b", b"1"), (b"d", b"2"))
        assert backend.seek(b"a") == (b"b", b"1")
        assert backend.seek(b"b") == (b"b", b"1")
        assert backend.seek(b"b\x00") == (b"d", b"2")
        assert backend.seek(b"e") is None

    def test_cursor_moves_both_ways(self, backend: Backend) -> None:
        commit(backend, (b"b", b"1"), (b"d", b"2"), (b"f", b"3"))
        with backend.read() as cursor:
            assert cursor.seek(b"c") == (b"d", b"2")
            assert cursor.next() == (b"f", b"3")
            assert cursor.next() is None
            assert cursor.seek_before(b"d") == (b"b", b"1")
            assert cursor.seek_before(b"z") == (b"f", b"3")
            assert cursor.seek_before(b"f") == (b"d", b"2")

    def test_nothing_lies_before_the_first_row_of_a_table(self, backend: Backend) -> None:
        commit(backend, (b"b", b"1"))
        with backend.read() as cursor:
            before = cursor.seek_before(b"b")
        assert before is None or before[0] < b"\x01", "only the backend's own row may stand there"

    def test_bytes_sort_as_bytes(self, backend: Backend) -> None:
        keys = [b"\x01", b"\x01\x00", b"\x01\x00\xff", b"\x01\x01", b"a", b"a\x00", b"a\xff", b"b", b"\xff\xff"]
        commit(backend, *((key, key) for key in keys))
        assert [key for key, _ in all_rows(backend)] == keys

    def test_a_row_can_be_written_again(self, backend: Backend) -> None:
        commit(backend, (b"meta", b"1"))
        commit(backend, (b"meta", b"2"), (b"zz", b""))
        assert all_rows(backend) == [(b"meta", b"2"), (b"zz", b"")]

    def test_rows_go_with_the_commit_that_removes_them(self, backend: Backend) -> None:
        commit(backend, (b"a", b"1"), (b"b", b"2"), (b"d", b"4"))
        commit(backend, (b"c", b"3"), (b"d", b"5"), gone=(b"b", b"d", b"nothing", b"c\x00"))
        assert all_rows(backend) == [(b"a", b"1"), (b"c", b"3")], "written and removed at once is removed"
        assert backend.seek(b"b") == (b"c", b"3")
        commit(backend, (b"b", b"6"))
        assert all_rows(backend) == [(b"a", b"1"), (b"b", b"6"), (b"c", b"3")]

    def test_the_longest_key_and_a_large_value(self, backend: Backend) -> None:
        key, value = b"k" * KEY_BYTES_MAX, bytes(1 << 20)
        commit(backend, (key, value))
        assert backend.seek(b"k") == (key, value)

    def test_an_open_view_does_not_see_a_later_commit(self, backend: Backend) -> None:
        """Whether the commit waits for the view or passes it by is the backend's choice."""
        commit(backend, (b"a", b"1"))
        committing = threading.Thread(target=commit, args=(backend, (b"a", b"2"), (b"b", b"2")))
        with backend.read() as cursor:
            assert cursor.seek(b"a") == (b"a", b"1")
            committing.start()
            committing.join(0.05)
            assert cursor.next() is None
            assert cursor.seek(b"a") == (b"a", b"1")
        committing.join()
        assert all_rows(backend) == [(b"a", b"2"), (b"b", b"2")]

    def test_a_pinned_view_shows_what_was_committed_when_it_was_taken(self, backend: Backend) -> None:
        """From another thread, piece by piece, while later commits go by."""
        commit(backend, *((b"k%d" % number, b"v") for number in range(5)))
        view = backend.pin()
        first = view.rows(b"", 6)
        commit(backend, (b"k1", b"new"), (b"k9", b"v"), gone=(b"k3",))
        found: list[list[Row]] = []

        def read_the_rest() -> None:
            while rows := view.rows(found[-1][-1][0] if found else first[-1][0], 6):
                found.append(rows)

        reading = threading.Thread(target=read_the_rest)
        reading.start()
        reading.join()
        view.close()
        view.close()
        assert first == [(b"k0", b"v"), (b"k1", b"v")]
        assert found == [[(b"k2", b"v"), (b"k3", b"v")], [(b"k4", b"v")]]
        assert [key for key, _ in all_rows(backend)] == [b"k0", b"k1", b"k2", b"k4", b"k9"]

    def test_a_pinned_view_outlives_the_store(self, backend: Backend) -> None:
        """A snapshot takes its place while this one is still sent to somebody: closing it must not pull it away."""
        commit(backend, *((b"k%d" % number, b"v") for number in range(5)))
        view = backend.pin()
        assert len(view.rows(b"", 6)) == 2
        backend.close()
        assert view.rows(b"k3", 100) == [(b"k4", b"v")]
        view.close()
        view.close()
        backend.close()

    def test_a_pinned_view_gives_as_many_rows_as_fit_and_one_at_least(self, backend: Backend) -> None:
        commit(backend, (b"a", b"123"), (b"b", bytes(100)), (b"c", b""), (b"d", b"1"))
        view = backend.pin()
        assert view.rows(b"", 1) == [(b"a", b"123")]
        assert view.rows(b"", 104) == [(b"a", b"123")]
        assert view.rows(b"", 105) == [(b"a", b"123"), (b"b", bytes(100))]
        assert view.rows(b"a", 101) == [(b"b", bytes(100))]
        assert view.rows(b"a", 102) == [(b"b", bytes(100)), (b"c", b"")]
        assert view.rows(b"b\x00", 10) == [(b"c", b""), (b"d", b"1")]
        assert view.rows(b"d", 10) == []
        view.close()

    def test_an_empty_batch_is_a_commit(self, backend: Backend) -> None:
        commit(backend)
        assert all_rows(backend) == []

    @pytest.mark.parametrize("seed", range(3))
    def test_random_commits_against_a_dict(self, backend: Backend, seed: int) -> None:
        chance = random.Random(seed)
        expected: dict[bytes, bytes] = {}
        for _ in range(12):
            batch = {
                bytes([1 + chance.randrange(255)]) + chance.randbytes(chance.randrange(4)): chance.randbytes(8)
                for _ in range(chance.randrange(60))
            }
            expected.update(batch)
            gone = chance.sample(sorted(expected), len(expected) // 4)
            for key in gone:
                del expected[key]
            commit(backend, *batch.items(), gone=gone)
            assert all_rows(backend) == sorted(expected.items())
            with backend.read() as cursor:
                for _ in range(10):
                    probe = bytes([1 + chance.randrange(255)]) + chance.randbytes(chance.randrange(4))
                    after = [key for key in sorted(expected) if key >= probe]
                    before = [key for key in sorted(expected) if key < probe]
                    row = cursor.seek(probe)
                    assert (row and row[0]) == (after[0] if after else None)
                    row = cursor.seek_before(probe)
                    if before:
                        assert row == (before[-1], expected[before[-1]])
        assert backend.bytes_used > 0
