"""host:port as configuration, peers and clients write it."""

from __future__ import annotations

import ipaddress
import re


def parse_address(text: str, name: str = "address") -> tuple[str, int]:
    """``host:port`` or ``[v6]:port`` → (host, port). Raises ValueError naming `name`."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^:\s/@?#\[\]]+)):(\d{1,5})", text)
    if match is None or int(match[3]) > 65_535:
        raise ValueError(f"{name}: {text!r} is not of the form host:port")
    return match[1] or match[2], int(match[3])


def check_told_address(text: str, name: str) -> None:
    """An address that others are told must lead somewhere. Raises ValueError naming `name`."""
    host, port = parse_address(text, name)
    if not port or _is_unspecified(host):
        raise ValueError(f"{name}: {text!r} is an address to listen on, which nobody can be told to connect to")


def is_loopback(host: str) -> bool:
    """Whether a listener on `host` is reachable from this machine only."""
    return host in {"localhost", "::1"} or host.startswith("127.")


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:  # a name
        return False
