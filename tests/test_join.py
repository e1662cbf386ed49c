"""Joining: a new directory gets its place in a cluster by the real front door, once, whatever comes in between."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kvnode import config as configuration
from kvnode import join as joining
from kvnode.clocks.system import SystemClock
from kvnode.config import Config
from kvnode.errors import (
    ConfigInvalid,
    Conflict,
    Fatal,
    IdentityRefused,
    LeadershipLost,
    MemberNotFound,
    NoLeader,
    NotReady,
)
from kvnode.ids import NodeId
from kvnode.join import check_fit, join, settled, taken_in, tell_progress
from kvnode.kv.interface import MemberInfo, Members
from kvnode.kv.members import AddMember, PromoteMember
from kvnode.storage.datadir import DataDir, Identity
from kvnode.storage.realdisk import RealDisk
from tests.client.local_node import LocalNode, served

PEER = "127.0.0.1:7504"
LISTENER_CHECK = joining._check_listener


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of milliseconds, and no look at whether this machine has port 7504 to give."""
    monkeypatch.setattr(joining, "PAUSE_MS_MIN", 1)
    monkeypatch.setattr(joining, "PAUSE_MS_MAX", 2)
    monkeypatch.setattr(joining, "PROGRESS_MS", 1)
    monkeypatch.setattr(joining, "_check_listener", lambda address: None)


@pytest.fixture
def secret(tmp_path: Path) -> str:
    path = tmp_path / "secret"
    path.write_bytes(b"s" * 32)
    path.chmod(0o600)
    return str(path)


@pytest.fixture
async def node() -> LocalNode:
    return LocalNode()


@pytest.fixture
async def address(node: LocalNode) -> AsyncIterator[str]:
    async with served(node) as address:
        yield address


def config_of(secret: str, join: str = "", **settings: Any) -> Config:
    """`settings`: two underscores stand for the dot."""
    more = {"cluster.join": [join]} if join else {}
    named = {name.replace("__", "."): value for name, value in settings.items()}
    given = {"cluster.secret_file": secret, "peer.listen": PEER, **more, **named}
    return configuration.load(environment={}, overrides=given)


