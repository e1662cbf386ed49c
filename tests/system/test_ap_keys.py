"""The always-writable keyspace from outside: nothing that was written is lost but by a write that knew of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

from tests.system.available import LIMIT_S, AvailableCluster, code_of, values_of
from tests.system.cluster import Answer

pytestmark = pytest.mark.system

ROUNDS = 101


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AvailableCluster]:
    cluster = AvailableCluster(tmp_path_factory.mktemp("keys"))
    try:
        asyncio.run(cluster.started())
        yield cluster
    finally:
        cluster.stop()


@pytest.mark.parametrize("nodes", [(1, 1), (1, 2)], ids=["same node", "two nodes"])
async def test_interleaved_writers_leave_one_sibling_each(cluster: AvailableCluster, nodes: tuple[int, int]) -> None:
    """Each goes by the context of its own last write only; plain version vectors end with 101 siblings (VV-T2)."""
    key = "interleaved/{}{}".format(*nodes)
    contexts = ["", ""]
    most = 0
    for number in range(ROUNDS):
        writer = number % 2
        value = f"{writer} in round {number}".encode()
        answer = await cluster.write(nodes[writer], key, value, context=contexts[writer])
        contexts[writer] = answer.headers["kv-context"]
        most = max(most, len(await cluster.shown(nodes[writer], key)))
    assert most <= 3
    last = await cluster.agreed(key, [b"0 in round 100", b"1 in round 99"])
    await cluster.write(3, key, b"one", context=last.headers["kv-context"])
    await cluster.agreed(key, [b"one"])


async def test_readers_who_write_at_once_on_one_node_leave_one_sibling_each(cluster: AvailableCluster) -> None:
    """In each round both have read the same, and write at the same moment (VV-T2, VV-T5)."""
    context = ""
    for number in range(ROUNDS):
        values = [f"{writer} in round {number}".encode() for writer in (0, 1)]
        answers = await asyncio.gather(
            *(cluster.ap(2, "PUT", "read-modify", value, context=context) for value in values)
        )
        assert [answer.status for answer in answers] == [204, 204]
        read = await cluster.ap(2, "GET", "read-modify")
        assert values_of(read) == values, number
        context = read.headers["kv-context"]
    await cluster.agreed("read-modify", values)


async def test_readers_who_write_at_once_on_two_nodes_leave_one_sibling_each(cluster: AvailableCluster) -> None:
    """Each reads and writes its own node, which may not have heard yet what the other wrote (VV-T2)."""

    async def one_round(writer: int, number: int) -> int:
        read = await cluster.ap(writer, "GET", "apart")
        value = f"{writer} in round {number}".encode()
        await cluster.write(writer, "apart", value, context=read.headers.get("kv-context", ""))
        return len(await cluster.shown(writer, "apart"))

    for number in range(ROUNDS):
        counts = await asyncio.gather(one_round(2, number), one_round(3, number))
        assert max(counts) <= 3
    async with asyncio.timeout(LIMIT_S):
        while len({(await cluster.ap(node, "GET", "apart")).body for node in cluster.ids}) > 1:
            await asyncio.sleep(0.03)
    left = await cluster.shown(1, "apart")
    assert left
    assert set(left) <= {b"2 in round 100", b"3 in round 100"}


async def test_a_delete_covers_what_it_has_seen(cluster: AvailableCluster) -> None:
    first = await cluster.write(1, "covered", b"old")
    await cluster.agreed("covered", [b"old"])
    await cluster.write(2, "covered", b"beside")
    deleted = await cluster.ap(1, "DELETE", "covered", context=first.headers["kv-context"])
    assert deleted.status == 204
    await cluster.agreed("covered", [b"beside"])
    assert (await cluster.ap(3, "DELETE", "covered")).status == 204
    gone = await cluster.agreed("covered", [])
    assert code_of(gone) == (404, "key_not_found")
    await cluster.write(2, "covered", b"again", context=gone.headers["kv-context"])
    await cluster.agreed("covered", [b"again"])


async def test_a_token_shows_what_its_owner_has_seen_in_either_plane(cluster: AvailableCluster) -> None:
    """Written on one node, read on another, again and again: never a moment too early."""
    token = ""
    for number in range(24):
        writer, between, reader = (cluster.ids[(number + step) % 3] for step in range(3))
        wrote = await cluster.ap(writer, "PUT", "seen", b"%d" % number, token=token)
        assert wrote.status == 204
        event = await cluster.post(between, {"round": number}, token=wrote.headers["kv-token"])
        put = await cluster.call(between, "PUT", "/v1/kv/seen", b"%d" % number, Kv_Token=event.headers["kv-token"])
        assert put.status == 200
        token = put.headers["kv-token"]
        read = await cluster.ap(reader, "GET", "seen", token=token)
        assert b"%d" % number in values_of(read)
        later = await cluster.call(reader, "GET", "/v1/kv/seen?consistency=causal", Kv_Token=read.headers["kv-token"])
        assert later.body == b"%d" % number
        after = await cluster.post(reader, {"after": number}, token=token)
        assert after.json()["lamport"] > event.json()["lamport"]
        token = after.headers["kv-token"]
        ended = await cluster.ap(reader, "PUT", "seen", b"end", context=read.headers["kv-context"], token=token)
        token = ended.headers["kv-token"]


async def test_one_answer_for_who_wants_one(cluster: AvailableCluster) -> None:
    for node, value in zip(cluster.ids, (b'["b","a"]', b'["c","a"]', b'["a",{"z":1,"b":2}]'), strict=True):
        await cluster.write(node, "list", value)
    siblings = [b'["a",{"z":1,"b":2}]', b'["b","a"]', b'["c","a"]']
    await cluster.agreed("list", siblings)
    wanted = {
        "lww": b'["a",{"z":1,"b":2}]',  # the clocks are one machine's: written last
        "max": b'["c","a"]',
        "union": b'["a","b","c",{"b":2,"z":1}]',
    }
    for how, value in wanted.items():
        answers = [await cluster.call(node, "GET", f"/v1/ap/list?resolve={how}") for node in cluster.ids]
        assert [(answer.status, answer.body) for answer in answers] == [(200, value)] * 3
    await cluster.agreed("list", siblings)  # nothing was discarded
    await cluster.write(1, "no-list", b"text")
    await cluster.write(2, "no-list", b"[1]")
    await cluster.agreed("no-list", [b"text", b"[1]"])
    assert code_of(await cluster.call(3, "GET", "/v1/ap/no-list?resolve=union"))[0] == 400
    assert code_of(await cluster.call(3, "GET", "/v1/ap/list?resolve=best"))[0] == 400


async def test_a_listing_is_in_byte_order_and_goes_on_anywhere(cluster: AvailableCluster) -> None:
    keys = [b"order/", b"order/\x00", b"order/B", b"order/a", b"order/a/1", b"order/\xc3\xa9", b"order/\xff"]
    for number, key in enumerate(reversed(keys)):
        path = "".join(f"%{byte:02x}" for byte in key)
        await cluster.write(cluster.ids[number % 3], path, b"%d" % number)
        await cluster.agreed(path, [b"%d" % number])
    found: list[Answer] = []
    cursor = ""
    for node in cluster.ids:
        answer = await cluster.call(node, "GET", f"/v1/ap?prefix=order/&limit=3{cursor}")
        assert answer.status == 200
        found.append(answer)
        cursor = f"&cursor={answer.json()['cursor']}"
    assert [answer.json()["more"] for answer in found] == [True, True, False]
    items = [item for answer in found for item in answer.json()["items"]]
    assert [item["key"] for item in items[:6]] == [key.decode() for key in keys[:6]]
    assert items[6]["key_encoding"] == "base64"
    whole = {(await cluster.call(node, "GET", "/v1/ap?prefix=order/")).body for node in cluster.ids}
    assert len(whole) == 1


async def test_what_is_refused_says_why(cluster: AvailableCluster) -> None:
    written = await cluster.write(1, "refused", b"1")
    context = written.headers["kv-context"]
    middle = len(context) // 2
    damaged = context[:middle] + ("A" if context[middle] != "A" else "B") + context[middle + 1 :]
    for bad in ("nonsense", "!!", context[:-1], damaged):
        assert code_of(await cluster.ap(1, "PUT", "refused", b"2", context=bad)) == (400, "bad_context"), bad
    too_long = await cluster.ap(1, "PUT", "refused", b"2", context="A" * 20_000)
    assert code_of(too_long) == (413, "too_large")  # of a size that no header may have
    assert code_of(await cluster.ap(1, "PUT", "other", b"2", context=context)) == (400, "bad_context")
    assert code_of(await cluster.ap(1, "DELETE", "refused", context=damaged)) == (400, "bad_context")
    assert code_of(await cluster.call(1, "PUT", "/v1/ap/refused", b"2", If_Match='"1"'))[0] == 400
    assert code_of(await cluster.call(1, "GET", "/v1/ap/refused?resolv=lww")) == (400, "unknown_parameter")
    assert code_of(await cluster.call(1, "PUT", "/v1/ap/", b"2"))[0] == 400
    large = await cluster.ap(1, "PUT", "refused", bytes(64 * 1024 + 1))
    assert (*code_of(large), large.headers["kv-outcome"]) == (413, "too_large", "not-applied")
    assert code_of(await cluster.call(1, "POST", "/v1/events", json.dumps({"a": "x" * 4096}).encode()))[0] == 413
    for event in (b"[1]", b"{", b'{"a":1,"a":2}', b""):
        assert code_of(await cluster.call(1, "POST", "/v1/events", event))[0] == 400
    assert code_of(await cluster.call(1, "GET", "/v1/events?cursor=nonsense"))[0] == 400
    await cluster.agreed("refused", [b"1"])


async def test_blind_writes_are_bounded_and_none_is_dropped(cluster: AvailableCluster) -> None:
    """The 33rd is refused, with the context that would let it pass (VV8)."""
    values = [b"%02d" % number for number in range(32)]
    for value in values:
        await cluster.write(1, "many", value)
    refused = await cluster.ap(1, "PUT", "many", b"32")
    assert (*code_of(refused), refused.headers["kv-outcome"]) == (409, "conflict", "not-applied")
    assert await cluster.shown(1, "many") == values
    context = refused.json()["error"]["detail"]["context"]
    await cluster.write(1, "many", b"all", context=context)
    await cluster.agreed("many", [b"all"])


async def test_the_command_line(cluster: AvailableCluster) -> None:
    code, context, _ = await cluster.run("ap", "put", "cli/flag", "on", on=[1])
    assert code == 0
    await cluster.agreed("cli/flag", [b"on"])
    assert await cluster.run("ap", "get", "cli/flag", on=[2]) == (0, "on", "")
    assert (await cluster.run("ap", "put", "cli/flag", "off", on=[3]))[0] == 0  # stands beside it
    await cluster.agreed("cli/flag", [b"off", b"on"])
    code, out, errors = await cluster.run("ap", "get", "cli/flag", on=[1])
    assert (code, out.count("\n")) == (1, 2)
    assert "--resolve" in errors
    assert await cluster.run("ap", "get", "cli/flag", "--resolve", "max", on=[2]) == (0, "on", "")
    assert (await cluster.run("ap", "delete", "cli/flag", "--context", context.strip(), on=[1]))[0] == 0
    await cluster.agreed("cli/flag", [b"off"])
    assert (await cluster.run("ap", "put", "cli/flag", "new", "--replace", on=[3]))[0] == 0
    await cluster.agreed("cli/flag", [b"new"])
    assert await cluster.run("ap", "list", "cli/", on=[2]) == (0, "cli/flag\n", "")
    assert (await cluster.run("ap", "delete", "cli/flag", on=[1]))[0] == 0
    await cluster.agreed("cli/flag", [])
    assert (await cluster.run("ap", "get", "cli/flag", on=[2]))[0] == 1
