"""Rules for what a data directory holds, the log and the store: facts → findings."""

from __future__ import annotations

from collections.abc import Iterator

from kvnode.doctor.advice import DISK_CHECK, replacement
from kvnode.doctor.directory_facts import AvailableFacts, DirectoryFacts, LogFacts, NextStart, Unread
from kvnode.doctor.findings import Finding, bytes_text, counted, note, ok, problem, unread, warning
from kvnode.storage.datadir import Identity
from kvnode.storage.quarantine import Quarantine

_ANEW = (
    "The next start sets it aside and begins a new one; the other members give back what they have, and what it alone "
    "held is lost"
)


def judge_quarantine(facts: DirectoryFacts) -> Iterator[Finding]:
    found = facts.quarantine
    if found is None:
        return
    if isinstance(found, Unread):
        yield problem("quarantine", found.why, *replacement(facts))
    else:
        yield _in_quarantine(found)


def _in_quarantine(found: Quarantine) -> Finding:
    when = "" if found.is_set_aside else "; the next start sets the damage aside"
    return warning(
        "quarantine",
        f"it lost part of its log and does not vote until its peers have restored it: {found.what}{when}",
        "kvnode serve --config FILE",
        "kvnode status",
        DISK_CHECK,
    )


def judge_log(facts: DirectoryFacts) -> Iterator[Finding]:
    log = facts.log
    if log is None:
        return
    if isinstance(log, Unread):
        if log.is_fault:
            yield unread("log", f"the log cannot be read: {log.why}", DISK_CHECK)
        else:
            yield note("log", f"the log was not read to its end: {log.why}", f"kvnode wal verify {facts.typed}")
        return
    yield from judge_owner(facts, log)
    start = log.start
    if not log.problems and (start is None or start.outcome in {"whole", "torn", "installing"}):
        yield ok(
            "log",
            f"entries {log.first_index}-{log.last_index}, {counted(log.segments, 'segment')}, "
            f"{counted(log.records, 'record')} read and intact; term {log.term}, committed to {log.commit} at least",
        )
        if start is not None and start.torn is not None:
            torn = start.torn
            yield note(
                "log",
                f"torn tail: {torn.file}, offset {torn.offset}: {torn.bytes_cut} bytes of a write that a crash "
                "interrupted. Nobody was told of it, and the next start cuts it; nothing to do",
            )
        if start is not None and start.outcome == "installing":
            yield note(
                "log",
                f"the store is a snapshot's, up to entry {start.last_index}, and the log has not followed: a crash "
                "came between. The next start goes on from there; nothing to do",
            )
        return
    yield from (_damage(facts, f"{where}: {what}", start) for where, what in log.problems)
    if not log.problems and start is not None:
        yield _damage(facts, start.what, start)


def _damage(facts: DirectoryFacts, what: str, start: NextStart | None) -> Finding:
    begin = ("kvnode serve --config FILE", "kvnode status", DISK_CHECK)
    if start is None:
        if facts.is_held:
            return problem(
                "log",
                f"damaged: {what}. A node is writing here: look again. If it stays, the node meets it when it reads "
                "there, and has its peers restore it",
                f"kvnode doctor {facts.typed}",
                DISK_CHECK,
            )
        return problem("log", f"damaged: {what}", f"kvnode wal verify {facts.typed}", DISK_CHECK)
    match start.outcome:
        case "salvaged":
            return problem(
                "log",
                f"damaged: {what}. The next start sets the damage aside; peers restore it while a majority runs",
                *begin,
            )
        case "refused":
            return problem("log", f"{what}. The next start is refused", *replacement(facts), DISK_CHECK)
        case _:
            return problem(
                "log",
                f"damaged: {what}. The next start does not read there; scrubbing will, and peers restore it",
                *begin,
            )


def judge_owner(facts: DirectoryFacts, log: LogFacts) -> Iterator[Finding]:
    identity = facts.identity
    if not isinstance(identity, Identity) or not log.records:
        return
    if (log.member, log.cluster_id) != (identity.member, identity.cluster_id):
        yield problem(
            "log",
            f"it was written by member {log.member} of cluster {log.cluster_id:016x}, the identity beside it is member "
            f"{identity.member} of cluster {identity.cluster_id:016x}: the two do not belong together. Put its own "
            "wal/ back, if it is anywhere",
            f"mv {facts.typed}/wal {facts.typed}/wal.foreign",
            *replacement(facts),
        )
    if facts.votes_certain is False:
        yield warning(
            "votes",
            f"the second copy of term and vote, {facts.path}/wal/votes, is damaged: with a damaged log beside it the "
            "member could not be salvaged. The next start writes it anew",
            DISK_CHECK,
        )


# ── the store ───────────────────────────────────────────────────────────────────────────────────────


def judge_store(facts: DirectoryFacts) -> Iterator[Finding]:
    store = facts.store
    if store is None:
        return
    first = facts.log.first_index if isinstance(facts.log, LogFacts) and not facts.log.problems else 0
    rebuild = (f"mv {facts.typed}/store {facts.typed}/store.old; mkdir -m 700 {facts.typed}/store",)
    do = rebuild if first == 1 else replacement(facts)
    if isinstance(store, Unread):
        if store.is_fault:
            yield unread("store", f"the store cannot be read: {store.why}", *do, DISK_CHECK)
        else:
            yield note("store", f"the store was not read to its end: {store.why}")
    elif not store.is_there:
        has_log = isinstance(facts.identity, Identity) and facts.identity.has_log
        if has_log and first == 1:
            yield note("store", "there is none: the next start makes it anew from the log, which is whole")
        elif has_log and first > 1:
            yield problem(
                "store",
                f"there is none, and the log begins only at entry {first}: what was before it is lost here",
                *replacement(facts),
            )
    elif store.problems:
        yield from (problem("store", f"damaged: {what}", *do, DISK_CHECK) for what in store.problems)
    else:
        last = facts.log.last_index if isinstance(facts.log, LogFacts) else 0
        behind = f", {last - store.applied_index} to apply at the next start" if last > store.applied_index else ""
        yield ok(
            "store",
            f"{counted(store.rows, 'row')} read in order; revision {store.revision}, applied to entry "
            f"{store.applied_index}{behind}",
        )


# ── the store of the available plane ────────────────────────────────────────────────────────────────


def judge_available(facts: DirectoryFacts) -> Iterator[Finding]:
    found = facts.available
    if found is None:
        return
    size = bytes_text(sum(file.bytes for file in facts.files if file.name.startswith("ap/")))
    if isinstance(found, Unread):
        if found.is_fault:
            yield unread("ap", f"the store of the available plane cannot be read: {found.why}", DISK_CHECK)
        else:
            yield note("ap", f"the store of the available plane was not read to its end: {found.why}")
    elif found.is_newer:
        yield problem("ap", found.problem, "kvnode --version")
    elif found.problem:
        yield problem("ap", f"{facts.path}/ap is damaged: {found.problem}. {_ANEW}", DISK_CHECK)
    elif found.is_there and isinstance(facts.identity, Identity) and not _owns(facts.identity, found):
        yield problem(
            "ap",
            f"{facts.path}/ap belongs to member {found.member} of cluster {found.cluster_id:016x}. {_ANEW}",
        )
    elif found.is_there:
        yield ok("ap", f"{counted(found.rows, 'row')} read and intact, {size}, incarnation {found.incarnation:016x}")


def _owns(identity: Identity, found: AvailableFacts) -> bool:
    return (identity.member, identity.cluster_id) == (found.member, found.cluster_id)
