"""Patroni with real PostgreSQL on a cluster of three kvnode nodes, and what becomes of it when either side dies.

    python scripts/patroni.py              prints each step as it happens; about two minutes
    python scripts/patroni.py --dcs etcd   the same on etcd, if it is on the PATH: what is normal

Three PostgreSQL servers, each with its Patroni, bootstrap; leadership is switched over; the kvnode leader is killed,
then the kvnode node that the primary's Patroni speaks to, which may demote nobody; the primary is killed with its
Patroni, another takes over, and the dead one comes back. A client inserts rows all along. Replication is synchronous,
so every row that it was told is committed must be there at the end, on all three.

Needs PostgreSQL, and `patroni` with its etcd3 driver and `psycopg` (the extra `clients`); where one is missing it says
so and ends with 0. PostgreSQL refuses to run as root: root becomes `postgres` (or `nobody`) first. Everything is on
loopback, in a temporary directory, and gone at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kvnode.bench.cluster import Cluster, EtcdCluster, KvnodeCluster  # noqa: E402 - the path comes first
from kvnode.bench.process import Process, free_ports  # noqa: E402

RUN_S = 180.0
STEP_S = 60.0
"""How long one step may take, within the time of the run."""

TTL_S, LOOP_WAIT_S, RETRY_S = 20, 2, 5
"""Patroni's: the shortest lease it takes, how often it renews it, how long it tries; then it demotes its server."""

WATCHED_S = TTL_S + 2
"""After a death in the cluster below: longer than the leader's lease, so that only a renewed one is still there."""

NAMES = ("pg1", "pg2", "pg3")
PASSWORD = "on loopback, for two minutes"

LINES_SHOWN = 12
"""Of each server's log, when something failed."""

STALE, STRANGE = "Old known term", "Etcd Cluster ID changed"
"""What Patroni logs when answers of the cluster below do not fit together."""

SETTLE_S = 1.0
"""After an election below, until all its nodes are of one term and every Patroni has left the dead one."""

with contextlib.suppress(ImportError):  # `why_not` tells what is missing
    import psutil
    import psycopg

Found = TypeVar("Found")


class Unfit(Exception):
    """This machine lacks something; says what."""


class Failed(Exception):
    """Something did not happen, or something else did."""


class Story:
    """Tells, with the time, and sees to it that the run ends."""

    def __init__(self) -> None:
        self._began = monotonic()

    def tell(self, line: str) -> None:
        print(f"{monotonic() - self._began:6.1f} s  {line}", flush=True)

    def until(self, happens: Callable[[], Found | None], what: str, limit_s: float = STEP_S) -> Found:
        """What it answers once that is true. Raises: Failed."""
        end = min(monotonic() + limit_s, self._began + RUN_S)
        while not (found := happens()):
            if monotonic() > end:
                raise Failed(f"in vain waited for: {what}")
            sleep(0.1)
        return found


