"""Gossip seal: the envelope that says who sent a datagram or an exchange of the gossip plane, and proves it.

    offset  size  name          meaning; big-endian, like all numbers here
    0       4     magic         "kvGo"
    4       1     version       1
    5       1     kind          `SealKind`
    6       2     reserved      0
    8       8     cluster id    never 0: before its bootstrap has finished a node gossips with nobody
    16      8     sender        member id
    24      8     addressee     member id
    32      8     incarnation   random id of the sender's data directory
    40      8     boot counter  of the sender's start, +1 at each
    48      8     boot nonce    drawn at that start
    56      8     number        datagram, request: counts within that start and to that addressee, from 1; reply: 0
    64      –     body          a Packet, PullRequest or PullReply
    –       16    mac           first 16 bytes of HMAC-SHA-256 over everything before it; of a reply, over the mac of
                                the request first

The key is HMAC-SHA-256 of the label `LABEL` under the cluster's secret: nothing sealed is a proof in a handshake, and
the other way round. An answer proves itself with the request's own mac, so it is good for no other request, be it of an
earlier start (source: RFC 8945 §5.3, which signs answers of DNS that way). Addressee and number stop datagrams that
are sent again, to somebody else or twice: `ReplayWindow`.

Sealed is not secret: bodies can be read on the way. Whether a proven sender belongs to the members, on that directory
and in that start, is judged by `kvnode.node.roster`. A datagram, request or reply that fails here is dropped whole.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import IntEnum
from struct import Struct

import msgspec

from kvnode.ids import NodeId
from kvnode.wire.limits import CodecError, check_range, check_size

LABEL = b"kvnode gossip 1"
MAGIC = b"kvGo"
VERSION = 1
MAC_BYTES = 16
_HEAD = Struct(">4sBBHQQQQQQQ")
OVERHEAD_BYTES = _HEAD.size + MAC_BYTES

DATAGRAM_BYTES_MAX = 1_400
"""A sealed datagram that no network in use has to cut up: 1 500 bytes less the heads of IP and UDP, and some room."""
REQUEST_BYTES_MAX = 64 << 10
REPLY_BYTES_MAX = 16 << 20
"""Pages are much smaller, but for a key that many members filled while they were apart: it goes as a whole."""


class SealKind(IntEnum):
    """What is inside, so that one is never taken for another."""

    DATAGRAM = 1
    REQUEST = 2
    REPLY = 3


_BYTES_MAX = {
    SealKind.DATAGRAM: DATAGRAM_BYTES_MAX,
    SealKind.REQUEST: REQUEST_BYTES_MAX,
    SealKind.REPLY: REPLY_BYTES_MAX,
}


def body_bytes_max(kind: SealKind) -> int:
    """What `Sealer.seal` takes at most."""
    return _BYTES_MAX[kind] - OVERHEAD_BYTES


class Sealed(msgspec.Struct, frozen=True, gc=False):
    """A proven envelope, opened. The sender knows the secret; whether it may be believed is not said yet."""

    sender: NodeId
    incarnation: int
    boot_counter: int
    boot_nonce: int
    number: int
    body: bytes
    mac: bytes  # of a request: what the reply to it is proven with


class Sealer:
    """Seals in the name of one start of one node, and opens what was sealed for it. Pure, but for nothing kept."""

    def __init__(
        self, *, secret: bytes, cluster_id: int, node: NodeId, incarnation: int, boot_counter: int, boot_nonce: int
    ) -> None:
        assert cluster_id != 0, "a node that has not finished its bootstrap gossips with nobody"
        self._cluster_id = cluster_id
        self._node = node
        self._incarnation = incarnation
        self._boot_counter = boot_counter
        self._boot_nonce = boot_nonce
        self._keyed = hmac.new(hmac.digest(secret, LABEL, "sha256"), digestmod=hashlib.sha256)

    def seal(self, kind: SealKind, to: NodeId, body: bytes, *, number: int = 0, request_mac: bytes = b"") -> bytes:
        """`number`: of a datagram or request; `request_mac`: of the request that a reply answers.

        Raises: CodecError for a body that is too large for its kind.
        """
        assert (kind == SealKind.REPLY) == bool(request_mac) == (number == 0), (kind, number)
        if len(body) > body_bytes_max(kind):
            raise CodecError(f"{len(body)} bytes of gossip, at most {body_bytes_max(kind)} fit in a {kind.name}")
        head = _HEAD.pack(
            *(MAGIC, VERSION, kind, 0, self._cluster_id, self._node, to),
            *(self._incarnation, self._boot_counter, self._boot_nonce, number),
        )
        return b"".join((head, body, self._mac(request_mac, head, body)))

    def open(self, kind: SealKind, data: bytes, *, request_mac: bytes = b"") -> Sealed:
        """What somebody with the secret has sealed for this node. Raises: CodecError for anything else."""
        check_size(data, _BYTES_MAX[kind])
        if len(data) < OVERHEAD_BYTES:
            raise CodecError(f"{len(data)} bytes are no sealed gossip")
        magic, version, found, reserved, cluster_id, sender, to, *start, number = _HEAD.unpack_from(data)
        if (magic, version, found, reserved) != (MAGIC, VERSION, kind, 0):
            raise CodecError(f"gossip {magic!r}, version {version}, kind {found}, reserved {reserved}")
        if cluster_id != self._cluster_id:
            raise CodecError(f"gossip of cluster {cluster_id:016x} where cluster {self._cluster_id:016x} is")
        if to != self._node or sender == self._node:
            raise CodecError(f"gossip from member {sender} to member {to} has come to member {self._node}")
        mac = data[-MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(request_mac, data[:-MAC_BYTES])):
            raise CodecError("gossip is not proven: it is damaged, or its sender does not know the cluster's secret")
        incarnation, boot_counter, boot_nonce = start
        check_range(sender, boot_counter, number)
        if not sender or (number == 0) != (kind == SealKind.REPLY):
            raise CodecError(f"gossip from member {sender} with number {number}")
        body = data[_HEAD.size : -MAC_BYTES]
        return Sealed(NodeId(sender), incarnation, boot_counter, boot_nonce, number, body, mac)

    @staticmethod
    def mac_of(sealed: bytes) -> bytes:
        """Of a request that was sealed here: what the reply to it is opened with."""
        return sealed[-MAC_BYTES:]

    def _mac(self, request_mac: bytes, *parts: bytes) -> bytes:
        mac = self._keyed.copy()
        mac.update(request_mac)
        for part in parts:
            mac.update(part)
        return mac.digest()[:MAC_BYTES]


class ReplayWindow:
    """Which numbers of one sender's start have come: each is taken once, and none that is far behind the highest.

    Source: the sliding window of RFC 4303 §3.4.3.
    """

    WIDTH = 1_024

    __slots__ = ("_highest", "_seen")

    def __init__(self) -> None:
        self._highest = 0
        self._seen = 0  # bit n: number `_highest` - n has come

    def take(self, number: int) -> bool:
        """Whether `number`, from 1, comes for the first time. False as well if it is too old to tell."""
        ahead = number - self._highest
        if ahead > 0:
            self._seen = ((self._seen << ahead) | 1) & _WINDOW_MASK if ahead < self.WIDTH else 1
            self._highest = number
            return True
        if -ahead >= self.WIDTH or self._seen >> -ahead & 1:
            return False
        self._seen |= 1 << -ahead
        return True


_WINDOW_MASK = (1 << ReplayWindow.WIDTH) - 1
