"""One attempt at one node: sends a request, reads the whole answer, turns every failure into the error that is true."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
from yarl import URL

from kvnode.client import bodies
from kvnode.client.http import error_from
from kvnode.client.watch import Connection
from kvnode.errors import ConnectionLost, KeyNotFound, KvnodeError, NoLeader, NotReady, Timeout
from kvnode.kv.interface import Options
from kvnode.wire.token import encode_token

_CONNECT_MS_MAX = 2_000
_GRACE_MS = 1_000  # the node answers 504 at the deadline; its answer gets this long to arrive


class Exchange:
    """One attempt at one node."""

    def __init__(self, session: aiohttp.ClientSession, address: str, options: Options, left_ms: int) -> None:
        self._session = session
        self._address = address
        self._left_ms = left_ms
        self._query: dict[str, str | bytes] = {"timeout": f"{left_ms}ms"}
        self._headers = {"Accept-Encoding": "identity"}
        if options.request_id:
            self._headers["X-Request-Id"] = options.request_id
        if options.least_revision:
            self._headers["Kv-Token"] = encode_token(options.least_revision, 0)
        if not options.forward:
            self._headers["Kv-No-Forward"] = "1"

    async def get(
        self, path: str, query: Mapping[str, bytes], *, wait_ms: int = 0
    ) -> tuple[int, Mapping[str, str], bytes]:
        """`wait_ms`: how much longer than its deadline the request was told to take."""
        return await self._send("GET", path, {**self._query, **query}, None, wait_ms=wait_ms)

    async def post(
        self, path: str, body: Any, query: Mapping[str, bytes] | None = None
    ) -> tuple[int, Mapping[str, str], bytes]:
        """A body of None is none at all."""
        return await self._send(
            "POST", path, {**self._query, **(query or {})}, None if body is None else bodies.encode(body)
        )

    async def send(
        self, method: str, path: str, query: Mapping[str, bytes], body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Any call, with headers of its own."""
        return await self._send(method, path, {**self._query, **query}, body, headers=headers)

    async def stream(self, path: str, query: Mapping[str, bytes], silence_ms: int) -> Connection:
        """GET whose answer goes on for ever; each of its parts must come within `silence_ms`."""
        url = self._url(path, {**self._query, **query})
        connect_s = min(self._left_ms, _CONNECT_MS_MAX) / 1000
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=silence_ms / 1000)
        async with self._failures_named(self._left_ms), asyncio.timeout(connect_s + (self._left_ms + _GRACE_MS) / 1000):
            response = await self._session.get(url, headers=self._headers, timeout=timeout, allow_redirects=False)
            try:
                if response.status != HTTPStatus.OK:
                    self._check(response, await response.read(), write=False)
                revision = int(response.headers["Kv-Revision"])
            except BaseException:
                response.close()
                raise

        async def read() -> bytes:
            async with self._failures_named(silence_ms):
                return await response.content.readany()

        return Connection(revision, read, response.close)

    def _url(self, path: str, query: Mapping[str, str | bytes]) -> URL:
        # The path and query are bytes percent-encoded by us; yarl must not touch them. A plus is a plus, not a space.
        return URL(f"http://{self._address}{path}?{urlencode(query, quote_via=quote)}", encoded=True)

    @asynccontextmanager
    async def _failures_named(self, within_ms: int) -> AsyncIterator[None]:
        """Turn what goes wrong on the way into the error that is true."""
        try:
            yield
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:  # nothing was sent
            raise NotReady(f"{self._address}: cannot connect ({error})") from error
        except KvnodeError:
            raise
        except TimeoutError as error:
            raise Timeout(f"{self._address}: no answer within {within_ms} ms") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ConnectionLost(f"{self._address}: connection lost before the answer ({error!r})") from error

    async def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, bytes],
        body: bytes | None = None,
        *,
        wait_ms: int = 0,
        grace_ms: int = _GRACE_MS,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """See `kvnode.client.leases.Send`."""
        return await self._send(method, path, {**self._query, **query}, body, wait_ms=wait_ms + grace_ms - _GRACE_MS)

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | bytes],
        body: bytes | None,
        *,
        wait_ms: int = 0,
        headers: Mapping[str, str] = {},
    ) -> tuple[int, Mapping[str, str], bytes]:
        url = self._url(path, query)
        connect_s = min(self._left_ms, _CONNECT_MS_MAX) / 1000
        answer_s = (self._left_ms + wait_ms + _GRACE_MS) / 1000
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=answer_s)
        async with (
            self._failures_named(self._left_ms),
            asyncio.timeout(connect_s + answer_s),
            self._session.request(
                method, url, data=body, headers={**self._headers, **headers}, timeout=timeout, allow_redirects=False
            ) as response,
        ):
            data = await response.read()
        self._check(response, data, write=method != "GET")
        return response.status, response.headers, data

    def _check(self, response: aiohttp.ClientResponse, data: bytes, *, write: bool) -> None:
        """Raises: the error that an answer stands for."""
        if response.status == 307:
            leader = urlsplit(response.headers.get("Location", "")).netloc
            raise NoLeader(f"{self._address} is not the leader", leader_url=leader)
        if response.status >= 400:
            refusal = error_from(response.status, response.headers.get("Kv-Outcome", ""), data, write=write)
            if isinstance(refusal, KeyNotFound):  # an answer, too: absent at this revision
                refusal.detail["revision"] = int(response.headers.get("Kv-Revision", "0"))
                refusal.detail["mod_revision"] = int(response.headers.get("Kv-Mod-Revision", "0"))
                refusal.detail["context"] = response.headers.get("Kv-Context", "")
                refusal.detail["token"] = response.headers.get("Kv-Token", "")
            raise refusal
