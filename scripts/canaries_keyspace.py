"""Canaries of the always-writable keyspace: dots, contexts, pages, tombstones."""

from __future__ import annotations

from canary import Canary

_STATE = ("tests/gossip/test_key_state.py",)
_KEYSPACE = ("tests/gossip/test_keyspace.py",)
_PAGES = ("tests/gossip/test_anti_entropy.py",)
_WORLDS = ("tests/gossip/test_keyspace_worlds.py",)

CANARIES: tuple[Canary, ...] = (
    Canary(
        "ap-own-dot-dropped",
        "the context of a key does not cover the write that was just made",
        "kvnode/gossip/key_state.py",
        "        return KeyState(tuple(left), self.context.with_dot(dot))",
        "        return KeyState(tuple(left), self.context)",
        _STATE + _WORLDS,
        sim=("runtime", 100),
    ),
    Canary(
        "ap-equal-called-concurrent",
        "equal version vectors are taken for concurrent ones",
        "kvnode/clocks/version_vector.py",
        '            return "equal" if behind else "after"',
        '            return "concurrent" if behind else "after"',
        ("tests/clocks/test_version_vector.py",),
    ),
    Canary(
        "ap-tombstone-forgotten-at-once",
        "a tombstone is forgotten before every member has the deletion",
        "kvnode/gossip/keyspace.py",
        "        stable = covered_by_all.meet(self.vector)",
        "        stable = self.vector",
        _PAGES,
    ),
    Canary(
        "ap-vector-raised-by-a-part",
        "a vector rises with a page that does not speak for all keys",
        "kvnode/gossip/keyspace.py",
        "        reached = self.vector if delta.more else self.vector.merge(moved.target)",
        "        reached = self.vector.merge(moved.target)",
        _WORLDS,
    ),
    Canary(
        "ap-covered-sibling-stays",
        "a write leaves a sibling that its context covers",
        "kvnode/gossip/key_state.py",
        "        left = [sibling for sibling in self.siblings if not replaces.covers(sibling.dot)]",
        "        left = [*self.siblings]",
        _KEYSPACE,
    ),
    Canary(
        "ap-superseded-sibling-merged-back",
        "a merge keeps a sibling that the other side has seen and replaced",
        "kvnode/gossip/key_state.py",
        "                if dot in theirs or not (other.context.covers(dot) or known_there.covers(dot))",
        "                if dot in theirs or not known_there.covers(dot)",
        _STATE,
    ),
    Canary(
        "ap-resurrection",
        "a sibling comes in that was seen and replaced here, when no state tells so any more",
        "kvnode/gossip/key_state.py",
        "                if dot not in mine and not (self.context.covers(dot) or known.covers(dot))",
        "                if dot not in mine and not self.context.covers(dot)",
        _WORLDS,
    ),
    Canary(
        "ap-left-out-after-forgetting",
        "a page leaves keys out though the receiver may hold what was deleted and forgotten",
        "kvnode/gossip/anti_entropy.py",
        "    whole = not since.includes(forgotten)",
        "    whole = False",
        _PAGES,
    ),
    Canary(
        "ap-forgetting-not-passed-on",
        "a replica does not remember what those it learned from have forgotten",
        "kvnode/gossip/keyspace.py",
        "            self.forgotten = self.forgotten.merge(moved.forgotten)",
        "            pass",
        _WORLDS,
    ),
    Canary(
        "ap-shown-before-durable",
        "writes are shown that are still on their way to the disk",
        "kvnode/gossip/staging.py",
        "        while self._batches and 0 < self._batches[0].mark <= mark:",
        "        while self._batches and 0 < self._batches[0].mark:",
        _KEYSPACE,
    ),
    Canary(
        "ap-writes-beyond-the-vector-hidden",
        "the digest leaves out what a catch-up brought beyond the vector",
        "kvnode/gossip/keyspace.py",
        "        return self.vector.digest() ^ self._table.beyond",
        "        return self.vector.digest()",
        _PAGES,
    ),
    Canary(
        "ap-answer-covers-the-unseen",
        "the context of a write's answer covers what others wrote by the same node",
        "kvnode/gossip/key_state.py",
        "        return Context(replaced.vector, dot) if unseen else Context(replaced.vector.with_dot(dot))",
        "        return Context(replaced.vector.with_dot(dot))",
        _KEYSPACE,
    ),
    Canary(
        "ap-cap-lifted",
        "writes without context pile up siblings without end",
        "kvnode/gossip/keyspace.py",
        "            len(after.siblings) > self.limits.siblings_max or before.value_bytes",
        "            len(after.siblings) > self.limits.siblings_max << 10 or before.value_bytes",
        _KEYSPACE,
    ),
)
