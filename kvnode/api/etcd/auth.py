"""The Auth service while there are no users and no roles: what etcd answers with authentication off and none made.

So whoever asks about a user or role is told that there is none such; only making one is refused as not offered.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from kvnode.api.etcd.context import Context
from kvnode.api.etcd.errors import Code, EtcdError, invalid
from kvnode.api.etcd.method import Method, Unary
from kvnode.api.etcd.proto_json import Empty, Request, Response

NO_SUCH_USER = "etcdserver: user name not found"
NO_SUCH_ROLE = "etcdserver: role name not found"
NOT_OFFERED = "users and roles do not exist here yet"


class PermissionType(IntEnum):
    READ = 0
    WRITE = 1
    READWRITE = 2


class Permission(Request):
    permType: PermissionType = PermissionType.READ
    key: bytes = b""
    range_end: bytes = b""


class UserAddOptions(Request):
    no_password: bool = False


class UserRequest(Request):
    """All that any call about users takes."""

    name: str = ""
    user: str = ""
    role: str = ""
    password: str = ""
    hashedPassword: str = ""
    options: UserAddOptions | None = None


class RoleRequest(Request):
    """All that any call about roles takes."""

    name: str = ""
    role: str = ""
    key: bytes = b""
    range_end: bytes = b""
    perm: Permission | None = None


class AuthResponse(Response):
    """Lists of users and roles are empty, and left out."""

    header: msgspec.Raw


class AuthStatusResponse(Response):
    """`enabled` is false, and left out."""

    header: msgspec.Raw
    authRevision: str


async def show_status(context: Context, request: Empty) -> AuthStatusResponse:
    return AuthStatusResponse(header=context.header(), authRevision="1")


async def answer_only(context: Context, request: Request) -> AuthResponse:
    return AuthResponse(header=context.header())


async def enable(context: Context, request: Empty) -> AuthResponse:
    raise EtcdError(Code.FAILED_PRECONDITION, "etcdserver: root user does not exist")


async def authenticate(context: Context, request: UserRequest) -> AuthResponse:
    raise EtcdError(Code.FAILED_PRECONDITION, "etcdserver: authentication is not enabled")


async def add_user(context: Context, request: UserRequest) -> AuthResponse:
    if not request.name:
        raise invalid("user name is empty")
    raise EtcdError(Code.UNIMPLEMENTED, NOT_OFFERED)


async def add_role(context: Context, request: RoleRequest) -> AuthResponse:
    if not request.name:
        raise invalid("role name is empty")
    raise EtcdError(Code.UNIMPLEMENTED, NOT_OFFERED)


async def grant_permission(context: Context, request: RoleRequest) -> AuthResponse:
    if request.perm is None:
        raise invalid("permission not given")
    raise EtcdError(Code.FAILED_PRECONDITION, NO_SUCH_ROLE)


async def no_such_user(context: Context, request: UserRequest) -> AuthResponse:
    raise EtcdError(Code.FAILED_PRECONDITION, NO_SUCH_USER)


async def no_such_role(context: Context, request: RoleRequest) -> AuthResponse:
    raise EtcdError(Code.FAILED_PRECONDITION, NO_SUCH_ROLE)


METHODS: dict[str, Method] = {
    "auth/enable": Unary(Empty, enable),
    "auth/disable": Unary(Empty, answer_only),
    "auth/status": Unary(Empty, show_status),
    "auth/authenticate": Unary(UserRequest, authenticate),
    "auth/user/add": Unary(UserRequest, add_user),
    "auth/user/list": Unary(Empty, answer_only),
    "auth/user/get": Unary(UserRequest, no_such_user),
    "auth/user/delete": Unary(UserRequest, no_such_user),
    "auth/user/changepw": Unary(UserRequest, no_such_user),
    "auth/user/grant": Unary(UserRequest, no_such_user),
    "auth/user/revoke": Unary(UserRequest, no_such_user),
    "auth/role/add": Unary(RoleRequest, add_role),
    "auth/role/list": Unary(Empty, answer_only),
    "auth/role/grant": Unary(RoleRequest, grant_permission),
    "auth/role/get": Unary(RoleRequest, no_such_role),
    "auth/role/delete": Unary(RoleRequest, no_such_role),
    "auth/role/revoke": Unary(RoleRequest, no_such_role),
}
