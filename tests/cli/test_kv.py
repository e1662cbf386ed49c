"""`kvnode put get del ls status health` against the real front door: bytes, forms of output, exit codes, outcomes."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable

import pytest
from click.testing import Result

from kvnode import errors
from kvnode.client.http import Caller
from tests.cli.cluster import ServedNode

Run = Callable[..., Result]


def test_put_get_del(run: Run):
    assert run("put", "greeting", "hello").stdout.startswith("revision ")
    assert run("get", "greeting").stdout_bytes == b"hello"
    assert run("del", "greeting").stdout == "1\n"
    assert run("del", "greeting").stdout == "0\n"
    missing = run("get", "greeting")
    assert missing.exit_code == 1
    assert missing.stdout == ""
    assert "[key_not_found]" in missing.stderr


def test_values_from_stdin_and_files_are_bytes(run: Run, tmp_path):
    value = bytes(range(256))
    assert run("put", "raw", "-", stdin=value).exit_code == 0
    assert run("get", "raw").stdout_bytes == value
    file = tmp_path / "value"
    file.write_bytes(value[::-1])
    assert run("put", "raw", f"@{file}").exit_code == 0
    assert run("get", "raw").stdout_bytes == value[::-1]
    assert run("put", "raw", f"@{file}.missing").exit_code == 2


@pytest.mark.parametrize("key", ["a b+c", "ü", "..", "x/../y", "-dash", "%41", "a\nb"])
def test_keys_arrive_unchanged(run: Run, shared: ServedNode, key: str):
    assert run("put", "--", key, key).exit_code == 0
    assert run("get", "--", key).stdout_bytes == key.encode()
    assert run("ls", "-o", "json", "--", key).stdout.count("\n") == 1
    assert run("del", "--prefix", "--", key).stdout == "1\n"


def test_conditions_and_outcomes(run: Run):
    run("put", "k", "1", "--if-rev", "0")
    refused = run("put", "k", "2", "--if-rev", "0")
    assert refused.exit_code == 1
    assert "Kv-Outcome: not-applied" in refused.stderr
    assert "[compare_failed]" in refused.stderr
    answer = json.loads(run("put", "k", "2", "--prev", "-o", "json").stdout)
    assert answer["prev"]["value"] == "1"
    assert json.loads(run("del", "k", "-o", "json", "--prev").stdout)["prev"]["value"] == "2"


def test_listing(run: Run, shared: ServedNode):
    for number in range(5):
        run("put", f"list/{number}", f"value {number}")
    assert run("ls", "list/").stdout == "".join(f"list/{number}\n" for number in range(5))
    assert run("ls", "list/", "--limit", "2").stdout == "list/0\nlist/1\n"
    items = [json.loads(line) for line in run("ls", "list/", "-o", "json").stdout.splitlines()]
    assert [item["value"] for item in items] == [f"value {number}" for number in range(5)]
    table = run("ls", "list/", "-o", "table").stdout.splitlines()
    assert table[0].split() == ["key", "revision", "version", "value"]
    assert table[1].startswith("list/0 ")
    run("del", "list/", "--prefix")


def test_a_listing_follows_its_cursor(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kvnode.cli.kv._PAGE_ITEMS", 2)
    for number in range(5):
        run("put", f"page/{number}", "v")
    assert run("ls", "page/").stdout.split() == [f"page/{number}" for number in range(5)]
    run("del", "page/", "--prefix")


def test_the_past_and_the_history_of_a_key(run: Run, monkeypatch: pytest.MonkeyPatch):
    first = int(run("put", "past", "one").stdout.split()[1])
    run("put", "past", "two")
    run("del", "past")
    assert run("get", "past", "--at-rev", str(first)).stdout == "one"
    assert run("get", "past").exit_code == 1
    assert run("ls", "past", "--at-rev", str(first + 1)).stdout == "past\n"
    assert run("ls", "past").stdout == ""
    monkeypatch.setattr("kvnode.cli.kv._PAGE_ITEMS", 2)
    lines = [line.split() for line in run("history", "past", "-o", "plain").stdout.splitlines()]
    assert [(revision, what) for revision, _, what in lines] == [
        (str(first + 2), "delete"),
        (str(first + 1), "put"),
        (str(first), "put"),
    ]
    items = [json.loads(line) for line in run("history", "past", "-o", "json", "--limit", "2").stdout.splitlines()]
    assert [item.get("deleted") for item in items] == [True, None]
    assert "two" in run("history", "past", "-o", "table").stdout
    none = run("history", "never")
    assert (none.exit_code, none.stdout) == (1, "")
    assert "[key_not_found]" in none.stderr
    assert run("get", "past", "--at-time", lines[2][1]).stdout == "one"
    assert run("history", "past", "--at-time", lines[1][1], "-o", "plain").stdout.count("\n") == 2
    future = run("get", "past", "--at-rev", "999999")
    assert (future.exit_code, "[future_revision]" in future.stderr) == (1, True)


def test_a_read_may_be_as_old_as_it_says(run: Run):
    run("put", "old", "enough")
    assert run("get", "old", "--max-staleness", "1s").stdout == "enough"
    assert run("get", "old", "--max-staleness", "soon").exit_code == 1
    assert run("get", "old", "--max-staleness", "1s", "--consistency", "stale").exit_code == 2


def test_the_exit_code_is_the_errors_family(run: Run, shared: ServedNode):
    def fail_with(error: errors.KvnodeError, *arguments: str) -> tuple[int, str]:
        shared.node.refuse_next(error)
        result = run(*arguments)
        return result.exit_code, result.stderr

    code, said = fail_with(errors.Timeout("late"), "put", "k", "v")
    assert (code, "Kv-Outcome: unknown" in said) == (4, True)
    code, said = fail_with(errors.NoLeader("none"), "put", "k", "v")
    assert (code, "Kv-Outcome: not-applied" in said) == (3, True)
    code, said = fail_with(errors.TooLarge("too large"), "del", "k")
    assert (code, "Kv-Outcome: not-applied" in said) == (1, True)
    code, said = fail_with(errors.Timeout("late"), "get", "k")
    assert (code, "Kv-Outcome" in said) == (3, False)
    assert run("put", "k").exit_code == 2
    assert run("ls", "--endpoint", "nonsense").exit_code == 2
    assert run("get", "k", "--timeout", "5").exit_code == 2
    assert run("get", "k", "--timeout", "0s").exit_code == 2


def dead_endpoint() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_the_next_endpoint_is_tried_when_nothing_was_sent(run: Run, shared: ServedNode):
    endpoints = f"{dead_endpoint()},{shared.endpoint}"
    assert run("put", "k", "v", "--endpoint", endpoints).exit_code == 0
    alone = run("put", "k", "v", "--endpoint", dead_endpoint())
    assert alone.exit_code == 3
    assert "Kv-Outcome: not-applied" in alone.stderr


def test_a_write_that_got_no_answer_is_unknown_and_not_sent_elsewhere(run: Run, shared: ServedNode):
    with socket.create_server(("127.0.0.1", 0)) as mute:

        def accept_and_close() -> None:
            connection, _ = mute.accept()
            with connection:
                connection.recv(65_536)

        thread = threading.Thread(target=accept_and_close)
        thread.start()
        before = len(shared.node.executed)
        endpoints = f"127.0.0.1:{mute.getsockname()[1]},{shared.endpoint}"
        result = run("put", "k", "v", "--endpoint", endpoints)
        thread.join(10)
        assert result.exit_code == 4
        assert "Kv-Outcome: unknown" in result.stderr
        assert len(shared.node.executed) == before


def test_status_and_health(run: Run, shared: ServedNode):
    table = run("status")
    assert table.exit_code == 0
    assert table.stdout.splitlines()[1].split()[:5] == ["1", shared.endpoint, "leader", "1", "1"]
    [answer] = json.loads(run("status", "-o", "json").stdout)
    assert answer["role"] == "leader"
    dead = dead_endpoint()
    nobody = run("status", "--endpoint", dead)
    assert (nobody.exit_code, f"{dead}: cannot connect" in nobody.stderr) == (3, True)
    assert run("health").stdout == "ready\n"
    shared.node.ready = False
    unhealthy = run("health")
    shared.node.ready = True
    assert unhealthy.exit_code == 1
    assert run("health", "--endpoint", dead_endpoint()).exit_code == 1


def test_what_is_not_kvnode_is_named_as_such(run: Run):
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer_strangely() -> None:
            for _ in range(2):
                connection, _ = other.accept()
                with connection:
                    connection.recv(65_536)
                    connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 14\r\n\r\n404: Not Found")

        thread = threading.Thread(target=answer_strangely)
        thread.start()
        endpoint = f"127.0.0.1:{other.getsockname()[1]}"
        status, got = run("status", "--endpoint", endpoint), run("get", "k", "--endpoint", endpoint)
        thread.join(10)
    assert (status.exit_code, got.exit_code) == (3, 1)
    for result in (status, got):
        assert "answer 404 is not kvnode's" in result.stderr


def test_an_idempotency_key_makes_a_command_harmless_to_repeat(run: Run):
    first = run("put", "once", "1", "--if-rev", "0", "--idempotency-key", "order 17, ü")
    assert first.exit_code == 0
    assert run("put", "once", "1", "--if-rev", "0", "--idempotency-key", "order 17, ü").stdout == first.stdout
    other = run("put", "once", "2", "--if-rev", "0", "--idempotency-key", "order 17, ü")
    assert "[conflict]" in other.stderr
    assert "Kv-Outcome: not-applied" in other.stderr
    assert run("del", "once", "--idempotency-key", "gone").stdout == "1\n"
    assert run("del", "once", "--idempotency-key", "gone").stdout == "1\n"
    assert run("del", "once").stdout == "0\n"


def test_a_fenced_write_passes_only_under_the_locks_token(run: Run, shared: ServedNode):
    token = Caller([shared.endpoint], 5_000).call("POST", "/v1/locks/a:b").json()["token"]
    for command in (("put", "guarded", "1"), ("del", "guarded")):
        refused = run(*command, "--fence", f"a:b:{token + 1}")
        assert refused.exit_code != 0
        assert "[fenced]" in refused.stderr
        assert "Kv-Outcome: not-applied" in refused.stderr
        assert run(*command, "--fence", f"a:b:{token}").exit_code == 0
    assert "[bad_request]" in run("put", "guarded", "1", "--fence", "no-token").stderr
