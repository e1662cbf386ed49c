"""The leader's duties about members: a vote for whoever has caught up, the end of whoever is replaced, feature levels.

A learner that wants a vote is promoted once it has caught up; when it votes, the member that it replaces is removed;
when every member claims a feature level, all may use it. The core judges each of these changes again
(`kvnode.raft.reconfiguration`): what is looked at here spares proposals that would be in vain. One that is refused is
proposed again after a pause that grows, so that it costs nothing while its reason lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from kvnode.ids import NOBODY, NodeId
from kvnode.kv.members import MemberChange, PromoteMember, RaiseFeatureLevel, RemoveMember
from kvnode.node.ports import LinkInfo
from kvnode.raft.core import Raft

AGAIN_MS_MIN = 1_000
AGAIN_MS_MAX = 30_000


class MemberDuty:
    """Lives on the node's loop. `feature_level`: what this node claims to know."""

    def __init__(self, *, raft: Raft, links: Callable[[], Mapping[NodeId, LinkInfo]], feature_level: int) -> None:
        self._raft = raft
        self._links = links
        self._feature_level = feature_level
        self._tried: dict[MemberChange, tuple[int, int]] = {}  # how often, and until when it rests

    def begin(self, now_ms: int) -> None:
        """See `Duty.begin`."""
        self._tried.clear()

    def end(self) -> None:
        """See `Duty.end`."""

    def decide(self, now_ms: int) -> MemberChange | None:
        """See `Duty.decide`."""
        raft = self._raft
        if raft.configuration_index > raft.commit_index:
            return None  # a change is under way
        due = list(self._due())
        self._tried = {change: tried for change, tried in self._tried.items() if change in due}
        for change in due:
            times, rests_until_ms = self._tried.get(change, (0, now_ms))
            if now_ms >= rests_until_ms:
                pause_ms = min(AGAIN_MS_MIN << min(times, 16), AGAIN_MS_MAX)
                self._tried[change] = (times + 1, now_ms + pause_ms)
                return change
        return None

    def _due(self) -> Iterator[MemberChange]:
        configuration = self._raft.configuration
        members = {*configuration.voters, *configuration.learners}
        for member in configuration.members:
            if member.wants_vote and member.id in configuration.learners and self._raft.is_caught_up(member.id):
                yield PromoteMember(member.id)
        for member in configuration.members:
            if member.replaces != NOBODY and member.replaces in members and member.id in configuration.voters:
                yield RemoveMember(member.replaces)
        level = self._level_of_all(members)
        if level > configuration.feature_level:
            yield RaiseFeatureLevel(level)

    def _level_of_all(self, members: set[NodeId]) -> int:
        """What all members claim to know; 0 while one of them is not connected."""
        links = self._links()
        level = self._feature_level
        for peer in members - {self._raft.node}:
            link = links.get(peer)
            level = min(level, link.feature_level if link is not None and link.connected else 0)
        return level
