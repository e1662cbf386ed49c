"""`kvnode events`: columns, what strangers post, following across nodes, one story out of many."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from kvnode import errors
from kvnode.cli import events
from kvnode.cli.main import cli
from kvnode.ids import NodeId
from tests.api.fake_available import FakeAvailable
from tests.cli.cluster import ServedNode, serving

Run = Callable[..., Result]


@pytest.fixture
def run(run_alone: Run) -> Run:
    return partial(run_alone, "events")


def test_columns(run: Run, plane: FakeAvailable) -> None:
    plane.record("leader.elected", b'{"term":3,"why":"no leader heard"}')
    plane.record("member.suspect", b'{"id":2}', node="", gap=7, late=True)
    plane.record("user", b'{"a":[1,{"b":null}],"c":1.5}', node="a-long-node-name")
    assert run().stdout == (
        "      1  2026-11-22T10:00:00.001Z  one               leader.elected    "
        'term=3 why="no leader heard"\n'
        "      …  7 earlier events of 1 are no longer kept\n"
        "      2  2026-11-22T10:00:00.002Z  1                 member.suspect    late: id=2\n"
        "      3  2026-11-22T10:00:00.003Z  a-long-node-name  user              "
        'a=[1,{"b":null}] c=1.5\n'
    )
    found = [json.loads(line) for line in run("-o", "json").stdout.splitlines()]
    assert [(each["lamport"], each["fields"]) for each in found][1] == (2, {"id": 2})


def test_nothing_that_was_posted_moves_the_cursor_of_a_terminal(run: Run, plane: FakeAvailable) -> None:
    plane.record("user", json.dumps({"a": "\x1b[2J\n\x7f\u2028\x9b", "\x1b": "ü ok"}).encode(), node="\x1b]0;x\x07")
    text = run().stdout
    assert text.count("\n") == 1
    assert text.rstrip("\n").isprintable()
    assert '"ü ok"' in text
    assert "\\u007f" in text


def test_colours_are_for_terminals(capsys: pytest.CaptureFixture[str]) -> None:
    found = [
        {"lamport": n, "time": "t", "node": "n", "member": member, "kind": "user", "fields": {}}
        for n, member in enumerate((1, 2, 1))
    ]
    events._Plain(colour=True).events(found)
    one, two, again = (line.partition("m")[0] for line in capsys.readouterr().out.splitlines())
    assert one.startswith("\x1b[")
    assert one == again != two
    events._Plain(colour=False).events(found)
    assert "\x1b" not in capsys.readouterr().out


def test_pages_and_the_newest(run: Run, plane: FakeAvailable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_PAGE_ITEMS", 2)
    for n in range(5):
        plane.record("user", b'{"n":%d}' % n)

    def numbers(*arguments: str) -> list[int]:
        return [json.loads(line)["fields"]["n"] for line in run("-o", "json", *arguments).stdout.splitlines()]

    assert numbers() == [0, 1, 2, 3, 4]
    assert numbers("--last", "3") == [2, 3, 4]
    assert numbers("--last", "0") == []
    plane.watermark = 2
    assert numbers("--stable") == [0, 1]
    run("--allow-late", "--stable")
    assert plane.asked[-1][2:4] == (True, True)


def test_posting(run: Run, plane: FakeAvailable, tmp_path: Path) -> None:
    assert run("--post", '{"deploy": "web"}').stdout == "1-00000000000000a1-1\n"
    assert run("--post", "-", stdin=b'{"n": 2}').exit_code == 0
    file = tmp_path / "event"
    file.write_text('{"n": 3}')
    assert json.loads(run("--post", f"@{file}", "-o", "json").stdout)["fields"] == {"n": 3}
    assert [one.fields for one in plane.timeline] == [b'{"deploy":"web"}', b'{"n":2}', b'{"n":3}']
    refused = run("--post", "[]")
    assert refused.exit_code == 1
    assert "Kv-Outcome: not-applied" in refused.stderr
    plane.fail = errors.Timeout("not durable in time")
    assert run("--post", "{}").exit_code == 4
    assert run().exit_code == 3


def test_wrong_usage(run: Run) -> None:
    assert run("--post", "{}", "--follow").exit_code == 2
    assert run("--post", "{}", "--allow-late").exit_code == 2
    assert run("--merge", "--follow").exit_code == 2


def event(member: int, seq: int, lamport: int, **more: Any) -> dict[str, Any]:
    id_ = f"{member}-{7:016x}-{seq}"
    return {"id": id_, "member": member, "incarnation": f"{7:016x}", "seq": seq, "lamport": lamport, **more}


def test_one_story_out_of_many() -> None:
    a = [event(1, 1, 1), event(2, 4, 5, gap=3)]
    b = [event(2, 3, 2), event(2, 4, 5, gap=2), event(3, 1, 5)]
    merged = events.merge([a, b])
    assert [(one["lamport"], one["member"], one["seq"]) for one in merged] == [
        (1, 1, 1),
        (2, 2, 3),
        (5, 2, 4),
        (5, 3, 1),
    ]
    assert [one.get("gap") for one in merged] == [None, None, 0, None], "what one node dropped another had"
    assert events.merge([b, a]) == merged
    assert events.merge([[event(2, 4, 5, gap=3)]])[0]["gap"] == 3


def test_every_member_is_asked(run: Run, alone: ServedNode, plane: FakeAvailable) -> None:
    plane.record("a", member=NodeId(1), seq=1, lamport=1)
    plane.record("c", member=NodeId(1), seq=2, lamport=9)
    with serving() as other:
        other.node.plane.record("b", member=NodeId(2), seq=1, lamport=4, node="two")
        other.node.plane.record("c", member=NodeId(1), seq=2, lamport=9)
        other.node.plane.watermark = 4
        [one] = alone.node.configuration.members
        gone = msgspec.structs.replace(one, id=NodeId(3), client_url="http://127.0.0.1:1")
        two = msgspec.structs.replace(one, id=NodeId(2), client_url=f"http://{other.endpoint}/")
        alone.node.configuration = msgspec.structs.replace(alone.node.configuration, members=(one, two, gone))
        merged = run("--merge", "--timeout", "1s")
        assert merged.exit_code == 0
        head, *lines = merged.stdout.splitlines()
        assert head.startswith("# 3 events, as ")
        assert head.endswith("final up to logical time 4")
        assert [line.split()[0] for line in lines] == ["1", "4", "9"]
        assert "127.0.0.1:1 was not heard" in merged.stderr
        newest = run("--merge", "--last", "1", "-o", "json", "--timeout", "1s").stdout.splitlines()
        assert [json.loads(line)["lamport"] for line in newest] == [9]
    nobody = CliRunner().invoke(cli, ["events", "--merge", "--endpoint", "127.0.0.1:1", "--timeout", "100ms"])
    assert nobody.exit_code == 3


def test_following_as_a_process(alone: ServedNode, plane: FakeAvailable, run: Run) -> None:
    plane.record("before")
    command = [sys.executable, "-m", "kvnode", "events", "--follow", "--last", "1"]
    environment = {**os.environ, "KVNODE_ENDPOINTS": f"127.0.0.1:1,{alone.endpoint}"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().split()[3] == b"before"
        for n in (1, 2):
            assert run("--post", f'{{"n": {n}}}').exit_code == 0
            assert process.stdout.readline().split()[3:] == [b"user", b"n=%d" % n]
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
    finally:
        process.kill()
        process.communicate()


def test_following_goes_on_though_the_node_goes_away_long_after_its_last_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock_s = 0.0
    told = {"events": [], "cursor": "C"}
    asked: list[tuple[str, str]] = []

    class Http:
        def __init__(self) -> None:
            self.endpoints = ["a", "b"]

        def call(self, _: str, __: str, query: dict[str, str], *, wait_ms: int) -> SimpleNamespace:
            nonlocal clock_s
            clock_s += 4  # nothing happens, and it waits
            asked.append((self.endpoints[0], query["cursor"]))
            if len(asked) == 2:
                raise errors.ConnectionLost("it went away")
            if len(asked) > 3:
                raise errors.NotReady("nobody is there")
            return SimpleNamespace(json=lambda: told)

    monkeypatch.setattr(events, "caller", lambda *_: Http())
    monkeypatch.setattr(events, "time", SimpleNamespace(monotonic=lambda: clock_s, sleep=lambda _: None))
    given = {"endpoints": [], "timeout_ms": 1_000, "stable": False, "allow_late": False}
    with pytest.raises(errors.NotReady):
        events._follow(given, events._Json(), "")
    assert asked[:4] == [("a", ""), ("a", "C"), ("b", "C"), ("b", "C")]
    assert len(asked) == 5, "it gives up when nobody has answered for longer than the timeout"
