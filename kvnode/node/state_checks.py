"""State checks: members that have applied the same entries compare their states, and one that differs stops.

As a duty the leader has a `StateCheck` logged every `storage.check_every_s`, once all members know what that is
(feature level 2). Whoever applies it notes its rolling digest before that entry and tells it to every other member
(`StateHash`); whoever hears compares, at equal index. Apply is a function of the entries, so two that differ mean a
defect, damage in memory, or a store that was tampered with.

    a majority of the voters agrees    what it has is the state. Who differs must stop: `on_diverged`, once.
                                       The others raise an alarm that names the member
    no majority can come about         nobody knows who is right: all raise an alarm and go on
    too few have told                  nothing follows

Answers may come early, late, twice or never, so both sides keep the last few. An alarm goes when all voters have been
heard and agree at a later index.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from kvnode.config import StorageSection
from kvnode.ids import Index, NodeId, Term
from kvnode.kv.requests import StateCheck, StateCheckReply
from kvnode.observe.log import get_logger
from kvnode.raft.messages import Configuration, StateHash

FEATURE_LEVEL = 2
"""Members below it do not know the request."""

KEPT_MAX = 8
"""Checks that are remembered of this node, and of each voter."""

log = get_logger("state")


class StateChecks:
    """The duty, and what every member does with the outcome. Lives on the node's loop; see `duties`."""

    def __init__(
        self,
        *,
        node: NodeId,
        settings: StorageSection,
        configuration: Callable[[], Configuration],
        term: Callable[[], Term],
        send: Callable[[NodeId, StateHash], None],
        on_diverged: Callable[[str], None],
    ) -> None:
        """`configuration`: the one in force. `on_diverged` is told at most once, and why: this node must end."""
        self._node = node
        self._every_ms = settings.check_every_s * 1_000
        self._configuration = configuration
        self._term = term
        self._send = send
        self._on_diverged = on_diverged
        self._asked_ms = 0
        self._own: dict[Index, bytes] = {}
        self._heard: dict[NodeId, dict[Index, bytes]] = {}  # of voters
        self._alarm_index = Index(0)
        self._has_ended = False
        self.alarm = ""
        """What is wrong, as far as the newest check with an outcome tells."""

    # ── duty ────────────────────────────────────────────────────────────────────────────────────────

    def begin(self, now_ms: int) -> None:
        """Counts from now: an earlier leader may have asked just before."""
        self._asked_ms = now_ms

    def end(self) -> None:
        """Nothing is kept."""

    def decide(self, now_ms: int) -> StateCheck | None:
        if not self._every_ms or now_ms - self._asked_ms < self._every_ms:
            return None
        if self._configuration().feature_level < FEATURE_LEVEL:
            return None
        self._asked_ms = now_ms
        return StateCheck()

    # ── every member ────────────────────────────────────────────────────────────────────────────────

    def applied(self, result: StateCheckReply) -> None:
        """This node has applied a check: tell the others, and compare with who has told already."""
        configuration, index = self._configuration(), Index(result.index)
        _keep(self._own, index, result.digest)
        message = StateHash(self._term(), self._node, index, result.digest)
        for member in (*configuration.voters, *configuration.learners):
            if member != self._node:
                self._send(member, message)
        self._judge(index, configuration)

    def on_message(self, message: StateHash) -> None:
        """From any member; what those say that have no vote is theirs to compare."""
        configuration = self._configuration()
        if message.sender not in configuration.voters:
            return
        for gone in [sender for sender in self._heard if sender not in configuration.voters]:
            del self._heard[gone]
        _keep(self._heard.setdefault(message.sender, {}), message.index, message.digest)
        self._judge(message.index, configuration)

    def on_store_replaced(self) -> None:
        """A snapshot came: what was noted here is not of this store."""
        self._own.clear()

    def _judge(self, index: Index, configuration: Configuration) -> None:
        own = self._own.get(index)
        if own is None or self._has_ended:
            return
        voters = configuration.voters
        told = {voter: heard for voter in voters if (heard := self._told(voter, index)) is not None}
        counts = Counter(told.values())
        state, count = counts.most_common(1)[0] if counts else (own, 0)
        needed = len(voters) // 2 + 1
        if count >= needed:
            if own != state:
                self._end(index, f"{count} of {len(voters)} voters agree on another")
                return
            others = [voter for voter, digest in told.items() if digest != state]
            if others:
                self._raise(index, f"the state of {_members(others)} differs from the majority's")
            elif len(told) == len(voters):
                self._lower(index)
        elif count + len(voters) - len(told) < needed:
            self._raise(index, f"no majority agrees on the state: {_groups(told)}")

    def _told(self, voter: NodeId, index: Index) -> bytes | None:
        return self._own.get(index) if voter == self._node else self._heard.get(voter, {}).get(index)

    def _end(self, index: Index, why: str) -> None:
        self._has_ended = True
        sentence = f"this node's state at entry {index} is not the cluster's: {why}"
        log.error("state.diverged", node=self._node, index=index)
        self._on_diverged(sentence)

    def _raise(self, index: Index, sentence: str) -> None:
        if index >= self._alarm_index and sentence != self.alarm:
            self.alarm, self._alarm_index = sentence, index
            log.error("state.differs", node=self._node, index=index, reason=sentence)

    def _lower(self, index: Index) -> None:
        if index > self._alarm_index:
            self.alarm = ""


def _keep(table: dict[Index, bytes], index: Index, digest: bytes) -> None:
    table.pop(index, None)
    table[index] = digest
    if len(table) > KEPT_MAX:
        del table[next(iter(table))]


def _members(ids: list[NodeId]) -> str:
    return f"member {ids[0]}" if len(ids) == 1 else f"members {', '.join(map(str, ids))}"


def _groups(told: Mapping[NodeId, bytes]) -> str:
    """ "1 2 | 3": who agrees with whom."""
    groups: dict[bytes, list[str]] = {}
    for voter, digest in sorted(told.items()):
        groups.setdefault(digest, []).append(str(voter))
    return " | ".join(map(" ".join, groups.values()))
