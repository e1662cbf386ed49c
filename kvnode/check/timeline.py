"""Timeline: a history as one HTML page. A line for each client, a bar for each operation, colour by how it ended.

No script, no external resource; the page can be mailed and opens anywhere. Pointing at a bar tells the operation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from kvnode.check.describe import action, describe
from kvnode.check.history import Operation, first_call

OPERATIONS_MAX = 2000
"""Bars on a page; of a longer history those nearest to the problem."""

_LANE, _BAR, _TOP = 26, 20, 28  # pixels
_WIDTH_MAX = 60_000  # pixels
_TYPICAL = 90  # pixels of an operation of median length
_TICKS = 60

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 24px; color: #1c2733; background: #fff }
h1 { font-size: 20px; margin: 0 0 12px }
pre { font: 12.5px/1.5 ui-monospace, monospace; background: #f5f7f9; padding: 12px 14px; overflow-x: auto }
.legend span { display: inline-block; padding: 1px 8px; margin-right: 8px; border-radius: 3px; font-size: 12.5px }
.scroll { overflow-x: auto; border: 1px solid #cfd8e0; margin-top: 12px; display: flex }
.names { flex: none; position: sticky; left: 0; background: #fff; border-right: 1px solid #cfd8e0; z-index: 2 }
.names div { height: 26px; line-height: 20px; padding: 0 8px; font-size: 12px; white-space: nowrap; color: #52616f }
.names div:first-child { height: 28px }
.field { position: relative; flex: none }
.tick { position: absolute; top: 0; bottom: 0; border-left: 1px solid #e3e9ee; padding-left: 4px; font-size: 11px;
  color: #7a8894 }
.bar { position: absolute; height: 20px; line-height: 20px; box-sizing: border-box; padding: 0 4px; border-radius: 3px;
  overflow: hidden; white-space: nowrap; font-size: 11.5px }
.ok { background: #cfe8d5 } .read { background: #d6e6f5 } .held { background: #e4def3 } .fail { background: #dfe3e6 }
.info { background: repeating-linear-gradient(135deg, #ffe3ad 0 6px, #fff3da 6px 12px);
  border-right: 2px dotted #c98a12 }
.wrong { outline: 2.5px solid #d0202e; background: #ffc9c9; z-index: 1; font-weight: 600 }
"""

_LEGEND = (
    ("read", "read"),
    ("ok", "write"),
    ("held", "condition failed"),
    ("fail", "not applied"),
    ("info", "no answer"),
    ("wrong", "part of a problem"),
)


class _Axis(NamedTuple):
    """Time across the page; nanoseconds, but for the scale."""

    start: int  # of the history: what the printed times count from
    origin: int  # of the page: its left end
    end: int
    scale: float  # pixels for a nanosecond

    def pixels(self, time: int) -> float:
        return (time - self.origin) * self.scale


def page(
    operations: Sequence[Operation], report: str, result: str, marked: Mapping[int, str], centre: Operation | None
) -> str:
    """`marked`: the rule that an operation breaks, by its identity. `centre`: what to show if not all can be."""
    shown = _shown(operations, marked, centre)
    lanes = _lanes(shown)
    origin, end = first_call(shown), max((operation.last_known for operation in shown), default=0)
    axis = _Axis(first_call(operations), origin, end, _scale(shown, end - origin))
    width = axis.pixels(end) + 2 * _TYPICAL
    bars = [
        _bar(operation, lane, following, axis, marked.get(id(operation)))
        for lane, row in enumerate(lanes)
        for operation, following in zip(row, [*row[1:], None], strict=True)
    ]
    names = ["<div></div>", *(f"<div>{escape(_name(row))}</div>" for row in lanes)]
    legend = "".join(f'<span class="{kind}">{escape(words)}</span>' for kind, words in _LEGEND)
    part = "" if len(shown) == len(operations) else f" · {len(shown)} of {len(operations)} operations shown"
    height = _TOP + _LANE * len(lanes)
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            f"<title>history: {escape(result)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>History: {escape(result)}</h1>",
            f"<pre>{escape(report)}</pre>",
            f'<p class="legend">{legend}{escape(part)}</p>',
            f'<div class="scroll"><div class="names">{"".join(names)}</div>',
            f'<div class="field" style="width:{width:.0f}px;height:{height}px">',
            *_ticks(axis),
            *bars,
            "</div></div></body></html>\n",
        ]
    )


