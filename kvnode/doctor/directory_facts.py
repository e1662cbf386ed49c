"""What the doctor knows of one data directory; plain values, so that rules can be tested without any directory."""

from __future__ import annotations

from shlex import quote
from typing import Literal

import msgspec

from kvnode.storage.datadir import Identity, OwnBoot
from kvnode.storage.quarantine import Quarantine


class FileFacts(msgspec.Struct, frozen=True):
    """One name below the directory, "" for the directory itself."""

    name: str
    is_directory: bool
    mode: int  # permission bits
    owner: int  # user id
    bytes: int  # on disk


class TornEnd(msgspec.Struct, frozen=True):
    file: str
    offset: int
    bytes_cut: int


class NextStart(msgspec.Struct, frozen=True):
    """What the next start would make of the log, by the start's own code; nothing was changed to find out."""

    outcome: Literal["whole", "torn", "installing", "salvaged", "refused"]
    what: str = ""  # the damage or the refusal
    torn: TornEnd | None = None
    last_index: int = 0


class LogFacts(msgspec.Struct, frozen=True):
    """The log as the independent reader saw it."""

    member: int
    cluster_id: int
    first_index: int
    last_index: int
    segments: int
    records: int
    term: int
    vote: int
    commit: int
    unfinished_bytes: int
    problems: tuple[tuple[str, str], ...]  # (file and offset, what)
    start: NextStart | None = None  # None: not asked, the directory is in use


class StoreFacts(msgspec.Struct, frozen=True):
    """The store, read from its first row to its last."""

    is_there: bool
    environment: int = 0  # its number
    engine: str = ""  # what its engine row says
    applied_index: int = 0
    installed: tuple[int, int] | None = None  # (index, term) that it began at, if it came as a snapshot
    revision: int = 0
    rows: int = 0
    problems: tuple[str, ...] = ()


class AvailableFacts(msgspec.Struct, frozen=True):
    """The store of the available plane, read whole."""

    is_there: bool
    member: int = 0
    cluster_id: int = 0
    incarnation: int = 0
    rows: int = 0
    problem: str = ""  # the damage, as a clause
    is_newer: bool = False  # no damage: a newer version wrote it


class DiskSpeed(msgspec.Struct, frozen=True):
    """Durations of one small write with its fdatasync."""

    count: int
    p50_ms: float
    p99_ms: float
    max_ms: float


class Unread(msgspec.Struct, frozen=True):
    """Why a part was not read. `is_fault`: it should have been possible."""

    why: str
    is_fault: bool = True


class DirectoryFacts(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    is_held: bool = False  # a process runs on it
    holder: int = 0  # its process id, 0 if not known
    was_started: bool = False  # it was not, and then a process began to use it while the facts were gathered
    files: tuple[FileFacts, ...] = ()  # at most FILES_MAX
    user: int = 0  # who asks
    denied: tuple[str, ...] = ()  # names that this user may not read; nothing further was read then
    homes: tuple[str, ...] = ()  # directories inside it that are data directories
    filesystem: str = ""
    free_bytes: int = 0
    free_names: int = 1  # inodes; 1 where the file system does not count them
    identity: Identity | Unread | None = None  # None: there is no such file
    boot: OwnBoot | Unread | None = None
    peers: int | Unread | None = None  # how many peers' starts are remembered
    quarantine: Quarantine | Unread | None = None
    votes_certain: bool | None = None  # None: there is no copy of term and vote
    log: LogFacts | Unread | None = None  # None: there is no segment
    store: StoreFacts | Unread | None = None  # None: not read, a running node writes to it
    available: AvailableFacts | Unread | None = None  # None: not read, a running node writes to it
    disk: DiskSpeed | Unread | None = None  # None: not measured

    @property
    def typed(self) -> str:
        """The path as it is typed into a shell."""
        return quote(self.path)

    @property
    def member(self) -> int:
        """Whose it is; 0: nobody knows."""
        return self.identity.member if isinstance(self.identity, Identity) else 0

    @property
    def members(self) -> int:
        """How many the cluster has; 0: nobody knows."""
        return count_members(self.identity) if isinstance(self.identity, Identity) else 0


def count_members(identity: Identity) -> int:
    """By the newest configuration that the directory has on record; the initial members until there is one."""
    return len(identity.configuration.members if identity.configuration is not None else identity.members)
