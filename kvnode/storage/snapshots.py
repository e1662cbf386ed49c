"""A snapshot on its way in: received aside, verified, built into a store aside, and made this node's store at once.

The file ``snap/receiving`` holds the header and then the blocks as they came, in the form of a backup file. A block is
verified before it is written, and durable before it is acknowledged, so a transfer goes on where it was: after a broken
connection, and after a restart, which reads the file again and cuts what is not intact. There is one at a time; another
header begins anew.

`prepare` verifies the whole once more, from the disk, and builds a new environment of it (`environments`). `switch`
replaces the pointer (`store_pointer`): the commit point. Before it the node's own store is untouched, whatever happens;
after it a start finishes what is left to do (`Wal.open`).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence

from kvnode.errors import SnapshotRefused, StorageFailed
from kvnode.ids import Index
from kvnode.machine.backend import Backend, Row
from kvnode.machine.snapshot import SnapshotVerifier, describe, pieces
from kvnode.storage.disk import Disk, DiskFile
from kvnode.storage.segment_reader import read_or_none
from kvnode.storage.store_pointer import StorePointer

NAME = "receiving"

SPACE_FACTOR = 2
"""A snapshot takes its logical bytes about once as a file and once more as a store."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class SnapshotFiles:
    """Satisfies `kvnode.node.ports.SnapshotStore`."""

    def __init__(
        self,
        disk: Disk,
        directory: str,
        pointer: StorePointer | None,
        *,
        cluster_id: int,
        free_bytes_min: int,
        applied_index: Index,
    ) -> None:
        """`pointer`: None for a node that keeps no store: it takes none. `applied_index`: the store's.

        What was received of a snapshot that is not newer than the store is removed. Raises: StorageFailed.
        """
        self._disk = disk
        self._directory = directory
        self._path = f"{directory}/{NAME}"
        self._pointer = pointer
        self._cluster_id = cluster_id
        self._free_bytes_min = free_bytes_min
        self._file: DiskFile | None = None
        self._header = b""
        self._verifier: SnapshotVerifier | None = None  # of what is in the file
        self._end = 0  # offset behind the last block
        self._prepared: tuple[int, Backend] | None = None  # number of the environment that was built
        try:
            self._remove_unless_newer(applied_index)
        except OSError as error:
            raise self._failed(error) from error

    def begin(self, header: bytes) -> int:
        """Receive the snapshot of this `header`; returns how many of its blocks are here already.

        Raises: SnapshotRefused (format, cluster, space, another stands ready to be installed), StorageFailed.
        """
        verifier = SnapshotVerifier(header, cluster_id=self._cluster_id)
        if self._pointer is None:
            raise SnapshotRefused("this node keeps no store (storage.backend = memory), so it takes no snapshot")
        if self._prepared is not None:
            raise SnapshotRefused("another snapshot is about to be installed")
        if self._verifier is not None and self._header == header:
            return self._verifier.next
        try:
            self._close()
            if not self._resume(header):
                self._begin_anew(header, verifier)
        except OSError as error:
            raise self._refused_or_failed(error) from error
        assert self._verifier is not None
        return self._verifier.next

    def append(self, first: int, blocks: Sequence[bytes]) -> None:
        """The next blocks; durable on return. Of a batch with one that is damaged nothing is kept.

        Raises: SnapshotRefused, after which `begin` tells where to go on; StorageFailed.
        """
        verifier, file = self._verifier, self._file
        if verifier is None or file is None:
            raise SnapshotRefused("no snapshot is being received")
        if first != verifier.next:
            raise SnapshotRefused(f"block {first} of the snapshot came, block {verifier.next} must come now")
        try:
            for block in blocks:
                verifier.add(block)
        except SnapshotRefused:
            self._close_quietly()
            raise
        data = b"".join(blocks)
        try:
            file.pwrite(self._end, data)
            file.fdatasync()
        except OSError as error:
            raise self._refused_or_failed(error) from error
        self._end += len(data)

    def prepare(self) -> Backend:
        """Verify the whole and build a store of it aside; open and durable on return.

        Raises: SnapshotRefused (damaged: it has to come again; no room), StorageFailed.
        """
        pointer, verifier = self._pointer, self._verifier
        assert self._prepared is None, "one is prepared"
        if verifier is None or pointer is None:
            raise SnapshotRefused("no snapshot is being received")
        if verifier.end is None:
            raise SnapshotRefused(f"the snapshot is cut off after block {verifier.next - 1}: its end is missing")
        try:
            number = pointer.next_number()
            backend = pointer.environments.build(number, self._rows())
        except SnapshotRefused:
            self.discard()
            raise
        except OSError as error:
            raise self._refused_or_failed(error) from error
        self._prepared = number, backend
        return backend

    def switch(self) -> None:
        """The prepared store is this node's from now on, durably and at once; the old one is removed.

        Whoever has the old one open may go on reading it, and closes it. Raises: StorageFailed.
        """
        assert self._prepared is not None, "nothing is prepared"
        assert self._pointer is not None
        number, _ = self._prepared
        self._pointer.switch(number)
        self._prepared = None
        self.discard()

    def discard(self) -> None:
        """Forget what was received or prepared. Raises: StorageFailed."""
        try:
            if self._prepared is not None:
                number, backend = self._prepared
                assert self._pointer is not None
                self._prepared = None
                backend.close()
                self._pointer.environments.remove(number)
            self._close()
            self._remove()
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """The file stays, for the next start; a store that was prepared does not. Idempotent."""
        if self._prepared is not None:
            self._prepared[1].close()
            self._prepared = None
        self._close_quietly()

    # ── the file ────────────────────────────────────────────────────────────────────────────────────

    def _begin_anew(self, header: bytes, verifier: SnapshotVerifier) -> None:
        """Raises: SnapshotRefused, OSError."""
        disk = self._disk
        self._remove()
        need, kept = SPACE_FACTOR * verifier.description.logical_bytes, self._free_bytes_min
        free = disk.free_bytes(self._directory)
        if free < need + kept:
            raise SnapshotRefused(
                f"the snapshot needs about {need} bytes, and {kept} are to stay free (storage.free_bytes_min), but the "
                f"disk has only {free} bytes free"
            )
        self._file = disk.open(self._path, create=True)
        self._file.pwrite(0, header)
        self._file.fdatasync()
        disk.fsync_dir(self._directory)
        self._header, self._verifier, self._end = header, verifier, len(header)

    def _resume(self, header: bytes) -> bool:
        """Go on with the file, if it is of this `header`. Raises: OSError."""
        if not self._disk.exists(self._path):
            return False
        file = self._file = self._disk.open(self._path)
        verifier, end = SnapshotVerifier(header), len(header)
        source = pieces(_Reading(file).read)
        try:
            if next(source, b"") != header:
                self._close()
                return False
            for block in source:
                verifier.add(block)
                end += len(block)
        except SnapshotRefused:  # the write that was under way, or damage: the rest comes again
            verifier = _verified(file, header, end)
        file.truncate(end)
        file.fsync()
        self._disk.fsync_dir(self._directory)
        self._header, self._verifier, self._end = header, verifier, end
        return True

    def _rows(self) -> Iterator[list[Row]]:
        """The rows of the file, proven once more. Raises: SnapshotRefused, OSError."""
        assert self._file is not None
        verifier = SnapshotVerifier(self._header)
        source = pieces(_Reading(self._file).read)
        if next(source) != self._header:
            raise SnapshotRefused(f"{self._path} is damaged: it has lost its header")
        for block in source:
            yield verifier.add(block)
        verifier.finish()

    def _remove_unless_newer(self, applied_index: Index) -> None:
        if not self._disk.exists(self._path):
            return
        file = self._disk.open(self._path)
        try:
            header = next(pieces(_Reading(file).read))
            is_newer = describe(header).index > applied_index
        except SnapshotRefused:
            is_newer = False
        finally:
            file.close()
        if not is_newer:
            self._remove()

    def _remove(self) -> None:
        if self._disk.exists(self._path):
            self._disk.unlink(self._path)
            self._disk.fsync_dir(self._directory)

    def _close(self) -> None:
        file, self._file = self._file, None
        self._header, self._verifier, self._end = b"", None, 0
        if file is not None:
            file.close()

    def _close_quietly(self) -> None:
        try:
            self._close()
        except OSError as error:
            raise self._failed(error) from error

    def _refused_or_failed(self, error: OSError) -> SnapshotRefused | StorageFailed:
        """A full disk is no reason to end: what came is given up, to make room."""
        if error.errno not in _FULL:
            return self._failed(error)
        self.discard()
        return SnapshotRefused(f"the disk is full: {error}. What came of the snapshot is given up")

    def _failed(self, error: OSError) -> StorageFailed:
        return StorageFailed(f"a snapshot in {self._directory} cannot be kept: {error}")


def _verified(file: DiskFile, header: bytes, end: int) -> SnapshotVerifier:
    """A verifier that has seen the blocks up to `end`, all of them intact."""
    verifier = SnapshotVerifier(header)
    offset = len(header)
    source = pieces(_Reading(file).read)
    next(source)
    while offset < end:
        block = next(source)
        verifier.add(block)
        offset += len(block)
    return verifier


class _Reading:
    """A file read from its beginning on."""

    def __init__(self, file: DiskFile) -> None:
        self._file = file
        self._offset = 0

    def read(self, length: int) -> bytes:
        """Raises: SnapshotRefused for a place that the disk cannot read, OSError."""
        data = read_or_none(self._file, self._offset, length)
        if data is None:
            where = f"{self._file.path}, offset {self._offset}"
            raise SnapshotRefused(f"the snapshot cannot be read back: {where} (input/output error)")
        self._offset += len(data)
        return data
