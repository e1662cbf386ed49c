"""Canaries of how the plane that needs no quorum is put together, on the simulator."""

from __future__ import annotations

from canary import Canary

_SCENARIOS = ("tests/sim/test_available_scenarios.py",)

CANARIES = (
    Canary(
        "ap-write-answered-before-durable",
        "a write of the always-writable keyspace is answered before the disk has it",
        "kvnode/node/eventual.py",
        "            self._writers.append((mark, future))\n            await future\n",
        "            self._writers.append((mark, future))\n",
        _SCENARIOS,
        sim=("runtime", 100),
    ),
    Canary(
        "ceiling-not-read",
        "a start does not know up to which time its node may have issued numbers, or made promises",
        "kvnode/plane.py",
        "LamportClock(data.lamport_ceiling())",
        "LamportClock(0)",
        _SCENARIOS,
    ),
    Canary(
        "electorate-goes-back",
        "after a restart the final order goes by the configurations of an older state, with what today's voters have "
        "promised",
        "kvnode/node/membership.py",
        "        if self.is_news(applied, applied_index):",
        "        if True:",
        _SCENARIOS,
    ),
    Canary(
        "joined-as-a-founder",
        "who joined the cluster takes itself for one of the first voters",
        "kvnode/plane.py",
        "    is_founder = identity.member in identity.members  # who joined has none",
        "    is_founder = True",
        _SCENARIOS,
    ),
)
