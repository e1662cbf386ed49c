"""docs/protocol.md shows every frame kind, hello field, message, field, request and refusal, as the code has them."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import msgspec

from kvnode.gossip.messages import Ack, Nack, Packet, Ping, PingReq, PullReply, PullRequest, Rumor, SwimMessage
from kvnode.wire.frames import FrameKind, Hello
from kvnode.wire.gossip_seal import MAC_BYTES, OVERHEAD_BYTES, SealKind
from kvnode.wire.kv_tags import REQUESTS
from kvnode.wire.raft_tags import PEER_MESSAGES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")


def rows(first_column: str) -> list[list[str]]:
    """Cells of each row of the table whose head starts with `first_column`."""
    lines = iter(PAGE.splitlines())
    for line in lines:
        if line.startswith(f"| {first_column} |"):
            next(lines)
            break
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    assert found, first_column
    return found


def test_frame_kinds() -> None:
    assert [(int(row[0]), row[1]) for row in rows("kind")] == [(kind.value, kind.name) for kind in FrameKind]


def test_hello_fields() -> None:
    assert [row[1] for row in rows("#")] == [field.name for field in msgspec.structs.fields(Hello)]


def test_messages_and_their_fields() -> None:
    expected = []
    for tag, (found, _) in PEER_MESSAGES.items():
        names = [field.name for field in msgspec.structs.fields(found)]
        assert names[:2] == ["term", "sender"]
        expected.append((str(tag), found.__name__, names[2:]))
    shown = [(row[0], row[1], re.findall(r"(?:^|[,;] )(\w+)(?=[,:;]|$)", _flat(row[2]))) for row in rows("tag")]
    assert shown == expected


def _flat(cell: str) -> str:
    """A cell without the inner structure of its array fields."""
    return re.sub(r": array of \[[^\]]*\]", "", cell)


def test_requests() -> None:
    table = PAGE[PAGE.index("| tag | request |") :]
    for tag, found in REQUESTS.items():
        row = next(line for line in table.splitlines() if line.startswith(f"| {tag} | {found.__name__}"))
        for field in msgspec.structs.fields(found):
            assert re.search(rf"\b{field.name}\b", row), (found, field.name)


def test_refusals() -> None:
    sources = [ROOT / f"kvnode/{name}.py" for name in ("node/roster", "node/peer_boots", "transport/handshake")]
    text = "".join(source.read_text(encoding="utf-8") for source in sources)
    codes = set(re.findall(r'Refusal\(\s*"(\w+)"', text)) | set(
        re.findall(r'_alarm\(\s*hello\.member,\s*"(\w+)"', text)
    )
    assert {row[0].strip("`") for row in rows("code")} == codes


def test_gossip_messages_and_their_fields() -> None:
    messages = [Ping, Ack, PingReq, Nack, Rumor]
    for head, found in (("gossip tag", messages), ("body tag", [PullRequest, PullReply, Packet])):
        expected = [
            (str(one.__struct_config__.tag), one.__name__, [field.name for field in msgspec.structs.fields(one)])
            for one in found
        ]
        assert [(row[0], row[1], row[2].split(", ")) for row in rows(head)] == expected
    assert set(typing.get_args(SwimMessage)) == set(messages)


def test_the_seal() -> None:
    fields = rows("offset | size | field")
    assert [(row[0], row[1]) for row in fields][-2:] == [(str(OVERHEAD_BYTES - MAC_BYTES), "–"), ("–", str(MAC_BYTES))]
    assert all(f"{kind.value} {kind.name.lower()}" in fields[2][3] for kind in SealKind)
