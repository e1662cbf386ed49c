"""Roster: who the members are, which directory each of them lives on, and who may therefore be talked to.

*Bootstrap.* At its very first start a node knows addresses only. It waits until every initial member and it have
recorded each other's incarnation (the random id of a data directory) durably, then derives the cluster id from all
of them. A record is never replaced, and nobody takes another's word for a third. So even if directories are swapped
during a first start and two cluster ids come out, only one can have a majority: two majorities share a member k. On
one directory k has one cluster id. On two, both met a directory that the clusters have in common, and that recorded
both: but records do not change. Until its bootstrap has finished a node takes part in nothing.

*Afterwards* a proven peer is refused if it is of another cluster, no member, on another directory than recorded
(wiped: it may have forgotten a vote), or went back in time: its boot counter, +1 at each start, is below the one seen
last (an old backup), or equal with another nonce (a copy of the directory runs as well), or above it, but the start
seen last is none of its own (such a copy, started more often since). Settings of cluster scope must be equal; the
refusal names the key.

Synchronous and free of I/O but for two functions given at construction, called at connect only, never per message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Protocol

from kvnode.ids import NodeId
from kvnode.raft.messages import Lane
from kvnode.version import __version__
from kvnode.wire.frames import FEATURE_LEVEL, PROTOCOL, PROTOCOL_MIN, Hello, KnownMember, Refusal

Setting = bool | int | float | str


class Boot(Protocol):
    """One start of a node."""

    @property
    def counter(self) -> int: ...
    @property
    def nonce(self) -> int: ...


class OwnBoot(Boot, Protocol):
    """This start of this node."""

    @property
    def earlier(self) -> tuple[int, ...]:
        """Nonces of the starts before it, newest first, as far as they are remembered."""
        ...


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
        """Members met so far; all of them once the bootstrap has finished."""
        ...


SaveIdentity = Callable[[int, Mapping[int, tuple[int, str]]], None]
"""(cluster id, member → (incarnation, address)), durable on return. Cluster id 0: the bootstrap goes on."""

SavePeerBoot = Callable[[int, int, int], None]
"""(member, counter, nonce), durable on return."""


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
        on_bootstrapped: Callable[[], None] | None = None,
    ) -> None:
        self.on_bootstrapped = on_bootstrapped
        self._own = NodeId(identity.member)
        self._incarnation = identity.incarnation
        self._cluster_name = identity.cluster_name
        self._cluster_id = identity.cluster_id
        self._boot = boot
        self._settings = dict(cluster_scope)
        self._client_url = client_url
        self._save_identity = save_identity
        self._save_peer_boot = save_peer_boot
        if self._cluster_id:
            self._addresses = {NodeId(id_): known.address for id_, known in identity.members.items()}
        else:
            self._addresses = {NodeId(id_): address for id_, address in initial_members.items()}
        assert self._own in self._addresses, (self._own, self._addresses)
        self._incarnations = {NodeId(id_): known.incarnation for id_, known in identity.members.items()}
        self._incarnations[self._own] = self._incarnation
        self._boots = {NodeId(id_): (seen.counter, seen.nonce) for id_, seen in peer_boots.items()}
        self._met: set[NodeId] = {self._own}
        self._client_urls: dict[NodeId, str] = {self._own: client_url}
        self._alarms: dict[tuple[NodeId, str], str] = {}

    @property
    def is_bootstrapped(self) -> bool:
        return self._cluster_id != 0

    @property
    def cluster_id(self) -> int:
        """0 until the bootstrap has finished."""
        return self._cluster_id

    @property
    def members(self) -> dict[NodeId, str]:
        """Member id → peer address, this node included."""
        return dict(self._addresses)

    def missing(self) -> tuple[NodeId, ...]:
        """Whom the bootstrap waits for."""
        return () if self.is_bootstrapped else tuple(sorted(self._addresses.keys() - self._met))

    @property
    def alarms(self) -> tuple[str, ...]:
        """What an operator has to look into: a copied or restored data directory among the peers."""
        return tuple(self._alarms.values())

    def client_url(self, member: NodeId) -> str:
        """Where `member` takes client requests; "" until it has been met."""
        return self._client_urls.get(member, "")

    def begin(self) -> None:
        """Finish the bootstrap at once in a cluster of one. Call before the first connection."""
        self._finish_if_all_met()

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
            members=tuple(
                KnownMember(id_, self._incarnations.get(id_, 0), address)
                for id_, address in sorted(self._addresses.items())
            ),
            address=self._addresses[self._own],
            client_url=self._client_url,
            lane=lane,
            link=link,
            settings=self._settings,
            nonce=nonce,
            software=__version__,
            feature_level=FEATURE_LEVEL,
            earlier_boots=self._boot.earlier,
        )

    def judge(self, hello: Hello) -> Refusal | None:
        """None if the proven sender of `hello` may be talked to. Changes nothing but `alarms`."""
        return (
            self._judge_cluster(hello)
            or self._judge_incarnations(hello)
            or self._judge_boot(hello)
            or self._judge_settings(hello)
        )

    def admit(self, hello: Hello) -> None:
        """Record, durably, an accepted sender's incarnation and boot. Cheap when both are known already.

        What was wrong with this member's directory is over: if two run, the other will be refused again, and say so.
        """
        self._alarms = {of: sentence for of, sentence in self._alarms.items() if of[0] != hello.member}
        if hello.member not in self._incarnations:
            self._save(self._cluster_id, {**self._incarnations, hello.member: hello.incarnation})
            self._incarnations[hello.member] = hello.incarnation
        boot = (hello.boot_counter, hello.boot_nonce)
        if self._boots.get(hello.member) != boot:
            self._save_peer_boot(hello.member, *boot)
            self._boots[hello.member] = boot

    def note_met(self, hello: Hello) -> None:
        """`hello`'s sender has recorded this node, and this node has admitted it."""
        assert self._incarnations.get(hello.member) == hello.incarnation, hello.member
        self._client_urls[hello.member] = hello.client_url
        self._met.add(hello.member)
        self._finish_if_all_met()

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
        if hello.member not in self._addresses:
            return Refusal("unknown_member", f"member {hello.member} is not in the member list of member {self._own}")
        if not (self._cluster_id and hello.cluster_id):
            theirs = {known.member: known.address for known in hello.members}
            if theirs != self._addresses:
                return Refusal(
                    "members_differ",
                    f"cluster.members differs: {_members(self._addresses)} here, {_members(theirs)} there",
                )
        return None

    def _judge_incarnations(self, hello: Hello) -> Refusal | None:
        known = self._incarnations.get(hello.member, hello.incarnation)
        if known != hello.incarnation:
            return _wiped(hello.member, by=self._own)
        for record in hello.members:
            ours = self._incarnations.get(record.member, 0)
            if not ours or not record.incarnation or ours == record.incarnation:
                continue
            if record.member == self._own:
                return _wiped(self._own, by=hello.member)
            if not (self._cluster_id and hello.cluster_id):
                return Refusal(
                    "bootstrap_conflict",
                    f"member {record.member} was met on two data directories during the first start: "
                    f"{ours:016x} by member {self._own}, {record.incarnation:016x} by member {hello.member}; "
                    "empty the data directories of the members that have not served yet and start again",
                )
        return None

    def _judge_boot(self, hello: Hello) -> Refusal | None:
        if hello.member not in self._boots:
            return None
        counter, nonce = self._boots[hello.member]
        starts_since = hello.boot_counter - counter
        if starts_since < 0:
            return self._alarm(
                hello.member,
                "stale_boot",
                f"member {hello.member} started for the {hello.boot_counter}. time, but its {counter}. start has been "
                "seen: its data directory is an old backup or a copy; remove the member and add it as a new one",
            )
        if starts_since == 0 and hello.boot_nonce != nonce:
            return self._alarm(
                hello.member,
                "cloned",
                f"member {hello.member} runs twice: start {counter} has been seen from another copy of its data "
                "directory; stop both, remove the member and add it as a new one",
            )
        if 0 < starts_since <= len(hello.earlier_boots) and hello.earlier_boots[starts_since - 1] != nonce:
            return self._alarm(
                hello.member,
                "stale_boot",
                f"member {hello.member} started for the {hello.boot_counter}. time, but its {counter}. start was not "
                "the one that has been seen: its data directory is an old backup or a copy; remove the member and add "
                "it as a new one",
            )
        return None

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

    def _alarm(self, member: NodeId, code: str, sentence: str) -> Refusal:
        self._alarms[member, code] = sentence
        return Refusal(code, sentence)

    # ── bootstrap ───────────────────────────────────────────────────────────────────────────────────

    def _finish_if_all_met(self) -> None:
        if self.is_bootstrapped or self._met != self._addresses.keys():
            return
        cluster_id = derive_cluster_id(
            {id_: (self._incarnations[id_], address) for id_, address in self._addresses.items()}
        )
        self._save(cluster_id, self._incarnations)
        self._cluster_id = cluster_id
        if self.on_bootstrapped is not None:
            self.on_bootstrapped()

    def _save(self, cluster_id: int, incarnations: Mapping[NodeId, int]) -> None:
        self._save_identity(
            cluster_id,
            {id_: (incarnation, self._addresses[id_]) for id_, incarnation in sorted(incarnations.items())},
        )


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


def _members(addresses: Mapping[NodeId, str]) -> str:
    return "[" + ", ".join(f"{id_}={address}" for id_, address in sorted(addresses.items())) + "]"
