"""Rules for a data directory: facts → findings. Each function is one check; they ask nobody anything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from kvnode.config import Config
from kvnode.doctor.directory_facts import DirectoryFacts, DiskSpeed, FileFacts, LogFacts, NextStart, Unread
from kvnode.doctor.findings import Finding, bytes_text, note, ok, problem, unread, warning
from kvnode.storage.datadir import FORMAT, UNSAFE_FILESYSTEMS, Identity, OwnBoot
from kvnode.storage.quarantine import Quarantine

DIVERGED = "DIVERGED"
"""The file that a node leaves whose state differed from the majority's."""

SMALL_FILES = frozenset({"identity", "boot", "peers"})
ROOT_NAMES = SMALL_FILES | {"LOCK", "wal", "store", "snap", DIVERGED}
LEFTOVERS = ("torn-", "damaged-")

DISK_CHECK = "sudo dmesg | grep -i 'i/o error'; sudo smartctl -a DEVICE"
NAMES_SHOWN = 3


def judge(facts: DirectoryFacts, config: Config, *, contradictions: Sequence[str] = ()) -> tuple[Finding, ...]:
    """`contradictions`: between the directory and the configuration given for it."""
    if not any(file.name for file in facts.files):
        return (
            warning(
                "identity",
                "the directory is empty: a node that starts here has never voted, and is a new member. If a member's "
                "data were here, its peers will refuse it",
                *replacement(facts.path, 0),
            ),
        )
    return tuple(_all(facts, config, contradictions))


def replacement(path: str, member: int, members: int = 3) -> tuple[str, ...]:
    """How a member comes back whose data are lost."""
    if members == 1:
        return (f"mv {path} {path}.old", f"kvnode snapshot restore BACKUP --data-dir {path} --peer HOST:PORT")
    return (f"mv {path} {path}.old", f"kvnode serve --config FILE --join URL --replace {member or 'ID'}")


def _all(facts: DirectoryFacts, config: Config, contradictions: Sequence[str]) -> Iterator[Finding]:
    yield from judge_lock(facts)
    yield from judge_identity(facts)
    yield from (
        problem("settings", f"{what}: a start is refused", "kvnode config --explain --config FILE")
        for what in contradictions
    )
    yield from judge_permissions(facts)
    yield from judge_filesystem(facts, config)
    yield from judge_space(facts, config)
    yield from judge_divergence(facts)
    if facts.was_started:
        yield note(
            "log",
            "a node began to run here while log and store were read, so what was read is not told",
            f"kvnode doctor {facts.path}",
        )
    else:
        yield from judge_quarantine(facts)
        yield from judge_log(facts)
        yield from judge_store(facts)
    yield from judge_leftovers(facts)
    yield from judge_disk(facts, config)


# ── whose it is, and who uses it ────────────────────────────────────────────────────────────────────


def judge_lock(facts: DirectoryFacts) -> Iterator[Finding]:
    if not facts.is_held:
        yield ok("lock", "not in use")
        return
    by = f"process {facts.holder}" if facts.holder else "a process that cannot be seen from here (a container?)"
    yield note(
        "lock",
        f"in use by {by}: the log is read beside it; the store, what the next start would find, and (without "
        "--disk-test) the disk are left alone",
        "kvnode doctor HOST:PORT",
    )


def judge_identity(facts: DirectoryFacts) -> Iterator[Finding]:
    identity, path = facts.identity, facts.path
    if identity is None:
        if any(file.name.startswith(("wal/", "store/", "snap/")) for file in facts.files):
            yield problem(
                "identity",
                f"{path}/identity is missing, but there are files of a log or store: a start is refused, for nobody "
                "can prove whose votes they hold",
                *replacement(path, 0),
            )
        elif any(file.name in {"boot", "peers"} for file in facts.files):
            yield problem("identity", f"{path}/identity is missing beside its other files", *replacement(path, 0))
        else:
            yield unread("identity", f"{path} is not a data directory: it holds no identity and no log")
        return
    if isinstance(identity, Unread):
        yield problem("identity", f"{identity.why}: a start is refused", *replacement(path, 0))
        return
    again = replacement(path, identity.member, len(identity.members))
    if identity.format != FORMAT:
        yield problem(
            "format",
            f"the directory has format {identity.format}, this version of kvnode knows format {FORMAT}",
            "kvnode --version",
        )
        return
    yield from (
        problem("identity", f"{found.why if isinstance(found, Unread) else f'{path}/{name} is missing'}", *again)
        for name, found in (("boot", facts.boot), ("peers", facts.peers))
        if found is None or isinstance(found, Unread)
    )
    names = {file.name for file in facts.files}
    yield from (
        problem("identity", f"{path}/{name} is missing beside the identity: a start is refused", *again)
        for name in ("wal", "store", "snap")
        if name not in names
    )
    starts = facts.boot.counter if isinstance(facts.boot, OwnBoot) else 0
    if not identity.cluster_id:
        yield note(
            "identity",
            f"member {identity.member} of cluster {identity.cluster_name!r}: it has not met all initial members yet",
            "kvnode serve --config FILE",
        )
        return
    yield ok(
        "identity",
        f"member {identity.member} of cluster {identity.cluster_name!r} ({identity.cluster_id:016x}), "
        f"{_counted(len(identity.members), 'member')}, format {identity.format}, started {_counted(starts, 'time')}",
    )
    if identity.has_log and facts.log is None:
        yield problem(
            "log",
            f"{path}/wal holds no log, but there was one: this member has forgotten its votes and must not vote again",
            *again,
        )


