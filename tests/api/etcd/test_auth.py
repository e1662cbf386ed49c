"""The Auth service: as etcd answers with authentication off and nobody made."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.etcd.test_maintenance import HEADER, ask, refusal
from tests.api.raw import Door

NO_USER = (400, 9, "etcdserver: user name not found")
NO_ROLE = (400, 9, "etcdserver: role name not found")


@pytest.mark.parametrize("path", ["auth/disable", "auth/user/list", "auth/role/list"])
async def test_answers_without_anything_in_them(door: Door, path: str) -> None:
    assert (await ask(door, path)).json == {"header": HEADER}


async def test_status(door: Door) -> None:
    assert (await ask(door, "auth/status")).json == {"header": HEADER, "authRevision": "1"}


@pytest.mark.parametrize(
    ("path", "body", "wanted"),
    [
        ("enable", None, (400, 9, "etcdserver: root user does not exist")),
        ("authenticate", {"name": "a", "password": "b"}, (400, 9, "etcdserver: authentication is not enabled")),
        ("user/get", {"name": "a"}, NO_USER),
        ("user/delete", {"name": "a"}, NO_USER),
        ("user/changepw", {"name": "a", "password": "b"}, NO_USER),
        ("user/grant", {"user": "a", "role": "r"}, NO_USER),
        ("user/revoke", {"name": "a", "role": "r"}, NO_USER),
        ("role/get", {"role": "r"}, NO_ROLE),
        ("role/delete", {"role": "r"}, NO_ROLE),
        ("role/revoke", {"role": "r", "key": "YQ=="}, NO_ROLE),
        ("role/grant", {"name": "r", "perm": {"permType": "READWRITE", "key": "YQ=="}}, NO_ROLE),
        ("role/grant", {"name": "r"}, (400, 3, "etcdserver: permission not given")),
        ("user/add", {"password": "b"}, (400, 3, "etcdserver: user name is empty")),
        ("role/add", None, (400, 3, "etcdserver: role name is empty")),
    ],
)
async def test_refusals(door: Door, path: str, body: Any, wanted: tuple[int, int, str]) -> None:
    assert await refusal(door, f"auth/{path}", body) == wanted


@pytest.mark.parametrize("path", ["user/add", "role/add"])
async def test_nobody_can_be_made(door: Door, path: str) -> None:
    body = {"name": "root", "password": "x", "options": {"no_password": False}}
    assert await refusal(door, f"auth/{path}", body) == (501, 12, "users and roles do not exist here yet")


async def test_what_is_malformed_is_told_first(door: Door) -> None:
    for path, body in (("user/add", {"name": 1}), ("role/grant", {"perm": {"permType": "read"}})):
        assert (await refusal(door, f"auth/{path}", body))[:2] == (400, 3)
