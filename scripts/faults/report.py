"""The summary of a run, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from scripts.faults.run import Leg
from scripts.faults.scenarios import Outcome

_PROBLEMS_SHOWN = 12
_PROBLEM_CHARACTERS = 1500


def text(legs: Sequence[Leg], outcomes: Sequence[Outcome], command: str) -> str:
    parts = [_leg(leg) for leg in legs]
    verdicts = ", ".join(f"{leg.setting.network} {leg.verdict}" for leg in legs) or "no mixed faults"
    if outcomes:
        verdicts += f"; scenarios: {_counts(Counter(outcome.verdict for outcome in outcomes))}"
    return "\n".join([*parts, f"verdict: {verdicts}", f"repeat with: {command}"])


def outcome(outcome: Outcome) -> str:
    """A few lines about one scenario."""
    lines = [f"{outcome.name}: {outcome.verdict} ({outcome.skipped or f'{outcome.seconds:.0f} s'})"]
    lines += [f"    {note}" for note in outcome.notes]
    lines += [f"    PROBLEM {problem[:_PROBLEM_CHARACTERS]}" for problem in outcome.problems[:_PROBLEMS_SHOWN]]
    if outcome.problems:
        lines.append(f"    history, logs and data: {outcome.home}")
    return "\n".join(lines)


def _leg(leg: Leg) -> str:
    operations, seconds = leg.operations, max(leg.seconds, 0.001)
    lines = [
        f"\n{leg.setting.network}, {leg.setting.nodes} nodes, seed {leg.setting.seed}: {leg.verdict.upper()}",
        f"  {leg.episodes} episodes in {seconds:.0f} s; longest wait for service in a calm {leg.calm_s_longest:.1f} s",
        f"  faults that struck: {leg.faults.total()} ({_counts(leg.faults)})",
        f"  operations: ok {operations['ok']}, {operations['ok'] / seconds:.0f}/s ({_counts(leg.kinds)})",
        f"  not applied {operations['fail']}, unknown {operations['info']}",
        f"  leader changes {leg.leader_changes}, restarts {leg.restarts}, exits by code: {_counts(leg.exits)}",
    ]
    if leg.idle:
        lines.append(f"  found nothing to strike: {_counts(leg.idle)}")
    if leg.carried:
        lines.append(f"  proxies: {_counts(leg.carried)}")
    lines += [f"  {number} times in the nodes' logs: {words}" for words, number in leg.complaints.most_common(6)]
    for problem in leg.problems[:_PROBLEMS_SHOWN]:
        lines.append(f"  PROBLEM {problem[:_PROBLEM_CHARACTERS]}")
    if len(leg.problems) > _PROBLEMS_SHOWN:
        lines.append(f"  and {len(leg.problems) - _PROBLEMS_SHOWN} more")
    if leg.verdict != "passed":
        lines.append(f"  history, logs and data: {leg.setting.home}")
    return "\n".join(lines)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in Counter(counts).most_common()) or "none"
