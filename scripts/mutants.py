"""Mutants: kvnode broken on purpose, one rule at a time; the tests named must notice.

Each mutant replaces one exact text in one file of a copy of the tree and runs the tests that guard the rule there.
A mutant that survives is a rule nobody guards; a text that is not found once is a mutant that has gone stale. Both
are failures of this script, as are tests that fail without any mutation.

    python scripts/mutants.py                 all, as a table
    python scripts/mutants.py own-term        only those whose name contains the word
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("kvnode", "tests", "config", "docs", "scripts", "pyproject.toml", "Makefile", "README.md")
LIMIT_S = 180
TESTS_FAILED = 1  # pytest's exit code; any other but 0 means that the tests did not run


@dataclass(frozen=True)
class Mutant:
    """`old`, found exactly once in `file`, becomes `new`; `tests` must then fail."""

    name: str
    rule: str  # what is broken, as a sentence
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS = (
    Mutant(
        "vote-freshness",
        "a vote goes to a candidate whose log lacks committed entries",
        "kvnode/raft/election.py",
        "    return LogPosition(message.last_term, message.last_index) >= state.log.last_position",
        "    return True",
        ("tests/raft",),
    ),
    Mutant(
        "vote-twice",
        "two candidates get a vote in one term",
        "kvnode/raft/election.py",
        "    return state.vote == NOBODY and state.leader == NOBODY and _is_log_complete(state, message)",
        "    return _is_log_complete(state, message)",
        ("tests/raft",),
    ),
    Mutant(
        "vote-before-fsync",
        "a vote, or a request for one, leaves before term and vote are durable",
        "kvnode/raft/writes.py",
        "        number = NO_WRITE if self.is_hard_state_durable else self._hard_state_number",
        "        number = NO_WRITE",
        ("tests/raft",),
    ),
    Mutant(
        "no-stickiness",
        "a node that hears its leader helps to unseat it",
        "kvnode/raft/election.py",
        "    if not state.is_voter or (timers.hears_leader(state) and not message.transfer):",
        "    if not state.is_voter:",
        ("tests/raft",),
    ),
    Mutant(
        "own-term",
        "a leader commits an entry of an older term by counting copies",
        "kvnode/raft/high_water_mark.py",
        "    if index > state.commit_index and state.log.term_at(index) == state.term:",
        "    if index > state.commit_index:",
        ("tests/raft",),
    ),
    Mutant(
        "leader-before-fsync",
        "the leader counts itself before its own write is durable",
        "kvnode/raft/high_water_mark.py",
        "state.writes.durable_index if voter == state.node",
        "state.log.last_index if voter == state.node",
        ("tests/raft",),
    ),
    Mutant(
        "ack-before-fsync",
        "a follower acknowledges entries that are not durable (core)",
        "kvnode/raft/replication.py",
        "    state.send(message.sender, reply, holds=verified)",
        "    state.send(message.sender, reply)",
        ("tests/raft",),
    ),
    Mutant(
        "send-before-fsync",
        "a message leaves before the write it depends on is durable (log writer)",
        "kvnode/node/log_writer.py",
        "        if send.after <= self._durable:",
        "        if True:",
        ("tests/node/test_log_writer.py",),
    ),
    Mutant(
        "read-round-reused",
        "every read round has the same number, so that an old echo confirms a new read",
        "kvnode/raft/read_index.py",
        "    state.read_round += 1",
        "    state.read_round = max(state.read_round, 1)",
        ("tests/raft",),
    ),
    Mutant(
        "read-before-own-term",
        "a new leader serves reads before it has committed anything in its term",
        "kvnode/raft/read_index.py",
        "    if not leadership.reads_waiting or state.commit_index < leadership.first_index:",
        "    if not leadership.reads_waiting:",
        ("tests/raft",),
    ),
    Mutant(
        "answer-for-anothers-entry",
        "a write is acknowledged because an entry of another leader was applied at its index",
        "kvnode/node/waiting_list.py",
        "            if expected == term and result is not None:",
        "            if result is not None:",
        ("tests/node/test_waiting_list.py",),
    ),
    Mutant(
        "log-without-fsync",
        "the log is written but not made durable before it is acknowledged",
        "kvnode/storage/segment_writer.py",
        "        file.pwrite(self.offset, buffer)\n        file.fdatasync()",
        "        file.pwrite(self.offset, buffer)",
        ("tests/storage/test_wal_crash.py",),
    ),
    Mutant(
        "log-without-fsync-seen-from-outside",
        "the same, in a real process watched by strace",
        "kvnode/storage/segment_writer.py",
        "        file.pwrite(self.offset, buffer)\n        file.fdatasync()",
        "        file.pwrite(self.offset, buffer)",
        ("tests/system/test_fsync_before_ack.py",),
    ),
    Mutant(
        "segment-name-not-durable",
        "a segment is used before its name is durable in the directory",
        "kvnode/storage/segment_writer.py",
        "        self._disk.rename(file.path, path)\n        self._disk.fsync_dir(self._directory)",
        "        self._disk.rename(file.path, path)",
        ("tests/storage/test_wal_crash.py",),
    ),
)


def main(words: list[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    if not chosen:
        print("no such mutant; known:", ", ".join(mutant.name for mutant in MUTANTS))
        return 2
    with tempfile.TemporaryDirectory(prefix="kvnode-mutants-") as temporary:
        tree = Path(temporary)
        for name in COPIED:
            _copy(ROOT / name, tree / name)
        healthy = _run_tests(tree, tuple(dict.fromkeys(test for mutant in chosen for test in mutant.tests)))
        if healthy.code != 0:
            print(healthy.output)
            print("the tests fail without any mutation")
            return 2
        verdicts = [(mutant, _try(tree, mutant)) for mutant in chosen]
    print(_table(verdicts))
    survivors = [mutant.name for mutant, verdict in verdicts if not verdict.startswith("caught")]
    if survivors:
        print(f"\nnot caught: {', '.join(survivors)}")
    return 1 if survivors else 0


@dataclass(frozen=True)
class _Run:
    code: int
    output: str
    seconds: float

    def first_failure(self) -> str:
        found = re.search(r"^(?:FAILED|ERROR) (\S+)", self.output, re.MULTILINE)
        return found[1] if found else "?"


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    elif source.exists():
        shutil.copy(source, target)


def _try(tree: Path, mutant: Mutant) -> str:
    """Apply, run, undo → "caught by …", "SURVIVED" or why it could not be tried."""
    file = tree / mutant.file
    original = file.read_text(encoding="utf-8")
    if original.count(mutant.old) != 1:
        return f"STALE: the text stands {original.count(mutant.old)} times in {mutant.file}"
    file.write_text(original.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        run = _run_tests(tree, mutant.tests)
    finally:
        file.write_text(original, encoding="utf-8")
    print(f"{mutant.name}: exit {run.code} after {run.seconds:.0f} s", file=sys.stderr)
    if run.code == TESTS_FAILED:
        return f"caught by {run.first_failure()}"
    return "SURVIVED" if run.code == 0 else f"BROKEN: the tests ended with {run.code}\n{run.output[-2000:]}"


def _run_tests(tree: Path, tests: tuple[str, ...]) -> _Run:
    """Tests of the copy, against the copy (the working directory comes first on the module path)."""
    started = monotonic()
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired as expired:  # a mutant that hangs the tests has been noticed by them
        return _Run(TESTS_FAILED, f"FAILED timeout\n{expired.stdout!r}", monotonic() - started)
    return _Run(done.returncode, done.stdout + done.stderr, monotonic() - started)


def _table(verdicts: list[tuple[Mutant, str]]) -> str:
    """As Markdown: the same table stands in docs/testing.md."""
    lines = ["| mutant | what is broken | verdict |", "|---|---|---|"]
    lines += [f"| `{mutant.name}` | {mutant.rule} | {verdict} |" for mutant, verdict in verdicts]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
