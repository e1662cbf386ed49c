"""Rules for a live cluster: facts → findings. Each function is one check; they ask nobody anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median

import msgspec

from kvnode.clocks import hybrid
from kvnode.config import Config
from kvnode.doctor.cluster_facts import ClockOffset, ClusterFacts, MemberFacts, MemberTold, Told
from kvnode.doctor.findings import Finding, bytes_text, note, ok, problem, unread, warning

LAG_ENTRIES = 1_000
"""A member that has applied so much less than is committed does not keep up, or has just come back."""

LOG_TIMES_STORE = 4
LOG_BYTES_MIN = 1 << 30
"""A log of several times the store, and of a size that matters, is kept for somebody."""

CLOCK_COMMANDS = ("chronyc tracking", "sudo chronyc makestep")

Up = tuple[MemberFacts, Told]


def judge(facts: ClusterFacts, config: Config) -> tuple[Finding, ...]:
    """`config`: for the limits that no answer tells."""
    up = [(member, member.told) for member in facts.members if member.told is not None]
    if not up:
        return tuple(
            unread("reachable", member.why or f"{member.endpoint} does not answer", "kvnode doctor DATA_DIR")
            for member in facts.members
        )
    return tuple(_all(facts, up, config))


def _all(facts: ClusterFacts, up: Sequence[Up], config: Config) -> Iterator[Finding]:
    yield from judge_identity(up)
    yield from judge_members(facts, up)
    yield from judge_leader(up)
    yield from judge_alarms(up)
    yield from judge_readiness(up)
    yield from judge_lag(up)
    yield from judge_learners(up)
    yield from judge_hashes(up)
    yield from judge_clocks(facts, up, config)
    yield from judge_versions(facts, up)
    yield from judge_space(up, config)
    yield from judge_logs(up)
    yield from judge_syncs(up, config)


# ── who is there ────────────────────────────────────────────────────────────────────────────────────


def judge_identity(up: Sequence[Up]) -> Iterator[Finding]:
    clusters = {told.cluster_id for _, told in up if told.cluster_id}
    if len(clusters) > 1:
        each = "; ".join(f"{member.name}: {told.cluster_id}" for member, told in up)
        yield problem("cluster", f"these are members of different clusters: {each}", "kvnode doctor HOST:PORT")
    ids = Counter(told.id for _, told in up)
    for twice in [member for member, times in ids.items() if times > 1]:
        at = [member.endpoint for member, told in up if told.id == twice]
        starts = {
            (told.cluster_id, told.state_hash, told.applied_index, told.role) for _, told in up if told.id == twice
        }
        if len(starts) == 1:
            yield note("cluster", f"node {twice} answers at {' and '.join(at)}")
        else:
            yield problem(
                "cluster", f"two different nodes call themselves {twice}: {' and '.join(at)}", "kvnode status"
            )


def judge_members(facts: ClusterFacts, up: Sequence[Up]) -> Iterator[Finding]:
    """Who is down, and how many more voters may fail."""
    members = _members(facts, up)
    answering = {told.id for _, told in up}
    linked = {peer.id for _, told in up if told.role == "leader" for peer in told.peers if peer.connected}
    voters = [member for member in members.values() if member.is_voter]
    alive = sum(1 for voter in voters if voter.id in answering | linked)
    if facts.is_partial:
        unasked = [str(member.id) for member in members.values() if member.id not in answering]
        if unasked:
            yield note("reachable", f"not asked, because of --only: {', '.join(unasked)}")
        return
    for member in members.values():
        if member.id in answering:
            continue
        where = member.client_url or f"peer address {member.peer_address}, client address not known yet"
        if member.id in linked:
            yield warning(
                "reachable",
                f"node {member.id} ({where}) does not answer here, but its leader hears it: is its client port shut?",
                f"kvnode status --only --endpoint {_bare(member.client_url) or 'HOST:PORT'}",
            )
        else:
            yield _down(member.id, where, up[0][0].endpoint, may_be_replaced=alive >= _needed(len(voters)))
    asked = {_bare(member.client_url) for member in members.values()}
    yield from (
        problem("reachable", member.why, "kvnode doctor DATA_DIR")
        for member in facts.members
        if member.told is None and member.endpoint not in asked
    )
    if voters:
        yield _quorum(len(voters), alive)


def _down(member: int, where: str, endpoint: str, *, may_be_replaced: bool) -> Finding:
    what = f"node {member} ({where}) is down, or cut off: start it; if it ends again look into its data"
    steps = ("kvnode serve --config FILE", "kvnode doctor DATA_DIR")
    if not may_be_replaced:  # nobody could take the new one in: `_quorum` says what is left then
        return problem("reachable", what, *steps)
    replace = f"kvnode serve --config FILE --join {endpoint} --replace {member}"
    return problem("reachable", f"{what}; if they are lost replace it", *steps, replace)


def _needed(voters: int) -> int:
    return voters // 2 + 1


def _quorum(voters: int, alive: int) -> Finding:
    needed = _needed(voters)
    if alive < needed:
        return problem(
            "quorum",
            f"{alive} of {voters} voters are up, {needed} are needed: no writes, no linearizable reads and no change "
            f"of members until {needed - alive} more are back. If their data are lost nobody can be replaced: go back "
            'to a backup ("Disaster recovery" in docs/operations.md)',
            "kvnode serve --config FILE",
            "kvnode snapshot restore FILE --data-dir DATA_DIR --peer HOST:PORT",
        )
    spare = f"{alive} of {voters} voters are up, {needed} are needed: {alive - needed} more may fail"
    if voters % 2 == 0:
        return note(
            "quorum", f"{spare}. {voters} voters survive no more failures than {voters - 1} do", "kvnode member --help"
        )
    if alive == needed and voters > 1:
        return warning("quorum", f"{spare} before writes stop")
    return ok("quorum", spare)


def _members(facts: ClusterFacts, up: Sequence[Up]) -> dict[int, MemberTold]:
    """Whom the leader names, or who has applied most; and whom the list names besides."""
    found: dict[int, MemberTold] = {}
    by_knowledge = sorted(up, key=lambda one: (one[1].role == "leader", one[1].applied_index), reverse=True)
    for members in (*[told.members for _, told in by_knowledge[:1]], facts.listed):
        for member in members:
            known = found.get(member.id)
            if known is None or not known.client_url:
                found[member.id] = member
    urls = {member.id: member.client_url for _, told in up for member in told.members if member.client_url}
    return {
        id_: msgspec.structs.replace(member, client_url=member.client_url or urls.get(id_, ""))
        for id_, member in sorted(found.items())
    }


def _bare(url: str) -> str:
    return url.removeprefix("http://").rstrip("/")


def judge_leader(up: Sequence[Up]) -> Iterator[Finding]:
    leading = [(member, told) for member, told in up if told.role == "leader"]
    by_term = Counter(told.term for _, told in leading)
    terms = sorted({told.term for _, told in up})
    if any(count > 1 for count in by_term.values()):
        names = " and ".join(member.name for member, _ in leading)
        yield problem(
            "leader", f"{names} lead in one term: two copies of one member's data, or a bug", "kvnode status -o json"
        )
    elif len(leading) > 1:
        names = ", ".join(f"{member.name} in term {told.term}" for member, told in leading)
        yield warning("leader", f"{names}: the older one has not heard yet that it leads no more", "kvnode status")
    elif not leading:
        followed = sorted({told.leader for _, told in up if told.leader})
        who = f"; node {', '.join(map(str, followed))} is followed, and does not answer here" if followed else ""
        level = warning if followed else problem
        yield level("leader", f"no node that answers leads{who}", "kvnode status")
    else:
        member, told = leading[0]
        astray = [other.name for other, word in up if word.leader != told.id]
        if len(terms) > 1 or astray:
            yield warning(
                "leader",
                f"{member.name} leads in term {told.term}, but terms are {', '.join(map(str, terms))}"
                + (f", and {', '.join(astray)} does not follow it" if astray else ""),
                "kvnode status",
            )
        else:
            yield ok("leader", f"{member.name} leads in term {told.term}, and all that answer follow it")


# ── what they say of themselves ─────────────────────────────────────────────────────────────────────


def judge_alarms(up: Sequence[Up]) -> Iterator[Finding]:
    """The node's own words, once for each node; what to do goes by what they are about."""
    for member, told in up:
        yield from (problem("alarm", f"{member.name}: {alarm}", *_against(alarm, told.id)) for alarm in told.alarms)


