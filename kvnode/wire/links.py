"""How one connection between two nodes is described to whoever asks; shared by the transport and its users."""

from __future__ import annotations

import msgspec

from kvnode.ids import NodeId


class LinkInfo(msgspec.Struct, frozen=True):
    """One peer as the transport knows it."""

    peer: NodeId
    connected: bool  # both lanes are up
    epoch: int  # counts connections; replies of an older one are void
    client_url: str  # the peer's advertised client listener, "" until met
    refused: str = ""  # why the handshake was refused, "" if it was not
    feature_level: int = 0  # what the peer claims to know; 0 until met
    software: str = ""  # its version, "" until met
