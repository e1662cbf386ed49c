"""Reading a backup from a node: one answer that is long, of the first endpoint that begins one."""

from __future__ import annotations

import http.client
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus

from kvnode.client.http import error_from
from kvnode.errors import ConnectionLost, KvnodeError, NotReady, Timeout, TryAgain, Unknown

CONNECT_S_MAX = 2.0
SILENCE_S = 60.0
"""A node that sends nothing for so long is given up."""


class Download:
    """A backup that has begun. `read` takes how many bytes are wanted, and gives fewer at the end."""

    def __init__(self, endpoint: str, response: http.client.HTTPResponse) -> None:
        self.endpoint = endpoint
        self.headers = response.headers
        self._response = response

    def read(self, length: int) -> bytes:
        """Raises: ConnectionLost, Timeout: it broke off."""
        try:
            return self._response.read(length)
        except TimeoutError as error:
            raise Timeout(f"{self.endpoint}: nothing came for {SILENCE_S:g} s, in the middle of the backup") from error
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionLost(f"{self.endpoint}: the backup broke off ({error!r})") from error


@contextmanager
def download(endpoints: Sequence[str], timeout_ms: int) -> Iterator[Download]:
    """The backup of the first of `endpoints` that begins one within `timeout_ms`. Raises: KvnodeError."""
    failure: KvnodeError = NotReady("no endpoint answered")
    for endpoint in endpoints:
        host, _, port = endpoint.rpartition(":")
        connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=CONNECT_S_MAX)
        try:
            try:
                found = _begin(connection, endpoint, timeout_ms)
            except (TryAgain, Unknown) as error:
                failure = error
                continue
            yield found
            return
        finally:
            connection.close()
    raise failure


def _begin(connection: http.client.HTTPConnection, endpoint: str, timeout_ms: int) -> Download:
    try:
        connection.connect()
    except OSError as error:
        raise NotReady(f"{endpoint}: cannot connect ({error})") from error
    try:
        sock = connection.sock
        sock.settimeout(timeout_ms / 1e3 + 1.0)
        connection.request("GET", f"/v1/admin/snapshot?timeout={timeout_ms}ms", headers={"Accept-Encoding": "identity"})
        response = connection.getresponse()
        if response.status != HTTPStatus.OK:
            raise error_from(response.status, "", response.read(), write=False)
        sock.settimeout(SILENCE_S)  # the answer goes on reading from it
    except TimeoutError as error:
        if isinstance(error, KvnodeError):
            raise
        raise Timeout(f"{endpoint}: no answer within {timeout_ms} ms") from error
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionLost(f"{endpoint}: connection lost before the answer ({error!r})") from error
    return Download(endpoint, response)
