"""Who may speak at all: checks on the head of a request, before anything looks at what it asks.

A page in a browser must not reach a node on the user's machine. So `Host` must be a name this node knows
(DNS rebinding), a foreign `Origin` must not change anything (cross-site request forgery), and headers that
would give a request a second meaning are refused.
"""

from __future__ import annotations

import ipaddress
import re
from itertools import count

from aiohttp import hdrs, web
from multidict import istr

from kvnode.config import Config, parse_address
from kvnode.errors import BadRequest, PermissionDenied

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~:/=@-]{1,64}")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?")
_OVERRIDES = tuple(map(istr, ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override")))
_REMEMBERED_MAX = 1_024


class Guard:
    """Checks heads against one node's configuration. `boot_nonce` makes invented request ids unlike others."""

    def __init__(self, config: Config, boot_nonce: str) -> None:
        client = config.client
        self._names = {"localhost", *(name.lower() for name in client.allowed_hosts)}
        for address in (client.listen, client.advertise):
            if address:
                self._names.add(parse_address(address)[0].lower())
        self._good_hosts: set[str] = set()  # Host values found good, at most _REMEMBERED_MAX
        self._boot_nonce = boot_nonce
        self._numbers = count(1)

    def check(self, request: web.BaseRequest, *, changes_state: bool, upgrades: bool = False) -> None:
        """`upgrades`: an Upgrade is taken. A browser lets any page open a WebSocket, so that counts as a change.

        Raises: BadRequest, PermissionDenied.
        """
        headers = request.headers
        hosts = headers.getall(hdrs.HOST, ())
        if len(hosts) != 1:
            raise BadRequest("a request names exactly one Host")
        host = hosts[0]
        if host not in self._good_hosts:
            self._check_host(host)
        if hdrs.UPGRADE in headers and not upgrades:
            raise BadRequest("this path takes no Upgrade")
        if changes_state or upgrades:
            origin = headers.get(hdrs.ORIGIN)
            if origin is not None and origin not in {f"http://{host}", f"https://{host}"}:
                raise PermissionDenied("a page of another origin may not change anything here")
            if headers.get("Sec-Fetch-Site") in {"cross-site", "same-site"}:
                raise PermissionDenied("a page of another site may not change anything here")
            if request.method == "POST" and any(name in headers for name in _OVERRIDES):
                raise BadRequest("the method stands in the request line; overriding it is not taken")

    def _check_host(self, host: str) -> None:
        match = _HOST.fullmatch(host)
        if match is None:
            raise BadRequest("Host is not of the form host:port")
        name = match[1].lower().removesuffix(".")
        if name not in self._names and not _is_address(name.strip("[]")):
            raise BadRequest(f"Host {name!r} is not a name of this node; client.allowed_hosts adds names")
        if len(self._good_hosts) < _REMEMBERED_MAX:
            self._good_hosts.add(host)

    def request_id(self, request: web.BaseRequest) -> str:
        """The caller's `X-Request-Id` if it is a short ASCII token, else a new one."""
        given = request.headers.get("X-Request-Id")
        if given is not None and _TOKEN.fullmatch(given):
            return given
        return self.new_request_id()

    def new_request_id(self) -> str:
        return f"{self._boot_nonce}-{next(self._numbers):x}"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