class Server:
    """One PostgreSQL server and the Patroni that runs it."""

    def __init__(self, name: str, home: Path, binaries: Path, hosts: list[str]) -> None:
        self.name = name
        self.port, self.rest_port = free_ports(2)
        self.data_dir = home / name
        self.log = home / f"{name}.log"
        self._config = home / f"{name}.json"
        self._config.write_text(json.dumps(self._settings(home, binaries, hosts), indent=1), encoding="utf-8")
        self.process: Process | None = None

    def _settings(self, home: Path, binaries: Path, hosts: list[str]) -> dict[str, Any]:
        return {
            "scope": "accounts",
            "name": self.name,
            "restapi": {"listen": f"127.0.0.1:{self.rest_port}", "connect_address": f"127.0.0.1:{self.rest_port}"},
            "etcd3": {"hosts": hosts},
            "bootstrap": {
                "dcs": {
                    "ttl": TTL_S,
                    "loop_wait": LOOP_WAIT_S,
                    "retry_timeout": RETRY_S,
                    "synchronous_mode": True,
                    "postgresql": {
                        "use_pg_rewind": True,
                        "parameters": {"shared_buffers": "16MB", "max_connections": 20},
                    },
                },
                "initdb": ["data-checksums", {"encoding": "UTF8"}, {"locale": "C"}],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{self.port}",
                "connect_address": f"127.0.0.1:{self.port}",
                "data_dir": str(self.data_dir),
                "bin_dir": str(binaries),
                "pgpass": str(home / f"{self.name}.pgpass"),
                "authentication": {
                    "superuser": {"username": "postgres", "password": PASSWORD},
                    "replication": {"username": "replicator", "password": PASSWORD},
                    "rewind": {"username": "rewinder", "password": PASSWORD},
                },
                "pg_hba": [
                    "local all all trust",
                    "host all all 127.0.0.1/32 scram-sha-256",
                    "host replication replicator 127.0.0.1/32 scram-sha-256",
                ],
                "parameters": {"unix_socket_directories": str(home)},
            },
        }

    def start(self) -> None:
        # Not from the directory we are in: one like this script's has a `patroni` of its own.
        self.process = Process([sys.executable, "-P", "-m", "patroni", str(self._config)], self.log)

    def kill(self) -> None:
        """Both, at once, with all their processes."""
        assert self.process is not None
        roots = [psutil.Process(self.process.pid)] if self.process.exit_code is None else []
        roots += filter(None, [self._postmaster()])
        for root in roots:
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in [root, *root.children(recursive=True)]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
        self.process.wait()

    def end(self) -> None:
        """Patroni in order, which ends PostgreSQL; otherwise whatever is left of it."""
        if self.process is not None:
            self.process.stop()
            if self._postmaster() is not None:
                self.kill()

    def _postmaster(self) -> Any:
        """psutil's process, or None."""
        with contextlib.suppress(OSError, ValueError, IndexError, psutil.NoSuchProcess):
            process = psutil.Process(int((self.data_dir / "postmaster.pid").read_text("ascii").split()[0]))
            if str(self.data_dir) in process.cmdline():
                return process
        return None

    def ask(self, method: str, path: str, body: Any = None, *, limit_s: float = 3.0) -> tuple[int, str]:
        """Patroni's REST API → (status, text); status 0: no answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.rest_port}{path}", data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=limit_s) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refusal:
            return refusal.code, refusal.read().decode()
        except OSError:
            return 0, ""

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Raises: psycopg.Error."""
        with psycopg.connect(**login(self.port), autocommit=True) as connection:
            done = connection.execute(sql.encode())
            return done.fetchall() if done.description else []

    def logged(self, since: int = 0) -> list[str]:
        """Lines of Patroni's and PostgreSQL's log from that byte on."""
        if not self.log.exists():
            return []
        return self.log.read_bytes()[since:].decode(errors="replace").splitlines()


class Writer(threading.Thread):
    """Inserts one number after the other wherever the primary is. `committed`: those it was told of, and when."""

    def __init__(self, ports: list[int]) -> None:
        super().__init__(daemon=True)
        self._login = login(*ports) | {"target_session_attrs": "read-write"}
        self._ending = threading.Event()
        self.committed: list[tuple[int, float]] = []
        self.unknown = 0  # told of an error instead: there or not

    def run(self) -> None:
        numbers = iter(range(1_000_000))
        while not self._ending.wait(0.1):
            with contextlib.suppress(psycopg.Error), psycopg.connect(**self._login, autocommit=True) as connection:
                while not self._ending.wait(0.01):
                    self._insert(connection, next(numbers))

    def _insert(self, connection: Any, number: int) -> None:
        try:
            connection.execute("insert into rows values (%s)", (number,))
        except BaseException:
            self.unknown += 1
            raise
        self.committed.append((number, monotonic()))

    def longest_pause_s(self, since: float) -> float:
        """Between two commits from then to now."""
        times = [since, *(at for _, at in self.committed if at > since), monotonic()]
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    def end(self) -> None:
        self._ending.set()
        self.join(STEP_S)


