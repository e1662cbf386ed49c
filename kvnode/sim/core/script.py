"""Script: what happens to a simulated cluster and when, as a list drawn from the seed before the run begins.

Every event brings the seed of its own generator, so leaving some out changes nothing of the others: that is what
shrinking does (`kvnode.sim.core.shrink`). What is not in the list, how links and disks behave all the while, is in the
shape; its rates are the script's `knobs`, which shrinking may turn to zero.
"""

from __future__ import annotations

import random

import msgspec

from kvnode.sim.core.shape import Shape, fork

KNOBS = ("drop", "duplicate", "bury", "straggle", "ambush", "drift", "trims", "churn_every_ms")
HEAL = "heal"
PROPOSE = "propose"
READ = "read"

EVENTS_MAX = 20_000


class Event(msgspec.Struct, frozen=True, array_like=True):
    """`kind` is a fault's name, or one of HEAL, PROPOSE, READ; `seed` is its generator's."""

    at_ms: int
    kind: str
    seed: int


class Script(msgspec.Struct, frozen=True):
    """`seed` draws the shape and everything that the events leave open."""

    seed: int
    events: tuple[Event, ...]
    off: tuple[str, ...] = ()  # knobs turned to zero


def draw_script(seed: int, shape: Shape) -> Script:
    """Faults in spells, with calm between them if the shape has it; clients all the time."""
    events = _faults(fork(seed, "faults"), shape) + _clients(fork(seed, "clients"), shape)
    events.sort(key=lambda event: event.at_ms)
    assert len(events) <= EVENTS_MAX, len(events)
    return Script(seed, tuple(events))


def _faults(rng: random.Random, shape: Shape) -> list[Event]:
    events: list[Event] = []
    now = int(rng.random() * 4 * shape.timeout)  # from before the first leader to some time after it
    calm_at = now + _spell(rng, shape)
    while now < shape.duration_ms:
        if shape.has_calm and now >= calm_at:
            events.append(Event(now, HEAL, 0))
            now += _spell(rng, shape)
            calm_at = now + _spell(rng, shape)
            continue
        kind = shape.faults[int(rng.random() * len(shape.faults))]
        events.append(Event(now, kind, rng.getrandbits(32)))
        now += 1 + int(rng.random() * 2 * shape.fault_every_ms)
    return events


def _spell(rng: random.Random, shape: Shape) -> int:
    return int((3 + 7 * rng.random()) * shape.timeout)


def _clients(rng: random.Random, shape: Shape) -> list[Event]:
    events: list[Event] = []
    now = 0
    while now < shape.duration_ms:
        now += 1 + int(rng.random() * 2 * shape.client_every_ms)
        events.append(Event(now, PROPOSE if rng.random() < 0.5 else READ, rng.getrandbits(32)))
    return events
