"""A cluster's life: every original node is replaced, the leader among them, while clients write; then it is judged.

    python scripts/life.py                 prints each step, and what the clients were told; about two minutes
    python scripts/life.py --short         one replacement of each kind

Three members become five, and three again; a follower's directory is wiped, and the member comes back at the same
address under a new id. Logs are so short that whoever joins needs a snapshot. Afterwards what the clients were told is
judged for linearizability, all state hashes must be equal, and only that may have been refused which is promised to be
refused: a request that a node cannot serve while it stops, starts, or knows no leader.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import secrets
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, monotonic_ns
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kvnode.bench.load import Address  # noqa: E402 - the path comes first
from kvnode.check.history import Operation  # noqa: E402
from scripts.faults.aftermath import judge  # noqa: E402
from scripts.faults.recorders import Journal, NotSent, Recorder, ask, read_all, settle  # noqa: E402
from scripts.living import LivingCluster  # noqa: E402

CLIENTS = 4
PAUSE_S = 0.02
COUNT_MAX = 100_000
GROWTH_S = 120.0
BALLAST_BYTES = 8_192
"""Of each write that only makes the log grow."""

WORDS = {"fail": "certainly not done", "info": "outcome unknown"}
PROMISED = (
    "not sent",  # nobody listens at a node that was killed, or is not up yet
    "503 no_leader",
    "503 not_ready",
    "503 shutting_down",
    "504 leadership_lost",  # the leader was killed, or gave its office up, with a write on its way to it
    "504 timeout",  # the leader was killed, and the client's deadline is shorter than the election took
    "ConnectionResetError",  # the node was killed while it had the request
    "ConnectionRefusedError",
    "TimeoutError",
    "the run ended",
)
"""Why a request may fail while members come and go. Anything else is a problem, a refusal for no reason above all."""


@dataclass
class Story:
    """What happened. `problems`: what should not have."""

    problems: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    began_s: float = field(default_factory=monotonic)
    show: bool = True

    def tell(self, line: str) -> None:
        self.lines.append(line)
        if self.show:
            print(f"{monotonic() - self.began_s:6.1f} s  {line}", flush=True)


class Clients:
    """Four recording clients, and one that makes the log grow, from `start` to `stop`."""

    def __init__(self, cluster: LivingCluster, home: Path, seed: str) -> None:
        self._cluster = cluster
        self._rng = random.Random(seed)
        self.journal = Journal(home / "history.jsonl")
        self._tasks: list[asyncio.Task[None]] = []
        self._ballast = 0
        self._grown = asyncio.Condition()

    def start(self) -> None:
        for _ in range(CLIENTS):
            recorder = Recorder(self.journal, self._addresses, random.Random(self._rng.random()))
            self._tasks.append(asyncio.create_task(recorder.run(pause_s=PAUSE_S, count_max=COUNT_MAX)))
        self._tasks.append(asyncio.create_task(self._grow()))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        self.journal.close()
        for error in ended:
            if error is not None and not isinstance(error, asyncio.CancelledError):
                raise error

    async def grown(self, count: int) -> None:
        """Until so many ballast writes more are done: the log has been cut beyond what it held before."""
        goal = self._ballast + count
        async with asyncio.timeout(GROWTH_S), self._grown:
            await self._grown.wait_for(lambda: self._ballast >= goal)

    def _addresses(self) -> dict[int, Address]:
        running = self._cluster.running()
        return {node: self._cluster.clients[node] for node in self._cluster.ids if node in running}

    async def _grow(self) -> None:
        client = self.journal.new_client()
        while True:
            operation = await self._put_ballast(client)
            self.journal.add(operation)
            async with self._grown:
                self._ballast += operation.status == "ok"
                self._grown.notify_all()
            if operation.status == "info":
                client = self.journal.new_client()
            await asyncio.sleep(0.01)

    async def _put_ballast(self, client: int) -> Operation:
        addresses = self._addresses()
        node = self._rng.choice(sorted(addresses))
        key, value = f"ballast/{self._rng.randrange(50)}", self.journal.new_value().ljust(BALLAST_BYTES, "b")
        asked = Operation(client=client, op="put", call=monotonic_ns(), key=key, node=node, arg=value)
        replace = msgspec.structs.replace
        try:
            return settle(asked, await ask(addresses[node], "PUT", f"/v1/kv/{key}?timeout=2s", value.encode()))
        except NotSent:
            return replace(asked, status="fail", ret=monotonic_ns(), note="not sent")
        except (OSError, TimeoutError, ValueError) as error:
            return replace(asked, status="info", note=type(error).__name__)
        except asyncio.CancelledError:
            self.journal.add(replace(asked, status="info", note="the run ended"))
            raise


class Life:
    """The steps, each bounded. `short`: fewer members, for a test."""

    def __init__(self, home: Path, seed: str, story: Story, *, short: bool) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self._home = home
        self._story = story
        self._short = short
        self._rng = random.Random(seed)
        self._grows = 60 if short else 200
        self.cluster = LivingCluster(home)
        self.clients = Clients(self.cluster, home, seed)

    async def run(self) -> Story:
        """Play it and judge it. The cluster's processes are ended by the caller's `cluster.stop`."""
        story, cluster = self._story, self.cluster
        cluster.start_all()
        story.tell(f"members 1, 2, 3; node {await cluster.wait_leader()} leads")
        self.clients.start()
        try:
            await self._live()
        finally:
            await self.clients.stop()
        await self._judge()
        return story

    async def _live(self) -> None:
        await self._grow()
        if not self._short:
            for _ in range(2):
                await self._add()
        await self._replace_leader()
        if not self._short:
            await self._replace_dead()
            await self._replace_running()
        await self._wipe()
        if not self._short:
            await self._remove(await self._follower())
            await self._remove(await self.cluster.wait_leader())
        await asyncio.sleep(1.0)

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────

    async def _grow(self) -> None:
        await self.clients.grown(self._grows)

    async def _add(self) -> None:
        began = monotonic()
        node = self.cluster.start_joining()
        await self.cluster.wait_joined(node)
        self._told(f"added {node}", node, began)
        await self._grow()

    async def _replace_leader(self) -> None:
        leader = await self.cluster.wait_leader()
        self.cluster.processes[leader].kill()
        await self._replaced(leader, f"killed {leader}, which led")

    async def _replace_dead(self) -> None:
        node = self._original(await self.cluster.wait_leader())
        self.cluster.processes[node].kill()
        await self._replaced(node, f"killed {node}, a follower")

    async def _replace_running(self) -> None:
        """The last original one, which runs on until it learns that it was replaced."""
        node = self._original(0)
        await self._replaced(node, f"left {node} running")
        await self._ends(node)

    async def _wipe(self) -> None:
        node = await self._follower()
        self.cluster.processes[node].kill()
        shutil.rmtree(self.cluster.data_dir(node))
        await self._replaced(node, f"wiped {node}, a follower", peer=self.cluster.peers[node])

    async def _remove(self, node: int) -> None:
        asked = next(other for other in self.cluster.ids if other != node)
        led = node == await self.cluster.wait_leader()
        code, found = await self.cluster.ask(asked, "DELETE", f"/v1/members/{node}")
        if code != 200:
            self._story.problems.append(f"removing {node}: {code} {found}")
            return
        self.cluster.forget(node)
        self._story.tell(f"removed {node}{', which led' if led else ''}")
        await self._ends(node)
        await self._grow()

    async def _replaced(self, old: int, how: str, **overrides: Any) -> None:
        began = monotonic()
        node = await self.cluster.replace(old, **overrides)
        self._told(f"{how}: replaced by {node}", node, began)
        await self._grow()

    async def _ends(self, node: int) -> None:
        """A removed member ends by itself, says why, and keeps its files."""
        code = await self.cluster.wait_exit(node)
        said = [event["message"] for event in self.cluster.events(node, "node.failed")]
        self._story.tell(f"{node} ended with {code}: {said[-1] if said else 'no word'}")
        if code != 5 or not said or "removed from the cluster" not in said[-1]:
            self._story.problems.append(f"removed member {node} ended with {code} and said {said}")
        if not (self.cluster.data_dir(node) / "wal").is_dir():
            self._story.problems.append(f"the files of removed member {node} are gone")

    def _original(self, but: int) -> int:
        return next(node for node in self.cluster.ids if node <= 3 and node != but)

    async def _follower(self) -> int:
        leader = await self.cluster.wait_leader()
        return self._rng.choice([node for node in self.cluster.ids if node != leader])

    def _told(self, what: str, node: int, began: float) -> None:
        """Every newcomer must have come by a snapshot."""
        snapshots = [event["index"] for event in self.cluster.events(node, "snapshot.installed")]
        if not snapshots:
            self._story.problems.append(f"member {node} has joined without a snapshot: the log was not cut")
        story = f"{what} in {monotonic() - began:.1f} s, by a snapshot up to entry {max(snapshots, default=0)}"
        self._story.tell(story)

    # ── judgement ───────────────────────────────────────────────────────────────────────────────────

    async def _judge(self) -> None:
        story, cluster, journal = self._story, self.cluster, self.clients.journal
        statuses = await cluster.wait_level()
        hashes = {node: status["state_hash"] for node, status in statuses.items()}
        index, kinds = statuses[cluster.ids[0]]["applied_index"], sorted(set(hashes.values()))
        story.tell(f"members {sorted(statuses)} have applied {index} entries; state hash {', '.join(kinds)}")
        if len(set(hashes.values())) != 1:
            story.problems.append(f"state hashes differ: {hashes}")
        found = {node: await read_all(cluster.clients[node], "") for node in cluster.ids}
        first = found[cluster.ids[0]]
        story.problems += [f"{node} shows other data than {cluster.ids[0]}" for node in found if found[node] != first]
        story.problems += judge(journal.operations, first, self._home)
        story.tell(f"{sum(journal.counts.values())} operations: {dict(journal.counts)}")
        for status in ("fail", "info"):
            notes = Counter(operation.note for operation in journal.operations if operation.status == status)
            story.tell(f"{WORDS[status]}: {', '.join(f'{count} {note}' for note, count in notes.most_common())}")
            story.problems += [f"{WORDS[status]}: {note}" for note in notes if not note.startswith(PROMISED)]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", default="", help="default: a new one")
    parser.add_argument("--short", action="store_true", help="fewer steps")
    parser.add_argument("--home", type=Path, help="keep everything here; default: a temporary directory")
    return parser.parse_args()


async def play(home: Path, seed: str, *, short: bool, show: bool = True) -> Story:
    story = Story(show=show)
    life = Life(home, seed, story, short=short)
    try:
        return await life.run()
    finally:
        life.cluster.stop()


def main() -> int:
    chosen = options()
    seed = chosen.seed or str(secrets.randbelow(1_000_000))
    print(f"seed {seed}")
    with contextlib.ExitStack() as stack:
        home = chosen.home or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvnode-life-")))
        story = asyncio.run(play(home, seed, short=chosen.short))
    print(*(story.problems or ["linearizable, states equal, nothing refused but what is promised"]), sep="\n")
    return 1 if story.problems else 0


if __name__ == "__main__":
    sys.exit(main())
