"""Roster: who the members are, which directory each of them lives on, and who may therefore be talked to.

*Bootstrap.* At its very first start a node knows addresses only. It waits until every initial member and it have
recorded each other's incarnation (the random id of a data directory) durably, then derives the cluster id from all
of them. A record is never replaced, and nobody takes another's word for a third. So even if directories are swapped
during a first start and two cluster ids come out, only one can have a majority: two majorities share a member k. On
one directory k has one cluster id. On two, both met a directory that the clusters have in common, and that recorded
both: but records do not change. Until its bootstrap has finished a node takes part in nothing.

*Afterwards* members come and go by entries of the log (`kvnode.node.membership`), which carry their incarnations. A
proven peer is refused if it is of another cluster, was removed, is no member, is on another directory than recorded
(wiped: it may have forgotten a vote), knows less than the members' feature level, or went back in time
(`kvnode.node.peer_boots`). Settings of cluster scope must be equal; the refusal names the key.

A node that was away may meet members added since, and its own removal. It lets the former in if they list it; what
they say of a newer configuration that lacks this node it believes, for that configuration was committed.

Synchronous and free of I/O but for three functions given at construction, called when a peer connects or the members
change, never per message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Protocol

from kvnode.config import parse_address
from kvnode.ids import Index, NodeId
from kvnode.node.membership import Membership
from kvnode.node.peer_boots import Boot, OwnBoot, PeerBoots, SavePeerBoot
from kvnode.raft.messages import Configuration, Lane, Member
from kvnode.version import __version__
from kvnode.wire.frames import FEATURE_LEVEL, PROTOCOL, PROTOCOL_MIN, Hello, KnownMember, Refusal

Setting = bool | int | float | str


class MemberRecord(Protocol):
    """A member as the data directory has it on record."""

    @property
    def incarnation(self) -> int: ...
    @property
    def address(self) -> str: ...


class Identity(Protocol):
    """This node as its data directory has it on record."""

    @property
    def cluster_name(self) -> str: ...
    @property
    def member(self) -> int: ...
    @property
    def incarnation(self) -> int: ...
    @property
    def cluster_id(self) -> int:
        """0 until the bootstrap has finished."""
        ...

    @property
    def members(self) -> Mapping[int, MemberRecord]:
        """Initial members met so far; all of them once the bootstrap has finished. None for one that joined."""
        ...

    @property
    def configuration(self) -> Configuration | None:
        """The newest committed one known; None: the initial members."""
        ...

    @property
    def configuration_index(self) -> int: ...


SaveIdentity = Callable[[int, Mapping[int, tuple[int, str]]], None]
"""(cluster id, member → (incarnation, address)), durable on return. Cluster id 0: the bootstrap goes on."""

SaveConfiguration = Callable[[Configuration, Index], None]
"""(newest committed configuration, index of its entry), durable on return."""

NEWCOMERS_MAX = 64
"""Peers that are no members yet as far as this node knows; further ones wait until it knows more."""


class Roster:
    """Identity decisions of one node. `on_bootstrapped` is called once, from the call that finishes the bootstrap."""

    def __init__(
        self,
        *,
        identity: Identity,
        boot: OwnBoot,
        peer_boots: Mapping[int, Boot],
        initial_members: Mapping[int, str],
        cluster_scope: Mapping[str, Setting],
        client_url: str,
        save_identity: SaveIdentity,
        save_peer_boot: SavePeerBoot,
        save_configuration: SaveConfiguration,
        feature_level_max: int = 0,
        on_bootstrapped: Callable[[], None] | None = None,
        on_removed: Callable[[str], None] | None = None,
    ) -> None:
        self.on_bootstrapped = on_bootstrapped
        self.on_removed = on_removed  # called once, with the sentence of `was_removed`
        self.was_removed = ""  # a sentence, once this node is no member any more
        self.feature_level = min(FEATURE_LEVEL, feature_level_max or FEATURE_LEVEL)  # what this node claims to know
        self._own = NodeId(identity.member)
        self._incarnation = identity.incarnation
        self._cluster_name = identity.cluster_name
        self._cluster_id = identity.cluster_id
        self._boot = boot
        self._settings = dict(cluster_scope)
        self._client_url = client_url
        self._save_identity = save_identity
        self._save_configuration = save_configuration
        self._initial = {NodeId(id_): address for id_, address in initial_members.items()}
        if identity.cluster_id:
            self._initial = {NodeId(id_): known.address for id_, known in identity.members.items()}
        self._incarnations = {NodeId(id_): known.incarnation for id_, known in identity.members.items()}
        self._incarnations[self._own] = self._incarnation
        self._membership: Membership | None = None  # from the end of the bootstrap on
        self._boots = PeerBoots(peer_boots, save=save_peer_boot)
        self._met: set[NodeId] = {self._own}
        self._newcomers: dict[NodeId, Hello] = {}
        self._client_urls: dict[NodeId, str] = {self._own: client_url}
        self._address = self._initial.get(self._own, "")
        if identity.cluster_id:
            known = identity.configuration or base_configuration(identity)
            self._take_up(Membership(known, Index(identity.configuration_index)))
        else:
            assert self._own in self._initial, (self._own, self._initial)

    @property
    def is_bootstrapped(self) -> bool:
        return self._cluster_id != 0

    @property
    def cluster_id(self) -> int:
        """0 until the bootstrap has finished."""
        return self._cluster_id

    @property
    def members(self) -> dict[NodeId, str]:
        """Member id → peer address, this node included: whoever may be connected to."""
        if self._membership is None:
            return dict(self._initial)
        found = {id_: member.address for id_, member in self._membership.members.items()}
        newcomers = {id_: hello.address for id_, hello in self._newcomers.items() if id_ not in found}
        return {**found, **newcomers, self._own: self._address}

    @property
    def committed(self) -> Configuration:
        """The newest configuration known here to be committed. Never goes back, across restarts either."""
        return self._membership.committed if self._membership is not None else Configuration(())

    @property
    def configuration_index(self) -> Index:
        """Of the entry that the newest committed configuration known here came with."""
        return self._membership.index if self._membership is not None else Index(0)

    def missing(self) -> tuple[NodeId, ...]:
        """Whom the bootstrap waits for."""
        return () if self.is_bootstrapped else tuple(sorted(self._initial.keys() - self._met))

    @property
    def alarms(self) -> tuple[str, ...]:
        """What an operator has to look into: a copied or restored directory among the peers, or this node's removal."""
        return (*self._boots.alarms, *([self.was_removed] if self.was_removed else ()))

    def client_url(self, member: NodeId) -> str:
        """Where `member` takes client requests; "" until it has been met."""
        return self._client_urls.get(member, "")

    def begin(self) -> None:
        """Finish the bootstrap at once in a cluster of one. Call before the first connection."""
        self._finish_if_all_met()

    def on_configuration(self, applied: Configuration, applied_index: Index, in_force: Configuration) -> None:
        """The members are others: `applied`, by the entry at `applied_index` (0: the initial ones), and `in_force`.

        Tell the transport `members` after it. Raises: StorageFailed.
        """
        membership = self._membership
        assert membership is not None, "a node that has not finished its bootstrap applies nothing"
        if membership.is_news(applied, applied_index):
            self._save_configuration(applied, applied_index)
        membership.on_configuration(applied, applied_index, in_force)
        self._take_up(membership)
        for id_, hello in list(self._newcomers.items()):
            if self._is_newcomer(id_):
                continue
            del self._newcomers[id_]
            if self._incarnation_of(id_) == hello.incarnation:
                self._boots.note(hello)

    def hello(self, lane: Lane, *, link: int, nonce: bytes) -> Hello:
        """How this node introduces itself now."""
        return Hello(
            protocol_min=PROTOCOL_MIN,
            protocol_max=PROTOCOL,
            cluster_name=self._cluster_name,
            cluster_id=self._cluster_id,
            member=self._own,
            incarnation=self._incarnation,
            boot_counter=self._boot.counter,
            boot_nonce=self._boot.nonce,
            members=self._known_members(),
            address=self._address,
            client_url=self._client_url,
            lane=lane,
            link=link,
            settings=self._settings,
            nonce=nonce,
            software=__version__,
            feature_level=self.feature_level,
            earlier_boots=self._boot.earlier,
            configuration_index=self.configuration_index,
        )

    def judge(self, hello: Hello) -> Refusal | None:
        """None if the proven sender of `hello` may be talked to. Changes nothing but `alarms` and `was_removed`."""
        return (
            self._judge_cluster(hello)
            or self._judge_removal(hello)
            or self._judge_initial_members(hello)
            or self._judge_directory(hello)
            or self._judge_conflict(hello)
            or self._judge_membership(hello)
            or self._boots.judge(hello)
            or self._judge_settings(hello)
        )

    def judge_gossip(self, sender: NodeId, incarnation: int, boot_counter: int, boot_nonce: int) -> Refusal | None:
        """None if gossip proven to be of `sender`, in that start of that directory, may be believed. Changes nothing.

        No alarm either: whoever sends an old datagram again need not know the secret. Members only, and those newer
        than what is known here that a handshake has let in.
        """
        membership = self._membership
        if self.was_removed or (membership is not None and membership.is_removed(sender)):
            return Refusal("removed_member", self.was_removed or f"member {sender} was removed from the cluster")
        known = self._incarnation_of(sender) if membership is not None else 0
        newcomer = self._newcomers.get(sender)
        if not known and newcomer is not None:
            known = newcomer.incarnation
        if not known or sender == self._own:
            return Refusal("unknown_member", f"member {sender} is not in the member list of member {self._own}")
        if known != incarnation:
            return _wiped(sender, by=self._own)
        return self._boots.compare(sender, boot_counter, boot_nonce)

    def admit(self, hello: Hello) -> None:
        """Record, durably, an accepted sender's boot, and before the end of the bootstrap its incarnation.

        Cheap when both are known already. What was wrong with this member's directory is over: if two run, the other
        will be refused again, and say so.
        """
        self._boots.forgive(hello.member)
        if self._membership is None:
            if hello.member not in self._incarnations:
                self._save(self._cluster_id, {**self._incarnations, hello.member: hello.incarnation})
                self._incarnations[hello.member] = hello.incarnation
        elif self._is_newcomer(hello.member):
            self._newcomers[hello.member] = hello
            return  # it is bound to its directory by the entry that made it a member
        self._boots.note(hello)

    def note_met(self, hello: Hello) -> None:
        """`hello`'s sender has recorded this node, and this node has admitted it."""
        self._client_urls[hello.member] = hello.client_url
        self._met.add(hello.member)
        self._finish_if_all_met()

    def _known_members(self) -> tuple[KnownMember, ...]:
        if self._membership is None:
            known = ((id_, self._incarnations.get(id_, 0), address) for id_, address in sorted(self._initial.items()))
        else:
            known = ((member.id, member.incarnation, member.address) for member in self._membership.committed.members)
        return tuple(KnownMember(*member) for member in known)

    # ── members ─────────────────────────────────────────────────────────────────────────────────────

    def _take_up(self, membership: Membership) -> None:
        self._membership = membership
        own = membership.find(self._own)
        if own is not None:
            self._address = own.address
        elif membership.is_removed(self._own):
            self._note_removal(f"entry {membership.index} of its log says so")

    def _note_removal(self, how: str) -> None:
        if self.was_removed:
            return
        self.was_removed = (
            f"member {self._own} was removed from the cluster ({how}); stop it, and add it as a new member with an "
            "empty data directory if it is to come back"
        )
        if self.on_removed is not None:
            self.on_removed(self.was_removed)

    def _is_newcomer(self, id_: NodeId) -> bool:
        """No configuration known here binds this id to a directory yet."""
        assert self._membership is not None
        return not self._membership.is_removed(id_) and not self._incarnation_of(id_)

    def _judge_removal(self, hello: Hello) -> Refusal | None:
        """Whether one of the two is no member any more."""
        membership = self._membership
        if membership is None:
            return None
        if hello.configuration_index > membership.index and _record_of(self._own, hello) is None:
            index = hello.configuration_index
            self._note_removal(f"member {hello.member} knows a newer configuration without it, of entry {index}")
            return Refusal("removed_member", self.was_removed)
        if membership.is_removed(hello.member):
            return Refusal(
                "removed_member",
                f"member {hello.member} was removed from the cluster, and its id is never given again; to bring it "
                "back, add it as a new member with an empty data directory",
            )
        return None

    def _judge_membership(self, hello: Hello) -> Refusal | None:
        if self._membership is None:
            return None
        refusal = self._judge_newcomer(hello) if self._is_newcomer(hello.member) else None
        return refusal or self._judge_feature_level(self._membership, hello)

    def _judge_newcomer(self, hello: Hello) -> Refusal | None:
        """A member added since: it must know this node, with its directory, and itself as members."""
        ours, its_own = _record_of(self._own, hello), _record_of(hello.member, hello)
        if ours is None or ours.incarnation != self._incarnation or its_own is None:
            return Refusal("unknown_member", f"member {hello.member} is not in the member list of member {self._own}")
        if len(self._newcomers) >= NEWCOMERS_MAX and hello.member not in self._newcomers:
            return Refusal(
                "unknown_member", f"member {self._own} knows {NEWCOMERS_MAX} newer members already; it must catch up"
            )
        try:
            parse_address(hello.address, f"peer address of member {hello.member}")
        except ValueError as error:
            return Refusal("unknown_member", str(error))
        return None

    def _judge_feature_level(self, membership: Membership, hello: Hello) -> Refusal | None:
        needed = membership.feature_level
        for id_, level in ((hello.member, hello.feature_level), (self._own, self.feature_level)):
            if level < needed:
                return Refusal(
                    "feature_level",
                    f"member {id_} knows feature level {level}, the cluster uses {needed}: run a newer version of "
                    "kvnode there, or raise its cluster.feature_level_max",
                )
        return None

    # ── rules ───────────────────────────────────────────────────────────────────────────────────────

    def _judge_cluster(self, hello: Hello) -> Refusal | None:
        if hello.cluster_name != self._cluster_name:
            return Refusal(
                "wrong_cluster", f"cluster.name differs: {self._cluster_name!r} here, {hello.cluster_name!r} there"
            )
        if hello.member == self._own:
            return Refusal("own_id", f"both sides are member {self._own}: two nodes are configured with one id")
        if self._cluster_id and hello.cluster_id and self._cluster_id != hello.cluster_id:
            return Refusal(
                "wrong_cluster",
                f"cluster id differs: {self._cluster_id:016x} here, {hello.cluster_id:016x} there; "
                "the address belongs to another cluster",
            )
        return None

    def _judge_initial_members(self, hello: Hello) -> Refusal | None:
        """As long as one of the two has not finished its bootstrap. A node that joined has never heard of them."""
        has_joined = self._membership is not None and not self._initial
        if has_joined or (self._membership is not None and hello.cluster_id):
            return None
        if hello.member not in self._initial:
            return Refusal("unknown_member", f"member {hello.member} is not in the member list of member {self._own}")
        theirs = {known.member: known.address for known in hello.members}
        if theirs != self._initial:
            return Refusal(
                "members_differ", f"cluster.members differs: {_members(self._initial)} here, {_members(theirs)} there"
            )
        return None

    def _judge_conflict(self, hello: Hello) -> Refusal | None:
        """As long as one of the two has not finished its bootstrap: whether both have met the same third members."""
        if self._membership is not None and hello.cluster_id:
            return None
        for record in hello.members:
            ours = self._incarnations.get(record.member, 0)
            if ours and record.incarnation not in {0, ours}:
                return Refusal(
                    "bootstrap_conflict",
                    f"member {record.member} was met on two data directories during the first start: "
                    f"{ours:016x} by member {self._own}, {record.incarnation:016x} by member {hello.member}; "
                    "empty the data directories of the members that have not served yet and start again",
                )
        return None

    def _judge_directory(self, hello: Hello) -> Refusal | None:
        """Whether both are on the directories that the other knows them on."""
        if self._incarnation_of(hello.member) not in {0, hello.incarnation}:
            return _wiped(hello.member, by=self._own)
        ours = _record_of(self._own, hello)
        if ours is not None and ours.incarnation not in {0, self._incarnation}:
            return _wiped(self._own, by=hello.member)
        return None

    def _incarnation_of(self, id_: NodeId) -> int:
        """0: not known yet."""
        if self._membership is None:
            return self._incarnations.get(id_, 0)
        # What is not committed binds nobody: rolled back, its id is given again, to another directory.
        member = self._membership.find_committed(id_)
        return member.incarnation if member is not None else 0

    def _judge_settings(self, hello: Hello) -> Refusal | None:
        for key, ours in sorted(self._settings.items()):
            theirs = hello.settings.get(key, ours)  # a setting one side does not know yet binds nobody
            if theirs != ours:
                return Refusal(
                    "setting_differs",
                    f"{key} differs: {ours!r} on member {self._own}, {theirs!r} on member {hello.member}; "
                    "it must be equal on all members",
                )
        return None

    # ── bootstrap ───────────────────────────────────────────────────────────────────────────────────

    def _finish_if_all_met(self) -> None:
        if self.is_bootstrapped or self._met != self._initial.keys():
            return
        members = {id_: (self._incarnations[id_], address) for id_, address in self._initial.items()}
        cluster_id = derive_cluster_id(members)
        self._save(cluster_id, self._incarnations)
        self._cluster_id = cluster_id
        self._take_up(Membership(_initial_configuration(members), Index(0)))
        if self.on_bootstrapped is not None:
            self.on_bootstrapped()

    def _save(self, cluster_id: int, incarnations: Mapping[NodeId, int]) -> None:
        self._save_identity(
            cluster_id,
            {id_: (incarnation, self._initial[id_]) for id_, incarnation in sorted(incarnations.items())},
        )


