"""The seal of gossip: golden bytes, what is refused, fuzz; and the window that takes each number once."""

from __future__ import annotations

import hashlib
import hmac
import random
import struct

import pytest

from kvnode.gossip.keyspace import KeyspaceLimits
from kvnode.ids import NodeId
from kvnode.wire.gossip_seal import (
    DATAGRAM_BYTES_MAX,
    OVERHEAD_BYTES,
    ReplayWindow,
    Sealer,
    SealKind,
    body_bytes_max,
)
from kvnode.wire.limits import CodecError

SECRET = bytes(range(32))
ONE, TWO, THREE = NodeId(1), NodeId(2), NodeId(3)
DATAGRAM, REQUEST, REPLY = SealKind


def sealer(node: int, *, secret: bytes = SECRET, cluster_id: int = 0xFFFF_0000_0000_0001, boot: int = 3) -> Sealer:
    return Sealer(
        secret=secret,
        cluster_id=cluster_id,
        node=NodeId(node),
        incarnation=0x8000_0000_0000_0000 + node,
        boot_counter=boot,
        boot_nonce=9,
    )


def test_the_bytes_are_fixed() -> None:
    """Built here by hand, from the table alone."""
    head = b"kvGo\x01\x01\0\0" + struct.pack(">7Q", 0xFFFF_0000_0000_0001, 1, 2, 0x8000_0000_0000_0001, 3, 9, 77)
    key = hmac.digest(SECRET, b"kvnode gossip 1", "sha256")
    mac = hmac.new(key, head + b"body", hashlib.sha256).digest()[:16]
    sealed = sealer(1).seal(DATAGRAM, TWO, b"body", number=77)
    assert sealed == head + b"body" + mac
    assert sealed[-16:].hex() == "f465f6ef9b7156cb1eebbaa92fe408b4"
    assert len(sealed) == OVERHEAD_BYTES + 4


def test_what_is_sealed_is_opened_by_its_addressee() -> None:
    for kind in (DATAGRAM, REQUEST):
        for body in (b"", b"x", bytes(body_bytes_max(kind))):
            found = sealer(2).open(kind, sealer(1).seal(kind, TWO, body, number=5))
            assert (found.sender, found.number, found.body) == (1, 5, body)
            assert (found.incarnation, found.boot_counter, found.boot_nonce) == (0x8000_0000_0000_0001, 3, 9)


def test_a_body_too_large_is_not_sealed_and_too_much_is_not_opened() -> None:
    for kind in (DATAGRAM, REQUEST):
        with pytest.raises(CodecError, match="at most"):
            sealer(1).seal(kind, TWO, bytes(body_bytes_max(kind) + 1), number=1)
    with pytest.raises(CodecError, match="at most"):
        sealer(2).open(DATAGRAM, bytes(DATAGRAM_BYTES_MAX + 1))


@pytest.mark.parametrize(
    ("by", "says"),
    [
        (sealer(1, secret=b"?" * 32), "not proven"),
        (sealer(1, cluster_id=5), "of cluster 0000000000000005"),
        (sealer(2), "from member 2 to member 2"),
        (sealer(0), "from member 0"),
    ],
    ids=["another-secret", "another-cluster", "itself", "nobody"],
)
def test_who_cannot_be_a_peer_is_refused(by: Sealer, says: str) -> None:
    with pytest.raises(CodecError, match=says):
        sealer(2).open(DATAGRAM, by.seal(DATAGRAM, TWO, b"body", number=1))


def test_what_is_meant_for_another_is_refused() -> None:
    sealed = sealer(1).seal(DATAGRAM, TWO, b"body", number=1)
    with pytest.raises(CodecError, match="has come to member 3"):
        sealer(3).open(DATAGRAM, sealed)


def test_a_kind_is_never_taken_for_another() -> None:
    request = sealer(1).seal(REQUEST, TWO, b"body", number=1)
    reply = sealer(1).seal(REPLY, TWO, b"body", request_mac=bytes(16))
    for kind, data in ((DATAGRAM, request), (REPLY, request), (DATAGRAM, reply), (REQUEST, reply)):
        with pytest.raises(CodecError, match="kind"):
            sealer(2).open(kind, data, request_mac=bytes(16))


def test_an_answer_is_good_for_its_request_only() -> None:
    """Not for another one, nor for the same bytes asked under the same number in another start."""
    one, two = sealer(1), sealer(2)
    request = one.seal(REQUEST, TWO, b"pull", number=1)
    reply = two.seal(REPLY, ONE, b"page", request_mac=two.open(REQUEST, request).mac)
    assert one.open(REPLY, reply, request_mac=one.mac_of(request)).body == b"page"
    next_one = one.seal(REQUEST, TWO, b"pull", number=2)
    restarted = sealer(1, boot=4)
    same_again = restarted.seal(REQUEST, TWO, b"pull", number=1)
    for asker, asked in ((one, next_one), (restarted, same_again)):
        with pytest.raises(CodecError, match="not proven"):
            asker.open(REPLY, reply, request_mac=asker.mac_of(asked))


def test_every_cut_and_every_damaged_bit_is_noticed() -> None:
    sealed = sealer(1).seal(DATAGRAM, TWO, b"body", number=1)
    for end in range(len(sealed)):
        with pytest.raises(CodecError):
            sealer(2).open(DATAGRAM, sealed[:end])
    for position in range(len(sealed) * 8):
        damaged = bytearray(sealed)
        damaged[position // 8] ^= 1 << (position % 8)
        with pytest.raises(CodecError):
            sealer(2).open(DATAGRAM, bytes(damaged))
    with pytest.raises(CodecError):
        sealer(2).open(DATAGRAM, sealed + b"\0")


def test_numbers_out_of_range_are_refused_though_proven() -> None:
    for boot, number in ((1 << 63, 1), (1, 1 << 63)):
        sealed = sealer(1, boot=boot).seal(DATAGRAM, TWO, b"", number=number)
        with pytest.raises(CodecError, match="out of range"):
            sealer(2).open(DATAGRAM, sealed)


def test_noise_is_refused() -> None:
    rng = random.Random(4)
    for _ in range(2_000):
        with pytest.raises(CodecError):
            sealer(2).open(DATAGRAM, b"kvGo"[: rng.randrange(5)] + rng.randbytes(rng.randrange(200)))


def test_the_window_takes_each_number_once() -> None:
    window = ReplayWindow()
    assert [window.take(number) for number in (1, 3, 2, 2, 3, 1)] == [True, True, True, False, False, False]
    far = 5 + ReplayWindow.WIDTH
    assert window.take(far)
    assert not window.take(5), "too old to tell"
    assert window.take(6)
    assert not window.take(6)


def test_the_window_agrees_with_a_set_of_numbers() -> None:
    rng = random.Random(8)
    window, seen, highest = ReplayWindow(), set(), 0
    for _ in range(20_000):
        number = max(1, highest + rng.choice([1, 1, 1, 5, 2_000]) - rng.choice([0, 0, 3, 900, 1_100]))
        highest = max(highest, number)
        expected = number not in seen and highest - number < ReplayWindow.WIDTH
        seen.add(number)
        assert window.take(number) == expected, number


def test_a_key_that_many_members_filled_while_apart_fits_into_a_reply() -> None:
    """It goes as a whole; were it too large, it would go nowhere, and no key behind it either."""
    limits = KeyspaceLimits()
    of_one_member = limits.state_bytes_max + limits.value_bytes_max
    assert 32 * of_one_member + (1 << 20) <= body_bytes_max(SealKind.REPLY)