class Directory:
    """One data directory, opened again and again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open_: DataDir | None = None

    def open(self, config: Config) -> DataDir:
        self.close()
        self.open_ = DataDir.open(
            RealDisk(),
            str(self.path),
            member=config.node.id,
            cluster_name=config.cluster.name,
            random_u64=lambda: 0xABCD,
            allow_unsafe_filesystem=True,
        )
        return self.open_

    def close(self) -> None:
        if self.open_ is not None:
            self.open_.close()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    found = Directory(tmp_path / "n4")
    yield found
    found.close()


async def test_a_new_directory_becomes_a_learner_that_wants_a_vote(
    node: LocalNode, address: str, secret: str, directory: Directory
) -> None:
    config = config_of(secret, f"http://{address}/", node__name="four", cluster__replace=1)
    data = directory.open(config)
    assert data.identity.member == 0
    found = await join(config, data, SystemClock())
    assert node.changes == [AddMember(PEER, "four", 0xABCD, promote=True, replaces=NodeId(1))]
    assert (found.node.id, found.name, found.cluster.join) == (2, "four", ())
    identity = directory.open(found).identity
    assert (identity.member, identity.cluster_id, identity.members) == (2, 0xAA, {})
    assert identity.configuration is not None
    assert (identity.configuration.voters, identity.configuration.learners) == ((1,), (2,))
    assert (identity.configuration.last_id, identity.configuration_index) == (2, 1)
    one, two = identity.configuration.members
    assert (one.incarnation, one.address, one.name) == (0xA1, "127.0.0.1:7501", "one")
    assert (two.incarnation, two.wants_vote, two.replaces) == (0xABCD, True, 1)


async def test_later_starts_find_the_id_in_the_directory(
    node: LocalNode, address: str, secret: str, directory: Directory
) -> None:
    config = config_of(secret, address)
    await join(config, directory.open(config), SystemClock())
    again = await join(config, directory.open(config), SystemClock())
    assert again.node.id == 2
    plain = config_of(secret, node__id=0)
    assert (await join(plain, directory.open(plain), SystemClock())).node.id == 2
    nobody = config_of(secret, "127.0.0.1:1")
    assert (await join(nobody, directory.open(nobody), SystemClock())).node.id == 2, "nobody need be there"
    assert len(node.changes) == 1
    with pytest.raises(IdentityRefused, match="belongs to member 2"):
        directory.open(config_of(secret))


async def test_a_crash_before_the_answer_was_kept_is_made_good_by_asking_again(
    node: LocalNode, address: str, secret: str, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(secret, address)

    def crash(identity: Identity) -> None:
        raise KeyboardInterrupt

    data = directory.open(config)
    monkeypatch.setattr(data, "save_identity", crash)
    with pytest.raises(KeyboardInterrupt):
        await join(config, data, SystemClock())
    await join(config, directory.open(config), SystemClock())
    assert node.changes[0] == node.changes[1], "the same directory, so the cluster knows it again"


async def test_it_waits_for_a_leader_and_for_other_changes(
    node: LocalNode, address: str, secret: str, directory: Directory
) -> None:
    config = config_of(secret, address)
    node.refuse_next(
        NoLeader("nobody leads"),
        NotReady("another change"),
        Conflict("too few voters answer"),
        LeadershipLost("who knows"),
    )
    await join(config, directory.open(config), SystemClock())
    assert len(node.changes) == 1


async def test_all_addresses_are_tried(node: LocalNode, address: str, secret: str, directory: Directory) -> None:
    config = config_of(secret, cluster__join=["127.0.0.1:1", address])
    await join(config, directory.open(config), SystemClock())
    assert len(node.changes) == 1


async def test_it_gives_up_and_says_what_it_was_told(
    node: LocalNode, address: str, secret: str, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(secret, address, cluster__join_timeout_ms=1_000)
    monkeypatch.setattr(joining, "PAUSE_MS_MIN", 1_001)
    node.refuse_next(Conflict("the address 127.0.0.1:7504 is member 3's: remove that first"))
    with pytest.raises(Fatal, match="is member 3's: remove that first"):
        await join(config, directory.open(config), SystemClock())
    assert directory.open(config).identity.member == 0


async def test_a_final_refusal_is_final(node: LocalNode, address: str, secret: str, directory: Directory) -> None:
    config = config_of(secret, address)
    node.refuse_next(MemberNotFound("there is no member 9 that could be replaced"))
    with pytest.raises(ConfigInvalid, match="there is no member 9"):
        await join(config, directory.open(config), SystemClock())


async def test_nothing_is_asked_for_in_vain(node: LocalNode, address: str, secret: str, directory: Directory) -> None:
    for settings, word in (
        ({"cluster.name": "other"}, "'other' here, but 'local'"),
        ({"raft.heartbeat_ms": 49}, "raft.heartbeat_ms must be equal on all members: 49 here, 50 there"),
    ):
        config = config_of(secret, address, **settings)
        directory.path = directory.path.with_name(directory.path.name + "x")
        with pytest.raises(ConfigInvalid, match=word):
            await join(config, directory.open(config), SystemClock())
    assert node.changes == []


def members(*addresses: str, **more: Any) -> Members:
    infos = tuple(
        MemberInfo(id=NodeId(i), role="voter", peer_address=address, client_url="")
        for i, address in enumerate(addresses, 1)
    )
    fields = {"feature_level": 1, "cluster_name": "local", **more}
    return Members(
        cluster_id="aa", leader=None, configuration_index=0, last_id=NodeId(len(infos)), members=infos, **fields
    )


def test_what_must_fit(secret: str) -> None:
    config = config_of(secret, "127.0.0.1:1")
    check_fit(config, members("127.0.0.1:7501", "localhost:7502", ""))
    check_fit(config, members(settings={"raft.of_a_newer_version": 7}))
    with pytest.raises(ConfigInvalid, match=r"127.0.0.1:7504, but that is this machine only.*peer.advertise"):
        check_fit(config, members("10.0.0.1:7501"))
    with pytest.raises(ConfigInvalid, match="uses feature level 99, this node knows or claims"):
        check_fit(config, members(feature_level=99))
    held_back = config_of(secret, "127.0.0.1:1", cluster__feature_level_max=1)
    with pytest.raises(ConfigInvalid, match="feature_level_max"):
        check_fit(held_back, members(feature_level=2))
    elsewhere = config_of(secret, "127.0.0.1:1", peer__advertise="10.0.0.4:7501")
    check_fit(elsewhere, members("10.0.0.1:7501"))


async def test_an_answer_about_another_directory_is_not_believed(node: LocalNode) -> None:
    answer = await node.change_members(AddMember(PEER, incarnation=7))
    with pytest.raises(Fatal, match="another data directory"):
        taken_in(Identity(1, "local", 0, 8), answer)


async def test_a_directory_of_another_cluster_stays_there(
    node: LocalNode, address: str, secret: str, directory: Directory
) -> None:
    config = config_of(secret, address)
    await join(config, directory.open(config), SystemClock())
    node.configuration = msgspec.structs.replace(node.configuration, cluster_id="00000000000000bb")
    with pytest.raises(IdentityRefused, match=r"of cluster 00000000000000aa, but .* leads to cluster 00000000000000bb"):
        await join(config, directory.open(config), SystemClock())


async def test_an_initial_member_that_has_not_met_the_others_does_not_change_sides(
    address: str, secret: str, directory: Directory
) -> None:
    directory.open(config_of(secret))
    config = config_of(secret, address)
    with pytest.raises(IdentityRefused, match="has not finished its first start"):
        await join(config, directory.open(config), SystemClock())


async def test_a_new_directory_must_get_its_id_from_somewhere(secret: str, directory: Directory) -> None:
    config = config_of(secret, node__id=0)
    with pytest.raises(ConfigInvalid, match=r"node.id is 0, but .* is new"):
        await join(config, directory.open(config), SystemClock())


async def test_a_node_that_was_configured_as_ever_is_left_alone(secret: str, directory: Directory) -> None:
    config = config_of(secret)
    assert await join(config, directory.open(config), SystemClock()) is config
    by_directory = config_of(secret, node__id=0, cluster__members=["1=127.0.0.1:7501", "2=127.0.0.1:7502"])
    found = settled(by_directory, directory.open(by_directory).identity)
    assert (found.node.id, found.cluster.members) == (1, by_directory.cluster.members), "its first start goes on"


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"cluster.secret_file": ""}, "cluster.secret_file must be set"),
        ({"cluster.join": ["nowhere"]}, "cluster.join: 'nowhere' is not of the form host:port"),
        ({"cluster.join": ["https://a:1"]}, "cluster.join"),
        ({"peer.listen": "127.0.0.1:0"}, "peer.listen"),
        ({"peer.listen": "0.0.0.0:7504", "peer.insecure": True}, "peer.listen: '0.0.0.0:7504'"),
        ({"peer.advertise": "[::]:7504"}, "peer.advertise"),
        ({"peer.listen": "10.0.0.4:7504"}, "not loopback"),
        ({"cluster.join": [], "cluster.replace": 3}, "cluster.replace goes with cluster.join"),
        ({"cluster.join": [], "node.id": 4}, "node.id 4 does not stand in cluster.members"),
    ],
)
def test_settings_that_cannot_be_meant(secret: str, settings: dict[str, Any], word: str) -> None:
    given = {"cluster.secret_file": secret, "cluster.join": ["127.0.0.1:7401"], "peer.listen": PEER, **settings}
    with pytest.raises(ConfigInvalid, match=word):
        configuration.load(environment={}, overrides=given)


def test_a_port_that_is_taken_is_noticed_before_anybody_is_told_of_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigInvalid, match=f"peer.listen 127.0.0.1:{port}"):
            LISTENER_CHECK(f"127.0.0.1:{port}")
    LISTENER_CHECK(f"127.0.0.1:{port}")
    with pytest.raises(ConfigInvalid, match=r"peer\.listen"):
        LISTENER_CHECK("no.such.host.invalid:7501")


async def test_progress_is_told_until_it_votes(node: LocalNode, address: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "kvnode.join")
    urls = iter(["", "http://127.0.0.1:1"])
    await node.change_members(AddMember(PEER, incarnation=7, promote=True))

    def told(word: str) -> list[str]:
        return [record.message for record in caplog.records if record.message.startswith(word)]

    task = asyncio.create_task(tell_progress(lambda: next(urls, address), NodeId(2)))
    async with asyncio.timeout(10):
        while not told("join.catching_up"):
            await asyncio.sleep(0.001)
        await node.change_members(PromoteMember(NodeId(2)))
        await task
    assert len(told("join.catching_up")) == 1
    assert "percent=0" in told("join.catching_up")[0]
    assert len(told("join.finished")) == 1
