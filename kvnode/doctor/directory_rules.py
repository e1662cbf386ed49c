"""Rules for a data directory: facts → findings. Each function is one check; they ask nobody anything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from shlex import quote

from kvnode.config import Config
from kvnode.doctor.advice import DISK_CHECK, replacement
from kvnode.doctor.contents_rules import judge_available, judge_log, judge_quarantine, judge_store
from kvnode.doctor.directory_facts import DirectoryFacts, DiskSpeed, FileFacts, StoreFacts, Unread
from kvnode.doctor.findings import Finding, bytes_text, counted, note, ok, problem, unread, warning
from kvnode.storage.datadir import DIVERGED, FORMAT, UNSAFE_FILESYSTEMS, OwnBoot

SMALL_FILES = frozenset({"identity", "boot", "peers"})
ROOT_NAMES = SMALL_FILES | {"LOCK", "wal", "store", "snap", "ap", "ap.new", DIVERGED}
LEFTOVERS = ("torn-", "damaged-")
SET_ASIDE = "ap.damaged-"

NAMES_SHOWN = 3


def judge(facts: DirectoryFacts, config: Config, *, contradictions: Sequence[str] = ()) -> tuple[Finding, ...]:
    """`contradictions`: between the directory and the configuration given for it."""
    if not any(file.name for file in facts.files):
        return (
            warning(
                "identity",
                "the directory is empty: a node that starts here has never voted, and is a new member. If a member's "
                "data were here, its peers will refuse it",
                "kvnode serve --config FILE",
                "kvnode serve --config FILE --join URL --replace ID",
            ),
        )
    if facts.denied:
        return (*judge_lock(facts), _denied(facts))
    if _is_something_else(facts):
        at = " ".join(quote(f"{facts.path}/{home}") for home in facts.homes)
        inside = f", but {counted(len(facts.homes), 'data directory', 'data directories')} in it" if at else ""
        return (
            unread(
                "identity",
                f"{facts.path} is not a data directory: it holds no identity and no log{inside}",
                *([f"kvnode doctor {at}"] if at else []),
            ),
        )
    return tuple(_all(facts, config, contradictions))


def _denied(facts: DirectoryFacts) -> Finding:
    owner = next(file.owner for file in facts.files if not file.name)
    names = _named(facts.path, list(facts.denied))
    as_owner = f"sudo -u '#{owner}' kvnode doctor {facts.typed}"
    return unread("permissions", f"you are user {facts.user} and may not read {names}: nothing was read", as_owner)


def _is_something_else(facts: DirectoryFacts) -> bool:
    """Nothing in it is kvnode's."""
    ours = {"LOCK", "store/CURRENT", *SMALL_FILES, *(f"{name}.tmp" for name in SMALL_FILES)}
    return not any(
        file.name in ours or (file.name.startswith("wal/") and file.name.endswith(".wal")) for file in facts.files
    )


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
            f"kvnode doctor {facts.typed}",
        )
    else:
        yield from judge_quarantine(facts)
        yield from judge_log(facts)
        yield from judge_store(facts)
        yield from judge_available(facts)
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
                *replacement(facts),
            )
        elif isinstance(facts.boot, Unread) or (facts.boot is not None and facts.boot.counter):
            yield problem(
                "identity",
                f"{path}/identity is missing, but {path}/boot shows that there was one: a start is refused",
                *replacement(facts),
            )
        else:
            yield note(
                "identity",
                "a first start was interrupted before it had promised anything; the next one begins again",
                "kvnode serve --config FILE",
            )
        return
    if isinstance(identity, Unread):
        yield problem("identity", f"{identity.why}: a start is refused", *replacement(facts))
        return
    again = replacement(facts)
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
    if not identity.member:
        yield note(
            "identity",
            f"a new member of cluster {identity.cluster_name!r} that has not joined it yet",
            "kvnode serve --config FILE --join URL",
        )
        return
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
        f"{counted(facts.members, 'member')}, format {identity.format}, started {counted(starts, 'time')}",
    )
    if identity.has_log and facts.log is None:
        yield problem(
            "log",
            f"{path}/wal holds no log, but there was one: this member has forgotten its votes and must not vote again",
            *again,
        )


