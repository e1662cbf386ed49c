"""host:port as configuration, peers and clients write it."""

from __future__ import annotations

import re


def parse_address(text: str, name: str = "address") -> tuple[str, int]:
    """``host:port`` or ``[v6]:port`` → (host, port). Raises ValueError naming `name`."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^:\s/@?#\[\]]+)):(\d{1,5})", text)
    if match is None or int(match[3]) > 65_535:
        raise ValueError(f"{name}: {text!r} is not of the form host:port")
    return match[1] or match[2], int(match[3])


def is_loopback(host: str) -> bool:
    """Whether a listener on `host` is reachable from this machine only."""
    return host in {"localhost", "::1"} or host.startswith("127.")
