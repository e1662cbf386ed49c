"""Forwarding: any node takes a proposal; one that does not lead hands it to the leader, once.

The leader appends or refuses and says which, by the origin's own ids (trap S54); it never passes a proposal on, so
there is no ring (trap S5), and nothing is sent twice, so nothing is appended twice. A proposal refused here is
certainly in no log. One forwarded and unanswered is unknown: the origin's applier, not this module, tells its fate.
"""

from __future__ import annotations

from kvnode.ids import NOBODY, Index, RequestId
from kvnode.raft import reconfiguration, replication
from kvnode.raft.messages import EntryKind, ForwardProposals, ForwardReply, LeaderProposals, Proposed, TurnedAway
from kvnode.raft.output import Forwarded, Placed, Refused
from kvnode.raft.state import RaftState

_NO_LEADER = "no_leader"
_OVERLOADED = "overloaded"


def on_proposals(state: RaftState, batch: tuple[Proposed, ...]) -> None:
    """Commands of this node's clients."""
    if state.leadership is None:
        state.proposals_waiting.extend(batch)
        return
    _append_own(state, batch)


def on_leader_proposals(state: RaftState, cause: LeaderProposals) -> None:
    """Commands that this node has decided on as the leader of a term: void in any other, and at any other node."""
    if cause.term == state.term:
        _append_own(state, cause.batch)
    else:
        _refuse(state, cause.batch, _NO_LEADER)


def _append_own(state: RaftState, batch: tuple[Proposed, ...]) -> None:
    placed, refused = _append(state, batch)
    term = state.term
    state.output.placed.extend([Placed(id_, index, term) for id_, index in placed])
    state.output.refused.extend(Refused(*each) for each in refused)


def _append(
    state: RaftState, batch: tuple[Proposed, ...]
) -> tuple[list[tuple[RequestId, Index]], list[tuple[RequestId, str, str]]]:
    """Which stand in the log now, and where; and which do not, and why: code, and a sentence if that is not enough."""
    leadership = state.leadership
    if leadership is None or leadership.transfer_to != NOBODY:
        return [], [(proposed.id, _NO_LEADER, "") for proposed in batch]
    placed: list[tuple[RequestId, Index]] = []
    refused: list[tuple[RequestId, str, str]] = []
    while batch:
        first = state.log.last_index + 1
        taken = replication.append_proposals(state, batch)
        placed += [(batch[position].id, Index(first + position)) for position in range(taken)]
        if taken == len(batch):
            break
        proposed = batch[taken]
        if proposed.kind != EntryKind.CONFIGURATION:  # the budget is used up, for all that follow
            refused += [(proposed.id, _OVERLOADED, "") for proposed in batch[taken:]]
            break
        batch = batch[taken + 1 :]
        refusal = reconfiguration.append_change(state, leadership, proposed)
        if refusal is None:
            placed.append((proposed.id, state.log.last_index))
        else:
            refused.append((proposed.id, refusal.code, refusal.message))
    return placed, refused


def _refuse(state: RaftState, batch: tuple[Proposed, ...] | list[Proposed], code: str) -> None:
    state.output.refused.extend(Refused(proposed.id, code) for proposed in batch)


def flush(state: RaftState) -> None:
    """Send what waits for the leader known by now. Called once per output, so that many batches make one message."""
    waiting = state.proposals_waiting
    if not waiting:
        return
    state.proposals_waiting = []
    if state.leadership is not None:
        on_proposals(state, tuple(waiting))
    elif state.leader == NOBODY or state.leader in state.disconnected:
        _refuse(state, waiting, _NO_LEADER)
    else:
        for batch in _split(waiting, state.settings.append_bytes_max):
            state.send(state.leader, ForwardProposals(state.term, state.node, batch))
            state.output.forwarded.extend(Forwarded(proposed.id, state.leader, state.term) for proposed in batch)


def _split(waiting: list[Proposed], bytes_max: int) -> list[tuple[Proposed, ...]]:
    """Consecutive batches of at most `bytes_max` payload bytes, at least one proposal each."""
    batches: list[tuple[Proposed, ...]] = []
    start = size = 0
    for position, proposed in enumerate(waiting):
        size += len(proposed.payload)
        if size > bytes_max and position > start:
            batches.append(tuple(waiting[start:position]))
            start, size = position, len(proposed.payload)
    batches.append(tuple(waiting[start:]))
    return batches


def on_forward_proposals(state: RaftState, message: ForwardProposals) -> None:
    """A follower's clients' commands: append them if we lead, else refuse them."""
    placed, refused = _append(state, message.batch)
    asker = state.leadership.progress.get(message.sender) if state.leadership is not None else None
    if placed and asker is not None:
        asker.commit_wanted = state.log.last_index
    state.send(message.sender, ForwardReply(state.term, state.node, tuple(placed), tuple(refused)))


def on_turned_away(state: RaftState, cause: TurnedAway) -> None:
    """Answer for who found no room, leading or not; the answer names our term and waits for it like any other."""
    refused = tuple((id_, cause.code, cause.message) for id_ in cause.ids)
    state.send(cause.peer, ForwardReply(state.term, state.node, refused=refused))


def on_forward_reply(state: RaftState, message: ForwardReply) -> None:
    """Where our commands stand. True of the reply's term, whatever ours has become since."""
    state.output.placed.extend(Placed(id_, index, message.term) for id_, index in message.placed)
    state.output.refused.extend(Refused(*each) for each in message.refused)
