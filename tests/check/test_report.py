"""The report: what a person reads, and a page that stands alone."""

from __future__ import annotations

from html.parser import HTMLParser
from random import Random
from typing import Any

from msgspec.structs import replace

from kvnode.check import report
from kvnode.check.history import Operation
from kvnode.check.judge import judge
from kvnode.check.timeline import OPERATIONS_MAX
from kvnode.check.verdict import Problem
from tests.check.histories import History, Shape, legal
from tests.check.mutations import stale_read


def spoiled() -> History:
    history = stale_read(Random(3), legal(5, Shape(operations=120)))
    assert history is not None
    return history


class Page(HTMLParser):
    """Checks that every element is closed, and collects the bars."""

    VOID = frozenset({"meta"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.bars: list[dict[str, str | None]] = []
        self.tags: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        assert not {"src", "href"} & set(given), given
        if (given.get("class") or "").startswith("bar"):
            self.bars.append(given)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parsed(operations: list[Operation], **more: Any) -> Page:
    page = Page()
    page.feed(report.html(operations, judge(operations, **more)))
    assert page.open == []
    return page


def test_a_pass_is_one_line():
    history = legal(1, Shape(unanswered=0.0))
    told = report.text(history.operations, judge(history.operations))
    assert told.splitlines()[0].startswith("history: ok (40 operations: ")
    assert len(told.splitlines()) == 1


def test_a_failure_leads_to_the_first_impossible_point():
    history = spoiled()
    verdict = judge(history.operations, final=history.final)
    told = report.text(history.operations, verdict)
    lines = told.splitlines()
    assert lines[0].startswith(f"history: FAILED, {len(verdict.problems)} problem")
    assert any(line.startswith("First impossible point at ") for line in lines)
    around = [line for line in lines if line.startswith("  > ")]
    assert any(": get " in line for line in around), told
    assert len(lines) < 60, told


def test_the_first_problem_by_time_is_told_first():
    late = Operation(client=1, op="get", key="k", call=50, ret=60, out="x", mod=2, rev=2)
    early = Operation(client=2, op="get", key="m", call=5, ret=6, out="y", mod=2, rev=2)
    verdict = judge([late, early])
    first = report.text([late, early], verdict).partition("First impossible point")[2].splitlines()[1]
    assert first.startswith("m is y")


def test_giving_up_is_no_pass():
    history = legal(2, Shape(operations=60))
    verdict = judge(history.operations, budget=5)
    assert verdict.result == "unknown"
    told = report.text(history.operations, verdict)
    assert "history: UNKNOWN" in told
    assert "This is not a pass" in told


def test_the_timeline_has_a_bar_for_every_operation_and_marks_the_wrong_ones():
    history = spoiled()
    page = parsed(history.operations, final=history.final)
    assert len(page.bars) == len(history.operations)
    wrong = [bar for bar in page.bars if "wrong" in (bar["class"] or "")]
    assert any(": get " in (bar["title"] or "") for bar in wrong)
    assert len(wrong) < 10
    assert {"script", "link", "img"}.isdisjoint(page.tags)
    assert any("First impossible point" in words for words in page.words)


def test_a_value_is_text_and_never_markup():
    operations = [Operation(client=1, op="put", key="<b>k", arg='"><script>', call=1, ret=2, rev=2)]
    page = parsed(operations)
    assert "script" not in page.tags
    assert page.bars[0]["title"] is not None
    assert '<b>k = "><script>' in page.bars[0]["title"]


def test_a_long_history_is_shown_around_its_problem():
    history = legal(1, Shape(operations=OPERATIONS_MAX + 500, keys=5))
    wrong = stale_read(Random(1), history)
    assert wrong is not None
    page = parsed(wrong.operations, budget=100)  # the witness finds it; the search has its own tests
    assert len(page.bars) == OPERATIONS_MAX
    assert any("wrong" in (bar["class"] or "") for bar in page.bars)


def test_what_is_wrong_is_shown_however_far_it_is():
    count = OPERATIONS_MAX + 500
    operations = [Operation(client=1, op="get", key="k", call=2 * at, ret=2 * at + 1) for at in range(count)]
    problem = Problem("wrong-answer", "far apart", (operations[0], operations[-1]))
    verdict = replace(judge(operations), result="failed", problems=(problem,))
    page = Page()
    page.feed(report.html(operations, verdict))
    assert len(page.bars) == OPERATIONS_MAX
    assert sum("wrong" in (bar["class"] or "") for bar in page.bars) == 2


def test_an_empty_history_has_a_page():
    assert parsed([]).bars == []
