"""Structs ↔ MessagePack, with every check between a socket and the core in one place.

    peer message    array: tag, fields…      tags: `kvnode.wire.raft_tags`
    write request   array: tag, fields…      tags: `kvnode.wire.kv_tags`; the payload of a COMMAND entry
    change          array: tag, fields…      `kvnode.kv.members`; the payload of a proposal of kind CONFIGURATION
    configuration   array: voters, learners, members, last_id, feature_level, removed; payload of a CONFIGURATION entry

The bytes are plain MessagePack: the `msgpack` package, or any language, reads them. Decoding is strict: size first,
then the schema (types, tag, no trailing bytes, UTF-8), then ranges and consistency. Elements after the known ones
are skipped, which is how a newer version appends fields; to requests it does as `kvnode.kv.stored` says. Depth is that
of the schema, of transactions `TXN_DEPTH_MAX`; the decoder refuses to skip a deeply nested unknown field. Everything
wrong is a `CodecError`; nothing else leaves the decoders.
"""

from __future__ import annotations

import msgspec

from kvnode.kv.members import AddMember, MemberChange, RaiseFeatureLevel, UpdateMember
from kvnode.kv.requests import WriteRequest
from kvnode.kv.stored import stored_form
from kvnode.raft.messages import Configuration, EntryKind, ForwardProposals, PeerMessage
from kvnode.wire.kv_tags import check_request
from kvnode.wire.limits import PAYLOAD_BYTES_MAX, CodecError, check_range, check_size
from kvnode.wire.raft_tags import check_message

__all__ = [
    "CodecError",
    "decode_change",
    "decode_configuration",
    "decode_message",
    "decode_request",
    "encode_change",
    "encode_configuration",
    "encode_message",
    "encode_request",
]

TEXT_MAX = 256

Bytes = bytes | bytearray | memoryview

_encoder = msgspec.msgpack.Encoder()
_message_decoder: msgspec.msgpack.Decoder[PeerMessage] = msgspec.msgpack.Decoder(PeerMessage)
_request_decoder: msgspec.msgpack.Decoder[WriteRequest] = msgspec.msgpack.Decoder(WriteRequest)
_change_decoder: msgspec.msgpack.Decoder[MemberChange] = msgspec.msgpack.Decoder(MemberChange)
_configuration_decoder = msgspec.msgpack.Decoder(Configuration)


def encode_message(message: PeerMessage) -> bytes:
    """One peer message."""
    return _encoder.encode(message)


def decode_message(data: Bytes, bytes_max: int = PAYLOAD_BYTES_MAX) -> PeerMessage:
    """One peer message, in range and consistent in itself. Raises CodecError."""
    check_size(data, bytes_max)
    try:
        message = _message_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CodecError(f"peer message: {error}") from error
    check_message(message)
    if type(message) is ForwardProposals:
        for proposed in message.batch:  # what cannot be applied must not be appended: it would end every node
            if proposed.kind == EntryKind.CONFIGURATION:
                if isinstance(decode_change(proposed.payload), RaiseFeatureLevel):
                    raise CodecError("a feature level is forwarded: that is the leader's own change")
            else:
                decode_request(proposed.payload)
    return message


def encode_request(request: WriteRequest) -> bytes:
    """The payload of a COMMAND entry."""
    return _encoder.encode(stored_form(request))


def decode_request(payload: Bytes) -> WriteRequest:
    """Inverse of `encode_request`. Raises CodecError."""
    check_size(payload)
    try:
        request = _request_decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CodecError(f"write request: {error}") from error
    check_request(request)
    return request


def encode_change(change: MemberChange) -> bytes:
    """The payload of a proposal of kind CONFIGURATION: what the leader makes an entry of."""
    return _encoder.encode(change)


def decode_change(payload: Bytes) -> MemberChange:
    """Inverse of `encode_change`. Raises CodecError."""
    check_size(payload)
    try:
        change = _change_decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CodecError(f"change of members: {error}") from error
    match change:
        case AddMember():
            check_range(change.replaces)
            _check_incarnation(change.incarnation)
            _check_texts(change.address, change.name)
        case UpdateMember():
            check_range(change.id)
            _check_texts(change.address)
        case RaiseFeatureLevel():
            check_range(change.level)
        case _:
            check_range(change.id)
    return change


def _check_incarnation(incarnation: int) -> None:
    if incarnation < 0:  # random, of 64 bits without a sign
        raise CodecError("the incarnation of a member is negative")


def _check_texts(*texts: str) -> None:
    if max(map(len, texts)) > TEXT_MAX:
        raise CodecError(f"a text is longer than {TEXT_MAX} characters")


def encode_configuration(configuration: Configuration) -> bytes:
    """The payload of a CONFIGURATION entry."""
    return _encoder.encode(configuration)


def decode_configuration(payload: Bytes) -> Configuration:
    """Inverse of `encode_configuration`: ids are positive, sorted, and no id stands twice. Raises CodecError.

    Of members described, each stands once and is one; no id is higher than the last one given, where that is known.
    """
    check_size(payload)
    try:
        configuration = _configuration_decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CodecError(f"configuration: {error}") from error
    for ids in (configuration.voters, configuration.learners):
        check_range(*ids)
        if list(ids) != sorted(set(ids)) or 0 in ids:
            raise CodecError(f"configuration: ids {list(ids)} are not positive, sorted and distinct")
    all_ids = sorted((*configuration.voters, *configuration.learners))
    if set(configuration.voters) & set(configuration.learners):
        raise CodecError("configuration: a member is both voter and learner")
    if not configuration.voters:
        raise CodecError("configuration: nobody votes")
    described = [member.id for member in configuration.members]
    if described and described != all_ids:
        raise CodecError(f"configuration: members {described} are described, and {all_ids} are members")
    if described and configuration.last_id < described[-1]:
        raise CodecError(f"configuration: member {described[-1]} is above the last id {configuration.last_id}")
    check_range(configuration.last_id, configuration.feature_level)
    for member in configuration.members:
        check_range(member.replaces)
        _check_incarnation(member.incarnation)
        _check_texts(member.address, member.name)
    for incarnation in configuration.removed:
        _check_incarnation(incarnation)
    return configuration