def _against(alarm: str, node: int) -> tuple[str, ...]:
    words = alarm.lower()
    if "quarantine" in words or "damaged" in words:
        return ("kvnode status", "kvnode doctor DATA_DIR")
    if "removed" in words or "old backup or a copy" in words or "runs twice" in words or "incarnation" in words:
        return ("kvnode serve --config FILE --join URL --replace ID",)
    if "clock" in words:
        return CLOCK_COMMANDS
    if "quota" in words or "free" in words:
        return ("df -h DATA_DIR", "kvnode compact --keep 1h", "kvnode del --prefix KEY")
    if "peer " in words:
        return (f"kvnode config --explain --config FILE  (on node {node} and on that peer: compare)",)
    return ("kvnode status",)


def judge_readiness(up: Sequence[Up]) -> Iterator[Finding]:
    for member, told in up:
        if told.quarantined and not told.alarms:
            yield problem("ready", f"{member.name} is in quarantine and does not vote", "kvnode status")
        elif not told.ready and not told.quarantined:
            yield warning(
                "ready", f"{member.name} is not ready: it has no leader, or has not caught up", "kvnode status"
            )


def judge_lag(up: Sequence[Up]) -> Iterator[Finding]:
    committed = max(told.commit_index for _, told in up)
    behind = [(member, committed - told.applied_index) for member, told in up]
    slow = [(member, lag) for member, lag in behind if lag > LAG_ENTRIES]
    for member, lag in slow:
        yield warning(
            "lag",
            f"{member.name} has {lag} committed entries to apply: it has just come back, or does not keep up",
            f"kvnode status --endpoint {member.endpoint}",
        )
    if not slow:
        yield ok(
            "lag", f"committed to {committed}; nobody is more than {max(0, *(lag for _, lag in behind))} entries behind"
        )


