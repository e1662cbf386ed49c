"""Maintenance.Alarm: what about this node etcd has an alarm for.

A node's alarms come and go with their causes, so nobody raises one, and one that holds cannot be put away. Each node
tells of itself alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import msgspec

from kvnode.api.etcd.context import Context
from kvnode.api.etcd.errors import Code, EtcdError, invalid
from kvnode.api.etcd.method import Method, Unary
from kvnode.api.etcd.proto_json import Request, Response, UInt64
from kvnode.kv.interface import Status


class AlarmAction(IntEnum):
    GET = 0
    ACTIVATE = 1
    DEACTIVATE = 2


class AlarmType(IntEnum):
    NONE = 0
    NOSPACE = 1
    CORRUPT = 2


class AlarmRequest(Request):
    action: AlarmAction = AlarmAction.GET
    memberID: UInt64 = 0
    alarm: AlarmType = AlarmType.NONE


class AlarmMember(Response):
    memberID: str = "0"
    alarm: str = "NONE"


class AlarmResponse(Response):
    header: msgspec.Raw
    alarms: Sequence[AlarmMember] = ()


def raised(status: Status) -> list[AlarmType]:
    """What etcd has an alarm for and holds on this node now."""
    found = []
    if status.short_of_space:
        found.append(AlarmType.NOSPACE)
    if status.corrupted or status.quarantined:
        found.append(AlarmType.CORRUPT)
    return found


async def alarm(context: Context, request: AlarmRequest) -> AlarmResponse:
    now = raised(context.admin.status())
    if request.action == AlarmAction.GET:
        found = now if request.alarm == AlarmType.NONE else [each for each in now if each == request.alarm]
        alarms = tuple(AlarmMember(memberID=str(context.admin.id), alarm=each.name) for each in found)
        return AlarmResponse(header=context.header(), alarms=alarms)
    if request.action == AlarmAction.ACTIVATE:
        raise EtcdError(Code.UNIMPLEMENTED, "alarms are raised by what they tell of, not by a request")
    if request.action != AlarmAction.DEACTIVATE:
        raise invalid("unknown alarm action")
    if request.memberID == context.admin.id and request.alarm in now:
        why = f"the alarm {request.alarm.name} ends by itself once its cause is gone: see /v1/status"
        raise EtcdError(Code.FAILED_PRECONDITION, why)
    return AlarmResponse(header=context.header())


METHODS: dict[str, Method] = {"maintenance/alarm": Unary(AlarmRequest, alarm)}
