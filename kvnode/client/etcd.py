"""The etcd v3 JSON API of somebody's cluster, etcd's or kvnode's, as a place to copy keys from and to.

Plain requests with the standard library, to one endpoint: ``http://host:port`` or ``https://host:port``. Refusals
become `KvnodeError`s of the family that says what to do next, as those of kvnode's own API do.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import json
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from kvnode.client.export_file import Entry
from kvnode.client.importer import Importer, OnConflict
from kvnode.client.patience import REQUEST_MS, Patience
from kvnode.errors import (
    BadRequest,
    Compacted,
    CompareFailed,
    ConnectionLost,
    KvnodeError,
    NotReady,
    PermissionDenied,
    Rejected,
    TooLarge,
    TryAgain,
    Unknown,
)
from kvnode.kv.keys import prefix_end
from kvnode.kv.requests import KeyValue, Operation, OperationReply, Put, PutReply, Range, RangeReply

PAGE_ITEMS = 500
_SAID_MAX = 200

Json = dict[str, Any]


class EtcdCaller:
    """Asks one endpoint. A connection for each request, so that several threads may ask.

    `user`: name and password, of a cluster that wants them. `ca_file`: whom to trust; "": whom the system trusts.
    """

    def __init__(self, url: str, timeout_ms: int, *, user: str = "", ca_file: str = "") -> None:
        """Raises: BadRequest for what is no such URL; OSError for a file that cannot be read."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError as error:
            raise BadRequest(f"{url}: {error}") from None
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path.strip("/") or parts.query:
            raise BadRequest(f"{url!r} is not of the form http://host:port or https://host:port")
        self.url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self.timeout_ms = timeout_ms
        self._host, self._port = parts.hostname, port or 2379
        self._tls = ssl.create_default_context(cafile=ca_file or None) if parts.scheme == "https" else None
        self._user = user
        self._token = ""

    def read(self, path: str, body: Json, sleep: Callable[[float], None] | None = None) -> Json:
        """A request without an effect, until it is answered or patience ends. Raises: a `KvnodeError`."""
        patience = Patience(self.timeout_ms) if sleep is None else Patience(self.timeout_ms, sleep=sleep)
        while True:
            try:
                return self.ask(path, body, write=False)
            except (TryAgain, Unknown) as error:
                patience.pause(error)

    def ask(self, path: str, body: Json, *, write: bool) -> Json:
        """One request below ``/v3/``. Raises: a `KvnodeError` that says whether a write took effect."""
        if self._user and not self._token:
            name, _, password = self._user.partition(":")
            self._token = str(self._send("auth/authenticate", {"name": name, "password": password})["token"])
        return self._send(path, body, write=write)

    def _send(self, path: str, body: Json, *, write: bool = False) -> Json:
        lost = Unknown if write else ConnectionLost
        seconds = min(self.timeout_ms, REQUEST_MS) / 1_000
        connection: http.client.HTTPConnection
        if self._tls is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=seconds)
        else:
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=seconds, context=self._tls)
        headers = {"Content-Type": "application/json"} | ({"Authorization": self._token} if self._token else {})
        try:
            try:
                connection.connect()
            except ssl.SSLError as error:
                raise Rejected(f"{self.url}: {error}") from error
            except OSError as error:
                raise NotReady(f"{self.url}: cannot connect ({error})") from error
            try:
                connection.request("POST", f"/v3/{path}", json.dumps(body), headers)
                answer = connection.getresponse()
                status, content = answer.status, answer.read()
            except (OSError, http.client.HTTPException) as error:
                raise lost(f"{self.url}: no answer ({error or type(error).__name__})") from error
        finally:
            connection.close()
        try:
            found = json.loads(content)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            said = content[:_SAID_MAX].decode("utf-8", "backslashreplace").strip()
            raise Rejected(f"{self.url}: this answer {status} is not of the etcd v3 JSON API: {said!r}")
        if status == 200:
            return found
        raise self._refused(found, write=write)

    def _refused(self, found: Json, *, write: bool) -> KvnodeError:
        code, message = found.get("code"), f"{self.url}: {found.get('message') or found.get('error')}"
        if "compacted" in message:
            return Compacted(message)
        if "too large" in message or "larger than max" in message:
            return TooLarge(message)
        match code:
            case 7 | 16:
                return PermissionDenied(message)
            case 8:
                return TryAgain(message)
            case 2 | 4 | 13 | 14:  # some of them come after the request has gone its way
                return Unknown(message) if write else NotReady(message)
        return BadRequest(message)