def judge_learners(up: Sequence[Up]) -> Iterator[Finding]:
    for _, told in up:
        if told.role != "leader":
            continue
        learners = {member.id for member in told.members if not member.is_voter}
        for peer in told.peers:
            lag = told.commit_index - peer.match_index
            if peer.id in learners and (lag > LAG_ENTRIES or not peer.connected):
                how = f"{lag} entries behind" if peer.connected else "not connected"
                state = f" ({peer.state})" if peer.state else ""
                yield note("learner", f"learner {peer.id} has not caught up: {how}{state}", "kvnode status")


def judge_hashes(up: Sequence[Up]) -> Iterator[Finding]:
    """Equal applied index, equal state. Answers of all rounds count."""
    said: dict[int, dict[str, list[str]]] = {}
    for member, _ in up:
        for index, digest in member.hashes.items():
            said.setdefault(index, {}).setdefault(digest, []).append(member.name)
    torn = next((index for index in sorted(said) if len(said[index]) > 1), None)
    if torn is not None:
        sides = sorted(said[torn].values(), key=len)
        each = " against ".join(", ".join(names) for names in sides)
        yield problem(
            "divergence",
            f"different states at entry {torn}: {each}. Where a majority agrees the others are wrong: replace them",
            "kvnode wal verify DATA_DIR DATA_DIR DATA_DIR",
            "kvnode serve --config FILE --join URL --replace ID",
        )
        return
    most = max((len(names) for one in said.values() for names in one.values()), default=0)
    if most == len(up) > 1:
        yield ok("divergence", f"all {most} states compared are equal at the same entry")
    elif len(up) > 1:
        yield note(
            "divergence", f"no entry was found where all {len(up)} states could be compared: the cluster is busy"
        )


# ── the machines under them ─────────────────────────────────────────────────────────────────────────


def judge_clocks(facts: ClusterFacts, up: Sequence[Up], config: Config) -> Iterator[Finding]:
    """The nodes' clocks against the middle one; this machine's counts only where there is one node."""
    limit_ms = config.raft.clock_drift_ms
    known = [(member, member.clock) for member, _ in up if member.clock is not None]
    if not known:
        return
    middle = median((clock.least_ms + clock.most_ms) / 2 for _, clock in known)
    wrong = False
    for member, clock in known:
        apart = _distance(clock, middle)
        if apart > limit_ms / 2:
            wrong = True
            level = problem if apart > limit_ms else warning
            yield level(
                "clock",
                f"the clock of {member.name} is {_text(clock, middle)} the others'; {limit_ms} ms are allowed "
                "(raft.clock_drift_ms)",
                *CLOCK_COMMANDS,
            )
    if not wrong and len(known) > 1:
        width = max((clock.most_ms - clock.least_ms) / 2 for _, clock in known)
        yield ok("clock", f"the clocks of {len(known)} nodes agree, as far as can be seen from here (± {width:.0f} ms)")
    spread = ClockOffset(max(clock.least_ms for _, clock in known), min(clock.most_ms for _, clock in known))
    if not wrong and _distance(spread, 0) > limit_ms / 2:
        yield note("clock", f"this machine's clock differs: the nodes' are {_text(spread, 0)} it", CLOCK_COMMANDS[0])
    yield from _judge_stamps(facts, up, limit_ms)


