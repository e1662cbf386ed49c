"""Term and vote, kept a second time: what a damaged log must not take with it.

A node that has forgotten a vote may give it again, and then two leaders have one term. So the file ``votes`` beside the
segments repeats the term and the vote of the newest hard state. It is written after the log and before anything that
depends on either leaves; only elections write it. If the log is intact the log is right, and the copy is brought up
to date at a start. If the log is damaged the copy tells what the damage may have hidden. And a copy that is *ahead*
of the log is damage by itself: the log once held what the copy repeats.

Two slots are written in turns, so that a torn write leaves the other; each is one sector. A slot that the disk cannot
read is a damaged one. The copy is *certain* if both are intact: a lone one may be the older, and then a vote may be
missing from it.

    offset   size  name           (slot 0 at 0, slot 1 at 4096)
         0     8  magic           "KVNVOTE1"
         8     8  cluster id      ⎫
        16     8  member id       ⎬ whose vote this is
        24     8  incarnation     ⎭
        32     8  number          +1 for each write; it goes to slot number % 2
        40     8  term
        48     8  vote            0: nobody
        56   452  zero
       508     4  crc             of the 508 bytes before it
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple
from zlib import crc32

from kvnode.ids import NodeId, Term
from kvnode.raft.messages import HardState
from kvnode.storage.disk import Disk
from kvnode.storage.segment import CRC, SECTOR_BYTES, Stamp
from kvnode.storage.segment_reader import read_or_none

NAME: Final = "votes"

_MAGIC: Final = b"KVNVOTE1"
_SLOT_BYTES: Final = 4096
_SLOT = Struct("<8sQQQQQQ")


class _Slot(NamedTuple):
    number: int
    term: int
    vote: int


class VoteCopy:
    """The file. Used by the one thread that writes the log; every method may raise OSError."""

    def __init__(self, disk: Disk, directory: str, stamp: Stamp) -> None:
        self._disk = disk
        self._directory = directory
        self._path = f"{directory}/{NAME}"
        self._stamp = stamp
        slots = [slot for slot in self._read() if slot is not None]
        newest = max(slots, default=None)
        self._number = newest.number if newest else 0
        self.term = Term(newest.term if newest else 0)
        self.vote = NodeId(newest.vote if newest else 0)
        self.is_certain = len(slots) == 2 and abs(slots[0].number - slots[1].number) == 1

    def is_ahead_of(self, hard_state: HardState) -> bool:
        """The log has lost what this repeats."""
        if self.term != hard_state.term:
            return self.term > hard_state.term
        return bool(self.vote) and self.vote != hard_state.vote

    def keep(self, hard_state: HardState) -> None:
        """Repeat term and vote if they are new; durable when this returns."""
        if (self.term, self.vote) != (hard_state.term, hard_state.vote):
            self._put(hard_state, times=1)

    def renew(self, hard_state: HardState) -> None:
        """Bring the file up to date after a start, whatever is in it: both slots intact, the newest right."""
        if not self.is_certain:
            self._put(hard_state, times=2)
        else:
            self.keep(hard_state)

    def _put(self, hard_state: HardState, times: int) -> None:
        disk, is_new = self._disk, not self._disk.exists(self._path)
        file = disk.open(self._path, create=is_new)
        try:
            if file.size() < _SLOT_BYTES + SECTOR_BYTES:
                file.preallocate(2 * _SLOT_BYTES)
            for _ in range(times):
                self._number += 1
                file.pwrite(self._number % 2 * _SLOT_BYTES, self._pack(hard_state))
                file.fdatasync()
        finally:
            file.close()
        if is_new:
            disk.fsync_dir(self._directory)
        self.term, self.vote = hard_state.term, hard_state.vote
        self.is_certain = self.is_certain or times == 2

    def _pack(self, hard_state: HardState) -> bytes:
        stamp, block = self._stamp, bytearray(SECTOR_BYTES)
        _SLOT.pack_into(
            block,
            0,
            _MAGIC,
            stamp.cluster_id,
            stamp.member,
            stamp.incarnation,
            self._number,
            hard_state.term,
            hard_state.vote,
        )
        CRC.pack_into(block, SECTOR_BYTES - 4, crc32(block[:-4]))
        return bytes(block)

    def _read(self) -> list[_Slot | None]:
        if not self._disk.exists(self._path):
            return []
        file = self._disk.open(self._path)
        try:
            blocks = [read_or_none(file, at * _SLOT_BYTES, SECTOR_BYTES) for at in (0, 1)]
            return [self._unpack(block or b"", at) for at, block in enumerate(blocks)]
        finally:
            file.close()

    def _unpack(self, block: bytes, at: int) -> _Slot | None:
        if len(block) < SECTOR_BYTES or CRC.unpack_from(block, SECTOR_BYTES - 4)[0] != crc32(block[:-4]):
            return None
        magic, cluster, member, incarnation, number, term, vote = _SLOT.unpack_from(block)
        whose = (self._stamp.cluster_id, self._stamp.member, self._stamp.incarnation)
        if magic != _MAGIC or (cluster, member, incarnation) != whose or number % 2 != at:
            return None
        return _Slot(number, term, vote)
