"""A real cluster as users of the plane without a quorum see it: by HTTP, on any node, and by the command line."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from tests.system.cluster import Answer, RealCluster

LIMIT_S = 20.0
"""How long anything may take that has to happen: generous, for a machine that has other work."""

PROBE_MS = 250
GOSSIP = {"gossip.probe_interval_ms": PROBE_MS, "gossip.probe_timeout_ms": PROBE_MS // 2}

Json = dict[str, Any]
T = TypeVar("T")

_SHIFTED = """
import sys, time
offset_ns, real_ns = int(sys.argv.pop(1)) * 1_000_000, time.time_ns
time.time_ns = lambda: real_ns() + offset_ns
from kvnode.cli.main import main
main()
"""


class AvailableCluster(RealCluster):
    """`offsets_ms`: by how much the wall clock of a node is wrong, from the next start on."""

    def __init__(self, home: Path, nodes: int = 3, settings: Json | None = None) -> None:
        self.offsets_ms: dict[int, int] = {}
        super().__init__(home, nodes, {**GOSSIP, **(settings or {})})

    def command(self, node: int) -> list[str]:
        command = super().command(node)
        offset_ms = self.offsets_ms.get(node, 0)
        if not offset_ms:
            return command
        assert command[1:3] == ["-m", "kvnode"]
        return [command[0], "-c", _SHIFTED, str(offset_ms), *command[3:]]

    # ── keys ────────────────────────────────────────────────────────────────────────────────────────

    async def ap(
        self, node: int, method: str, key: str, value: bytes = b"", *, context: str = "", token: str = ""
    ) -> Answer:
        headers = {name: text for name, text in (("Kv_Context", context), ("Kv_Token", token)) if text}
        return await self.call(node, method, f"/v1/ap/{key}", value, **headers)

    async def write(self, node: int, key: str, value: bytes, *, context: str = "") -> Answer:
        """An answer of 204, or the test fails."""
        answer = await self.ap(node, "PUT", key, value, context=context)
        assert answer.status == 204, answer
        return answer

    async def shown(self, node: int, key: str) -> list[bytes]:
        """The values of a key, none if there is no such key."""
        return values_of(await self.ap(node, "GET", key))

    async def agreed(self, key: str, values: Iterable[bytes]) -> Answer:
        """Until every running node shows just these values and one context → the answer of one of them."""
        wanted = sorted(values)

        async def look() -> Answer | None:
            answers = [await self.ap(node, "GET", key) for node in self.running()]
            is_one = len({answer.headers.get("kv-context") for answer in answers}) == 1
            return answers[0] if is_one and all(values_of(answer) == wanted for answer in answers) else None

        return await until(look, f"{key} is {wanted} everywhere")

    # ── the timeline, the members ───────────────────────────────────────────────────────────────────

    async def post(self, node: int, fields: Json, *, token: str = "") -> Answer:
        headers = {"Kv_Token": token} if token else {}
        answer = await self.call(node, "POST", "/v1/events", json.dumps(fields).encode(), **headers)
        assert answer.status == 201, answer
        return answer

    async def story(self, node: int, query: str = "", *, after: str = "") -> list[Json]:
        """All that the node tells after a cursor, page by page."""
        found: list[Json] = []
        while True:
            cursor = f"&cursor={after}" if after else ""
            answer = await self.call(node, "GET", f"/v1/events?{query}{cursor}")
            assert answer.status == 200, answer
            page = answer.json()
            found += page["events"]
            if not page["more"]:
                return found
            after = page["cursor"]

    async def final_story(self, *ids: str) -> list[Json]:
        """Until the final order holds these events on all nodes, and all answer with the same bytes."""

        async def look() -> list[Json] | None:
            answers = [await self.call(node, "GET", "/v1/events?stable=1") for node in self.ids]
            stories = [answer.json()["events"] for answer in answers]
            shortest = min(map(len, stories))
            assert all(story[:shortest] == stories[0][:shortest] for story in stories), "two final orders"
            is_one = len({answer.body for answer in answers}) == 1
            return stories[0] if is_one and set(ids) <= {event["id"] for event in stories[0]} else None

        return await until(look, f"{ids} are final everywhere")

    async def members(self, node: int) -> dict[int, Json]:
        answer = await self.call(node, "GET", "/v1/members")
        assert answer.status == 200, answer
        return {member["id"]: member for member in answer.json()["members"]}

    async def wait_status(self, member: int, status: str, *, on: Iterable[int]) -> dict[int, Json]:
        """Until all of these nodes say so of the member → what each says of it."""

        async def look() -> dict[int, Json] | None:
            found = {node: (await self.members(node))[member] for node in on}
            return found if all(one["status"] == status for one in found.values()) else None

        return await until(look, f"member {member} is {status} for {list(on)}")

    async def wait_all_alive(self) -> None:
        for member in self.ids:
            await self.wait_status(member, "alive", on=self.ids)

    # ── the command line ────────────────────────────────────────────────────────────────────────────

    async def run(self, *arguments: str, on: Iterable[int] | None = None) -> tuple[int, str, str]:
        """`kvnode ARGUMENTS` → exit code, output, errors."""
        async with self.begun(*arguments, on=on) as process:
            async with asyncio.timeout(LIMIT_S):
                out, errors = await process.communicate()
            assert process.returncode is not None
            return process.returncode, out.decode(), errors.decode()

    @asynccontextmanager
    async def begun(
        self, *arguments: str, on: Iterable[int] | None = None
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """`kvnode ARGUMENTS`, killed at the end if it still runs."""
        endpoints = ",".join("{}:{}".format(*self.clients[node]) for node in (self.ids if on is None else on))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kvnode", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "KVNODE_ENDPOINTS": endpoints},
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def values_of(answer: Answer) -> list[bytes]:
    if answer.status == 404:
        return []
    if answer.status == 300:
        return [sibling["value"].encode() for sibling in answer.json()["siblings"]]
    assert answer.status == 200, answer
    return [answer.body]


def code_of(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json()["error"]["code"]


def violations(story: list[Json], pairs: list[tuple[str, str]]) -> list[str]:
    """Where an effect comes before its cause. `pairs`: ids of posted events, cause and effect."""
    place = {event["id"]: number for number, event in enumerate(story)}
    found = [f"{effect} comes before its cause" for cause, effect in pairs if place[cause] > place[effect]]
    votes: set[tuple[int, int]] = set()
    accused: set[int] = set()
    own: dict[int, tuple[int, int]] = {}
    for event in story:
        member, kind, fields = event["member"], event["kind"], event["fields"]
        if kind == "vote.granted":
            votes.add((fields["term"], fields["candidate"]))
        elif kind == "leader.elected" and (fields["term"], member) not in votes:
            found.append(f"member {member} leads term {fields['term']} before anybody voted for it")
        elif kind == "member.suspect":
            accused.add(fields["member"])
        elif kind == "member.refuted" and member not in accused:
            found.append(f"member {member} refutes what nobody has said")
        number = (event["boot"], event["seq"])
        if number < own.get(member, (0, 0)):
            found.append(f"an event of member {member} comes before an older one of its own")
        own[member] = number
    return found


async def until(look: Callable[[], Awaitable[T | None]], what: str, limit_s: float = LIMIT_S) -> T:
    """What `look` finds as soon as that is true."""
    try:
        async with asyncio.timeout(limit_s):
            while not (found := await look()):
                await asyncio.sleep(0.03)
            return found
    except TimeoutError:
        raise AssertionError(f"not within {limit_s} s: {what}") from None
