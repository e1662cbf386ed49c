"""What a start may find: nothing, half of a first start, a log and a store that meet or do not, a file that is gone.

Scenarios S63 (as far as there are no snapshots) and S72, faults F2, F8, F21 and F22 of the reliability list.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import msgspec
import pytest

from kvnode.config import LimitsSection
from kvnode.errors import Fatal, IdentityRefused, LogCorrupted
from kvnode.ids import Index, NodeId, Term
from kvnode.kv.requests import Put
from kvnode.machine.machine import StateMachine
from kvnode.node.recovery import restore
from kvnode.raft.messages import Configuration, Entry, EntryKind
from kvnode.raft.state import Restored
from kvnode.sim.disk import FakeDisk
from kvnode.storage.datadir import DataDir, MemberIdentity, PeerBoot
from kvnode.storage.log_place import LogPlace
from kvnode.storage.memory_backend import MemoryBackend
from kvnode.storage.segment import HEADER_BYTES, SegmentHeader
from kvnode.storage.small_file import write_small
from kvnode.storage.wal import Stamp, Wal
from kvnode.wire.codec import decode_request, encode_request
from tests.storage.crash_states import crash_states, stop_everywhere
from tests.storage.wal_world import entry, new_disk, open_wal, persist, reopened, segments

HOME = "/data/n1"
CLUSTER = 7


class Start:
    """One start of a member of a cluster, in the order of `kvnode.server`: directory, bootstrap, log, has_log."""

    def __init__(self, disk: FakeDisk, seed: int = 1, told: Told | None = None) -> None:
        rng = random.Random(seed)
        random_u64 = partial(rng.getrandbits, 64)
        self.data = data = DataDir.open(
            disk, HOME, member=1, cluster_name="local", random_u64=random_u64, allow_unsafe_filesystem=False
        )
        if told is not None:
            told.incarnation = data.identity.incarnation
        if not data.identity.cluster_id:
            members = {1: MemberIdentity(data.identity.incarnation, "a:1"), 2: MemberIdentity(22, "b:2")}
            data.save_identity(msgspec.structs.replace(data.identity, cluster_id=CLUSTER, members=members))
        identity = data.identity
        self.wal, self.recovered = Wal.open(
            LogPlace(
                disk,
                data.wal_dir,
                Stamp(identity.cluster_id, identity.member, identity.incarnation),
                segment_bytes=8192,
                batch_bytes_max=2048,
                random_u64=random_u64,
            ),
            applied_index=Index(0),
            create=not identity.has_log,
        )
        if not identity.has_log:
            data.save_identity(msgspec.structs.replace(identity, has_log=True))


class Told:
    """What a first start has told anybody before it was interrupted."""

    incarnation = 0
    term = 0
    last_index = 0


def serve(disk: FakeDisk, told: Told) -> None:
    """Start, vote, take an entry, close."""
    start = Start(disk, told=told)
    start.wal.write([persist(1, state=(3, 2))])
    told.term = 3
    start.data.save_peer_boot(2, PeerBoot(1, 5))
    start.wal.write([persist(2, entry(1, 3))])
    told.last_index = 1
    start.wal.close()
    start.data.close()


def test_s72_first_boot_crash_sweep() -> None:
    """Every call of a first start, every disk: the same member finishes, or another begins; nothing told is lost.

    And if all the log is taken away afterwards, the node refuses: it is never an empty voter of its cluster.
    """
    told: list[Told] = []

    def work(disk: FakeDisk) -> None:
        told.append(Told())
        serve(disk, told[-1])

    states = same = fresh = 0
    for disk, change in stop_everywhere(FakeDisk, work):
        for after, how in crash_states(disk, seed=change, runs_max=260, sampled=12):
            states += 1
            where, said = f"before change {change}, {how}", told[-1]
            image = after.kill()
            start = Start(after, seed=9)
            incarnation = start.data.identity.incarnation
            assert said.incarnation in {0, incarnation}, where
            same += incarnation == said.incarnation
            fresh += not said.incarnation
            assert start.recovered.hard_state.term >= said.term, where
            assert (start.recovered.hard_state.vote, start.recovered.hard_state.term) in {(0, 0), (2, 3)}, where
            assert start.recovered.last_index >= said.last_index, where
            assert start.data.identity.members[1].incarnation == incarnation, where
            start.wal.close()
            start.data.close()
            again = after.kill()
            assert Start(again, seed=10).data.identity == start.data.identity, where
            if said.term:
                for path in segments(image):
                    image.unlink(path)
                with pytest.raises(LogCorrupted, match="holds no log, but this node has been part"):
                    Start(image)
    print(f"S72: {states} states at {change} places: {same} the same member, {fresh} begun again")
    assert change > 40
    assert states > 300
    assert same
    assert fresh


# S63: log and store


def put(index: int, term: int = 1) -> Entry:
    payload = encode_request(Put(b"k%d" % (index % 3), b"v%d" % index))
    return Entry(Term(term), Index(index), index << 16, EntryKind.COMMAND, payload, 0, 0)


def store_at(applied: int) -> StateMachine:
    """A machine over a store whose last commit covers entries up to `applied`."""
    backend = MemoryBackend()
    machine = StateMachine(backend, LimitsSection())
    for index in range(1, applied + 1):
        apply(machine, put(index))
    cut = machine.cut(Term(1))
    if cut is not None:
        backend.commit(cut)
    return StateMachine(backend, LimitsSection())


def apply(machine: StateMachine, one: Entry) -> None:
    machine.apply(one.index, one.time, decode_request(one.payload))


def log_of(entries: int, dropped: int = 0) -> FakeDisk:
    """A log of that many puts over several segments; those up to `dropped` are not needed any more."""
    disk = new_disk()
    wal, _ = open_wal(disk, create=True, segment_bytes=4096 + 1024 + 400, batch_bytes_max=512)
    for index in range(1, entries + 1):
        wal.write([persist(index, put(index), state=(1, 1) if index == 1 else None, commit=index - 1)])
    if dropped:
        wal.drop_prefix(Index(dropped))
    wal.close()
    return disk.kill()


def start_on(disk: FakeDisk, machine: StateMachine) -> Restored:
    """As a node starts: the store first, then the log from there, then both must meet. Applies the rest."""
    wal, found = open_wal(disk, applied=machine.applied_index, segment_bytes=8192, batch_bytes_max=512)
    restored = restore(found, initial=Configuration((NodeId(1),)), machine=machine, life=1)
    wal.close()
    for one in found.tail:
        apply(machine, one)
    return restored


LAST = 12


@pytest.mark.parametrize("applied", [0, 1, 5, LAST - 1, LAST], ids=["log only", "1", "5", "behind", "equal"])
def test_s63_startup_variants(applied: int) -> None:
    """The store is empty, behind or equal: what is missing comes from the log, nothing twice."""
    machine = store_at(applied)
    restored = start_on(log_of(LAST), machine)
    assert (restored.applied_index, restored.last_index, len(restored.tail)) == (applied, LAST, LAST - applied)
    whole = store_at(LAST)
    assert (machine.hash_at(), machine.revision) == (whole.hash_at(), whole.revision)


@pytest.mark.parametrize("applied", [LAST + 1, LAST + 40])
def test_s63_a_store_ahead_of_its_log_is_refused(applied: int) -> None:
    with pytest.raises(LogCorrupted, match=rf"the store has applied index {applied}"):
        start_on(log_of(LAST), store_at(applied))


def test_s63_a_log_that_begins_behind_its_store_is_refused() -> None:
    """Its prefix is gone because a store had it; this store does not: an old copy was put back."""
    disk = log_of(LAST, dropped=9)
    wal, found = open_wal(disk.kill(), applied=9)
    base = found.base.index
    wal.close()
    assert 3 < base <= 9
    for applied in range(LAST + 1):
        machine = store_at(applied)
        if applied < base:
            with pytest.raises(LogCorrupted, match="the log begins behind"):
                start_on(disk.kill(), machine)
        else:
            start_on(disk.kill(), machine)
            assert machine.hash_at() == store_at(LAST).hash_at()


def test_s63_no_log_is_refused_unless_none_was_ever_made() -> None:
    assert isinstance(reopened(new_disk()), LogCorrupted)
    _, found = open_wal(new_disk(), create=True)
    assert (found.hard_state.term, found.hard_state.vote, found.base.index, found.last_index) == (0, 0, 0, 0)
    assert (found.term_runs, found.tail, found.quarantine) == ((), (), None)


# F21, F22: the files of a data directory


def used_directory() -> FakeDisk:
    disk = FakeDisk(random.Random(1))
    serve(disk, Told())
    return disk.kill()


def truncated(disk: FakeDisk, path: str, size: Callable[[int], int]) -> None:
    file = disk.open(path)
    file.truncate(size(file.size()))
    file.close()


@pytest.mark.parametrize("how", ["missing", "empty", "half", "one byte short", "zeros", "another file's content"])
def test_f21_each_file_of_a_data_directory(how: str) -> None:
    """Refused, with the file named, unless it means nothing (lock, leftover) or only repeats what is intact (votes)."""
    image = used_directory()
    contents = {path: image.content(path) for path in image.files()}
    identity = Start(image.kill()).data.identity
    harmless = {f"{HOME}/LOCK", f"{HOME}/wal/votes", *(path for path in contents if path.endswith("next.tmp"))}
    refused = 0
    for path, content in contents.items():
        disk = image.kill()
        if how == "missing":
            disk.unlink(path)
        elif how == "zeros":
            disk.damage(path, 0, bytes(len(content)))
        elif how == "another file's content":
            other = contents[f"{HOME}/boot" if not path.endswith("boot") else f"{HOME}/identity"]
            disk.unlink(path)
            file = disk.open(path, create=True)
            file.pwrite(0, other)
            file.close()
        else:
            keep = {"empty": lambda size: 0, "half": lambda size: size // 2, "one byte short": lambda size: size - 1}
            truncated(disk, path, keep[how])
        disk = disk.kill()
        if path in harmless:
            assert Start(disk).data.identity == identity, path
            continue
        if path.endswith(".wal") and how == "one byte short":
            assert Start(disk).recovered.last_index == 1, "the lost byte was never written"
            continue
        with pytest.raises((IdentityRefused, LogCorrupted)) as refusal:
            Start(disk)
        assert path in str(refusal.value) or (how == "missing" and f"{HOME}/wal" in str(refusal.value)), path
        refused += 1
    assert refused >= 3


@pytest.mark.parametrize("name", ["identity", "boot", "peers"])
def test_f22_no_field_of_a_small_file_is_ever_made_up(name: str) -> None:
    """Each field gone, null or of another kind, under a right checksum: a refusal, or exactly the member it was."""
    image = used_directory()
    line = image.content(f"{HOME}/{name}").split(b"\n")[0]
    content: dict[str, object] = msgspec.json.decode(line)
    first = Start(image.kill())
    refused = 0
    for field in content:
        for changed in (None, [], {"x": 1}, "text", 1.5, "gone"):
            fields = {**content, field: changed}
            if changed == "gone":
                del fields[field]
            disk = image.kill()
            write_small(disk, f"{HOME}/{name}", fields)
            disk = disk.kill()
            if name == "peers" and changed == "gone":
                continue  # a peer that was never met
            try:
                found = Start(disk, seed=4)
            except Fatal:
                refused += 1
                continue
            assert name != "boot" or field == "earlier", "a made-up counter could go back"
            assert found.data.boot.counter == first.data.boot.counter
            assert msgspec.structs.replace(found.data.identity, members={}, applied_limits={}) == (
                msgspec.structs.replace(first.data.identity, members={}, applied_limits={})
            ), (field, changed)
            assert found.recovered.hard_state == first.recovered.hard_state
    print(f"F22 {name}: {refused} refused of {6 * len(content)}")
    assert refused > 3 * len(content)


@pytest.mark.parametrize("name", ["identity", "boot", "peers"])
def test_f12_a_half_done_replacement_of_a_small_file(name: str) -> None:
    """The temporary name beside the final one, torn or whole, is never taken for it; alone it is a loss."""
    image = used_directory()
    whole = image.content(f"{HOME}/{name}")
    identity = Start(image.kill()).data.identity
    for content in (b"", whole[: len(whole) // 2], whole, b"\0" * len(whole)):
        disk = image.kill()
        file = disk.open(f"{HOME}/{name}.tmp", create=True)
        file.pwrite(0, content)
        file.close()
        beside = disk.kill()
        assert Start(beside).data.identity == identity
        disk.unlink(f"{HOME}/{name}")
        with pytest.raises(IdentityRefused, match=name):
            Start(disk.kill())


HEADER_FIELDS = {
    "magic": (0, 8),
    "format": (8, 4),
    "checksum": (12, 4),
    "cluster id": (16, 8),
    "member": (24, 8),
    "incarnation": (32, 8),
    "sequence": (40, 8),
    "salt": (48, 8),
    "first index": (56, 8),
    "first term": (64, 8),
    "previous seq": (72, 8),
    "previous crc": (80, 4),
    "features": (84, 4),
    "previous end": (88, 8),
    "base": (96, 16),
    "hard state": (112, 24),
    "unsynced max": (136, 8),
    "last time": (144, 8),
    "size": (152, 8),
    "begins anew": (160, 8),
    "crc": (HEADER_BYTES - 4, 4),
}


def test_f22_no_field_of_a_segment_header_is_ever_made_up() -> None:
    """Zeroed, all ones or one more: refused with the file named, never term 0 and no vote."""
    assert len(SegmentHeader.__struct_fields__) == 14
    image = log_of(LAST)
    paths = segments(image)
    assert len(paths) >= 3
    for path in paths:
        for field, (offset, length) in HEADER_FIELDS.items():
            before = image.content(path)[offset : offset + length]
            for changed in (bytes(length), b"\xff" * length, bytes([before[0] ^ 1]) + before[1:]):
                if changed == before:
                    continue
                disk = image.kill()
                disk.damage(path, offset, changed)
                refusal = reopened(disk, segment_bytes=8192, batch_bytes_max=512)
                assert isinstance(refusal, LogCorrupted), (path, field)
                assert refusal.detail == {"file": path, "offset": 0}, field
