"""One write to the log, encoded: the records of all `Persist`s of a batch in one buffer.

The hard state goes first, whatever the order of the causes: of a torn write a beginning survives, and a newer term
without its entries is harmless, an entry without its term is not. `commit` is recorded no higher than what is
durable before this write, so that it may serve as proof at recovery (rule 3 there).

This is the hot path of every write: one buffer, two checksums a record, no object per record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kvnode.ids import Index
from kvnode.raft.messages import HardState
from kvnode.raft.output import Persist
from kvnode.storage.log_state import LogState
from kvnode.storage.segment import ENTRY, HARD_STATE, TRUNCATE, VOTE, append_record, encode_payload

Placed = tuple[int, int, int]  # (index, term, offset): an entry; (index, term of the entry before, -1): a cut


@dataclass(slots=True)
class EncodedBatch:
    """Bytes for the disk and what becomes true once they are durable."""

    seq: int
    crc: int
    hard_state: HardState
    last_index: int
    last_term: int
    last_time: int
    buffer: bytearray = field(default_factory=bytearray)
    placed: list[Placed] = field(default_factory=list)

    def accept(self, state: LogState) -> None:
        """The bytes are durable."""
        log = state.index
        for index, term, offset in self.placed:
            if offset < 0:
                log.cut(index, term)
            else:
                log.append(index, term, offset)
        state.seq, state.crc = self.seq, self.crc
        state.hard_state, state.last_time = self.hard_state, self.last_time


def encode_batch(batch: Sequence[Persist], state: LogState, crc_start: int, offset: int) -> EncodedBatch:
    """Encode for writing at `offset` of a segment whose salt has checksum `crc_start`. Changes nothing."""
    log = state.index
    out = EncodedBatch(state.seq, state.crc, state.hard_state, log.last_index, log.last_term, state.last_time)
    _encode_hard_state(batch, state, crc_start, out)
    buffer, durable_seq = out.buffer, state.seq
    seq, crc, last_index, last_term = out.seq, out.crc, out.last_index, out.last_term
    term_max, last_time, placed = out.hard_state.term, out.last_time, out.placed
    for persist in batch:
        cut = persist.truncate_from
        if 0 < cut <= last_index:
            assert cut > state.hard_state.commit, (cut, state.hard_state)
            last_index, last_term = cut - 1, _term_before(cut, placed, state)
            placed.append((cut, last_term, -1))
            seq += 1
            crc = append_record(buffer, crc_start, TRUNCATE, crc, seq, last_term, cut, durable_seq, b"")
        for entry in persist.entries:
            index, term = entry.index, entry.term
            assert index == last_index + 1, (index, last_index)
            assert last_term <= term <= term_max, (last_term, term, term_max)
            placed.append((index, term, offset + len(buffer)))
            payload = encode_payload((entry.time, entry.kind, entry.session, entry.sequence, entry.payload))
            seq += 1
            crc = append_record(buffer, crc_start, ENTRY, crc, seq, term, index, durable_seq, payload)
            last_index, last_term = index, term
            last_time = max(last_time, entry.time)
    out.seq, out.crc, out.last_index, out.last_term, out.last_time = seq, crc, last_index, last_term, last_time
    return out


def _encode_hard_state(batch: Sequence[Persist], state: LogState, crc_start: int, out: EncodedBatch) -> None:
    """The newest hard state of the batch, if it says anything new."""
    before = state.hard_state
    newest, commit, durable = before, before.commit, state.index.last_index
    for persist in batch:
        if persist.truncate_from:  # what stands there now is not what the commit index speaks of
            durable = min(durable, persist.truncate_from - 1)
        commit = max(commit, persist.commit)
        if persist.hard_state is not None:
            newest = persist.hard_state
            commit = max(commit, newest.commit)
    assert newest.term >= before.term, (newest, before)
    after = HardState(newest.term, newest.vote, Index(min(commit, max(before.commit, durable))))
    if after == before:
        return
    out.seq += 1
    out.crc = append_record(
        out.buffer, crc_start, HARD_STATE, out.crc, out.seq, after.term, after.commit, state.seq, VOTE.pack(after.vote)
    )
    out.hard_state = after


def _term_before(index: int, placed: list[Placed], state: LogState) -> int:
    """Term of the entry before `index`, as the log will stand after what is already in the batch."""
    floor = index
    for at, term, offset in reversed(placed):
        if at == index and offset < 0:
            return term
        if at == index - 1 and offset >= 0:
            return term
        floor = min(floor, at)
    return state.index.term_at(index - 1)
