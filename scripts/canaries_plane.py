"""Canaries of a node's available plane: what joins keyspace, timeline and gossip."""

from __future__ import annotations

from canary import Canary

_PLANE = ("tests/node/test_plane.py",)
_GOSSIP = ("tests/node/test_plane_gossip.py",)
_EVENTS = ("tests/node/test_own_events.py",)

CANARIES = (
    Canary(
        "changed-rows-refused",
        "rows of what has changed in memory are refused when much waits: it is shown and never durable",
        "kvnode/node/available_log.py",
        '        if not self._gathered or perturb.at("batch-of-one"):',
        '        self.check_room(size)\n        if not self._gathered or perturb.at("batch-of-one"):',
        ("tests/node/test_available_log.py",),
    ),
    Canary(
        "plane-writes-beyond-the-soft-limit",
        "a disk that is short of room takes keys and events all the same",
        "kvnode/node/available_log.py",
        "        if grows and self._space is not None and self._space.is_reached():",
        "        if False:",
        _PLANE,
    ),
    Canary(
        "plane-goes-on-after-a-failed-write",
        "whoever waits at a plane whose store has failed is left waiting",
        "kvnode/plane.py",
        "        plane.halt()\n        on_failed(error)",
        "        on_failed(error)",
        _PLANE,
    ),
    Canary(
        "plane-hands-on-at-its-end",
        "what a commit brings about is handed to a store that is closing: a clean stop looks like a failure",
        "kvnode/node/story.py",
        "        self._is_closed = True\n        if self._retry",
        "        if self._retry",
        _PLANE,
    ),
    Canary(
        "halted-plane-keeps-its-port",
        "a plane that was halted gives neither its port nor its store back",
        "kvnode/node/available.py",
        "        if self._is_released:\n            return\n",
        "        if self._is_released or abandon:\n            return\n",
        _PLANE,
    ),
    Canary(
        "token-waits-for-each",
        "each write that a token names may take the whole deadline",
        "kvnode/node/available_answers.py",
        "            left_ms = max(0, deadline_ms - self._clock.monotonic_ms())\n",
        "            left_ms = timeout_ms\n",
        _PLANE,
    ),
    Canary(
        "waiting-reads-unbounded",
        "any number of reads may wait for writes from elsewhere",
        "kvnode/node/eventual.py",
        "        if len(self._readers) >= READERS_MAX:",
        "        if False:",
        _PLANE,
    ),
    Canary(
        "same-events-not-heard",
        "a peer that shows this node's own digest does not count as heard",
        "kvnode/node/story.py",
        "        if digest == self.timeline.digest():",
        "        if False:",
        _PLANE,
    ),
    Canary(
        "unheard-not-pulled",
        "a node whose store was lost waits for digests that differ before it pulls",
        "kvnode/node/available.py",
        "        self._driver.catch_up()\n",
        "",
        _PLANE,
    ),
    Canary(
        "older-member-in-gossip",
        "a member that does not know gossip is probed and found dead",
        "kvnode/node/available.py",
        " or FEATURE_LEVEL_TIMES) >= FEATURE_LEVEL_TIMES\n",
        " or FEATURE_LEVEL_TIMES) >= 0\n",
        _GOSSIP,
    ),
    Canary(
        "ping-waits-behind-pages",
        "a ping by HTTP waits for the page that is on its way, and its probe fails meanwhile",
        "kvnode/node/gossip_driver.py",
        "        if line is not None and line.locked():",
        "        if False:",
        _GOSSIP,
    ),
    Canary(
        "empty-pages-for-ever",
        "a peer that always has more and brings nothing is asked on and on",
        "kvnode/node/gossip_driver.py",
        "                if repeated > REPEATED_MAX:",
        "                if False:",
        _GOSSIP,
    ),
    Canary(
        "packet-older-than-its-news",
        "a packet carries the clock of before what it tells of happened here",
        "kvnode/node/gossip_driver.py",
        "encode_packet(self._timed(send.packet))",
        "encode_packet(send.packet)",
        _GOSSIP,
    ),
    Canary(
        "few-leases-told",
        "every lease that ends fills the timeline",
        "kvnode/node/own_events.py",
        " if count >= LEASES_MANY else None",
        " if count else None",
        _EVENTS,
    ),
    Canary(
        "quorum-lost-at-the-start",
        "a start, which begins without connections, is told as a loss of the quorum",
        "kvnode/node/own_events.py",
        "        if before is None and not reaches:",
        "        if False:",
        _EVENTS,
    ),
)