def read_entries(caller: EtcdCaller, prefix: bytes, revision: int = 0) -> Iterator[tuple[int, int, list[Entry]]]:
    """Pages of the keys of a prefix, all as one revision shows them: (that revision, keys in all, entries).

    The first page names the revision; 0: the newest. Raises: a `KvnodeError`; Compacted if it is gone.
    """
    start, end = prefix or b"\x00", prefix_end(prefix)
    number = 0
    while True:
        asked = {"key": _base64(start), "range_end": _base64(end), "limit": PAGE_ITEMS}
        found = caller.read("kv/range", asked | ({"revision": str(revision)} if revision else {}))
        try:
            revision = revision or int(found["header"]["revision"])
            items = [_key_value(item) for item in found.get("kvs", ())]
            total = number + int(found.get("count", 0))
        except (ValueError, KeyError, TypeError) as error:
            raise Rejected(f"{caller.url}: the answer is no range of keys: {error!r}") from error
        entries = [Entry(number + n, kv, len(kv.key) + len(kv.value)) for n, kv in enumerate(items, 1)]
        number += len(entries)
        yield revision, total, entries
        if not found.get("more") or not items:
            return
        start = items[-1].key + b"\x00"


class EtcdImporter(Importer):
    """As `Importer`, into a cluster that is asked in etcd's words."""

    def __init__(self, caller: EtcdCaller, on_conflict: OnConflict) -> None:
        super().__init__((caller.url,), caller.timeout_ms, on_conflict)
        self._etcd = caller

    def _ask(self, operations: Sequence[Operation]) -> list[OperationReply | KvnodeError]:
        if all(isinstance(operation, Range) for operation in operations):
            return list(self._look_at([operation.start for operation in operations if isinstance(operation, Range)]))
        return [self._put(operation) for operation in operations if isinstance(operation, Put)]

    def _look_at(self, keys: Sequence[bytes]) -> Iterator[RangeReply]:
        ranges = [{"request_range": {"key": _base64(key)}} for key in keys]
        found = self._etcd.ask("kv/txn", {"success": ranges}, write=False)
        for each in found["responses"]:
            items = tuple(_key_value(item) for item in each["response_range"].get("kvs", ()))
            yield RangeReply(0, items, len(items))

    def _put(self, put: Put) -> OperationReply | KvnodeError:
        unchanged = {"key": _base64(put.key), "target": "MOD", "mod_revision": str(put.if_revision)}
        write = {"request_put": {"key": _base64(put.key), "value": _base64(put.value)}}
        try:
            found = self._etcd.ask("kv/txn", {"compare": [unchanged], "success": [write]}, write=True)
        except KvnodeError as error:
            return error
        if not found.get("succeeded"):
            return CompareFailed("another writer came first")
        return PutReply(
            int(found["header"]["revision"]), created=put.if_revision == 0, create_revision=0, version=0, time=0
        )


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _key_value(item: Mapping[str, Any]) -> KeyValue:
    """Raises: ValueError, KeyError, TypeError."""
    try:
        key = base64.b64decode(item["key"], validate=True)
        value = base64.b64decode(item.get("value", ""), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error
    numbers = (int(item.get(name, 0)) for name in ("create_revision", "mod_revision", "version", "lease"))
    return KeyValue(key, value, *numbers)
