"""The language of the core's golden scripts: commands over a `Cluster`, and what a trace shows.

Positions are written index.term, logs as runs of terms (1x3,4x2 is terms 1 1 1 4 4). A trace shows every message as it
leaves, every fact, every rise of a commit index, every answer to a client, and the writes of disks that are held.

    cluster nodes=1,2,3 log1=1x3,4 term2=5 vote2=3 hold=2 learners=4 window=1   nodes, logs, hard states, held disks
    timeout N · win N · elect N                        the election timer fires; and votes, or all messages, arrive
    heartbeat N · tick N                               a leader's beat is due; a look at the deadlines
    wait MS · advance MS                               time passes: nobody runs; or all tick and messages flow
    deliver · drop · repeat · reverse [1>2 | >2 | 1> | append | accept | vote …]    what is on the wire
    settle · clear                                     deliver until the wire is empty; empty it
    keep NAME [selector] · hand NAME · burst NAME      take messages away; deliver these, one by one or as one step
    inject 2>1 vote last=3.1 term=5                    deliver a message made up: no entries, all else is 0 if not given
    hold N · persist N [COUNT] · release N             disk writes wait; finish; finish at once again
    crash N [KEPT] · start N                           un-synced writes are lost, but for the first KEPT
    cut 1 2,3 · cutoneway 1 2 · heal                   links
    trim N · snapshot N TO · sent N PEER INDEX         N's log begins behind what it has applied; its state reaches TO
    add N · member N add ID · promote ID · remove ID   a node with an empty log; a change of members, proposed at N
    propose N TEXT… · read N · transfer N [TO]         clients and operators
    clock N MS                                         its wall clock is so much ahead of the others
    refused N PEER · disconnected N PEER · connected N PEER · stall N · recover N
    state [N…] · progress N · wire · level              nodes; a leader's view; what is under way; all logs are equal
"""

from __future__ import annotations

import msgspec

from kvnode.config import RaftSection
from kvnode.ids import NOBODY, Index, NodeId, Term
from kvnode.kv.members import AddMember, PromoteMember, RemoveMember
from kvnode.raft.messages import (
    AppendEntries,
    AppendReply,
    DiskRecovered,
    DiskStalled,
    HardState,
    PeerConnected,
    PeerDisconnected,
    PeerMessage,
    PeerRefused,
    SnapshotSent,
    TransferLeadership,
    VoteReply,
    VoteRequest,
)
from tests.raft.cluster import Envelope
from tests.raft.trace import Traced, describe, kind, runs

_SETTINGS = {
    "window": "window_messages_max",
    "window_bytes": "window_bytes_max",
    "append_bytes": "append_bytes_max",
    "uncommitted": "uncommitted_bytes_max",
    "cache": "log_cache_bytes",
}

_ELECTION = ("prevote", "pregrant", "prerefuse", "vote", "grant", "refuse")


def terms_of(text: str) -> list[int]:
    """1x3,4 → [1, 1, 1, 4]."""
    parts = [part.partition("x") for part in text.split(",") if part not in ("", "-")]
    return [int(term) for term, _, count in parts for _ in range(int(count or 1))]


