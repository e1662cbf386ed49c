"""GossipWorld: many gossip cores on an event heap, with a network that loses, delays, repeats, and can be cut.

A node may be killed, started anew, paused, starved (late for everything), or leave. Beside its table it holds a set of
items, which stand for the keyspace: their digest is in the summary, and a pull brings what is lacking.

After each step it is checked that nothing a node holds goes backwards, that nobody but a member raises its number,
that nobody comes back without a higher one, and that each packet fits.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from kvnode.gossip.core import Gossip
from kvnode.gossip.membership import MemberState, precedence
from kvnode.gossip.messages import PACKET_BYTES_MAX, Packet, Status, Summary
from kvnode.gossip.output import Answered, GossipFact, Pull, Received, Send
from kvnode.gossip.settings import GossipSettings
from kvnode.ids import NOBODY, NodeId
from kvnode.sim.core.heap import EventHeap

NUMBERS_PER_BOOT = 1 << 20
EXCHANGE_MS_MAX = 500
"""An exchange without an answer is given up after this."""

_encoder = msgspec.msgpack.Encoder()


def digest(items: Iterable[int]) -> int:
    """Equal for equal sets."""
    total = 0
    for item in items:
        total ^= random.Random(item).getrandbits(63)
    return total


@dataclass
class Node:
    """One member of the world."""

    id: NodeId
    offset_ms: int  # of its clock
    boot: int = 0
    gossip: Gossip | None = None  # None: not running
    items: set[int] = field(default_factory=set)
    digest: int = 0
    is_paused: bool = False
    starved_ms: int = 0  # everything happens so much later for it, at most
    inbox: list[Callable[[], None]] = field(default_factory=list)  # while paused
    armed: int = 0  # number of the newest timer
    seen: dict[NodeId, MemberState] = field(default_factory=dict)
    datagram_bytes: int = 0
    exchange_bytes: int = 0
    learnt_ms: dict[int, int] = field(default_factory=dict)  # item → when


class GossipWorld(EventHeap):
    """`size` nodes, all of one configuration."""

    def __init__(
        self,
        seed: int,
        size: int,
        *,
        settings: GossipSettings | None = None,
        loss: float = 0.0,
        duplicate: float = 0.0,
        delay_ms: tuple[int, int] = (0, 2),
        has_fallback: bool = True,
        checked: bool = True,
    ) -> None:
        super().__init__()
        self.rng = random.Random(seed)
        self.settings = settings or GossipSettings()
        self.loss, self.duplicate, self.delay_ms = loss, duplicate, delay_ms
        self.has_fallback = has_fallback  # else no probe gets through by HTTP
        self.checked = checked
        self.facts: list[tuple[int, NodeId, GossipFact]] = []  # (when, whose, what)
        self.counts: Counter[str] = Counter()
        self.cuts: dict[tuple[NodeId, NodeId], None] = {}
        ids = [NodeId(number) for number in range(1, size + 1)]
        self.nodes = {id_: Node(id_, self.rng.randrange(1_000_000)) for id_ in ids}
        self.members = {id_: f"10.0.0.{id_}:7501" for id_ in ids}

    # ── what may be done to it ──────────────────────────────────────────────────────────────────────

    def start(self, *ids: int, members: dict[NodeId, str] | None = None, learn: bool = False) -> None:
        """Start these, or all; each with the whole configuration, or what `members` names."""
        for node in [self.nodes[NodeId(id_)] for id_ in ids] or list(self.nodes.values()):
            node.boot += 1
            node.seen.clear()
            node.is_paused = False
            node.gossip = Gossip(
                node=node.id,
                number=node.boot * NUMBERS_PER_BOOT,
                incarnation=int(node.id) << 40,
                address=self.members.get(node.id, f"10.0.0.{node.id}:7501"),
                settings=self.settings,
                rng=random.Random(self.rng.getrandbits(64)),
                now_ms=self.now_ms + node.offset_ms,
                learn=learn,
            )
            node.gossip.describe(
                client_url=f"http://10.0.0.{node.id}:7401", role="voter", version="1.0.0", applied_index=1_000
            )
            node.gossip.set_summary(Summary(node.digest))
            node.gossip.set_members(self.members if members is None else members, self.now_ms + node.offset_ms)
            self._after(node)

    def start_acquainted(self) -> None:
        """All, as if they had known each other for long: nothing is left to tell."""
        self.start()
        owns = {id_: self.core(id_).own for id_ in self.nodes}
        for node in self.nodes.values():
            core = self.core(node.id)
            for entry in core._table:
                core._table.absorb(entry, owns[entry.rumor.member], self.now_ms + node.offset_ms)
            core._hearsay.queue.clear()

    def kill(self, id_: int) -> None:
        node = self.nodes[NodeId(id_)]
        node.gossip = None
        node.inbox.clear()

    def pause(self, id_: int, ms: int) -> None:
        node = self.nodes[NodeId(id_)]
        node.is_paused = True

        def resume() -> None:
            node.is_paused = False
            waiting, node.inbox = node.inbox, []
            for event in waiting:
                event()

        self.at(ms, resume)

    def leave(self, id_: int) -> None:
        """It goes as soon as it may."""
        node = self.nodes[NodeId(id_)]
        core = self.core(node.id)
        core.leave(self.now_ms + node.offset_ms)

        def look() -> None:
            if node.gossip is core:
                if core.has_left(self.now_ms + node.offset_ms):
                    self.kill(id_)
                else:
                    self.at(5, look)

        self._after(node)
        look()

    def cut(self, source: int, target: int, *, both: bool = False) -> None:
        self.cuts[NodeId(source), NodeId(target)] = None
        if both:
            self.cuts[NodeId(target), NodeId(source)] = None

    def partition(self, *groups: Iterable[int]) -> None:
        of = {id_: number for number, group in enumerate(groups) for id_ in group}
        for a in self.nodes:
            for b in self.nodes:
                if of.get(a) != of.get(b):
                    self.cut(a, b)

    def heal(self) -> None:
        self.cuts.clear()

    def wake(self, id_: int) -> None:
        """Something was told to a core from outside: look when it wants to be run."""
        self._after(self.nodes[NodeId(id_)])

    def put(self, id_: int, item: int) -> None:
        """A new item at a node."""
        self._add(self.nodes[NodeId(id_)], {item})

    # ── what it shows ───────────────────────────────────────────────────────────────────────────────

    def core(self, id_: int) -> Gossip:
        core = self.nodes[NodeId(id_)].gossip
        assert core is not None, id_
        return core

    def status(self, observer: int, member: int) -> Status:
        state = self.core(observer).member(NodeId(member))
        assert state is not None, (observer, member)
        return state.status

    def statuses(self, member: int) -> set[Status]:
        """What the running others hold of a member."""
        return {
            self.status(node.id, member)
            for node in self.nodes.values()
            if node.gossip is not None and node.id != member
        }

    def facts_of(self, kind: type[GossipFact], member: int | None = None) -> list[tuple[int, NodeId]]:
        """(when, whose) of the facts of a kind, about a member if one is named."""
        return [
            (when, whose)
            for when, whose, fact in self.facts
            if isinstance(fact, kind) and (member is None or getattr(fact, "member", None) == member)
        ]

    # ── the machinery ───────────────────────────────────────────────────────────────────────────────

    def _do(self, node: Node, event: Callable[[Gossip, int], None]) -> None:
        """Something reaches a node: now, or when it is run again."""
        core = node.gossip
        if core is None:
            return

        def run() -> None:
            if node.gossip is not core:
                return
            if node.is_paused:
                node.inbox.append(run)
                return
            event(core, self.now_ms + node.offset_ms)
            self._after(node)

        if node.starved_ms:
            self.at(self.rng.randint(node.starved_ms // 4, node.starved_ms), run)
        else:
            run()

    def _after(self, node: Node) -> None:
        core = node.gossip
        assert core is not None
        output = core.take_output()
        self.facts += [(self.now_ms, node.id, fact) for fact in output.facts]
        for send in output.packets:
            self._datagram(node, send)
        for send in output.fallbacks:
            self._fallback(node, send)
        for pull in output.pulls:
            self._pull(node, pull)
        if self.checked:
            self._check(node, core)
        node.armed += 1
        armed = node.armed

        def tick() -> None:
            if node.armed == armed:
                self._do(node, Gossip.on_tick)

        self.at(max(core.next_deadline_ms() - node.offset_ms - self.now_ms, 0), tick)

    def _reaches(self, source: NodeId, target: NodeId) -> bool:
        return target in self.nodes and (source, target) not in self.cuts

    def _delay(self) -> int:
        return self.rng.randint(*self.delay_ms)

    def _datagram(self, node: Node, send: Send) -> None:
        size = len(_encoder.encode(send.packet))
        assert size <= PACKET_BYTES_MAX, size
        node.datagram_bytes += size
        self.counts["packets"] += 1
        if not self._reaches(node.id, send.to):
            return
        cause, target = Received(node.id, send.packet), self.nodes[send.to]
        for _ in range(1 + (self.rng.random() < self.duplicate)):
            if self.rng.random() >= self.loss:
                self.at(self._delay(), lambda: self._do(target, lambda core, now_ms: core.step(now_ms, cause)))

    def _exchange(
        self,
        node: Node,
        to: NodeId,
        serve: Callable[[Gossip, int], Callable[[Gossip, int], None]],
        fail: Callable[[Gossip, int], None],
    ) -> None:
        """One HTTP exchange: reliable while both ways are open; `serve` returns what the answer does at the asker."""
        target = self.nodes.get(to)
        is_over = False

        def give_up() -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                self._do(node, fail)

        def deliver(core: Gossip, now_ms: int) -> None:
            answer = serve(core, now_ms)

            def arrive() -> None:
                nonlocal is_over
                if not is_over and self._reaches(to, node.id):
                    is_over = True
                    self._do(node, answer)

            self.at(self._delay(), arrive)

        self.at(EXCHANGE_MS_MAX, give_up)
        if target is not None and self._reaches(node.id, to):
            self.at(self._delay(), lambda: self._do(target, deliver))

    def _fallback(self, node: Node, send: Send) -> None:
        self.counts["fallbacks"] += 1
        node.exchange_bytes += len(_encoder.encode(send.packet))

        def serve(core: Gossip, now_ms: int) -> Callable[[Gossip, int], None]:
            packet: Packet = core.answer(now_ms, node.id, send.packet)
            return lambda asker, then_ms: asker.step(then_ms, Answered(send.to, packet))

        to = send.to if self.has_fallback else NOBODY
        self._exchange(node, to, serve, lambda core, now_ms: None)  # the end of the probe decides

    def _pull(self, node: Node, pull: Pull) -> None:
        self.counts["pulls"] += 1
        node.exchange_bytes += len(_encoder.encode(pull.members)) + 64
        target = self.nodes.get(pull.to)
        had = frozenset(node.items)

        def serve(core: Gossip, now_ms: int) -> Callable[[Gossip, int], None]:
            assert target is not None
            rumors = core.rumors() if pull.members else ()
            core.merge_table(pull.members, now_ms)
            items = target.items - had if pull.want_keyspace else set()
            summary = Summary(target.digest)
            target.exchange_bytes += len(_encoder.encode(rumors)) + 64

            def arrive(asker: Gossip, then_ms: int) -> None:
                asker.merge_table(rumors, then_ms)
                self._add(node, items)
                asker.pulled(pull.to, True, then_ms, summary=summary)

            return arrive

        self._exchange(node, pull.to, serve, lambda core, now_ms: core.pulled(pull.to, False, now_ms))

    def _add(self, node: Node, items: set[int]) -> None:
        new = items - node.items
        if new:
            node.items |= new
            node.digest ^= digest(new)
            node.learnt_ms.update(dict.fromkeys(sorted(new), self.now_ms))
            core = self.core(node.id)
            core.set_summary(Summary(node.digest))
            core.changed(self.now_ms + node.offset_ms)
            self._after(node)

    def _check(self, node: Node, core: Gossip) -> None:
        for state in core.table():
            owner = self.nodes.get(state.member)
            before = node.seen.get(state.member)
            number = state.rumor.number
            if owner is not None and owner.gossip is not None:
                assert number <= owner.gossip.own.number, (node.id, state, owner.gossip.own)
            if before is not None and before.rumor is not state.rumor:
                assert precedence(state.rumor) >= precedence(before.rumor), (node.id, before, state)
                if before.status > Status.ALIVE and state.status == Status.ALIVE:
                    assert number > before.rumor.number, (node.id, before, state)
            node.seen[state.member] = state
