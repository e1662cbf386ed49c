"""Canaries of the etcd API's door: what every answer says, and what becomes of its connection."""

from __future__ import annotations

from canary import Canary

CANARIES = (
    Canary(
        "etcd-term-of-a-candidate",
        "headers tell the term that this node is in, also one in which nobody has been elected",
        "kvnode/api/etcd/context.py",
        "raft_term=decimal(self.admin.led_term)",
        "raft_term=decimal(self.admin.term)",
        ("tests/api/etcd/test_header_term.py",),
    ),
    Canary(
        "etcd-stream-takes-its-connection-away",
        "a stream announces the end of its connection, so that Python's clients have no socket to end it by",
        "kvnode/api/call.py",
        "stays = keep_alive and chunked",
        "stays = not keep_alive and chunked",
        ("tests/api/etcd/test_kept_connections.py",),
    ),
)