def judge_divergence(facts: DirectoryFacts) -> Iterator[Finding]:
    if any(file.name == DIVERGED for file in facts.files):
        member = facts.identity.member if isinstance(facts.identity, Identity) else 0
        yield problem(
            "divergence",
            f"the note {facts.path}/{DIVERGED}: this member's state differed from that of the majority, and it does "
            "not start again. Keep the directory for diagnosis",
            *replacement(facts.path, member),
        )


# ── the ground it stands on ─────────────────────────────────────────────────────────────────────────


def judge_permissions(facts: DirectoryFacts) -> Iterator[Finding]:
    top = next((file for file in facts.files if not file.name), None)
    if top is None:
        return
    shut = [file for file in facts.files if not _is_usable(file)]
    foreign = [file for file in facts.files if file.owner != top.owner]
    wide = [file for file in facts.files if file.mode & 0o077]
    path = facts.path
    if shut:
        yield problem("permissions", f"its owner cannot use {_some(path, shut)}", f"chmod -R u+rwX {path}")
    if foreign:
        yield problem(
            "permissions",
            f"{_some(path, foreign)} belongs to user {foreign[0].owner}, the directory to user {top.owner}: the node "
            "cannot use it",
            f"sudo chown -R {top.owner} {path}",
        )
    if wide:
        yield warning(
            "permissions",
            f"others may get at {_some(path, wide)} (mode {wide[0].mode:04o}); keys and values are in there",
            f"chmod -R go= {path}",
        )
    if not (shut or foreign or wide):
        yield ok("permissions", "directories 0700, files 0600, one owner")
    if facts.user not in {0, top.owner}:
        yield note("permissions", f"the directory belongs to user {top.owner}, you are user {facts.user}")


def _is_usable(file: FileFacts) -> bool:
    needed = 0o700 if file.is_directory else 0o600
    return file.mode & needed == needed


def judge_filesystem(facts: DirectoryFacts, config: Config) -> Iterator[Finding]:
    kind = facts.filesystem
    if kind not in UNSAFE_FILESYSTEMS:
        yield ok("filesystem", kind or "of a kind that is not known")
    elif config.storage.allow_unsafe_filesystem:
        yield warning("filesystem", f"{kind}: a synced write may be lost; storage.allow_unsafe_filesystem is for tests")
    else:
        yield problem(
            "filesystem",
            f"{kind}: a synced write may be lost there, and a start is refused",
            f"mv {facts.path} LOCAL_DISK, and set node.data_dir",
        )


def judge_space(facts: DirectoryFacts, config: Config) -> Iterator[Finding]:
    store, wal = _bytes_below(facts, "store/"), _bytes_below(facts, "wal/")
    floor = config.storage.free_bytes_min
    what = f"{bytes_text(facts.free_bytes)} free; the log has {bytes_text(wal)}, the store {bytes_text(store)}"
    if not facts.free_names:
        yield problem("space", "the file system has no inode free: no file can be made", f"df -i {facts.path}")
    if facts.free_bytes < floor:
        yield problem(
            "space",
            f"{what}: below storage.free_bytes_min ({bytes_text(floor)}) writes get 507",
            f"df -h {facts.path}",
            "kvnode compact --keep 1h",
        )
    elif facts.free_bytes < floor + store + config.storage.segment_bytes:
        yield warning(
            "space",
            f"{what}: too little for a second copy of the store, which a snapshot from a peer needs",
            f"df -h {facts.path}",
        )
    else:
        yield ok("space", what)


def _bytes_below(facts: DirectoryFacts, prefix: str) -> int:
    return sum(file.bytes for file in facts.files if file.name.startswith(prefix))


# ── the log ─────────────────────────────────────────────────────────────────────────────────────────


