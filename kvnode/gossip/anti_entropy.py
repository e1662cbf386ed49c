"""Anti-entropy of the keyspace: a replica sends its vector and gets the states of the keys that changed beyond it.

A page speaks for an interval of keys, and says: *of these keys I have carried whatever you lack of the writes that my
vector covers*. What changed is usually little; then one page speaks for all keys, found by dots (`changed_since`). If
it is too much for one page, pages go through the keys in byte order, and the receiver keeps a `CatchUp`: how far it is,
and what vector the pages so far stand for. **A vector is raised only when all keys are passed**, never page by page.

Why not page by page, in the order of each origin's dots? States are carried whole, so a key that origin *o* wrote as
its 1st and 5th write travels with dot 5. A page that ends after dot 2 would have to claim dot 1: either it is a lie
(the receiver will refuse that value from others as "seen and replaced", and if whoever holds dot 5 loses its store the
two never agree again), or superseded dots must be kept. The order of keys is the same on all replicas, so a catch-up
goes on with any sender, and a page is about states, not about the history of one origin.

**What holds.** For replica r and key k let V(r, k) be r's vector, joined with the target of its catch-up if that has
passed k; C(r, k) the context of its state; F(r) the join of the contexts of tombstones that were forgotten. Let W(k) be
all writes of k ever, and *drops(w)* the siblings that write w removed where it was made.

    I   r's siblings of k are exactly S(K): the values written in K that no write in K drops, where
        K = {w in W(k): C(r, k) or V(r, k) covers w}; and K holds drops(w) for each w in it
    II  every w in W(k) that r's vector covers is covered by C(r, k) or by F(r); F(r) ≤ r's vector

*Merging* the state of k from s (`known` = V(r, k), `known_there` = the vector of the page) gives S(K ∪ K') where K' is
s's: a sibling of r that is not s's goes only if s's context or vector covers it, so s had it and, by I, dropped it; and
by "K holds drops(w)" nothing of r's is dropped by a write of s that s would not know to have dropped it. The same in
the other direction: **a sibling that comes in, is covered here and is not held here was replaced here; it is refused**,
even if no state tells so any more. That is why deleted keys stay deleted after their tombstones are forgotten, and no
value is refused wrongly: V(r, k) never claims a write whose state r has not merged.

*Leaving keys out.* Let `since` be r's vector as the page was asked for, and F(s) ≤ `since`. If s does not carry k, then
C(s, k) ≤ `since`, so with II every write of k that s's vector covers is one r covers already: raising r's vector adds
nothing to K. If s carries k, r's context gains C(s, k), and the same holds. When F(s) is not within `since` (r is new,
or was wiped, or s forgot too early), r may hold a value whose deletion s has forgotten, so leaving out says nothing:
the page is `whole`, it lists every key of its interval, and r drops what it holds there, s does not, and s's vector
covers. r takes F(s) over at the end, so that II holds for it; that forgetting asks all members first only makes this
rare. It is what brings a wiped member back, whatever others believed it knew.

*A catch-up with several senders* stands for the meet of their vectors. Lowering the target keeps I if it still covers
F of the whole pages taken (a deletion must not be unlearnt while its effect stays); a sender that would lower it
further is passed over. A catch-up that gets nowhere is given up after `MISSES_MAX` pages. Nothing is lost by that: its
states are merged. Their dots may lie beyond the vector, for ever if their origin is gone; so the digest that replicas
compare covers them as well (`KeyTable.beyond`), and equal digests mean equal K for every key, hence equal siblings.

Pages may be lost, repeated, delayed, reordered: one that does not continue the catch-up, or answers a question of an
earlier life (its `since` is not within the vector), is ignored altogether. The sender keeps nothing.

Source: "one vector summarises all keys": Gonçalves et al., "Concise Server-Wide Causality Management for Eventually
Consistent Data Stores" (2015); stable deletion: Wuu and Bernstein (1984).
"""

from __future__ import annotations

