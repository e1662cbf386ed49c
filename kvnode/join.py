"""Joining: how a new data directory gets its place in a cluster that is running.

A node with `cluster.join` and a new directory asks the clients' door of any member. It looks first: name, settings of
cluster scope and feature level must fit, or its peers would refuse it for ever; so nothing is asked for in vain. Then
it has itself added as a learner (``POST /v1/members``), by the incarnation of its directory, and writes down durably
what it was answered: its id, the cluster's id, and the members. A crash in between costs nothing: the same incarnation
again is the same member. From then on it starts like any other member, with an empty log; the leader fills it, gives
it its vote, and removes whom it replaces (`kvnode.node.members`). Later starts find the id in the directory.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import msgspec

from kvnode.client.client import Client
from kvnode.clocks.clock import Clock
from kvnode.config import Config, is_loopback, parse_address
from kvnode.errors import ConfigInvalid, Conflict, Fatal, IdentityRefused, KvnodeError, Rejected
from kvnode.ids import NOBODY, NodeId
from kvnode.kv.interface import Members, MembersChanged, Options
from kvnode.kv.members import AddMember
from kvnode.observe.log import get_logger
from kvnode.raft.messages import Configuration, Member
from kvnode.storage.datadir import DataDir, Identity
from kvnode.wire.frames import FEATURE_LEVEL

ASK_MS = 5_000
LOOK_MS = 1_000
PAUSE_MS_MIN = 200
PAUSE_MS_MAX = 5_000
PROGRESS_MS = 2_000

log = get_logger("join")


async def join(config: Config, data: DataDir, clock: Clock) -> Config:
    """Have `data` made a member if it is none yet. Returns the configuration of the member that it is.

    Raises: ConfigInvalid (a setting, or the cluster's refusal), IdentityRefused (a directory of another cluster), Fatal
    when the cluster has not taken it in within `cluster.join_timeout_ms`, StorageFailed.
    """
    if config.cluster.join:
        if not data.identity.member:
            await _ask(config, data, clock)
        elif not data.identity.cluster_id:
            raise IdentityRefused(
                f"{data.path} belongs to member {data.identity.member} of a cluster that has not finished its first "
                "start: to join another one, start with an empty directory",
                path=data.path,
            )
        else:
            await _compare(config, data)
    elif not data.identity.member:
        raise ConfigInvalid(
            f"node.id is 0, but the data directory {data.path} is new and has none: set node.id and cluster.members "
            "for a new cluster, or cluster.join"
        )
    return settled(config, data.identity)


def settled(config: Config, identity: Identity) -> Config:
    """`config` with the id that the directory has; what is for the very first start only has done its work."""
    assert identity.member, "no member yet"
    if config.node.id == identity.member:
        return config
    members = config.cluster.members
    if identity.cluster_id:
        members = (f"{identity.member}={config.peer_address}",)
    return msgspec.structs.replace(
        config,
        node=msgspec.structs.replace(config.node, id=identity.member),
        cluster=msgspec.structs.replace(config.cluster, join=(), replace=0, members=members),
    )


async def _ask(config: Config, data: DataDir, clock: Clock) -> None:
    """Until a member has taken this node in, its refusal is final, or the time is up."""
    _check_listener(config.peer.listen)
    deadline_ms = clock.monotonic_ms() + config.cluster.join_timeout_ms
    pause_ms = PAUSE_MS_MIN
    endpoints = config.join_endpoints()
    log.info("join.began", address=config.peer_address, endpoints=endpoints, replaces=config.cluster.replace or None)
    while True:
        try:
            async with Client(endpoints) as client:
                answer = await _ask_once(client, config, data.identity)
            break
        except Fatal:
            raise
        except KvnodeError as error:
            # A conflict passes, too: another change may be under way, or too few voters answer at the moment.
            if isinstance(error, Rejected) and not isinstance(error, Conflict):
                where = ", ".join(endpoints)
                raise ConfigInvalid(f"the cluster at {where} refuses this node: {error.message}") from error
            if clock.monotonic_ms() + pause_ms >= deadline_ms:
                raise Fatal(
                    f"no member at {', '.join(endpoints)} has taken this node in within "
                    f"{config.cluster.join_timeout_ms // 1_000} s; the last one said: {error.message}"
                ) from error
            log.info("join.waiting", reason=error.message, code=error.code)
        await asyncio.sleep(pause_ms / 1e3)
        pause_ms = min(2 * pause_ms, PAUSE_MS_MAX)
    data.save_identity(taken_in(data.identity, answer))
    log.info(
        "join.admitted",
        member=answer.id,
        cluster_id=answer.cluster_id,
        members=[member.id for member in answer.members],
        configuration_index=answer.configuration_index,
    )


async def _ask_once(client: Client, config: Config, identity: Identity) -> MembersChanged:
    options = Options(timeout_ms=ASK_MS)
    check_fit(config, await client.members(options, settings=True))
    change = AddMember(
        config.peer_address,
        config.node.name,
        identity.incarnation,
        promote=True,
        replaces=NodeId(config.cluster.replace),
    )
    return await client.change_members(change, options)


def check_fit(config: Config, found: Members) -> None:
    """Whether the members would talk to a node with this configuration. Raises: ConfigInvalid naming what differs."""
    if found.cluster_name != config.cluster.name:
        raise ConfigInvalid(
            f"cluster.name is {config.cluster.name!r} here, but {found.cluster_name!r} is the cluster at "
            f"{', '.join(config.cluster.join)}"
        )
    for name, ours in config.cluster_scope().items():
        theirs = found.settings.get(name, ours)  # a setting one side does not know binds nobody
        if theirs != ours:
            raise ConfigInvalid(f"{name} must be equal on all members: {ours!r} here, {theirs!r} there")
    level = min(FEATURE_LEVEL, config.cluster.feature_level_max or FEATURE_LEVEL)
    if found.feature_level > level:
        raise ConfigInvalid(
            f"the cluster uses feature level {found.feature_level}, this node knows or claims {level}: run a newer "
            "version, or raise cluster.feature_level_max"
        )
    own_host = parse_address(config.peer_address)[0]
    others = [member.peer_address for member in found.members if member.peer_address]
    if is_loopback(own_host) and not all(is_loopback(parse_address(address)[0]) for address in others):
        raise ConfigInvalid(
            f"peers would be told to reach this node at {config.peer_address}, but that is this machine only, and they "
            f"are at {', '.join(others)}: set peer.advertise"
        )


def taken_in(identity: Identity, answer: MembersChanged) -> Identity:
    """The identity of a directory that was taken in. Raises: Fatal if the answer is not about it."""
    members = tuple(
        Member(
            found.id,
            int(found.incarnation or "0", 16),
            found.peer_address,
            found.name,
            found.wants_vote,
            found.replaces or NOBODY,
        )
        for found in answer.members
    )
    own = [member for member in members if member.id == answer.id and member.incarnation == identity.incarnation]
    if not own:
        raise Fatal(f"the cluster made member {answer.id} of another data directory than this one")
    return msgspec.structs.replace(
        identity,
        member=answer.id,
        cluster_id=int(answer.cluster_id, 16),
        configuration=Configuration(
            voters=tuple(found.id for found in answer.members if found.role == "voter"),
            learners=tuple(found.id for found in answer.members if found.role == "learner"),
            members=members,
            last_id=answer.last_id,
            feature_level=answer.feature_level,
        ),
        configuration_index=answer.configuration_index,
    )


async def _compare(config: Config, data: DataDir) -> None:
    """A member already: `cluster.join` is ignored, unless somebody there says at once that it means another cluster."""
    try:
        async with Client(config.join_endpoints(), retry=None) as client:
            found = await client.members(Options(timeout_ms=LOOK_MS))
    except KvnodeError:  # nobody need be there: this node knows its members
        return
    own = f"{data.identity.cluster_id:016x}"
    if found.cluster_id != own:
        raise IdentityRefused(
            f"{data.path} belongs to member {data.identity.member} of cluster {own}, but cluster.join leads to cluster "
            f"{found.cluster_id}: to join that one, start with an empty directory",
            path=data.path,
        )


def _check_listener(address: str) -> None:
    """Before others are told of it: can this node listen there at all? Raises: ConfigInvalid."""
    host, port = parse_address(address, "peer.listen")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, where = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        raise ConfigInvalid(f"peer.listen {address}: {error.strerror or error}") from error


async def tell_progress(client_url: Callable[[], str], node: NodeId) -> None:
    """Log how far a node that has joined is, until it votes. `client_url`: of the leader, "" while there is none."""
    told = ""
    while True:
        if url := client_url().removeprefix("http://").rstrip("/"):
            try:
                async with Client(url, retry=None) as client:
                    found = await client.members(Options(timeout_ms=LOOK_MS))
            except KvnodeError:  # it may have stopped leading
                found = None
            own = next((member for member in found.members if member.id == node), None) if found else None
            if own is not None and own.role == "voter":
                log.info("join.finished", member=node)
                return
            if own is not None and own.lag is not None and own.match_index is not None:
                percent = 100 * own.match_index // max(1, own.match_index + own.lag)
                now = f"{percent} {own.progress}"
                if now != told:
                    log.info("join.catching_up", member=node, percent=percent, lag=own.lag, progress=own.progress)
                told = now
        await asyncio.sleep(PROGRESS_MS / 1e3)
