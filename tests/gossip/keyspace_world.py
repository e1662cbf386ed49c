"""A world of replicas that do everything the real ones may, and a model that knows all writes and says what must hold.

`choose(n)` decides everything (0 … n - 1), so that a list of numbers is a world, and shrinks. Pages are made small,
wait in the network, arrive in any order, more than once, or never. Stores lose nothing that was durable; a wiped
member comes back under a new incarnation, while the others still believe what they knew of its vector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from kvnode.clocks.version_vector import Dot, Origin, VersionVector
from kvnode.errors import BadContext, Conflict
from kvnode.gossip.anti_entropy import KeyspaceDelta
from kvnode.gossip.key_state import BLIND, Context, KeyState
from kvnode.gossip.keyspace import Keyspace
from kvnode.gossip.keyspace_rows import Changes
from kvnode.ids import NodeId

KEYS = [b"a", b"b", b"c", b"d", b"e"]
_decoder = msgspec.msgpack.Decoder(KeyspaceDelta)


@dataclass
class Write:
    key: bytes
    is_put: bool
    context: Context | None
    drops: set[Dot]


@dataclass
class Member:
    keyspace: Keyspace
    life: int
    store: dict[bytes, bytes] = field(default_factory=dict)
    under_way: list[Changes] = field(default_factory=list)
    believed: dict[int, VersionVector] = field(default_factory=dict)  # what it last heard of the others' vectors
    durable: int = 0  # newest own dot in the store


class World:
    def __init__(self, choose: Callable[[int], int], *, wipes: bool, rash: bool) -> None:
        self.choose = choose
        self.wipes, self.rash = wipes, rash
        self.writes: dict[Dot, Write] = {}
        self.contexts: dict[bytes, list[Context]] = {key: [] for key in KEYS}
        self.network: list[tuple[int, int, bytes]] = []  # from, to, encoded page
        self.members = {number: self._born(number, 1) for number in range(1, 3 + choose(4))}
        self.values = 0

    @staticmethod
    def _born(number: int, life: int) -> Member:
        return Member(Keyspace(Origin(NodeId(number), life)), life)

    # -- what happens -------------------------------------------------------------------------------------------------

    def step(self) -> None:
        number = 1 + self.choose(len(self.members))
        member = self.members[number]
        match self.choose(20):
            case 0 | 1 | 2 | 3:
                self.write(member, is_put=True)
            case 4 | 5:
                self.write(member, is_put=False)
            case 6 | 7 | 8:
                self.ask(number, 1 + self.choose(len(self.members)))
            case 9 | 10 | 11 | 12 if self.network:
                self.deliver(self.choose(len(self.network)), again=self.choose(4) == 0)
            case 13:
                self.take(member)
            case 14 | 15:
                self.reach_disk(member)
            case 16 | 17:
                self.forget(number)
            case 18 if self.choose(2) == 0:
                self.crash(number)
            case 19 if self.wipes and self.choose(4) == 0:
                self.members[number] = self._born(number, member.life + 1)
            case _:
                self.pull(number, 1 + self.choose(len(self.members)))
        self.check()

    def write(self, member: Member, *, is_put: bool) -> None:
        key = KEYS[self.choose(len(KEYS))]
        read = member.keyspace.read(key)
        seen = self.contexts[key]
        if read is not None:
            seen.append(Context(read.context))
        context = None
        if self.choose(3) > (0 if is_put else 1):
            context = seen[-1 - self.choose(min(4, len(seen)))] if seen else BLIND
        before = member.keyspace._newest(key)
        try:
            if is_put:
                self.values += 1
                written = member.keyspace.put(key, b"%d" % self.values, context=context, time=self.values)
            else:
                written = member.keyspace.delete(key, context=context, time=0)
        except (BadContext, Conflict):
            return
        if written.dot is not None:
            covering = context or (BLIND if is_put else Context(before.context))
            seen.append(written.context)
            drops = {sibling.dot for sibling in before.siblings if covering.covers(sibling.dot)}
            assert is_put or drops
            assert written.dot not in self.writes, "a dot is given out once"
            self.writes[written.dot] = Write(key, is_put, covering, drops)

    def take(self, member: Member) -> None:
        member.under_way.append(member.keyspace.take_changes())

    def reach_disk(self, member: Member) -> None:
        self.take(member)
        for changes in member.under_way[: 1 + self.choose(len(member.under_way))]:
            member.under_way.remove(changes)
            member.store.update(changes.rows)
            for name in changes.removed:
                member.store.pop(name, None)
            member.keyspace.made_durable(changes.mark)

    def ask(self, asker: int, asked: int) -> None:
        """`asked` makes a page for `asker`; it waits in the network."""
        want = self.members[asker].keyspace.want()
        since = VersionVector.from_row(want.since)
        self.members[asked].believed[asker] = since
        page = self.members[asked].keyspace.delta(since, (1, 150, 100_000)[self.choose(3)], want.after)
        self.network.append((asked, asker, msgspec.msgpack.encode(page)))
        del self.network[:-12]

    def deliver(self, which: int, *, again: bool) -> None:
        sender, to, page = self.network[which] if again else self.network.pop(which)
        delta = _decoder.decode(page)
        self.members[to].believed[sender] = VersionVector.from_row(delta.vector)
        self.members[to].keyspace.merge(delta)

    def pull(self, asker: int, asked: int) -> None:
        """Asks until there is no more."""
        for _ in range(50):
            self.ask(asker, asked)
            more = _decoder.decode(self.network[-1][2]).more
            self.deliver(len(self.network) - 1, again=False)
            if not more:
                return
        raise AssertionError("a catch-up does not end")

    def forget(self, number: int) -> None:
        member = self.members[number]
        if self.rash and self.choose(2) == 0:
            member.keyspace.forget(member.keyspace.vector)
            return
        stable = member.keyspace.vector
        for other in self.members:
            if other != number:
                stable = stable.meet(member.believed.get(other, VersionVector.EMPTY))
        member.keyspace.forget(stable)

    def crash(self, number: int) -> None:
        member = self.members[number]
        origin = member.keyspace.origin
        keyspace = Keyspace.restore(origin, sorted(member.store.items()))
        for dot in [dot for dot in self.writes if dot.origin == origin and not keyspace.vector.covers(dot)]:
            del self.writes[dot]  # never durable, so never seen: the number is given out again
        self.members[number] = Member(keyspace, member.life, member.store, believed=member.believed)

    # -- what must hold -----------------------------------------------------------------------------------------------

    def check(self) -> None:
        for member in self.members.values():
            self.check_member(member.keyspace)

    def check_member(self, keyspace: Keyspace) -> None:
        assert keyspace.vector.includes(keyspace.forgotten)
        for key in KEYS:
            state = keyspace.read(key) or KeyState.EMPTY
            known = state.context.merge(keyspace._known(key))
            writes = {dot: write for dot, write in self.writes.items() if write.key == key and known.covers(dot)}
            dropped = {dot for write in writes.values() for dot in write.drops}
            expected = sorted(dot for dot, write in writes.items() if write.is_put and dot not in dropped)
            assert [sibling.dot for sibling in state.siblings] == expected, (keyspace.origin, key, state)
            assert dropped <= writes.keys(), "what a known write dropped is known"
            for dot, n in state.context.entries():
                assert self.writes[Dot(dot, n)].key == key, "a context lists writes of its own key"
            for dot in writes:
                assert state.context.covers(dot) or not keyspace.vector.covers(dot) or keyspace.forgotten.covers(dot)

    def heal(self) -> None:
        """Everybody talks to everybody until their digests are equal."""
        for member in self.members.values():
            while member.keyspace.counts()["staged"]:
                self.reach_disk(member)
        numbers = list(self.members)
        for _ in range(12):
            for asker in numbers:
                for asked in numbers:
                    if self.members[asker].keyspace.digest() != self.members[asked].keyspace.digest():
                        self.pull(asker, asked)
            self.check()
            if len({member.keyspace.digest() for member in self.members.values()}) == 1:
                break
        else:
            raise AssertionError("the replicas do not come to agree")
        self.check_agreement()

    def check_agreement(self) -> None:
        keyspaces = [member.keyspace for member in self.members.values()]
        assert len({keyspace.vector for keyspace in keyspaces}) == 1
        for key in KEYS:
            states = [keyspace.read(key) or KeyState.EMPTY for keyspace in keyspaces]
            assert all(state.siblings == states[0].siblings for state in states), (key, states)
        for (
            dot,
            write,
        ) in self.writes.items():  # nothing is lost: it is there, or somebody had seen it and wrote over it
            if write.is_put and keyspaces[0].vector.covers(dot):
                siblings = (keyspaces[0].read(write.key) or KeyState.EMPTY).siblings
                assert dot in [sibling.dot for sibling in siblings] or any(
                    other.key == write.key and other.context is not None and other.context.covers(dot)
                    for other in self.writes.values()
                ), dot

    def forget_all(self) -> None:
        """With all vectors equal and known, every tombstone goes, and nothing comes back."""
        for member in self.members.values():
            member.keyspace.forget(member.keyspace.vector)