def judge_quarantine(facts: DirectoryFacts) -> Iterator[Finding]:
    found = facts.quarantine
    if found is None:
        return
    identity = facts.identity
    members = len(identity.members) if isinstance(identity, Identity) else 0
    if isinstance(found, Unread):
        member = identity.member if isinstance(identity, Identity) else 0
        yield problem("quarantine", found.why, *replacement(facts.path, member, members))
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
            yield note("log", f"the log was not read to its end: {log.why}", f"kvnode wal verify {facts.path}")
        return
    yield from judge_owner(facts, log)
    start = log.start
    if not log.problems and (start is None or start.outcome in {"whole", "torn", "installing"}):
        yield ok(
            "log",
            f"entries {log.first_index}-{log.last_index}, {_counted(log.segments, 'segment')}, "
            f"{_counted(log.records, 'record')} read and intact; term {log.term}, committed to {log.commit} at least",
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
    identity = facts.identity
    member, members = (identity.member, len(identity.members)) if isinstance(identity, Identity) else (0, 0)
    begin = ("kvnode serve --config FILE", "kvnode status", DISK_CHECK)
    if start is None:
        if facts.is_held:
            return problem(
                "log",
                f"damaged: {what}. A node is writing here: look again. If it stays, the node meets it when it reads "
                "there, and has its peers restore it",
                f"kvnode doctor {facts.path}",
                DISK_CHECK,
            )
        return problem("log", f"damaged: {what}", f"kvnode wal verify {facts.path}", DISK_CHECK)
    match start.outcome:
        case "salvaged":
            return problem(
                "log",
                f"damaged: {what}. The next start sets the damage aside; peers restore it while a majority runs",
                *begin,
            )
        case "refused":
            return problem(
                "log", f"{what}. The next start is refused", *replacement(facts.path, member, members), DISK_CHECK
            )
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
            f"{identity.member} of cluster {identity.cluster_id:016x}: the two do not belong together",
            f"mv {facts.path}/wal {facts.path}/wal.foreign, and put this member's own wal/ back",
            *replacement(facts.path, identity.member, len(identity.members)),
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
    identity = facts.identity
    member, members = (identity.member, len(identity.members)) if isinstance(identity, Identity) else (0, 0)
    first = facts.log.first_index if isinstance(facts.log, LogFacts) else 0
    rebuild = (f"mv {facts.path}/store {facts.path}/store.old; mkdir -m 700 {facts.path}/store",)
    do = rebuild if first == 1 else replacement(facts.path, member, members)
    if isinstance(store, Unread):
        if store.is_fault:
            yield unread("store", f"the store cannot be read: {store.why}", *do, DISK_CHECK)
        else:
            yield note("store", f"the store was not read to its end: {store.why}")
    elif not store.is_there:
        has_log = isinstance(identity, Identity) and identity.has_log
        if has_log and first == 1:
            yield note("store", "there is none: the next start makes it anew from the log, which is whole")
        elif has_log and first > 1:
            yield problem(
                "store",
                f"there is none, and the log begins only at entry {first}: what was before it is lost here",
                *replacement(facts.path, member, members),
            )
    elif store.problems:
        yield from (problem("store", f"damaged: {what}", *do, DISK_CHECK) for what in store.problems)
    else:
        last = facts.log.last_index if isinstance(facts.log, LogFacts) else 0
        behind = f", {last - store.applied_index} to apply at the next start" if last > store.applied_index else ""
        yield ok(
            "store",
            f"{_counted(store.rows, 'row')} read in order; revision {store.revision}, applied to entry "
            f"{store.applied_index}{behind}",
        )


# ── the rest ────────────────────────────────────────────────────────────────────────────────────────


def judge_leftovers(facts: DirectoryFacts) -> Iterator[Finding]:
    for prefix in LEFTOVERS:
        found = [file for file in facts.files if file.name.startswith(f"wal/{prefix}")]
        if found:
            size = bytes_text(sum(file.bytes for file in found))
            yield note(
                "leftovers",
                f"{_counted(len(found), 'file')} wal/{prefix}* ({size}), kept for diagnosis; may be deleted",
                f"rm {facts.path}/wal/{prefix}*",
            )
    strange = [
        file
        for file in facts.files
        if file.name and "/" not in file.name and file.name.removesuffix(".tmp") not in ROOT_NAMES
    ]
    if strange:
        yield note("leftovers", f"{_some(facts.path, strange)}: not kvnode's; left alone")


def judge_disk(facts: DirectoryFacts, config: Config) -> Iterator[Finding]:
    disk = facts.disk
    if disk is None:
        return
    if isinstance(disk, Unread):
        yield problem("disk", f"a small write and its sync could not be measured: {disk.why}", DISK_CHECK)
        return
    yield _speed(disk, config)


def _speed(disk: DiskSpeed, config: Config) -> Finding:
    what = f"{disk.count} small writes with fdatasync: p50 {disk.p50_ms:.2f} ms, p99 {disk.p99_ms:.2f} ms"
    limit_ms = config.raft.election_timeout_ms / 10
    slow = 'a faster disk, or fewer others on it; or raft.profile = "wan" on all members'
    if disk.p99_ms >= config.storage.stall_ms:
        return problem("disk", f"{what}: longer than storage.stall_ms, leaders here will step down", slow)
    if disk.p99_ms > limit_ms:
        return warning(
            "disk",
            f"{what}: above a tenth of the election timeout ({limit_ms:.0f} ms), writes and elections wait",
            slow,
        )
    return ok("disk", what)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _some(path: str, files: Iterable[FileFacts]) -> str:
    names = [f"{path}/{file.name}" if file.name else path for file in files]
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