class Conversation:
    """Interprets one script; `__call__` executes a command and returns its trace."""

    def __init__(self) -> None:
        self.cluster = Traced(1)
        self.kept: dict[str, list[Envelope]] = {}

    def __call__(self, line: str) -> list[str]:
        verb, *words = line.split()
        self.cluster.trace = []
        answer = getattr(self, f"do_{verb}")(*words)
        return [*self.cluster.trace, *(answer or [])]

    # ── the cluster and its time ────────────────────────────────────────────────────────────────────

    def do_cluster(self, *words: str) -> None:
        named = dict(word.split("=", 1) for word in words)
        ids = _ids(named.pop("nodes"))
        learners = _ids(named.pop("learners", ""))
        held = _ids(named.pop("hold", ""))
        chosen = {_SETTINGS[name]: int(named.pop(name)) for name in list(named) if name in _SETTINGS}
        logs = {id_: terms_of(named.pop(f"log{id_}", "-")) for id_ in [*ids, *learners]}
        self.cluster = Traced(
            ids, learners=learners, logs=logs, settings=RaftSection(**{"commit_note_ms": 0, **chosen}), slow_disks=held
        )  # type: ignore[arg-type]
        for id_ in [*ids, *learners]:
            disk = self.cluster.member(id_).disk
            term = Term(int(named.pop(f"term{id_}", disk.hard_state.term)))
            disk.hard_state = HardState(term, NodeId(int(named.pop(f"vote{id_}", 0))))
            self.cluster.start(id_)
        assert not named, named

    def do_timeout(self, id_: str) -> None:
        self.cluster.elect(int(id_), settle=False)

    def do_elect(self, id_: str) -> None:
        self.cluster.elect(int(id_))

    def do_win(self, id_: str) -> None:
        """Win an election by its messages alone; the new leader's appends are on the wire, and so is what was there."""
        self.cluster.elect(int(id_), settle=False)
        while self.cluster.deliver(lambda envelope: kind(envelope.message) in _ELECTION):
            pass
        assert self.cluster[int(id_)].role == "leader", "not elected"

    def do_heartbeat(self, id_: str) -> None:
        leadership = self.cluster[int(id_)].state.leadership
        assert leadership is not None, "only a leader beats"
        self.cluster.now_ms = max(self.cluster.now_ms, leadership.heartbeat_deadline_ms)
        self.do_tick(id_)

    def do_tick(self, id_: str) -> None:
        self.cluster.tick(int(id_))

    def do_wait(self, ms: str) -> None:
        self.cluster.now_ms += int(ms)

    def do_advance(self, ms: str) -> None:
        self.cluster.advance(int(ms))

    # ── the wire ────────────────────────────────────────────────────────────────────────────────────

    def do_deliver(self, *selectors: str) -> None:
        assert self.cluster.deliver(lambda envelope: _selects(selectors, envelope)), "nothing to deliver"

    def do_settle(self) -> None:
        self.cluster.settle()

    def do_drop(self, *selectors: str) -> None:
        assert self._take(selectors), "nothing to drop"

    def do_clear(self) -> None:
        self.cluster.wire.clear()

    def do_keep(self, name: str, *selectors: str) -> None:
        self.kept[name] = self._take(selectors)
        assert self.kept[name], "nothing to keep"

    def do_hand(self, name: str) -> None:
        self.cluster.hand(*self.kept[name])

    def do_burst(self, name: str) -> None:
        """All in one step of the driver: one output for all of them."""
        kept = self.kept[name]
        self.cluster.feed(kept[0].to, *(envelope.message for envelope in kept))

    def do_inject(self, link: str, word: str, *words: str) -> None:
        sender, to = (NodeId(int(id_)) for id_ in link.split(">"))
        message = _made_up(sender, word, words)
        if isinstance(message, AppendReply) and sender in self.cluster.members:
            message = msgspec.structs.replace(message, life=self.cluster.member(sender).life)
        self.cluster.hand(Envelope(sender, to, message))

    def do_repeat(self, *selectors: str) -> None:
        chosen = [envelope for envelope in self.cluster.wire if _selects(selectors, envelope)]
        assert chosen, "nothing to repeat"
        self.cluster.hand(*chosen)

    def do_reverse(self, *selectors: str) -> None:
        taken = self._take(selectors)
        self.cluster.wire += reversed(taken)

    def _take(self, selectors: tuple[str, ...]) -> list[Envelope]:
        return self.cluster.take(lambda envelope: _selects(selectors, envelope))

    def do_cut(self, left: str, right: str) -> None:
        self.cluster.cut(_ids(left), _ids(right))

    def do_cutoneway(self, left: str, right: str) -> None:
        self.cluster.cut(_ids(left), _ids(right), one_way=True)

    def do_heal(self) -> None:
        self.cluster.heal()

    # ── one node ────────────────────────────────────────────────────────────────────────────────────

    def do_hold(self, id_: str) -> None:
        self.cluster.slow_disks[NodeId(int(id_))] = True

    def do_persist(self, id_: str, count: str = "1") -> None:
        for _ in range(int(count)):
            self.cluster.complete_write(int(id_))

    def do_release(self, id_: str) -> None:
        del self.cluster.slow_disks[NodeId(int(id_))]
        self.cluster.complete_writes(int(id_))

    def do_crash(self, id_: str, kept: str = "0") -> None:
        for _ in range(int(kept)):
            self.cluster.member(int(id_)).disk.complete()
        self.cluster.crash(int(id_))

    def do_start(self, id_: str) -> None:
        self.cluster.start(int(id_))

    def do_trim(self, id_: str) -> None:
        self.cluster.trim(int(id_))

    def do_snapshot(self, id_: str, to: str) -> None:
        self.cluster.step(int(to), self.cluster.snapshot_of(int(id_)))

    def do_sent(self, id_: str, peer: str, index: str) -> None:
        self.cluster.step(int(id_), SnapshotSent(NodeId(int(peer)), Index(int(index))))

    def do_add(self, id_: str) -> None:
        self.cluster.add(int(id_))

    def do_member(self, id_: str, what: str, member: str) -> None:
        number = NodeId(int(member))
        match what:
            case "add":
                self.cluster.change(int(id_), AddMember(f"host{number}:1", incarnation=number))
            case "promote":
                self.cluster.change(int(id_), PromoteMember(number))
            case "remove":
                self.cluster.change(int(id_), RemoveMember(number))
            case _:
                raise AssertionError(f"no such change: {what}")

    def do_propose(self, id_: str, *texts: str) -> None:
        self.cluster.propose(int(id_), *(text.encode() for text in texts))

    def do_read(self, id_: str) -> None:
        self.cluster.read(int(id_))

    def do_transfer(self, id_: str, to: str = "0") -> None:
        self.cluster.step(int(id_), TransferLeadership(NodeId(int(to))))

    def do_clock(self, id_: str, ms: str) -> None:
        self.cluster.wall_skew_ms[int(id_)] = int(ms)

    def do_refused(self, id_: str, peer: str) -> None:
        self.cluster.step(int(id_), PeerRefused(NodeId(int(peer))))

    def do_disconnected(self, id_: str, peer: str) -> None:
        self.cluster.step(int(id_), PeerDisconnected(NodeId(int(peer))))

    def do_connected(self, id_: str, peer: str) -> None:
        self.cluster.step(int(id_), PeerConnected(NodeId(int(peer))))

    def do_stall(self, id_: str) -> None:
        self.cluster.step(int(id_), DiskStalled())

    def do_recover(self, id_: str) -> None:
        self.cluster.step(int(id_), DiskRecovered())

    # ── looking ─────────────────────────────────────────────────────────────────────────────────────

    def do_state(self, *ids: str) -> list[str]:
        chosen = [int(id_) for id_ in ids] or list(self.cluster.members)
        return [self._state(id_) for id_ in chosen]

    def _state(self, id_: int) -> str:
        raft = self.cluster.member(id_).raft
        if raft is None:
            disk = self.cluster.member(id_).disk
            terms = runs([entry.term for entry in disk.entries])
            return f"{id_} down term={disk.hard_state.term} vote={disk.hard_state.vote} log={terms}"
        state = raft.state
        leader = "-" if state.leader == NOBODY else str(state.leader)
        base, last = state.log.base, state.log.last_index
        log = runs([state.log.term_at(Index(i)) or Term(0) for i in range(base.index + 1, last + 1)])
        if base.index:
            log = f"({base.index}.{base.term}){log}"
        return (
            f"{id_} {state.role.value} term={state.term} vote={state.vote} leader={leader} "
            f"commit={state.commit_index} durable={raft.durable_index} log={log}"
        )

    def do_progress(self, id_: str) -> list[str]:
        return [
            f"{peer} {p.state} match={p.match_index} next={p.next_index} in_flight={p.in_flight} bytes={p.window_bytes}"
            for peer, p in self.cluster[int(id_)].progress.items()
        ]

    def do_wire(self) -> list[str]:
        return [f"{e.sender}>{e.to} {describe(e.message)}" for e in self.cluster.wire] or ["nothing on the wire"]

    def do_level(self) -> list[str]:
        self.cluster.assert_level()
        running = next(member for member in self.cluster.members.values() if member.raft is not None)
        return [f"level: {runs([entry.term for entry in running.disk.entries])}"]


