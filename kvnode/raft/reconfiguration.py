"""Membership change: one server at a time, judged by the leader when it appends, in force from then on.

Two rules make it safe. Configurations that follow each other differ by one voter, so that any two majorities of them
share one; and none is appended before the one before it, and an entry of the leader's own term, is committed: without
that second half two leaders could each build on a configuration the other does not know (raft-dev, July 2015; scenario
S42). The other rules keep an operator from losing the cluster: a learner is promoted once it has caught up, and the
voters heard lately must be a majority of those there would be. `force` overrides those two, and nothing else.

A change that has been made already is made again, as an equal configuration: so a retry is answered like the first.
Ids are counted up and never given again: one up to `last_id` that is no member's is that of a removed one, for ever.
Nor is a removed member's data directory taken in again: it goes by its old id, which nobody talks to any more.

A leader that removes itself goes on until that is committed, by a majority it does not belong to, and then hands office
to the best follower and leaves it (thesis §4.2.2). Whoever appends a change looks again at all it has counted: commit
index, read rounds, whether a majority still answers. Leases begin anew when the change is committed (`leader_lease`).

Source: Raft thesis §4.1–4.3.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

import msgspec

from kvnode.ids import NOBODY, Index, NodeId
from kvnode.kv.members import AddMember, MemberChange, PromoteMember, RaiseFeatureLevel, RemoveMember, UpdateMember
from kvnode.raft import generation, high_water_mark, leader_lease, quorum, read_index, replication, transfer
from kvnode.raft.membership import highest_id, is_member, is_removed
from kvnode.raft.messages import Configuration, Member, Proposed, TimeoutNow
from kvnode.raft.state import Leadership, RaftState

MEMBERS_MAX = 64
"""Voters and learners together."""

REMOVED_MAX = 64
"""Incarnations of removed members that are remembered."""

LAG_ENTRIES_MAX = 1_024
"""A learner that lacks more has not caught up."""

_decoder: msgspec.msgpack.Decoder[MemberChange] = msgspec.msgpack.Decoder(MemberChange)


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """Why a change is not made: an error's code, and a sentence that says what to do."""

    code: str
    message: str


def encode_change(change: MemberChange) -> bytes:
    """Payload of a proposal of kind CONFIGURATION."""
    return msgspec.msgpack.encode(change)


