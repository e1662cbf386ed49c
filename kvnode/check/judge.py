"""Judge: one history in, one verdict out. Runs every checker that applies and puts together what they say.

First whether the history makes sense (a broken recorder is no violation: `MalformedHistory` is raised). Then what needs
no order (`outcomes`), what the claimed revisions say (`witness`), and what any order at all can explain
(`linearizability`). The last two are independent: one believes the revisions, the other uses none as evidence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from kvnode.check import outcomes, well_formed, witness
from kvnode.check.claims import account, keys_of
from kvnode.check.describe import describe
from kvnode.check.history import Operation, Seen, first_call
from kvnode.check.linearizability import Search, search
from kvnode.check.partitions import Partition, partition
from kvnode.check.verdict import Counts, Problem, Result, Verdict

BUDGET_STATES = 100_000
"""States that the searches of one history may visit together: seconds, at ten to seventy microseconds each."""

NOT_LINEARIZABLE = "not-linearizable"


def judge(
    operations: Sequence[Operation],
    *,
    final: Mapping[str, Seen] | None = None,
    budget: int = BUDGET_STATES,
    sole_writer: bool = True,
) -> Verdict:
    """Judge a history that began with an empty store.

    `final` is everything the store held after the last operation (by key). `sole_writer`: nobody else wrote to the
    store, so that every revision was made by an operation of the history.
    Raises: MalformedHistory if no correct recorder can have written it.
    """
    well_formed.check(operations)
    keys = keys_of(operations)
    if final is not None:
        keys = sorted({*keys, *final})
    accounts = [account(operation, keys) for operation in operations]
    testimony = witness.check(accounts, keys, final, sole_writer=sole_writer)
    problems = [*outcomes.check(accounts, final), *testimony.problems]
    groups = [part for part in partition(accounts, keys, final) if len(part.keys) > 1]
    states = 0
    gave_up = False
    # Each key first, by what is said of it alone: a violation that shows there is found sooner, and is easier to read.
    for part in [*partition(accounts, keys, final, group_keys_max=1), *groups]:
        if len(part.keys) > 1 and any(problem.rule == NOT_LINEARIZABLE for problem in problems):
            break
        found = search(part, budget - states)
        states += found.states
        gave_up |= found.result == "unknown"
        if found.result == "failed":
            problems.append(_no_order(part, found, operations))
    result: Result = "failed" if problems else "unknown" if gave_up else "ok"
    statuses = Counter(operation.status for operation in operations)
    counts = Counts(
        operations=len(operations),
        ok=statuses["ok"],
        fail=statuses["fail"],
        info=statuses["info"],
        keys=len(keys),
        groups=len(groups),
        states=states,
    )
    return Verdict(result, tuple(problems), counts, testimony.gaps)


def _no_order(part: Partition, found: Search, operations: Sequence[Operation]) -> Problem:
    start = first_call(operations)
    there = {id(operation) for operation in operations}
    by_return = sorted(found.stuck, key=lambda operation: (operation.ret is None, operation.ret))
    stuck = [f"  {describe(operation, start=start)}" for operation in by_return]
    state = ", ".join(f"{key} = {value}" for key, value in found.state.items())
    headline = (
        f"no order of the operations on {', '.join(part.keys)} explains their answers. The longest that fits has "
        f"{len(found.prefix)} operations and leads to {state}; after it one of these had to come, and none can:"
    )
    return Problem(
        NOT_LINEARIZABLE,
        "\n".join([headline, *stuck]),
        tuple(operation for operation in by_return if id(operation) in there),
        found.prefix,
        found.state,
    )