import msgspec

from kvnode.clocks.version_vector import VectorRow, VersionVector
from kvnode.gossip.key_state import KeyState, StateRow
from kvnode.gossip.key_table import KeyTable, cost

SCAN_KEYS_MAX = 5_000
"""Looked at for one page of an interval: a page may come out short, or empty, and still move on."""

MISSES_MAX = 8


class KeyspaceWant(msgspec.Struct, frozen=True, array_like=True):
    """Receiver → sender: what I have, and up to which key I am catching up."""

    since: VectorRow
    after: bytes = b""  # empty: from the beginning


class KeyspaceDelta(msgspec.Struct, frozen=True, array_like=True):
    """Sender → receiver: states of the keys in (`after`, `upto`]."""

    since: VectorRow  # of the request
    vector: VectorRow  # the sender's
    forgotten: VectorRow  # the sender's: join of the contexts of tombstones it has forgotten
    after: bytes
    upto: bytes | None  # None: to the last key
    whole: bool  # every key it has in the interval; else those with a write beyond `since`
    states: tuple[tuple[bytes, StateRow], ...]  # in byte order

    @property
    def more(self) -> bool:
        return self.upto is not None


class CatchUp(msgspec.Struct, frozen=True):
    """A walk through all keys, as far as it has come: keys up to `position` are as new as `target`."""

    target: VersionVector
    forgotten: VersionVector = VersionVector.EMPTY  # of the whole pages taken; ≤ target
    position: bytes = b""
    misses: int = 0  # pages since that did not continue it

    def passed(self, key: bytes) -> bool:
        return key <= self.position

    def taking(
        self, after: bytes, upto: bytes | None, vector: VersionVector, forgotten: VersionVector
    ) -> CatchUp | None:
        """Moved on by a page of (`after`, `upto`]; None: it does not continue this. `position` stays at the end."""
        if after > self.position or (upto is not None and upto <= self.position):
            return None
        target = self.target.meet(vector)
        hidden = self.forgotten.merge(forgotten)
        if not target.includes(hidden):
            return None
        return CatchUp(target, hidden, self.position if upto is None else upto)


def make_page(
    table: KeyTable, vector: VersionVector, forgotten: VersionVector, want: tuple[VersionVector, bytes], bytes_max: int
) -> KeyspaceDelta:
    """What whoever wants (since, after) lacks; about `bytes_max` bytes, but one key at least if there is any."""
    since, after = want
    whole = not since.includes(forgotten)
    changed = None if whole else _all_changed(table, since, bytes_max)
    if changed is not None:
        upto: bytes | None = None
        after = b""
        states = [(key, state) for key in changed if (state := table.get(key)) is not None]
    else:
        states, upto = _interval(table, since, after, bytes_max, whole)
    rows = tuple((key, state.to_row()) for key, state in states)
    return KeyspaceDelta(since.to_row(), vector.to_row(), forgotten.to_row(), after, upto, whole, rows)


def _all_changed(table: KeyTable, since: VersionVector, bytes_max: int) -> list[bytes] | None:
    """Every key with a write beyond `since`; None: more than fits into a page."""
    found: dict[bytes, None] = {}
    left = bytes_max
    for key in table.changed_since(since):
        if key in found:
            continue
        left -= cost(key, table.get(key))
        if left < 0 and found:
            return None
        found[key] = None
    return sorted(found)


def _interval(
    table: KeyTable, since: VersionVector, after: bytes, bytes_max: int, whole: bool
) -> tuple[list[tuple[bytes, KeyState]], bytes | None]:
    states: list[tuple[bytes, KeyState]] = []
    last = after
    left = bytes_max
    for looked_at, (key, state) in enumerate(table.after(after)):
        if looked_at >= SCAN_KEYS_MAX:
            return states, last
        if whole or not since.includes(state.context):
            left -= cost(key, state)
            if left < 0 and states:
                return states, last
            states.append((key, state))
        last = key
    return states, None
