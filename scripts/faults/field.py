"""Field: one cluster and all that can be done to it, and the one act that undoes it all."""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from kvnode.storage.segment import HEADER_BYTES
from kvnode.storage.wal_verify import verify
from scripts.faults import syscalls
from scripts.faults.hub import Hub
from scripts.faults.images import Image
from scripts.faults.nodes import ChaosCluster
from scripts.faults.proxy import Proxies
from scripts.faults.pulse import Pulse
from scripts.faults.syscalls import Injector
from scripts.faults.throttle import Throttle
from scripts.faults.undo import Undo

_READY_TO_DIE_S = 2.5


@dataclass
class Field:
    """One cluster and all that can be done to it. What a run does not have is None or empty."""

    cluster: ChaosCluster
    pulse: Pulse
    undo: Undo
    hub: Hub | None = None
    proxies: Proxies | None = None
    images: dict[int, Image] = field(default_factory=dict)
    throttle: Throttle | None = None
    taken: set[int] = field(default_factory=set)  # nodes that have a fault of their own in this episode
    rotten: dict[int, int] = field(default_factory=dict)  # node → bytes of output it had when its log was damaged

    def __post_init__(self) -> None:
        self.injector = Injector(self.undo)
        self._off: set[int] = set()
        self._limited: set[int] = set()

    def rot(self, node: int, rng: random.Random) -> str:
        """Flip one bit in a sealed segment of the stopped node's log → where; "" if there is none, or it matters not.

        Nobody else's copy may be damaged then, until `restored`: one good copy of everything has to be left.
        """
        assert not self.rotten
        directory = self.cluster.data_dir(node)
        sealed = sorted((directory / "wal").glob("0*.wal"))[:-1]
        if not sealed:
            return ""
        file = rng.choice(sealed)
        content = file.read_bytes()
        place = rng.randrange(HEADER_BYTES, len(content.rstrip(b"\0")))
        with file.open("r+b") as segment:
            segment.seek(place)
            segment.write(bytes([content[place] ^ (1 << rng.randrange(8))]))
        if not verify(str(directory)).problems:
            return ""  # between two records
        self.rotten[node] = self.cluster.output(node).stat().st_size
        return f"{file.name} at {place}"

    def restored(self) -> bool:
        """Whether every node with a damaged log has said that its peers have restored it."""
        for node, said_before in list(self.rotten.items()):
            with self.cluster.output(node).open("rb") as output:
                output.seek(said_before)
                if b'"event":"quarantine.ended"' in output.read():
                    del self.rotten[node]
        return not self.rotten

    def choose(self, rng: random.Random, weights: tuple[int, int, int, int]) -> list[int]:
        """Victims among running nodes without a fault: (any one, the leader, some, all); maybe nobody."""
        free = [node for node in self.cluster.running() if node not in self.taken]
        if not free:
            return []
        how = rng.choices(("one", "leader", "some", "all"), weights)[0]
        one = rng.choice(free)
        some = rng.sample(free, max(1, rng.randrange(len(free) + 1)))
        chosen = {"one": [one], "some": sorted(some), "all": free}.get(how, [one])
        if how == "leader" and self.pulse.leader in free:
            chosen = [self.pulse.leader]
        self.taken.update(chosen)
        return chosen

    def pid(self, node: int) -> int:
        return self.cluster.processes[node].pid

    async def inject(self, node: int, injection: str) -> None:
        """`call:what:when=N` on the running node, by strace."""
        await asyncio.to_thread(self.injector.attach, self.pid(node), [injection])

    async def dies(self, node: int) -> bool:
        """Whether it is dead within a moment: if not, the call at which it was to be killed has not been reached."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self.cluster.processes[node].wait, _READY_TO_DIE_S)
        return node not in self.cluster.running()

    async def dies_starting(self, node: int, injection: str, up_s: float = 0.0) -> bool:
        """Killed, and started anew under strace → whether it died of the injection.

        It has a moment to do so, which begins once it serves, or after `up_s`.
        """
        self.cluster.kill(node)
        self.cluster.bury()
        self.cluster.start(node, under=syscalls.under([injection]))
        self.cluster.excuse(node, "kill at start")
        began = monotonic()
        while monotonic() - began < up_s:
            if node not in self.cluster.running() or await self.cluster.ask_leader(node):
                break
            await asyncio.sleep(0.02)
        return await self.dies(node)

    async def power_off(self, nodes: list[int]) -> None:
        """Stop all of them first: the instant is one for all."""
        for node in nodes:
            self.cluster.signal(node, signal.SIGSTOP)
        for node in nodes:
            await asyncio.to_thread(self.images[node].power_off)
            self._off.add(node)
        for node in nodes:
            self.cluster.kill(node)

    def limit_memory(self, node: int, spare_bytes: int) -> None:
        size = int(Path(f"/proc/{self.pid(node)}/statm").read_text(encoding="ascii").split()[0])
        limit = size * resource.getpagesize() + spare_bytes
        resource.prlimit(self.pid(node), resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        self._limited.add(node)

    async def heal(self, *, revive: bool = True) -> None:
        """Undo every fault, give power back, start whoever is dead (unless not to `revive`)."""
        for image in self.images.values():
            await asyncio.to_thread(image.thaw)
        await asyncio.to_thread(self.injector.detach_all)
        for node in self.cluster.running():
            self.cluster.signal(node, signal.SIGCONT)
            if node in self._limited:
                unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
                resource.prlimit(self.pid(node), resource.RLIMIT_AS, unlimited)
        self._limited.clear()
        if self.hub is not None:
            await asyncio.to_thread(self.hub.heal)
        if self.proxies is not None:
            self.proxies.heal()
        if self.throttle is not None:
            self.throttle.heal()
        for node in sorted(self._off):
            await asyncio.to_thread(self.images[node].power_on)
        self._off.clear()
        for image in self.images.values():
            image.empty()
        self.taken.clear()
        if revive:
            self.cluster.revive()
        syscalls.reap_strays()
