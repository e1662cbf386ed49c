"""The store of the available plane on a simulated disk: power loss at every operation, damage at every byte."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress

import pytest

from kvnode.errors import StorageFailed
from kvnode.sim.available_shelf import FileShelf
from kvnode.sim.choices import RandomChoices
from kvnode.sim.disk import FakeDisk, SimulatedCrash
from kvnode.storage.available_store import AvailableStore

HOME = "/data"
ROW_SETS = [[(b"a", b"1")], [(b"a", b"2"), (b"b", b"3")], [(b"c", b"4" * 600)]]


def open_on(disk: FakeDisk, seed: int = 1) -> AvailableStore:
    rng = random.Random(seed)
    return AvailableStore.open(
        FileShelf(disk, HOME), member=1, cluster_id=5, random_u64=lambda: rng.getrandbits(64)
    )  # fmt: skip


def fresh() -> FakeDisk:
    disk = FakeDisk(random.Random(0))
    disk.mkdir(HOME)
    disk.fsync_dir("/")
    return disk


def states() -> list[dict[bytes, bytes]]:
    """After each write."""
    found: list[dict[bytes, bytes]] = [{}]
    for rows in ROW_SETS:
        found.append(found[-1] | dict(rows))
    return found


def live(disk: FakeDisk, seed: int, told: Callable[[int, int], None]) -> None:
    """Open, and make the writes that are still missing; `told` hears of the incarnation and of each write."""
    store = open_on(disk, seed)
    done = states().index(dict(store.rows()))
    told(store.incarnation, done)
    for number, rows in enumerate(ROW_SETS[done:], done + 1):
        store.write(rows, ())
        told(store.incarnation, number)


@pytest.mark.parametrize("ending", ["power", "kill", "kill, then power"])
def test_a_crash_at_every_operation_leaves_the_whole_write_or_none(ending: str) -> None:
    disk = fresh()
    live(disk, 1, lambda *_: None)
    total = disk.changes
    for crash in range(1, total + 2):
        for draw in range(8):
            heard: list[tuple[int, int]] = []
            disk = fresh()
            disk.crash_at(crash)
            with suppress(SimulatedCrash):
                live(disk, 1, lambda *found, heard=heard: heard.append(found))
            choices = RandomChoices(random.Random(f"{crash}/{draw}"))
            if ending == "kill, then power":
                disk = disk.kill()
                disk.crash_at(disk.changes + draw)
                with suppress(SimulatedCrash):
                    live(disk, 2, lambda *found, heard=heard: heard.append(found))
            disk = disk.kill() if ending == "kill" else disk.crash(choices)
            again = open_on(disk, 3)
            assert again.set_aside is None, "a crash is no damage"
            number = states().index(dict(again.rows()))
            if heard:
                incarnation, last = heard[-1]
                assert again.incarnation == incarnation, "it was seen, so it stays"
                assert last <= number <= last + 1


def test_damage_at_every_byte_begins_a_new_store() -> None:
    disk = fresh()
    live(disk, 1, lambda *_: None)
    path = f"{HOME}/ap"
    for offset in range(len(disk.durable_content(path))):
        damaged = disk.kill()
        damaged.flip_bit(path, offset, offset % 8)
        store = open_on(damaged, 2)
        assert store.set_aside is not None
        assert store.set_aside.name == "ap.damaged-1"
        assert store.incarnation != open_on(disk.kill()).incarnation
        assert store.rows() == []


def test_a_crash_while_damage_is_set_aside_never_brings_the_old_incarnation_back_with_less() -> None:
    disk = fresh()
    live(disk, 1, lambda *_: None)
    first = open_on(disk.kill()).incarnation
    disk.flip_bit(f"{HOME}/ap", 20)
    for crash in range(1, 40):
        for draw in range(4):
            damaged = disk.kill()
            damaged.crash_at(crash)
            seen = None
            with suppress(SimulatedCrash):
                seen = open_on(damaged, 2).incarnation
            after = damaged.crash(RandomChoices(random.Random(f"{crash}/{draw}")))
            again = open_on(after, 3)
            assert again.incarnation != first
            assert seen in {None, again.incarnation}
            assert again.rows() == []


def test_a_failing_disk_is_told_and_is_no_damage() -> None:
    disk = fresh()
    live(disk, 1, lambda *_: None)
    told = 0
    for change in range(1, 30):
        other = disk.kill()
        other.fail_at(change)
        try:
            open_on(other, 2).write([(b"d", b"5")], ())
        except StorageFailed:
            told += 1
        again = open_on(other.kill(), 3)
        assert again.set_aside is None, change
        assert dict(again.rows()) in (states()[-1], states()[-1] | {b"d": b"5"})
    assert told >= 4
