"""Plain puts: the bodies that load a store, many puts and nothing else, read in a quarter of the time.

They are decoded by their schema. Whatever is not of that form, or may not be, is left to `strict_json` and
`OperationParser`, which say the same of plain puts and know what to say of everything else.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from kvnode.api.http.operations import OperationParser
from kvnode.api.strict_json import expect_bytes
from kvnode.errors import KvnodeError
from kvnode.kv.requests import Put


class _Fields(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    key: str
    value: str
    encoding: str | UnsetType = UNSET


class _Operation(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    put: _Fields


class _Transaction(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    success: list[_Operation]


_batch = msgspec.json.Decoder(list[_Operation])
_transaction = msgspec.json.Decoder(_Transaction)

_QUOTES = 10  # of a put without an encoding: three names, two values
_QUOTES_OF_ENCODING = 4


def puts_of_batch(body: bytes, parser: OperationParser) -> list[Put] | None:
    """The operations, if they are plain puts, valid, and no more than a batch may hold."""
    return _puts(body, _batch, parser, parser.limits.batch_operations_max, quotes=0)


def puts_of_transaction(body: bytes, parser: OperationParser) -> list[Put] | None:
    """What a transaction without comparisons does, if it is plain puts, valid, and no more than it may hold."""
    return _puts(body, _transaction, parser, parser.limits.txn_operations_max, quotes=2)


def _puts(
    body: bytes,
    decoder: msgspec.json.Decoder[list[_Operation]] | msgspec.json.Decoder[_Transaction],
    parser: OperationParser,
    most: int,
    *,
    quotes: int,
) -> list[Put] | None:
    if b"\\" in body:
        return None
    try:
        decoded = decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    operations = decoded.success if isinstance(decoded, _Transaction) else decoded
    if len(operations) > most:
        return None
    puts = []
    try:
        for operation in operations:
            fields = operation.put
            quotes += _QUOTES
            value: bytes
            if fields.encoding is UNSET:
                value = fields.value.encode()
            else:
                quotes += _QUOTES_OF_ENCODING
                value = expect_bytes(fields.value, fields.encoding, "")
            puts.append(Put(parser.checked_key(fields.key.encode()), parser.checked_value(value, "")))
    except KvnodeError:
        return None
    # Nothing is escaped: each name and each text has its two quotes. If there are no more, no name stood there twice.
    return puts if body.count(b'"') == quotes else None