def _made_up(sender: NodeId, word: str, words: tuple[str, ...]) -> PeerMessage:
    named = dict(word.split("=") for word in words)
    term = Term(int(named.pop("term")))
    index, _, index_term = named.pop("prev", named.pop("last", named.pop("index", "0.0"))).partition(".")
    at, at_term = Index(int(index)), Term(int(index_term or 0))
    commit, read_round = Index(int(named.pop("commit", 0))), int(named.pop("round", 0))
    assert not named, named
    match word:
        case "append":
            return AppendEntries(term, sender, at, at_term, (), commit, read_round)
        case "accept" | "reject":
            return AppendReply(term, sender, word == "accept", at, last_index=at, read_round=read_round)
        case "vote" | "prevote":
            return VoteRequest(term, sender, at_term, at, pre=word == "prevote")
        case "grant" | "refuse" | "pregrant" | "prerefuse":
            return VoteReply(term, sender, word.endswith("grant"), pre=word.startswith("pre"))
        case _:
            raise AssertionError(f"no such message to make up: {word}")


def _ids(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def _selects(selectors: tuple[str, ...], envelope: Envelope) -> bool:
    """A message fits if every selector does: `1>2`, `1>`, `>2`, or the kind of message."""
    for selector in selectors:
        sender, arrow, to = selector.partition(">")
        if not arrow:
            if kind(envelope.message) != selector:
                return False
        elif (sender and int(sender) != envelope.sender) or (to and int(to) != envelope.to):
            return False
    return True
