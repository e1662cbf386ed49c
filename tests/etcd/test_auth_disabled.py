"""Auth calls while auth is disabled and no user or role exists."""

from __future__ import annotations

from typing import Any

import pytest

from tests.etcd.target import FAILED_PRECONDITION, INVALID_ARGUMENT, Target
from tests.etcd.words import b64

NO_USER = "etcdserver: user name not found"
NO_ROLE = "etcdserver: role name not found"


@pytest.mark.parametrize("body", [{"name": "root", "password": "x"}, {"name": "nobody"}, {}, b""])
def test_there_is_nothing_to_authenticate_for(target: Target, body: dict[str, Any] | bytes) -> None:
    target.refused("auth/authenticate", body, FAILED_PRECONDITION, "etcdserver: authentication is not enabled")


def test_enabling_needs_a_root_user(target: Target, own: bytes) -> None:
    target.refused("auth/enable", {}, FAILED_PRECONDITION, "etcdserver: root user does not exist")
    target.put(b64(own))


def test_disabling_what_is_disabled(target: Target) -> None:
    assert set(target.ok("auth/disable", {})) == {"header"}


@pytest.mark.parametrize("path", ["auth/user/list", "auth/role/list"])
def test_nobody_is_listed(target: Target, path: str) -> None:
    answer = target.ok(path, {})
    assert set(answer) == {"header"}
    assert set(answer["header"]) == {"cluster_id", "member_id", "revision", "raft_term"}


def test_status(target: Target) -> None:
    answer = target.post("auth/status", {})
    if answer.status == 404 and target.version < (3, 5):
        pytest.skip("auth/status came with 3.5")
    assert set(answer.json()) == {"header", "authRevision"}
    assert int(answer.json()["authRevision"]) >= 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("get", {"name": "nobody"}),
        ("delete", {"name": "nobody"}),
        ("changepw", {"name": "nobody", "password": "x"}),
        ("grant", {"user": "nobody", "role": "none"}),
        ("revoke", {"name": "nobody", "role": "none"}),
        ("get", {}),
    ],
)
def test_a_user_that_is_not_there(target: Target, path: str, body: dict[str, Any]) -> None:
    target.refused(f"auth/user/{path}", body, FAILED_PRECONDITION, NO_USER)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("get", {"role": "none"}),
        ("delete", {"role": "none"}),
        ("grant", {"name": "none", "perm": {"permType": "READWRITE", "key": "YQ==", "range_end": "Yg=="}}),
        ("revoke", {"role": "none", "key": "YQ=="}),
        ("get", {}),
    ],
)
def test_a_role_that_is_not_there(target: Target, path: str, body: dict[str, Any]) -> None:
    target.refused(f"auth/role/{path}", body, FAILED_PRECONDITION, NO_ROLE)


def test_a_name_is_needed(target: Target) -> None:
    target.refused("auth/user/add", {"password": "x"}, INVALID_ARGUMENT, "etcdserver: user name is empty")
    target.refused("auth/role/add", {}, INVALID_ARGUMENT, "etcdserver: role name is empty")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("auth/authenticate", b'{"name": 1}'),
        ("auth/user/add", b"["),
        ("auth/user/get", b'{"name": {}}'),
        ("auth/role/grant", b'{"name": "none", "perm": {"permType": "read"}}'),
        ("auth/role/grant", b'{"name": "none", "perm": {"key": "?"}}'),
        ("auth/role/revoke", b'{"role": "none", "key": "?"}'),
    ],
)
def test_what_cannot_be_read(target: Target, path: str, body: bytes) -> None:
    target.refused(path, body, INVALID_ARGUMENT)
