"""Canaries of how gossip travels: what proves it, whom it is believed from, and the times that messages carry."""

from __future__ import annotations

from canary import Canary

_SEAL = ("tests/wire/test_gossip_seal.py",)
_NET = ("tests/transport/test_gossip_net.py",)

CANARIES = (
    Canary(
        "gossip-unproven",
        "gossip is believed whoever sealed it",
        "kvnode/wire/gossip_seal.py",
        "        if not hmac.compare_digest(mac, self._mac(request_mac, data[:-MAC_BYTES])):",
        "        if False:",
        _SEAL + _NET,
    ),
    Canary(
        "gossip-of-another-cluster",
        "gossip of another cluster with the same secret is believed",
        "kvnode/wire/gossip_seal.py",
        "        if cluster_id != self._cluster_id:",
        "        if False:",
        _SEAL + _NET,
    ),
    Canary(
        "gossip-meant-for-another",
        "a datagram is believed by whoever gets it",
        "kvnode/wire/gossip_seal.py",
        "        if to != self._node or sender == self._node:",
        "        if False:",
        _SEAL + _NET,
    ),
    Canary(
        "gossip-answer-to-anything",
        "an answer is good for any request",
        "kvnode/wire/gossip_seal.py",
        "        mac.update(request_mac)\n",
        "",
        _SEAL + _NET,
    ),
    Canary(
        "gossip-sent-again",
        "a datagram or request that was recorded counts each time it is sent again",
        "kvnode/wire/gossip_seal.py",
        "        if -ahead >= self.WIDTH or self._seen >> -ahead & 1:",
        "        if False:",
        _SEAL + _NET,
    ),
    Canary(
        "gossip-of-an-older-start",
        "gossip is believed of a directory that went back in time, or of a copy of it",
        "kvnode/node/roster.py",
        "        return self._boots.compare(sender, boot_counter, boot_nonce)",
        "        return None",
        ("tests/node/test_roster.py",),
    ),
    Canary(
        "gossip-of-the-start-before",
        "what an earlier start sent counts after the next one was heard",
        "kvnode/transport/gossip_net.py",
        "        elif boot != known.boot:",
        "        elif False:",
        _NET,
    ),
    Canary(
        "gossip-of-a-wiped-directory",
        "gossip is believed of a member whose directory is another one",
        "kvnode/node/roster.py",
        "        if known != incarnation:",
        "        if False:",
        ("tests/node/test_roster.py", *_NET),
    ),
    Canary(
        "time-of-a-message-forgotten",
        "messages between nodes do not carry the Lamport time",
        "kvnode/transport/channel.py",
        "        if time > self._time_sent and ",
        "        if time < self._time_sent and ",
        ("tests/transport/test_lamport_times.py",),
    ),
    Canary(
        "time-to-who-cannot-read-it",
        "a member that does not claim the feature level is sent times, which end its connection",
        "kvnode/transport/peers.py",
        "        link.takes_times = min(hello.feature_level, self._roster.feature_level) >= FEATURE_LEVEL_TIMES",
        "        link.takes_times = True",
        ("tests/transport/test_lamport_times.py",),
    ),
)
