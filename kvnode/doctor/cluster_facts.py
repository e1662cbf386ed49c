"""What the doctor knows of a live cluster; plain values, so that rules can be tested without any cluster."""

from __future__ import annotations

import msgspec


class MemberTold(msgspec.Struct, frozen=True):
    """A member as another one's status, or the list of members, names it."""

    id: int
    peer_address: str = ""
    client_url: str = ""
    role: str = ""  # "voter" or "learner"; before there was one, `voter` said it
    voter: bool = True
    feature_level: int = 0  # 0: not known

    @property
    def is_voter(self) -> bool:
        return self.voter and self.role != "learner"


class PeerTold(msgspec.Struct, frozen=True):
    """A follower as its leader sees it."""

    id: int
    match_index: int = 0
    state: str = ""
    connected: bool = True


class Told(msgspec.Struct, frozen=True):
    """What `/v1/status` says, as far as it is judged here. Older and newer versions leave out and add fields."""

    id: int
    cluster_id: str = ""
    role: str = ""
    term: int = 0
    leader: int | None = None
    commit_index: int = 0
    applied_index: int = 0
    state_hash: str = ""
    hybrid_time: str = ""
    members: tuple[MemberTold, ...] = ()
    peers: tuple[PeerTold, ...] = ()
    wal_bytes: int = 0
    store_bytes: int = 0
    free_bytes: int | None = None
    alarms: tuple[str, ...] = ()
    ready: bool = True
    quarantined: bool = False
    version: str = ""


class ClockOffset(msgspec.Struct, frozen=True):
    """How far a node's clock is ahead of this machine's: somewhere between the two, for certain."""

    least_ms: float
    most_ms: float


class SyncSpeed(msgspec.Struct, frozen=True):
    """Durations of the log's fdatasync since the node started, as near as a histogram tells."""

    count: int
    p50_ms: float
    p99_ms: float


class MemberFacts(msgspec.Struct, frozen=True):
    """One endpoint. `told` is its newest status; None: it did not answer, and `why` says how."""

    endpoint: str
    told: Told | None = None
    why: str = ""
    hashes: dict[int, str] = {}  # applied index → state hash, of all its answers
    clock: ClockOffset | None = None
    sync: SyncSpeed | None = None

    @property
    def name(self) -> str:
        return f"node {self.told.id} ({self.endpoint})" if self.told else self.endpoint


class ClusterFacts(msgspec.Struct, frozen=True, kw_only=True):
    members: tuple[MemberFacts, ...]
    wall_ms: int  # this machine's clock
    version: str  # of this program
    is_partial: bool = False  # members that others name were not asked, on purpose
    listed: tuple[MemberTold, ...] = ()  # what /v1/members says, where there is such a route
