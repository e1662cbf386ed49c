"""KV.Compact: what can no longer be read, and what can.

Compaction reaches every key of the store. Tests run one after another and none reads revisions from before it began, so
none is disturbed.
"""

from __future__ import annotations

import pytest

from tests.etcd.target import OUT_OF_RANGE, Target
from tests.etcd.words import FAR_AHEAD, b64, interval, keys_of, prefix, revision_of, values_of

COMPACTED = "etcdserver: mvcc: required revision has been compacted"
FUTURE = "etcdserver: mvcc: required revision is a future revision"


def write(target: Target, own: bytes) -> list[int]:
    """Puts a=1, a=2, b=3, deletes a, puts c=4 → their revisions."""
    return [
        revision_of(target.put(b64(own + b"a"), b64("1"))),
        revision_of(target.put(b64(own + b"a"), b64("2"))),
        revision_of(target.put(b64(own + b"b"), b64("3"))),
        revision_of(target.delete(key=b64(own + b"a"))),
        revision_of(target.put(b64(own + b"c"), b64("4"))),
    ]


@pytest.mark.parametrize("physical", [False, True])
def test_below_the_revision_nothing_can_be_read(target: Target, own: bytes, physical: bool) -> None:
    first, second, third, _, last = write(target, own)
    answer = target.ok("kv/compaction", {"revision": third, "physical": physical})
    assert (set(answer), revision_of(answer)) == ({"header"}, last), "compaction makes no revision"
    assert target.revision() == last
    for revision in (1, first, second):
        target.refused("kv/range", {**prefix(own), "revision": revision}, OUT_OF_RANGE, COMPACTED)
        target.refused("kv/range", {"key": b64(own), "revision": revision, "count_only": True}, OUT_OF_RANGE, COMPACTED)
    assert values_of(target.range(**prefix(own), revision=third)) == [b"2", b"3"]
    assert keys_of(target.range(**prefix(own), revision=third + 1)) == [own + b"b"]
    assert keys_of(target.range(**prefix(own))) == [own + b"b", own + b"c"]


def test_serializable_reads_are_refused_too(target: Target, own: bytes) -> None:
    first, *_, last = write(target, own)
    target.ok("kv/compaction", {"revision": last})
    target.range(**prefix(own))
    body = {**prefix(own), "revision": first, "serializable": True}
    target.refused("kv/range", body, OUT_OF_RANGE, COMPACTED)


def test_the_newest_versions_stay(target: Target, own: bytes) -> None:
    *_, last = write(target, own)
    whole = target.range(**prefix(own))["kvs"]
    target.ok("kv/compaction", {"revision": last, "physical": True})
    assert target.range(**prefix(own))["kvs"] == whole
    assert target.range(**prefix(own), revision=last)["kvs"] == whole
    target.put(b64(own + b"b"), b64("5"))
    assert target.range(**prefix(own), revision=last)["kvs"] == whole
    assert target.range(key=b64(own + b"b"))["kvs"][0]["version"] == "2"


def test_compacting_again_must_go_on(target: Target, own: bytes) -> None:
    first, second, third, fourth, last = write(target, own)
    target.ok("kv/compaction", {"revision": third})
    for revision in (third, second, first, 1, 0, -1):
        target.refused("kv/compaction", {"revision": revision}, OUT_OF_RANGE, COMPACTED)
    target.refused("kv/compaction", {}, OUT_OF_RANGE, COMPACTED)
    target.ok("kv/compaction", {"revision": str(fourth)})
    target.ok("kv/compaction", {"revision": last, "physical": True})
    target.refused("kv/compaction", {"revision": last, "physical": True}, OUT_OF_RANGE, COMPACTED)


def test_the_future_cannot_be_compacted(target: Target, own: bytes) -> None:
    *_, last = write(target, own)
    for revision in (last + 1, FAR_AHEAD, (1 << 63) - 1):
        target.refused("kv/compaction", {"revision": revision}, OUT_OF_RANGE, FUTURE)
    assert values_of(target.range(**prefix(own), revision=last - 2)) == [b"2", b"3"]


def test_a_txn_that_reads_what_is_compacted_is_refused_whole(target: Target, own: bytes) -> None:
    first, *_, last = write(target, own)
    target.ok("kv/compaction", {"revision": last})
    past = {"request_range": {"key": b64(own), "revision": first}}
    put = {"request_put": {"key": b64(own + b"d"), "value": b64("1")}}
    target.refused("kv/txn", {"success": [put, past]}, OUT_OF_RANGE, COMPACTED)
    target.refused("kv/txn", {"success": [past]}, OUT_OF_RANGE, COMPACTED)
    assert target.revision() == last
    answer = target.txn(success=[put], failure=[past])
    assert revision_of(answer) == last + 1, "a branch that does not run may read it"


def test_what_is_deleted_stays_deleted(target: Target, own: bytes) -> None:
    write(target, own)
    gone = revision_of(target.delete(**interval(own, own + b"z")))
    target.ok("kv/compaction", {"revision": gone, "physical": True})
    assert set(target.range(**prefix(own))) == {"header"}
    assert set(target.range(**prefix(own), revision=gone)) == {"header"}
    revision = revision_of(target.put(b64(own + b"a"), b64("new")))
    [kv] = target.range(key=b64(own + b"a"))["kvs"]
    assert (kv["version"], kv["create_revision"]) == ("1", str(revision))