def _shown(operations: Sequence[Operation], marked: Mapping[int, str], centre: Operation | None) -> list[Operation]:
    by_call = sorted(operations, key=lambda operation: operation.call)
    if len(by_call) <= OPERATIONS_MAX:
        return by_call
    middle = (centre or by_call[0]).call
    nearest = sorted(by_call, key=lambda operation: (id(operation) not in marked, abs(operation.call - middle)))
    return sorted(nearest[:OPERATIONS_MAX], key=lambda operation: operation.call)


def _lanes(shown: Sequence[Operation]) -> list[list[Operation]]:
    """A line for each client; one whose operation got no answer goes on under a new number, mostly on its old line."""
    lanes: list[list[Operation]] = []
    lane_of: dict[int, int] = {}
    for operation in shown:
        lane = lane_of.get(operation.client)
        if lane is None:
            free = (number for number, row in enumerate(lanes) if row[-1].status == "info")
            lane = next(free, len(lanes))
            if lane == len(lanes):
                lanes.append([])
            lane_of[operation.client] = lane
        lanes[lane].append(operation)
    return lanes


def _scale(shown: Sequence[Operation], spread: int) -> float:
    """Pixels for a nanosecond; `spread`: nanoseconds across the page."""
    lengths = sorted(operation.ret - operation.call for operation in shown if operation.ret is not None)
    median = max(1, lengths[len(lengths) // 2]) if lengths else 1
    return min(_TYPICAL / median, _WIDTH_MAX / max(1, spread))


def _bar(operation: Operation, lane: int, following: Operation | None, axis: _Axis, rule: str | None) -> str:
    """`following`: the next operation on its line, up to which one without an answer is drawn."""
    left = axis.pixels(operation.call)
    if operation.ret is not None:
        width = axis.pixels(operation.ret) - left
    else:
        width = 2.0 * _TYPICAL if following is None else axis.pixels(following.call) - left - 2
    kind = _kind(operation) + (" wrong" if rule else "")
    title = describe(operation, start=axis.start) + (f" · {rule}" if rule else "")
    return (
        f'<div class="bar {kind}" style="left:{left:.1f}px;top:{_TOP + lane * _LANE}px;width:{max(width, 3):.1f}px" '
        f'title="{escape(title)}">{escape(_label(operation))}</div>'
    )


def _kind(operation: Operation) -> str:
    if operation.status != "ok":
        return operation.status
    if not operation.held:
        return "held"
    return "read" if operation.op in {"get", "range"} else "ok"


def _label(operation: Operation) -> str:
    if operation.op == "get" and operation.status == "ok":
        return f"{operation.key} → {operation.out if operation.out is not None else '∅'}"
    return action(operation)


def _name(row: Sequence[Operation]) -> str:
    numbers = list(dict.fromkeys(operation.client for operation in row))
    more = f" … {numbers[-1]}" if len(numbers) > 1 else ""
    return f"client {numbers[0]}{more}"


def _ticks(axis: _Axis) -> list[str]:
    """Lines at round times, at most about _TICKS of them, or one every few hundred pixels."""
    step = 1
    while (axis.end - axis.origin) / step > _TICKS and step * axis.scale < 4 * _TYPICAL:
        step *= 10
    first = axis.origin - (axis.origin - axis.start) % step
    return [
        f'<div class="tick" style="left:{axis.pixels(time):.1f}px">{(time - axis.start) / 1e6:g} ms</div>'
        for time in range(first, axis.end + step, step)
        if time >= axis.origin
    ]