def base_configuration(identity: Identity) -> Configuration:
    """What a log without a configuration in it begins with: the initial members, or what the answer to a join said."""
    if not identity.members:
        assert identity.configuration is not None, "a node that joins begins with the configuration it was told"
        return identity.configuration
    return _initial_configuration(
        {NodeId(id_): (known.incarnation, known.address) for id_, known in identity.members.items()}
    )


def _initial_configuration(members: Mapping[NodeId, tuple[int, str]]) -> Configuration:
    ids = tuple(sorted(members))
    return Configuration(voters=ids, members=tuple(Member(id_, *members[id_]) for id_ in ids), last_id=max(ids))


def derive_cluster_id(members: Mapping[NodeId, tuple[int, str]]) -> int:
    """64-bit blake2b over sorted (member id, incarnation, address). Never 0."""
    text = "".join(f"{id_} {incarnation:016x} {address}\n" for id_, (incarnation, address) in sorted(members.items()))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") or 1


def _wiped(member: int, *, by: int) -> Refusal:
    return Refusal(
        "wrong_incarnation",
        f"member {by} knows member {member} under another incarnation: the data directory of member {member} was "
        "wiped or replaced; remove the member and add it as a new one",
    )


def _record_of(member: NodeId, hello: Hello) -> KnownMember | None:
    return next((record for record in hello.members if record.member == member), None)


def _members(addresses: Mapping[NodeId, str]) -> str:
    return "[" + ", ".join(f"{id_}={address}" for id_, address in sorted(addresses.items())) + "]"
