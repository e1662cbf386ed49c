"""The table of keys keeps its indexes in step with the states."""

from __future__ import annotations

import random

from kvnode.clocks.version_vector import Dot, Origin, VersionVector
from kvnode.gossip.key_state import BLIND, KeyState
from kvnode.gossip.key_table import KeyTable, _hash
from kvnode.ids import NodeId

ORIGINS = [Origin(NodeId(member), 1) for member in (1, 2, 3)]


def test_indexes_say_what_the_states_say() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        table, counts = KeyTable(), dict.fromkeys(ORIGINS, 0)
        for _ in range(200):
            key = b"%d" % rng.randrange(12)
            state = table.get(key)
            origin = rng.choice(ORIGINS)
            match rng.choice(("put", "put", "delete", "forget", "raise")):
                case "put":
                    counts[origin] += 1
                    dot = Dot(origin, counts[origin])
                    table.set(key, (state or KeyState.EMPTY).with_write(dot, b"v", 0, BLIND))
                case "delete" if state is not None:
                    table.set(key, KeyState((), state.context))
                case "forget" if state is not None and not state.siblings:
                    table.set(key, None)
                case "raise" if counts[origin]:
                    vector = VersionVector({origin: rng.randint(1, counts[origin])})
                    table.raise_to(table.vector.merge(vector))
                case _:
                    pass
            _check(table)


def _check(table: KeyTable) -> None:
    states = dict(table.after(b""))
    beyond = 0
    for state in states.values():
        for origin, n in state.context.entries():
            beyond ^= 0 if table.vector.covers(Dot(origin, n)) else _hash(origin, n)
    assert table.beyond == beyond
    with_value = [key for key, state in states.items() if state.siblings]
    assert [key for key, _ in table.prefixed(b"", None)] == with_value
    assert [key for key, _ in table.prefixed(b"1", b"1")] == [key for key in with_value if key[:1] == b"1" != key]
    assert set(table.tombstones) == states.keys() - set(with_value)