def login(*ports: int) -> dict[str, Any]:
    return {
        "host": ",".join("127.0.0.1" for _ in ports),
        "port": ",".join(map(str, ports)),
        "dbname": "postgres",
        "user": "postgres",
        "password": PASSWORD,
        "connect_timeout": 3,
    }


class Scene:
    """The cluster below, the servers on it, and the steps."""

    def __init__(self, story: Story, cluster: Cluster, servers: list[Server]) -> None:
        self._story, self._cluster = story, cluster
        self._below = cluster_name(cluster)
        self._excused: set[str] = set()  # lines of logs from elections below
        self._servers = {server.name: server for server in servers}
        self._writer = Writer([server.port for server in servers])

    def play(self) -> None:
        """Raises: Failed."""
        self._bootstrap()
        self._writer.start()
        self._switch_over()
        self._lose_node("the leader", self._leading_node())
        self._lose_node("to which the primary's Patroni speaks", self._node_spoken_to())
        self._fail_over()
        self._writer.end()
        self._count()

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────

    def _bootstrap(self) -> None:
        tell = self._story.tell
        for server in self._servers.values():
            server.start()
        primary = self._story.until(self._primary, "a primary")
        tell(f"bootstrap: {primary.name} has initialized the cluster and leads")
        self._story.until(self._all_stream, "both replicas streaming")
        tell(f"replicas: {self._roles()}")
        primary.query("create table rows (number int primary key)")

    def _switch_over(self) -> None:
        began, old, candidate = monotonic(), self._primary(), self._standby()
        assert old is not None
        code, text = old.ask("POST", "/switchover", {"leader": old.name, "candidate": candidate.name}, limit_s=STEP_S)
        if code != 200:
            raise Failed(f"the switchover was refused: {code} {text}")
        self._story.until(lambda: self._primary() is candidate, f"{candidate.name} leading")
        self._story.until(self._all_stream, "both replicas streaming from the new primary")
        self._story.tell(f"switchover: {old.name} → {candidate.name}; {self._roles()}; {self._pause(began)}")

    def _lose_node(self, which: str, node: int) -> None:
        """One of the three below dies, and comes back: that must not be noticed above."""
        story, cluster = self._story, self._cluster
        before = self._standing()
        marks = {server: server.log.stat().st_size for server in self._servers.values()}
        began, rows = monotonic(), len(self._writer.committed)
        cluster.processes[node].kill()
        leader = asyncio.run(cluster.wait_ready())
        took = f"{monotonic() - began:.1f} s later the others agree that node {leader} leads"
        story.tell(f"{self._below} node {node}, {which}, killed; {took}")
        sleep(SETTLE_S)
        self._excused |= {line for server, mark in marks.items() for line in server.logged(mark)}
        while monotonic() < began + WATCHED_S:
            if (now := self._standing()) != before:
                raise Failed(f"{before} has become {now}")
            sleep(0.5)
        if demoted := [line for server, mark in marks.items() for line in server.logged(mark) if "demot" in line]:
            raise Failed("\n".join(demoted))
        if not (told := len(self._writer.committed) - rows):
            raise Failed("no row was committed meanwhile")
        as_before = f"{before[0]} leads as before, on timeline {before[1]}, never restarted; nobody was demoted"
        story.tell(f"  {WATCHED_S} s later {as_before}")
        story.tell(f"  {told} rows committed meanwhile, {self._pause(began)}")
        cluster.start(node)
        asyncio.run(cluster.wait_ready())

    def _fail_over(self) -> None:
        story, old = self._story, self._primary()
        assert old is not None
        began, timeline = monotonic(), self._standing()[1]
        old.kill()
        story.tell(f"failover: {old.name}, the primary, and its Patroni killed")
        new = story.until(lambda: found if (found := self._primary()) is not old else None, "another primary")
        story.tell(f"  {monotonic() - began:.1f} s later {new.name} leads; the lease of {old.name} was of {TTL_S} s")
        old.start()
        story.until(self._all_stream, f"{old.name} streaming again")
        if (now := self._standing()[1]) != timeline + 1:
            raise Failed(f"one failover went from timeline {timeline} to {now}")
        story.tell(f"  {old.name} is back: {self._roles()}, on timeline {now}; {self._pause(began)}")

    def _count(self) -> None:
        """What was told to be committed, against what is there."""
        told = {number for number, _ in self._writer.committed}
        primary = self._primary()
        assert primary is not None
        there = {number for (number,) in primary.query("select number from rows")}
        if lost := told - there:
            raise Failed(f"{len(lost)} acknowledged rows are lost: {sorted(lost)[:10]} …")

        def everywhere() -> bool:
            counts = [server.query("select count(*) from rows") for server in self._servers.values()]
            return counts == [[(len(there),)]] * len(counts)

        self._story.until(everywhere, f"{len(there)} rows on each server")
        more = f"{self._writer.unknown} writes ended in an error, {len(there - told)} of them were done"
        self._story.tell(f"rows: {len(told)} acknowledged, 0 of them lost, all on {', '.join(self._servers)}; {more}")
        lines = [line for server in self._servers.values() for line in server.logged()]
        stale = [line for line in lines if STALE in line]
        if odd := [line for line in lines if STRANGE in line] + [line for line in stale if line not in self._excused]:
            raise Failed("\n".join(odd))
        elected = f"{len(stale)} times while its nodes elected, never at another time"
        self._story.tell(f"Patroni found a node of {self._below} to be of an older term {elected}")

    # ── what is there ───────────────────────────────────────────────────────────────────────────────

    def _members(self) -> dict[str, dict[str, Any]]:
        """As the first Patroni that answers sees them."""
        for server in self._servers.values():
            code, text = server.ask("GET", "/cluster")
            if code == 200:
                return {member["name"]: member for member in json.loads(text)["members"]}
        return {}

    def _primary(self) -> Server | None:
        """The one whose own Patroni says so, if just one does: it holds the leader key."""
        leading = [server for server in self._servers.values() if server.ask("GET", "/primary")[0] == 200]
        return leading[0] if len(leading) == 1 else None

    def _standby(self) -> Server:
        """The synchronous one."""
        found = (name for name, member in self._members().items() if member["role"] == "sync_standby")
        return self._servers[self._story.until(lambda: next(found, ""), "a synchronous standby")]

    def _all_stream(self) -> bool:
        states = sorted((member["role"], member["state"]) for member in self._members().values())
        return states == [("leader", "running"), ("replica", "streaming"), ("sync_standby", "streaming")]

    def _standing(self) -> tuple[str, int, str]:
        """Who is primary, on which timeline, since when its PostgreSQL runs."""
        primary = self._primary()
        if primary is None:
            return "nobody", 0, ""
        facts = json.loads(primary.ask("GET", "/patroni")[1] or "{}")
        return primary.name, facts.get("timeline", 0), facts.get("postmaster_start_time", "")

    def _roles(self) -> str:
        words = {"leader": "leads", "replica": "streams", "sync_standby": "streams, synchronous"}
        return ", ".join(f"{name} {words.get(member['role'])}" for name, member in sorted(self._members().items()))

    def _pause(self, since: float) -> str:
        return f"longest pause of the client {self._writer.longest_pause_s(since):.1f} s"

    def _leading_node(self) -> int:
        return asyncio.run(self._cluster.wait_ready())

    def _node_spoken_to(self) -> int:
        primary = self._primary()
        assert primary is not None
        chosen = [line.rpartition("http://")[2] for line in primary.logged() if "Selected new etcd server" in line]
        return next(node for node, address in self._cluster.clients.items() if "{}:{}".format(*address) == chosen[-1])


