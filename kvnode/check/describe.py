"""One operation in one line, for people."""

from __future__ import annotations

from kvnode.check.history import ANY, MUST_EXIST, Operation

_SHOWN = 8  # items of a range that are spelled out


def describe(operation: Operation, *, start: int = 0) -> str:
    """Who, what, the answer, and when: milliseconds since `start` (nanoseconds)."""
    node = f" at node {operation.node}" if operation.node else ""
    return f"client {operation.client}{node}: {action(operation)} → {answer(operation)} [{times(operation, start)}]"


def action(operation: Operation) -> str:
    match operation.op:
        case "put":
            return f"put {operation.key} = {operation.arg}{_condition(operation)}"
        case "range":
            return f"{_stale(operation)}range {operation.key}*"
        case "txn":
            return "txn {" + "; ".join(_part(part) for part in operation.parts) + "}"
        case _:
            return f"{_stale(operation)}{operation.op} {operation.key}{_condition(operation)}"


def answer(operation: Operation) -> str:
    note = f" ({operation.note})" if operation.note else ""
    if operation.status != "ok":
        return ("not applied" if operation.status == "fail" else "no answer") + note
    at = f" at revision {operation.rev}" if operation.rev else ""
    if not operation.held:
        found = f"found revision {operation.mod}" if operation.mod else "found none"
        return f"condition failed{'' if operation.op == 'txn' else f', {found}'}{at}{note}"
    match operation.op:
        case "get":
            return f"{_value(operation)}{at}{note}"
        case "range":
            items = [f"{item.key} = {item.value} (revision {item.mod})" for item in operation.items[:_SHOWN]]
            more = len(operation.items) - len(items)
            return f"{', '.join(items) or 'nothing'}{f' and {more} more' if more else ''}{at}{note}"
        case "delete":
            return f"{operation.count} deleted{at}{note}"
        case _:
            return f"ok{at}{note}"


def times(operation: Operation, start: int = 0) -> str:
    end = "…" if operation.ret is None else f"{(operation.ret - start) / 1e6:.3f}"
    return f"{(operation.call - start) / 1e6:.3f}–{end} ms"


def _part(part: Operation) -> str:
    match part.op:
        case "get":
            return f"{action(part)} → {_value(part)}"
        case "delete":
            return f"{action(part)} → {part.count} deleted"
        case _:
            return action(part)


def _value(operation: Operation) -> str:
    if operation.out is None:
        return "no such key"
    return f"{operation.out} (revision {operation.mod})" if operation.mod else operation.out


def _condition(operation: Operation) -> str:
    match operation.exp:
        case 0:
            return " if absent"
        case value if value == ANY:
            return ""
        case value if value == MUST_EXIST:
            return " if present"
        case wanted:
            return f" if at revision {wanted}"


def _stale(operation: Operation) -> str:
    return "stale " if operation.consistency == "stale" else ""
