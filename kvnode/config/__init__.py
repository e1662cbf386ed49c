"""Every setting, declared once (`sections`): type, default, unit, bounds, scope and a sentence.

The TOML loader (`load`), the environment names (``KVNODE_RAFT__HEARTBEAT_MS``), ``kvnode config --explain`` and the
reference page are derived from the declarations. Scope *cluster* means all members must agree; the
peer handshake compares those values whole and a refusal names the key. Relations between settings are
asserted in `__post_init__`, next to the declaration. No other package holds a tunable number.

Precedence: command-line flag > environment > file > default.
"""

from kvnode.config.addresses import check_told_address, is_loopback, parse_address
from kvnode.config.config import Config, Setting, settings
from kvnode.config.load import load
from kvnode.config.sections import (
    GIB,
    KIB,
    MIB,
    ClientSection,
    ClusterSection,
    GossipSection,
    HistorySection,
    LimitsSection,
    LogSection,
    NodeSection,
    PeerSection,
    RaftSection,
    StorageSection,
)

__all__ = [
    "GIB",
    "KIB",
    "MIB",
    "ClientSection",
    "ClusterSection",
    "Config",
    "GossipSection",
    "HistorySection",
    "LimitsSection",
    "LogSection",
    "NodeSection",
    "PeerSection",
    "RaftSection",
    "Setting",
    "StorageSection",
    "check_told_address",
    "is_loopback",
    "load",
    "parse_address",
    "settings",
]
