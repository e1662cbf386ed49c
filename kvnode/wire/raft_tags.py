"""The table of peer messages: tag, type, and what must hold of a message before the core may see it.

The schema (types, arity) is checked by decoding; here stands what a schema cannot say: ranges, entries that are
consecutive and follow `prev`, terms that do not fall along the log and do not exceed the sender's.
A tag is never reused; a new message gets the next number, a row here and one in ``docs/protocol.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvnode.raft.messages import (
    AppendEntries,
    AppendReply,
    Entry,
    EntryKind,
    ForwardProposals,
    ForwardReply,
    KeepAlive,
    KeepAliveReply,
    PeerMessage,
    ReadIndexReply,
    ReadIndexRequest,
    StateHash,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from kvnode.wire.limits import INTEGER_MAX, CodecError, check_range, check_signed

STATE_DIGEST_BYTES = 16

_KINDS = frozenset(kind.value for kind in EntryKind)
_FORWARDED = frozenset({EntryKind.COMMAND.value, EntryKind.CONFIGURATION.value})


def check_message(message: PeerMessage) -> None:
    """Raises CodecError unless every number is in range and the message is consistent in itself."""
    if message.sender < 1:
        raise CodecError(f"sender {message.sender} is no member id")
    check_range(message.term, message.sender)
    _CHECKS[type(message)](message)


def check_entry(entry: Entry) -> None:
    """Raises CodecError for an entry no leader would have made. An unknown kind is refused, never skipped."""
    if entry.kind not in _KINDS:
        raise CodecError(f"entry {entry.index} is of unknown kind {entry.kind}")
    if entry.index < 1 or entry.term < 1:
        raise CodecError(f"entry at index {entry.index}, term {entry.term}: both count from 1")
    check_range(entry.index, entry.term, entry.time, entry.session, entry.sequence)


def _check_append(message: AppendEntries) -> None:
    check_range(message.prev_index, message.prev_term, message.commit_index, message.read_round, message.life)
    if (message.prev_index == 0) != (message.prev_term == 0):
        raise CodecError(f"prev is index {message.prev_index} of term {message.prev_term}")
    index, term = int(message.prev_index), int(message.prev_term)
    for entry in message.entries:
        index += 1
        if entry.index != index or entry.term < term:
            raise CodecError(f"entry {entry.index} of term {entry.term} stands where {index}, term {term} must follow")
        term = entry.term
        # The ordinary entry passes in one expression; `check_entry` finds the words for any other.
        if not (entry.kind in _KINDS and 0 <= entry.time <= INTEGER_MAX and entry.session == entry.sequence == 0):
            check_entry(entry)
    if term > message.term:
        raise CodecError(f"entries reach term {term}, the sender is in {message.term}")
    if message.entries and message.entries[0].term < 1:
        raise CodecError("an entry of term 0")
    check_range(index)


def _check_append_reply(message: AppendReply) -> None:
    check_range(message.index, message.hint_term, message.hint_index, message.last_index)
    check_range(message.read_round, message.life, message.ahead_ms)


def _check_vote_request(message: VoteRequest) -> None:
    check_range(message.last_term, message.last_index)
    if message.last_term > message.term:
        raise CodecError(f"a log that ends in term {message.last_term} campaigns in {message.term}")


def _check_forward(message: ForwardProposals) -> None:
    for proposed in message.batch:
        check_range(proposed.id, proposed.session, proposed.sequence)
        if proposed.kind not in (EntryKind.COMMAND, EntryKind.CONFIGURATION):
            raise CodecError(f"a forwarded proposal of kind {proposed.kind}: only what clients ask for is forwarded")


def _check_forward_reply(message: ForwardReply) -> None:
    for request, index in message.placed:
        check_range(request, index)
    for request, _code, _sentence in message.refused:
        check_range(request)


def _check_read_request(message: ReadIndexRequest) -> None:
    check_range(message.number)


def _check_read_reply(message: ReadIndexReply) -> None:
    check_range(message.number, message.index)


def _check_timeout_now(message: TimeoutNow) -> None:
    check_range(message.last_index)


def _check_keep_alive(message: KeepAlive) -> None:
    check_range(message.number)
    check_signed(message.lease)


def _check_keep_alive_reply(message: KeepAliveReply) -> None:
    check_range(message.number, message.remaining_ms, message.ttl_ms)


def _check_state_hash(message: StateHash) -> None:
    check_range(message.index)
    if len(message.digest) != STATE_DIGEST_BYTES:
        raise CodecError(f"a state's digest has {STATE_DIGEST_BYTES} bytes, not {len(message.digest)}")


def _check_nothing_more(message: VoteReply) -> None:
    """Term and sender are all the numbers there are."""


PEER_MESSAGES: dict[int, tuple[type[PeerMessage], Callable[[Any], None]]] = {
    1: (AppendEntries, _check_append),
    2: (AppendReply, _check_append_reply),
    3: (VoteRequest, _check_vote_request),
    4: (VoteReply, _check_nothing_more),
    5: (TimeoutNow, _check_timeout_now),
    6: (ForwardProposals, _check_forward),
    7: (ForwardReply, _check_forward_reply),
    8: (ReadIndexRequest, _check_read_request),
    9: (ReadIndexReply, _check_read_reply),
    10: (KeepAlive, _check_keep_alive),
    11: (KeepAliveReply, _check_keep_alive_reply),
    12: (StateHash, _check_state_hash),
}
"""Tag → (type, check). A test compares the tags with the types' own and the keys with the union."""

_CHECKS: dict[type, Callable[[Any], None]] = dict(PEER_MESSAGES.values())
