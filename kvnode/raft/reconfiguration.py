"""Changes of members: judged by the leader when it appends, one at a time, each a whole new configuration in the log.

Consecutive configurations differ by one voter, so that any majority of the one shares a voter with any majority of the
other, and no joint consensus is needed. That holds only under two conditions, without either of which two leaders can
commit different entries (the raft-dev report of 2015, scenario S42):

- the configuration before is committed (S43);
- the leader has committed an entry of its own term: else one of an earlier term that it does not know to be committed
  may still come back beside its own.

Beyond safety a change is refused that would leave too few voters that answer to go on, unless it is forced.
A configuration is in force from the moment it stands in the log (S46), so everything that counts voters is looked at
again then. A leader that is no voter any more serves until that is committed, which it does not count for, and goes.

Source: Raft thesis §4.1–4.2.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from kvnode.ids import NOBODY, Index, NodeId
from kvnode.kv.members import AddMember, MemberChange, PromoteMember, RaiseFeatureLevel, RemoveMember, UpdateMember
from kvnode.raft import generation, high_water_mark, leader_lease, quorum, read_index, replication, transfer
from kvnode.raft.membership import encode_configuration
from kvnode.raft.messages import Configuration, Entry, EntryKind, Member, Proposed, TimeoutNow
from kvnode.raft.output import ConfigurationChanged
from kvnode.raft.state import Leadership, RaftState

MEMBERS_MAX = 32
LAG_ENTRIES_MAX = 1_024
"""A learner that lacks no more, and no more bytes than a window holds, has caught up."""

_decode = msgspec.msgpack.Decoder(MemberChange).decode


class Denied(Exception):
    """The change is not made. `code` is an error's of `kvnode.errors`."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence


# ── leader ──────────────────────────────────────────────────────────────────────────────────────────


def append(state: RaftState, leadership: Leadership, proposed: Proposed) -> Index:
    """Append the configuration that the change leads to. Raises: Denied."""
    found = _judge(state, leadership, _decode(proposed.payload))
    index = Index(state.log.last_index + 1)
    stamp, payload = state.clock.next(state.wall_ms), encode_configuration(found)
    state.log.extend((Entry(state.term, index, stamp, EntryKind.CONFIGURATION.value, payload),))
    on_changed(state)
    return index


def on_changed(state: RaftState) -> None:
    """Another configuration may be in force: tell so, and look again at everything that counts voters."""
    membership = state.log.membership
    if membership.configuration is state.configuration_told:
        return
    state.configuration_told = membership.configuration
    state.output.facts.append(ConfigurationChanged(membership.index, membership.configuration))
    leadership = state.leadership
    if leadership is not None:
        leadership.progress = replication.track_members(state, leadership.progress)
        high_water_mark.advance_leader(state, leadership)
        read_index.confirm(state, leadership)


def is_leaving(state: RaftState) -> bool:
    """A leader whose removal is committed."""
    return not state.is_voter and state.commit_index >= state.log.membership.index


def leave(state: RaftState, leadership: Leadership) -> None:
    """Its last act: whoever holds most is told to campaign, so that nobody waits for a timeout (S48)."""
    target = transfer.best_target(state, leadership)
    if target != NOBODY and leadership.progress[target].match_index == state.log.last_index:
        leader_lease.on_order(state, leadership)
        state.send(target, TimeoutNow(state.term, state.node, state.log.last_index))
    generation.become_follower(state, "removed")


# ── the rules ───────────────────────────────────────────────────────────────────────────────────────


def _judge(state: RaftState, leadership: Leadership, change: MemberChange) -> Configuration:
    """The configuration after it. Raises: Denied."""
    if state.commit_index < leadership.first_index:
        raise Denied("not_ready", "the leader has not committed an entry of its own term yet: ask again")
    if state.commit_index < state.log.membership.index:
        raise Denied("not_ready", "another change of members is not committed yet: ask again")
    configuration = state.configuration
    match change:
        case AddMember():
            return _add(configuration, change)
        case PromoteMember():
            return _promote(state, leadership, change)
        case RemoveMember():
            return _remove(state, leadership, change)
        case UpdateMember():
            member = _find(configuration, change.id)
            _check_address(configuration, change.address, but=(member.id,))
            return _with(configuration, msgspec.structs.replace(member, address=change.address))
        case RaiseFeatureLevel():
            level = max(configuration.feature_level, change.level)
            return msgspec.structs.replace(configuration, feature_level=level)


