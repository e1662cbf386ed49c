"""Canaries of joining and of the leader's duties about members."""

from __future__ import annotations

from canary import Canary

_JOIN = ("tests/test_join.py",)
_DUTY = ("tests/node/test_members.py",)

CANARIES = (
    Canary(
        "joiner-is-anybody",
        "a new directory asks to be added without saying which one it is, so that asking again makes another member",
        "kvnode/join.py",
        "        identity.incarnation,\n        promote=True,",
        "        0,\n        promote=True,",
        _JOIN,
    ),
    Canary(
        "join-believes-any-answer",
        "a new directory takes the id of another one",
        "kvnode/join.py",
        " and member.incarnation == identity.incarnation]",
        "]",
        _JOIN,
    ),
    Canary(
        "directory-changes-sides",
        "a directory of one cluster starts although it was told to join another",
        "kvnode/join.py",
        "    if found.cluster_id != own:",
        "    if not found.cluster_id:",
        _JOIN,
    ),
    Canary(
        "heir-does-not-vote-yet",
        "a member is removed before the one that replaces it has a vote",
        "kvnode/node/members.py",
        " and member.replaces in members and member.id in configuration.voters:",
        " and member.replaces in members:",
        _DUTY,
    ),
    Canary(
        "level-raised-behind-a-back",
        "the feature level is raised while a member is away that may come back as an older version",
        "kvnode/node/members.py",
        "link.feature_level if link is not None and link.connected else 0",
        "link.feature_level if link is not None else 0",
        _DUTY,
    ),
    Canary(
        "change-sent-twice",
        "a member that may have been added is added again by a client that cannot tell it apart",
        "kvnode/client/members.py",
        "            return incarnation != 0  #",
        "            return incarnation >= 0  #",
        ("tests/client/test_members.py",),
    ),
    Canary(
        "change-unread",
        "a change is proposed although the configuration that follows cannot be read: it ends every node",
        "kvnode/node/admission.py",
        "        decode_change(payload)\n",
        "",
        ("tests/node/test_change_members.py",),
    ),
    Canary(
        "removed-member-stays",
        "a member that was removed does not look into its own log for that",
        "kvnode/node/roster.py",
        "        elif membership.is_removed(self._own):\n",
        "        elif False:\n",
        ("tests/node/test_roster.py", "tests/sim/test_snapshot_scenarios.py"),
    ),
    Canary(
        "removed-directory-taken-in",
        "the data directory of a removed member is added again, as a learner that can never come",
        "kvnode/raft/reconfiguration.py",
        "        if change.incarnation in now.removed:\n",
        "        if False:\n",
        ("tests/raft/test_reconfiguration.py",),
    ),
    Canary(
        "removal-asked-for-again",
        "who asks again for a removal is told that it named a wrong id",
        "kvnode/raft/reconfiguration.py",
        "    if is_removed(now, id_) and id_ > NOBODY:\n",
        "    if False:\n",
        ("tests/raft/test_reconfiguration.py",),
    ),
)
