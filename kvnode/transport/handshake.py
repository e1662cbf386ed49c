"""Mutual proof of the cluster's secret on a new connection, then the question whether the two belong together.

    dialler                                   acceptor
    HELLO d                            →
                                       ←      HELLO a, PROOF "acceptor"
    PROOF "dialler", WELCOME           →                                   (the dialler believes, and has recorded, a)
                                       ←      WELCOME                      (the acceptor believes, and has recorded, d)

A proof is HMAC-SHA-256 under the secret over the side's label and the exact bytes of *both* hellos, nonces
included: it binds ids, incarnations, settings and this very connection, cannot be replayed on another, and cannot
be sent back to its maker, whose label differs. Nothing of a hello is acted on before its sender's proof. Instead of
going on, either side may send REFUSAL (after its own PROOF, if the other side has proven itself) and close.

Sans-IO: bytes of one WebSocket message in, bytes of one out. The mutual challenge is the ordinary one;
who belongs together the roster judges (`kvnode.node.roster`).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

from kvnode.ids import NodeId
from kvnode.raft.messages import Lane
from kvnode.wire.frames import (
    HANDSHAKE_BYTES_MAX,
    PROTOCOL,
    FrameKind,
    Hello,
    Refusal,
    decode_hello,
    decode_refusal,
    encode_frame,
    encode_hello,
    encode_refusal,
    split_frames,
)
from kvnode.wire.limits import CodecError

Role = Literal["dialler", "acceptor"]
_LABELS: dict[Role, bytes] = {"dialler": b"kvnode peer 1 dialler", "acceptor": b"kvnode peer 1 acceptor"}
_OTHER: dict[Role, Role] = {"dialler": "acceptor", "acceptor": "dialler"}


class Roster(Protocol):
    """What the transport asks about identities; `kvnode.node.roster.Roster` by shape. All calls are synchronous."""

    @property
    def is_bootstrapped(self) -> bool:
        """The cluster id is fixed: this node may take part."""
        ...

    @property
    def members(self) -> Mapping[NodeId, str]:
        """Whoever may be connected to, with the address of its listener."""
        ...

    @property
    def feature_level(self) -> int:
        """What this node claims to know."""
        ...

    def begin(self) -> None:
        """Finish the bootstrap at once if there is nobody to wait for."""
        ...

    def hello(self, lane: Lane, *, link: int, nonce: bytes) -> Hello: ...

    def judge(self, hello: Hello) -> Refusal | None:
        """Whether a proven sender belongs to this cluster, and is who it was."""
        ...

    def admit(self, hello: Hello) -> None:
        """Record durably what must be known of an accepted sender. Raises StorageFailed."""
        ...

    def note_met(self, hello: Hello) -> None:
        """Both sides have recorded each other."""
        ...


class Handshake:
    """One side of one handshake. Feed `receive` until `outcome` is set."""

    def __init__(
        self, role: Role, *, secret: bytes, hello: Hello, roster: Roster, expected: NodeId | None = None
    ) -> None:
        self.outcome: Literal["accepted", "refused"] | None = None
        self.refusal: Refusal | None = None  # with outcome "refused"
        self.refused_by_peer = False
        self.proven = False  # the peer knows the secret
        self.peer: Hello | None = None  # nothing in it is to be believed before `proven`
        self._role: Role = role
        self._secret = secret
        self._roster = roster
        self._expected = expected  # whom the dialler means to reach
        self.own = hello
        self._own_bytes = encode_hello(hello)
        self._peer_bytes = b""
        self._next: Callable[[list[tuple[int, bytes]]], bytes] = (
            self._on_hello_and_proof if role == "dialler" else self._on_hello
        )

    def begin(self) -> bytes:
        """What the dialler sends first."""
        assert self._role == "dialler", self._role
        return encode_frame(FrameKind.HELLO, self._own_bytes)

    def receive(self, data: bytes) -> bytes:
        """Answer one WebSocket message. Bytes left over once `outcome` is set are to be sent before closing."""
        assert self.outcome is None, self.outcome
        try:
            frames = [(kind, bytes(payload)) for kind, payload in split_frames(data, HANDSHAKE_BYTES_MAX)]
            if frames[-1][0] == FrameKind.REFUSAL:
                return self._on_refusal(frames)
            return self._next(frames)
        except CodecError as error:
            return self._refuse(Refusal("malformed", f"the handshake cannot be read: {error}"))

    # ── acceptor ────────────────────────────────────────────────────────────────────────────────────

    def _on_hello(self, frames: list[tuple[int, bytes]]) -> bytes:
        _expect(frames, FrameKind.HELLO)
        self._take_hello(frames[0][1])
        refusal = self._incompatible()
        if refusal is not None:
            return self._refuse(refusal)
        self._next = self._on_proof_and_welcome
        return encode_frame(FrameKind.HELLO, self._own_bytes) + encode_frame(FrameKind.PROOF, self._proof(self._role))

    def _on_proof_and_welcome(self, frames: list[tuple[int, bytes]]) -> bytes:
        _expect(frames, FrameKind.PROOF, FrameKind.WELCOME)
        assert self.peer is not None
        refusal = self._check_proof(frames[0][1]) or self._judge()
        if refusal is not None:
            return self._refuse(refusal)
        self._roster.admit(self.peer)
        self._roster.note_met(self.peer)  # its WELCOME says that it has recorded us
        self.outcome = "accepted"
        return encode_frame(FrameKind.WELCOME)

    # ── dialler ─────────────────────────────────────────────────────────────────────────────────────

    def _on_hello_and_proof(self, frames: list[tuple[int, bytes]]) -> bytes:
        _expect(frames, FrameKind.HELLO, FrameKind.PROOF)
        self._take_hello(frames[0][1])
        refusal = self._incompatible() or self._check_proof(frames[1][1])
        if refusal is not None:
            return self._refuse(refusal)
        proof = encode_frame(FrameKind.PROOF, self._proof(self._role))
        refusal = self._judge()
        if refusal is not None:
            return proof + self._refuse(refusal)
        assert self.peer is not None
        self._roster.admit(self.peer)
        self._next = self._on_welcome
        return proof + encode_frame(FrameKind.WELCOME)

    def _on_welcome(self, frames: list[tuple[int, bytes]]) -> bytes:
        _expect(frames, FrameKind.WELCOME)
        assert self.peer is not None
        self._roster.note_met(self.peer)
        self.outcome = "accepted"
        return b""

    # ── both ────────────────────────────────────────────────────────────────────────────────────────

    def _on_refusal(self, frames: list[tuple[int, bytes]]) -> bytes:
        if len(frames) == 2 and frames[0][0] == FrameKind.PROOF and self.peer is not None:
            self.proven = self.proven or self._check_proof(frames[0][1]) is None
        self.refusal = decode_refusal(frames[-1][1])
        self.refused_by_peer = True
        self.outcome = "refused"
        return b""

    def _refuse(self, refusal: Refusal) -> bytes:
        self.refusal = refusal
        self.outcome = "refused"
        return encode_frame(FrameKind.REFUSAL, encode_refusal(refusal))

    def _take_hello(self, payload: bytes) -> None:
        self._peer_bytes = payload
        self.peer = decode_hello(payload)

    def _incompatible(self) -> Refusal | None:
        """Frames of another version cannot be read further, so this comes before the proof."""
        assert self.peer is not None
        if self.peer.protocol_min <= PROTOCOL <= self.peer.protocol_max:
            return None
        return Refusal(
            "protocol",
            f"this node speaks peer protocol {PROTOCOL}, "
            f"the other side {self.peer.protocol_min} to {self.peer.protocol_max}",
        )

    def _judge(self) -> Refusal | None:
        assert self.peer is not None
        assert self.proven
        if self._expected is not None and self.peer.member != self._expected:
            return Refusal(
                "wrong_member", f"dialled member {self._expected}, found member {self.peer.member} at its address"
            )
        if self.peer.lane != self.own.lane:
            return Refusal("malformed", f"the {self.own.lane} lane was answered as {self.peer.lane}")
        return self._roster.judge(self.peer)

    def _check_proof(self, proof: bytes) -> Refusal | None:
        if not hmac.compare_digest(proof, self._proof(_OTHER[self._role])):
            return Refusal("not_proven", "the other side does not know this cluster's secret (cluster.secret_file)")
        self.proven = True
        return None

    def _proof(self, role: Role) -> bytes:
        dialler, acceptor = self._own_bytes, self._peer_bytes
        if self._role == "acceptor":
            dialler, acceptor = acceptor, dialler
        mac = hmac.new(self._secret, _LABELS[role], hashlib.sha256)
        for hello in (dialler, acceptor):
            mac.update(len(hello).to_bytes(4, "big"))
            mac.update(hello)
        return mac.digest()


def _expect(frames: list[tuple[int, bytes]], *kinds: FrameKind) -> None:
    if [kind for kind, _ in frames] != list(kinds):
        raise CodecError(f"frames {[kind for kind, _ in frames]} where {[kind.value for kind in kinds]} must be")