def _judge_stamps(facts: ClusterFacts, up: Sequence[Up], limit_ms: int) -> Iterator[Finding]:
    for member, told in up:
        if member.clock is None or not told.hybrid_time:
            continue
        try:
            stamp_ms = hybrid.wall_part_ms(hybrid.from_text(told.hybrid_time))
        except ValueError:
            continue
        ahead = stamp_ms - facts.wall_ms - member.clock.most_ms
        if ahead > limit_ms:
            yield warning(
                "clock",
                f"{member.name} has applied entries stamped {_span(ahead)} ahead of its clock: a clock was wrong, and "
                "times in answers stand still until it is made up for",
                *CLOCK_COMMANDS,
            )


def _distance(clock: ClockOffset, point: float) -> float:
    """How far away it is for certain."""
    return max(0.0, clock.least_ms - point, point - clock.most_ms)


def _text(clock: ClockOffset, point: float) -> str:
    ahead = clock.least_ms > point
    least = _span(_distance(clock, point))
    return f"at least {least} {'ahead of' if ahead else 'behind'}"


def _span(ms: float) -> str:
    return f"{ms / 1e3:.1f} s" if ms >= 1e3 else f"{ms:.0f} ms"


def judge_versions(facts: ClusterFacts, up: Sequence[Up]) -> Iterator[Finding]:
    versions = {told.version for _, told in up}
    levels = {told.id: one.feature_level for _, told in up for one in told.members if one.id == told.id}
    each = "; ".join(f"{member.name}: {told.version}" for member, told in up)
    if len(versions) > 1:
        yield warning("version", f"an upgrade is under way: {each}", "kvnode --version")
    else:
        yield ok("version", f"all run {versions.pop()}")
        if facts.version not in {told.version for _, told in up}:
            yield note("version", f"this program is {facts.version}")
    if len({level for level in levels.values() if level}) > 1:
        each = "; ".join(f"node {member}: {level}" for member, level in sorted(levels.items()))
        yield note("version", f"feature levels differ: {each}. New kinds of entries wait until all know them")


def judge_space(up: Sequence[Up], config: Config) -> Iterator[Finding]:
    """Where the status tells of it; below the limit the node raises its alarm by itself."""
    for member, told in up:
        if told.free_bytes is not None and told.free_bytes < 2 * config.storage.free_bytes_min + told.store_bytes:
            yield warning(
                "space",
                f"{member.name} has {bytes_text(told.free_bytes)} free, its store {bytes_text(told.store_bytes)}: too "
                "little for a second copy of it, which a snapshot from a peer needs",
                "df -h DATA_DIR",
            )


def judge_logs(up: Sequence[Up]) -> Iterator[Finding]:
    for member, told in up:
        if told.wal_bytes > max(LOG_BYTES_MIN, LOG_TIMES_STORE * told.store_bytes):
            yield note(
                "log",
                f"the log of {member.name} has {bytes_text(told.wal_bytes)}, its store {bytes_text(told.store_bytes)}: "
                "it is kept for whoever is behind or away",
                "kvnode status",
            )
    total = ", ".join(f"{bytes_text(told.wal_bytes)} + {bytes_text(told.store_bytes)}" for _, told in up)
    yield ok("log", f"log and store on disk: {total}")


def judge_syncs(up: Sequence[Up], config: Config) -> Iterator[Finding]:
    limit_ms = config.raft.election_timeout_ms / 10
    known = [(member, member.sync) for member, _ in up if member.sync is not None]
    slow = [(member, sync) for member, sync in known if sync.p99_ms > limit_ms]
    for member, sync in slow:
        yield warning(
            "disk",
            f"the disk of {member.name} is slow: of {sync.count} syncs one in a hundred took longer than about "
            f"{sync.p99_ms:.0f} ms since its start, a tenth of the election timeout is {limit_ms:.0f} ms",
            "kvnode doctor DATA_DIR --disk-test",
        )
    if known and not slow:
        yield ok(
            "disk", f"99 of 100 syncs of the log took at most about {max(sync.p99_ms for _, sync in known):.0f} ms"
        )