def _add(configuration: Configuration, change: AddMember) -> Configuration:
    for member in configuration.members:
        is_same = change.incarnation != 0 and member.incarnation == change.incarnation
        awaits_it = member.incarnation == 0 and member.address == change.address and member.id in configuration.learners
        if is_same or awaits_it:  # it asks again, or comes to where it was announced
            _check_address(configuration, change.address, but=(member.id, member.replaces))
            known = msgspec.structs.replace(
                member,
                address=change.address,
                incarnation=change.incarnation or member.incarnation,
                name=change.name or member.name,
                wants_vote=member.wants_vote or (change.promote and member.id in configuration.learners),
                replaces=change.replaces or member.replaces,
            )
            return _with(configuration, known)
    if change.replaces != NOBODY:
        _find(configuration, change.replaces)
    _check_address(configuration, change.address, but=(change.replaces,))
    if len(configuration.members) >= MEMBERS_MAX:
        raise Denied("conflict", f"the cluster has {len(configuration.members)} members, as many as it may")
    id_ = NodeId(configuration.last_id + 1)
    joined = Member(id_, change.incarnation, change.address, change.name, change.promote, change.replaces)
    return msgspec.structs.replace(
        configuration,
        learners=(*configuration.learners, id_),
        members=(*configuration.members, joined),
        last_id=id_,
    )


def _promote(state: RaftState, leadership: Leadership, change: PromoteMember) -> Configuration:
    configuration = state.configuration
    member = _find(configuration, change.id)
    if member.id in configuration.voters:
        return configuration
    if not change.force:
        if not is_caught_up(state, leadership, member.id):
            raise Denied("conflict", f"member {member.id} has not caught up with the leader yet: it cannot vote so far")
        _check_quorum(state, leadership, (*configuration.voters, member.id))
    return msgspec.structs.replace(
        _with(configuration, msgspec.structs.replace(member, wants_vote=False)),
        voters=tuple(sorted((*configuration.voters, member.id))),
        learners=tuple(id_ for id_ in configuration.learners if id_ != member.id),
    )


def _remove(state: RaftState, leadership: Leadership, change: RemoveMember) -> Configuration:
    configuration = state.configuration
    member = _find(configuration, change.id)
    voters = tuple(id_ for id_ in configuration.voters if id_ != member.id)
    if not voters:
        raise Denied("conflict", f"member {member.id} is the last voter: without it there is no cluster")
    if not change.force and voters != configuration.voters:
        _check_quorum(state, leadership, voters)
    return msgspec.structs.replace(
        configuration,
        voters=voters,
        learners=tuple(id_ for id_ in configuration.learners if id_ != member.id),
        members=tuple(
            msgspec.structs.replace(other, replaces=NOBODY) if other.replaces == member.id else other
            for other in configuration.members
            if other.id != member.id
        ),
    )


def is_caught_up(state: RaftState, leadership: Leadership, peer: NodeId) -> bool:
    """It takes entries as they come, has little left to take, and was heard within T."""
    progress = leadership.progress.get(peer)
    if progress is None or progress.state != "replicate" or not _answers(state, leadership, peer):
        return False
    log = state.log
    return (
        log.last_index - progress.match_index <= LAG_ENTRIES_MAX
        and log.bytes_between(progress.match_index, log.last_index) <= state.settings.window_bytes_max
    )


def _answers(state: RaftState, leadership: Leadership, peer: NodeId) -> bool:
    """It is this node, or was heard within T, and could acknowledge and vote."""
    if peer == state.node:
        return True
    progress = leadership.progress.get(peer)
    since_ms = state.now_ms - state.settings.election_timeout_ms
    return (
        progress is not None
        and progress.has_answered
        and progress.contact_ms >= since_ms
        and not progress.is_quarantined
    )


def _check_quorum(state: RaftState, leadership: Leadership, voters: tuple[NodeId, ...]) -> None:
    answering = sum(_answers(state, leadership, voter) for voter in voters)
    needed = quorum.majority(len(voters))
    if answering < needed:
        raise Denied(
            "conflict",
            f"of the {len(voters)} voters after it only {answering} answer and {needed} are needed: the cluster would "
            "stand still. Start the others, or remove those that are gone for good; force it only if that is meant",
        )


def _find(configuration: Configuration, id_: NodeId) -> Member:
    for member in configuration.members:
        if member.id == id_:
            return member
    was = "was removed" if id_ <= configuration.last_id else "was never added"
    raise Denied("member_not_found", f"there is no member {id_}: it {was}")


def _check_address(configuration: Configuration, address: str, *, but: Iterable[NodeId]) -> None:
    for member in configuration.members:
        if member.address == address and member.id not in but:
            raise Denied("conflict", f"{address} is the address of member {member.id}: replace it, or remove it first")


def _with(configuration: Configuration, changed: Member) -> Configuration:
    return msgspec.structs.replace(
        configuration,
        members=tuple(changed if member.id == changed.id else member for member in configuration.members),
    )
