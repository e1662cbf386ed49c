"""The term in a header: one that has had a leader, not one that a candidate only stood in."""

from __future__ import annotations

from kvnode.ids import Term
from tests.api.etcd.local_door import door_of, serving
from tests.client.local_node import LocalNode


async def test_it_is_the_newest_that_has_had_a_leader() -> None:
    node = LocalNode()
    async with serving(node) as server, door_of(server) as door:
        for term in (4, 5):
            node.newest_led = Term(term)
            reply = await door.ask("POST", "/v3/kv/put", {"key": "YQ==", "value": "YQ=="})
            assert (reply.status, reply.json["header"]["raft_term"]) == (200, str(term))
            assert reply.headers["kv-term"] == str(node.term), "the node's own API tells the current one"