def judge_divergence(facts: DirectoryFacts) -> Iterator[Finding]:
    if any(file.name == DIVERGED for file in facts.files):
        yield problem(
            "divergence",
            f"the note {facts.path}/{DIVERGED}: this member's state differed from that of the majority, and it does "
            "not start again. Keep the directory for diagnosis",
            *replacement(facts),
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
        yield problem("permissions", f"its owner cannot use {_some(path, shut)}", f"chmod -R u+rwX {facts.typed}")
    if foreign:
        yield problem(
            "permissions",
            f"{_some(path, foreign)} belongs to user {foreign[0].owner}, the directory to user {top.owner}: the node "
            "cannot use it",
            f"sudo chown -R {top.owner} {facts.typed}",
        )
    if wide:
        yield warning(
            "permissions",
            f"others may get at {_some(path, wide)} (mode {wide[0].mode:04o}); keys and values are in there",
            f"chmod -R go= {facts.typed}",
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
            f"{kind}: a synced write may be lost there, and a start is refused. Move it and set node.data_dir",
            f"mv {facts.typed} LOCAL_DISK",
        )


def judge_space(facts: DirectoryFacts, config: Config) -> Iterator[Finding]:
    store, wal = _bytes_below(facts, "store/"), _bytes_below(facts, "wal/")
    floor = config.storage.free_bytes_min
    what = f"{bytes_text(facts.free_bytes)} free; the log has {bytes_text(wal)}, the store {bytes_text(store)}"
    if not facts.free_names:
        yield problem("space", "the file system has no inode free: no file can be made", f"df -i {facts.typed}")
    if facts.free_bytes < floor:
        yield problem(
            "space",
            f"{what}: below storage.free_bytes_min ({bytes_text(floor)}) writes get 507",
            f"df -h {facts.typed}",
            "kvnode compact --keep 1h",
        )
    elif facts.free_bytes < floor + store + config.storage.segment_bytes:
        yield warning(
            "space",
            f"{what}: too little for a second copy of the store, which a snapshot from a peer needs",
            f"df -h {facts.typed}",
        )
    else:
        yield ok("space", what)


def _bytes_below(facts: DirectoryFacts, prefix: str) -> int:
    return sum(file.bytes for file in facts.files if file.name.startswith(prefix))


# ── the rest ────────────────────────────────────────────────────────────────────────────────────────


def judge_leftovers(facts: DirectoryFacts) -> Iterator[Finding]:
    for prefix in LEFTOVERS:
        found = [file for file in facts.files if file.name.startswith(f"wal/{prefix}")]
        if found:
            size = bytes_text(sum(file.bytes for file in found))
            yield note(
                "leftovers",
                f"{counted(len(found), 'file')} wal/{prefix}* ({size}), kept for diagnosis; may be deleted",
                f"rm {facts.typed}/wal/{prefix}*",
            )
    yield from _judge_installs(facts)
    aside = sorted(file.name for file in facts.files if file.name.startswith(SET_ASIDE) and "/" not in file.name)
    if aside:
        size = bytes_text(_bytes_below(facts, SET_ASIDE))
        yield note(
            "leftovers",
            f"damaged {_named(facts.path, aside)} ({size}) of the available plane, kept for diagnosis; may be deleted",
            f"rm -r {facts.typed}/{SET_ASIDE}*",
        )
    strange = [
        file
        for file in facts.files
        if file.name
        and "/" not in file.name
        and file.name.removesuffix(".tmp") not in ROOT_NAMES
        and not file.name.startswith(SET_ASIDE)
    ]
    if strange:
        yield note("leftovers", f"{_some(facts.path, strange)}: not kvnode's; left alone")


def _judge_installs(facts: DirectoryFacts) -> Iterator[Finding]:
    """What snapshots on their way in have left; a running node is at work on it."""
    if facts.is_held or not isinstance(facts.store, StoreFacts) or not facts.store.environment:
        return
    received = next((file for file in facts.files if file.name == "snap/receiving"), None)
    if received is not None:
        yield note(
            "leftovers",
            f"a snapshot that was being received ({bytes_text(received.bytes)}): the next start goes on with it, or "
            "removes it",
        )
    current = f"store/env-{facts.store.environment:010d}"
    others = [file for file in facts.files if file.name.startswith("store/env-") and file.is_directory]
    others = [file for file in others if file.name != current]
    if others:
        yield note(
            "leftovers", f"{_some(facts.path, others)}: of an install that was cut short; the next start removes it"
        )


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


def _some(path: str, files: Iterable[FileFacts]) -> str:
    return _named(path, [file.name for file in files])


def _named(path: str, found: Sequence[str]) -> str:
    names = [f"{path}/{name}" if name else path for name in found]
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