def append_change(state: RaftState, leadership: Leadership, proposed: Proposed) -> Refusal | None:
    """Append the configuration that the proposed change leads to, or say why not."""
    try:
        change = _decoder.decode(proposed.payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return Refusal("bad_request", f"not a change of members: {error}")
    if state.uncommitted_bytes >= state.settings.uncommitted_bytes_max:
        return Refusal("overloaded", "")
    judged = judge(state, leadership, change)
    if isinstance(judged, Refusal):
        return judged
    replication.append_configuration(state, proposed, judged)
    _on_appended(state, leadership)
    return None


# ── what is allowed ─────────────────────────────────────────────────────────────────────────────────


def judge(state: RaftState, leadership: Leadership, change: MemberChange) -> Configuration | Refusal:
    """The configuration after `change`, if it may be made now."""
    if state.commit_index < leadership.first_index:
        return Refusal("not_ready", "the leader has committed nothing in its term yet: try again")
    membership = state.log.membership
    if membership.index > state.commit_index:
        return Refusal("not_ready", f"the change of members at {membership.index} is not committed yet: try again")
    now = membership.configuration
    match change:
        case AddMember():
            return _add(now, change)
        case PromoteMember():
            return _promote(state, leadership, now, change)
        case RemoveMember():
            return _remove(state, leadership, now, change)
        case UpdateMember():
            return _update(now, change)
        case RaiseFeatureLevel(level=level):
            if level < now.feature_level:
                return Refusal("conflict", f"the feature level is {now.feature_level} and is never lowered")
            return msgspec.structs.replace(now, last_id=highest_id(now), feature_level=level)
        case _:
            assert_never(change)


def _add(now: Configuration, change: AddMember) -> Configuration | Refusal:
    if not change.address:
        return Refusal("bad_request", "a member needs the address of its peer listener")
    if change.incarnation:
        for known in now.members:
            if known.incarnation == change.incarnation:
                taken = _address_taken(now, change.address, but=(known.id, known.replaces))
                return taken or _wanting(now, known, change)
        if change.incarnation in now.removed:
            return Refusal(
                "bad_request",
                f"the data directory with incarnation {change.incarnation:016x} is that of a member that was removed: "
                "join with an empty one",
            )
    for known in now.members:
        if known.address == change.address and known.incarnation == 0 and known.id in now.learners:
            return _wanting(now, known, change)
    taken = _address_taken(now, change.address, but=(change.replaces,))  # whom it replaces may have been there
    if taken is not None:
        return taken
    if change.replaces != NOBODY and not is_member(now, change.replaces):
        return Refusal("member_not_found", f"there is no member {change.replaces} to replace")
    if len(now.voters) + len(now.learners) >= MEMBERS_MAX:
        return Refusal("conflict", f"there are {MEMBERS_MAX} members already: remove one first")
    id_ = NodeId(highest_id(now) + 1)
    member = Member(id_, change.incarnation, change.address, change.name, change.promote, change.replaces)
    return msgspec.structs.replace(now, learners=(*now.learners, id_), members=_with(now.members, member), last_id=id_)


def _wanting(now: Configuration, known: Member, change: AddMember) -> Configuration:
    """The member is there already: its incarnation, address, and what it is there for, are filled in."""
    is_learner = known.id in now.learners
    replaces = change.replaces if change.replaces != known.id and is_member(now, change.replaces) else known.replaces
    member = msgspec.structs.replace(
        known,
        address=change.address,
        incarnation=change.incarnation or known.incarnation,
        name=change.name or known.name,
        wants_vote=is_learner and (change.promote or known.wants_vote),
        replaces=replaces,
    )
    return msgspec.structs.replace(now, members=_with(now.members, member), last_id=highest_id(now))


def _promote(
    state: RaftState, leadership: Leadership, now: Configuration, change: PromoteMember
) -> Configuration | Refusal:
    id_ = change.id
    if not is_member(now, id_):
        return _no_member(now, id_)
    if id_ in now.voters:
        return msgspec.structs.replace(now, last_id=highest_id(now))
    voters = tuple(sorted((*now.voters, id_)))
    if not change.force:
        lack = _lacks(state, leadership, id_)
        if lack:
            return Refusal("conflict", f"member {id_} has not caught up: {lack}")
        risk = _risk(state, leadership, voters)
        if risk:
            return Refusal("conflict", risk)
    if any(member.id == id_ and member.incarnation == 0 for member in now.members):
        # Its vote would be anybody's, and whoever comes for it would find its address taken: not even forced.
        return Refusal("conflict", f"member {id_} has not joined yet: start it there with kvnode serve --join")
    members = tuple(
        msgspec.structs.replace(member, wants_vote=False) if member.id == id_ else member for member in now.members
    )
    learners = tuple(learner for learner in now.learners if learner != id_)
    return msgspec.structs.replace(now, voters=voters, learners=learners, members=members, last_id=highest_id(now))


def _remove(
    state: RaftState, leadership: Leadership, now: Configuration, change: RemoveMember
) -> Configuration | Refusal:
    id_ = change.id
    if is_removed(now, id_) and id_ > NOBODY:
        return msgspec.structs.replace(now, last_id=highest_id(now))
    if not is_member(now, id_):
        return _no_member(now, id_)
    voters = tuple(voter for voter in now.voters if voter != id_)
    if not voters:
        return Refusal("conflict", f"member {id_} is the last voter: promote another one first")
    if id_ in now.voters and not change.force:
        risk = _risk(state, leadership, voters)
        if risk:
            return Refusal("conflict", risk)
    learners = tuple(learner for learner in now.learners if learner != id_)
    members = tuple(
        msgspec.structs.replace(member, replaces=NOBODY) if member.replaces == id_ else member
        for member in now.members
        if member.id != id_
    )
    gone = tuple(member.incarnation for member in now.members if member.id == id_ and member.incarnation)
    return msgspec.structs.replace(
        now,
        voters=voters,
        learners=learners,
        members=members,
        last_id=highest_id(now),
        removed=(*now.removed, *gone)[-REMOVED_MAX:],
    )


def _update(now: Configuration, change: UpdateMember) -> Configuration | Refusal:
    if not is_member(now, change.id):
        return _no_member(now, change.id)
    if not change.address:
        return Refusal("bad_request", "a member needs the address of its peer listener")
    taken = _address_taken(now, change.address, but=(change.id,))
    if taken is not None:
        return taken
    known = next((member for member in now.members if member.id == change.id), Member(change.id, 0, ""))
    member = msgspec.structs.replace(known, address=change.address)
    return msgspec.structs.replace(now, members=_with(now.members, member), last_id=highest_id(now))


def _address_taken(now: Configuration, address: str, *, but: Iterable[NodeId]) -> Refusal | None:
    for known in now.members:
        if known.address == address and known.id not in but:
            return Refusal("conflict", f"{address} is the address of member {known.id}: replace it, or remove it first")
    return None


def _with(members: tuple[Member, ...], member: Member) -> tuple[Member, ...]:
    """`members` by id, with `member` in its place."""
    return tuple(sorted([*(other for other in members if other.id != member.id), member], key=lambda each: each.id))


def _no_member(now: Configuration, id_: NodeId) -> Refusal:
    was = "was removed" if id_ > NOBODY and is_removed(now, id_) else "never was one"
    return Refusal("member_not_found", f"there is no member {id_}: it {was}")


def _is_heard(state: RaftState, leadership: Leadership, node: NodeId) -> bool:
    """Whether it answered within an election timeout, and its link is up."""
    if node == state.node:
        return True
    progress = leadership.progress[node]
    since_ms = state.now_ms - state.settings.election_timeout_ms
    return progress.has_answered and progress.contact_ms > since_ms and node not in state.disconnected


def is_caught_up(state: RaftState, leadership: Leadership, learner: NodeId) -> bool:
    """Whether it would be given a vote."""
    return learner in leadership.progress and not _lacks(state, leadership, learner)


def _lacks(state: RaftState, leadership: Leadership, learner: NodeId) -> str:
    """What a learner lacks before it may vote; "" if nothing."""
    progress, log = leadership.progress[learner], state.log
    if not _is_heard(state, leadership, learner):
        return "it does not answer"
    if progress.is_quarantined:
        return "it is in quarantine"
    if progress.state != "replicate":
        return "it still gets the state" if progress.state == "snapshot" else "where its log ends is not known yet"
    lag = log.last_index - progress.match_index
    lag_bytes = log.bytes_between(progress.match_index, log.last_index)
    if lag > LAG_ENTRIES_MAX or lag_bytes > state.settings.window_bytes_max:
        return f"it lacks {lag} entries"
    return ""


def _risk(state: RaftState, leadership: Leadership, voters: tuple[NodeId, ...]) -> str:
    """Why the cluster would have no quorum with these voters; "" if it would."""
    healthy = [voter for voter in voters if voter == state.node or not leadership.progress[voter].is_quarantined]
    heard = [voter for voter in healthy if _is_heard(state, leadership, voter)]
    if quorum.has_majority(Configuration(voters), heard):
        return ""
    silent = ", ".join(str(voter) for voter in voters if voter not in heard)
    return (
        f"of the {len(voters)} voters there would be, {silent} did not answer lately or may not vote,"
        " and the others are no majority"
    )


# ── what follows from it ────────────────────────────────────────────────────────────────────────────


def _on_appended(state: RaftState, leadership: Leadership) -> None:
    """Other voters count now: for commits, reads and the quorum check, which is due at once."""
    leadership.progress = replication.track_members(state, leadership.progress)
    leader_lease.on_reconfigured(state, leadership)
    high_water_mark.advance_leader(state, leadership)
    read_index.confirm(state, leadership)
    leadership.quorum_deadline_ms = state.now_ms


def is_leaving(state: RaftState) -> bool:
    """Whether this leader's removal is committed: its last output tells everybody so."""
    return not state.is_voter and state.commit_index >= state.log.membership.index


def leave(state: RaftState, leadership: Leadership) -> None:
    """The last act of a leader that is no member any more, after its appends."""
    heir = transfer.best_target(state, leadership)
    if heir != NOBODY and leadership.progress[heir].match_index == state.log.last_index:
        state.send(heir, TimeoutNow(state.term, state.node, Index(state.log.last_index)))
    generation.become_follower(state, "removed")