def cluster_name(cluster: Cluster) -> str:
    return "etcd" if isinstance(cluster, EtcdCluster) else "kvnode"


# ── what it stands on ───────────────────────────────────────────────────────────────────────────────


DEBIAN = Path("/usr/lib/postgresql")
TOOLS = ("postgres", "initdb", "pg_ctl", "pg_isready", "pg_controldata", "pg_basebackup", "pg_rewind")


def postgres_binaries() -> Path:
    """On the PATH, else where Debian has them, the newest. Raises: Unfit."""
    on_path = map(Path, os.get_exec_path())
    debian = sorted(DEBIAN.glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    for directory in (*on_path, *debian):
        if all((directory / tool).is_file() for tool in TOOLS):
            return directory
    raise Unfit(
        f"PostgreSQL's {', '.join(TOOLS)} are not on the PATH nor in /usr/lib/postgresql (Debian: postgresql-15)"
    )


NEEDS = """
import os, subprocess, sys
import psutil, psycopg, patroni.dcs.etcd3, kvnode
assert os.geteuid() != 0, "still root"
subprocess.run([sys.executable, "-V"], check=True, stdout=subprocess.DEVNULL)
"""


def why_not(prefix: list[str]) -> str:
    """Why a Python started so cannot run this, as somebody who is not root; "" if it can."""
    done = subprocess.run([*prefix, sys.executable, "-P", "-c", NEEDS], capture_output=True, text=True, check=False)
    return (done.stderr.strip().splitlines() or ["?"])[-1] if done.returncode else ""


def become_somebody() -> None:
    """Root starts this again as a user whom PostgreSQL accepts; comes back as anybody else. Raises: Unfit."""
    if os.geteuid() != 0:
        prefixes: list[list[str]] = [[]]
    else:
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = next((name for name in ("postgres", "nobody") if name in names), None)
        if user is None or shutil.which("setpriv") is None:
            raise Unfit(
                "PostgreSQL refuses root, and there is no user postgres or nobody, or no setpriv, to become one"
            )
        entry = pwd.getpwnam(user)
        become = ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
        # The second for a Python that only root may read.
        prefixes = [become, [*become, "--inh-caps=+dac_override", "--ambient-caps=+dac_override"]]
    reasons = [why_not(prefix) for prefix in prefixes]
    if all(reasons):
        raise Unfit(f"{reasons[-1]} (the extra `clients` has what Patroni needs)")
    prefix = prefixes[reasons.index("")]
    if prefix:
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        os.execvp(prefix[0], [*prefix, sys.executable, *sys.argv])


@contextlib.contextmanager
def running(kind: str, home: Path, binaries: Path) -> Iterator[tuple[Cluster, list[Server]]]:
    """The cluster below, up, and the servers, not started. All is ended."""
    cluster: Cluster
    if kind == "etcd":
        cluster = EtcdCluster(home / "dcs")
    else:
        settings = {"cluster.name": "patroni", "storage.allow_unsafe_filesystem": True}
        cluster = KvnodeCluster(home / "dcs", settings=settings)
    hosts = ["{}:{}".format(*address) for address in cluster.clients.values()]
    servers = [Server(name, home, binaries, hosts) for name in NAMES]
    try:
        cluster.start_all()
        asyncio.run(cluster.wait_ready())
        yield cluster, servers
    finally:
        threads = [threading.Thread(target=server.end) for server in servers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        cluster.stop()


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dcs", choices=["kvnode", "etcd"], default="kvnode", help="what Patroni keeps its state in")
    parser.add_argument("--home", type=Path, help="keep everything here; default: a temporary directory")
    return parser.parse_args()


def main() -> int:
    chosen = options()
    try:
        if chosen.dcs == "etcd" and not EtcdCluster.version():
            raise Unfit("there is no etcd on the PATH")
        binaries = postgres_binaries()
        become_somebody()
    except Unfit as reason:
        print(f"skipped: {reason}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with contextlib.ExitStack() as stack:
        home = chosen.home or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvnode-patroni-")))
        os.environ["HOME"] = str(home)  # nobody's own settings for PostgreSQL's clients
        story = Story()
        with running(chosen.dcs, home, binaries) as (cluster, servers):
            story.tell(f"three {cluster_name(cluster)} nodes are up")
            try:
                Scene(story, cluster, servers).play()
            except Failed as failure:
                story.tell(f"FAILED: {failure}")
                for server in servers:
                    print(f"… {server.name}:", *server.logged()[-LINES_SHOWN:], sep="\n  ")
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
