"""The data directory: who this node is, and that only one process is it.

    LOCK        held exclusively while the process runs
    identity    format, cluster name, member id, incarnation; after bootstrap the cluster id and all members
    boot        how often this directory was started, and random numbers of this start and of those before it
    peers       the highest boot counter and its number met of each peer
    lamport     up to which Lamport time events may have been stamped here; 0 without it
    wal/        the log
    store/      the store: environments, and the pointer to the one that counts
    snap/       the snapshot that is being received
    ap/         the store of the available plane; beside it ap.new, not finished, and ap.damaged-N, set aside
    DIVERGED    only if the state was found to differ from that of the majority: no start any more

The incarnation is a random number made with the directory: a member that comes back with an empty directory has
another one, and its peers refuse it, for it has forgotten its votes. Boot counter and numbers tell a copy of the
directory from the original: it has not had the starts that the peers have met. All three files are made before
anything else and checked at each start; one that is missing or damaged beside the others is refused, never made anew.

The first start may be interrupted anywhere: `identity` is written last, so without it nothing has ever been
promised, and the next start begins again.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping
from types import MappingProxyType

import msgspec

from kvnode.errors import ConfigInvalid, DataDirLocked, IdentityRefused, StateDiverged, StorageFailed
from kvnode.raft.messages import Configuration
from kvnode.storage.disk import DirectoryLock, Disk
from kvnode.storage.small_file import DamagedFile, T, read_small, write_small

FORMAT = 1

DIVERGED = "DIVERGED"
"""The note that this member's state was not that of the majority: it does not start any more."""

UNSAFE_FILESYSTEMS = frozenset(
    {
        "tmpfs",
        "ramfs",
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "afs",
        "ceph",
        "fuse.ceph",
        "fuse.glusterfs",
        "fuse.s3fs",
        "fuse.sshfs",
        "glusterfs",
        "ncpfs",
        "vboxsf",
    }
)
"""In memory, or over a network, where an fsync or a lock may promise less than it says."""


class MemberIdentity(msgspec.Struct, frozen=True):
    """An initial member as it was met at bootstrap."""

    incarnation: int
    address: str


class Identity(msgspec.Struct, frozen=True):
    """Who this node is. `cluster_id` is 0 and `members` grows until the bootstrap has finished; then it stays.

    A node that joins has member 0 until the cluster has given it an id, and never any `members`: it begins with
    `configuration`.
    """

    format: int
    cluster_name: str
    member: int
    incarnation: int
    cluster_id: int = 0
    members: dict[int, MemberIdentity] = {}
    has_log: bool = False  # a log was made here, before the first vote: from then on a missing one is a loss
    applied_limits: dict[str, int] = {}  # limits that decide what an entry does: fixed with the first log
    configuration: Configuration | None = None  # the newest committed one known; None: the initial members
    configuration_index: int = 0  # of the entry it came with


class Diverged(msgspec.Struct, frozen=True):
    """Content of the note."""

    sentence: str


class PeerBoot(msgspec.Struct, frozen=True):
    """One start of a node: the counter rises at each, the number is random."""

    counter: int
    nonce: int


class LamportCeiling(msgspec.Struct, frozen=True):
    """Times up to it may have been issued."""

    ceiling: int


class OwnBoot(PeerBoot, frozen=True):
    """This start of this directory. `earlier`: the random numbers of the starts before it, newest first."""

    earlier: tuple[int, ...] = ()


EARLIER_BOOTS_MAX = 512
"""So many starts are remembered. A copy started more often than that beyond what a peer has seen can pass for old."""


class _Format(msgspec.Struct):
    format: int


class DataDir:
    """An open, locked data directory. `open` is the only way to make one."""

    def __init__(self, disk: Disk, path: str, lock: DirectoryLock) -> None:
        self.path = path
        self.wal_dir = f"{path}/wal"
        self.store_dir = f"{path}/store"
        self.snap_dir = f"{path}/snap"
        self.ap_dir = f"{path}/ap"  # made by its store, and anew if it is missing: what it held is survived
        self.identity = Identity(0, "", 0, 0)
        self.boot = OwnBoot(0, 0)
        self._peer_boots: dict[int, PeerBoot] = {}
        self._disk = disk
        self._lock = lock
        self._identity_path = f"{path}/identity"
        self._boot_path = f"{path}/boot"
        self._peers_path = f"{path}/peers"
        self._lamport_path = f"{path}/lamport"

    @classmethod
    def open(
        cls,
        disk: Disk,
        path: str,
        *,
        member: int,
        cluster_name: str,
        random_u64: Callable[[], int],
        allow_unsafe_filesystem: bool,
    ) -> DataDir:
        """Lock the directory, make it if it is new, check that it is this node's, and count this start.

        `member` 0: a node that joined or is to join a cluster. The directory says which member it is, if any yet.

        Raises: DataDirLocked, IdentityRefused, ConfigInvalid (file system), StorageFailed.
        """
        path = path.rstrip("/") or path
        lock: DirectoryLock | None = None
        try:
            _refuse_unsafe(disk, path, allow_unsafe_filesystem)
            _make_directory(disk, path)
            lock = _take_lock(disk, path)
            found = cls(disk, path, lock)
            found._refuse_if_diverged()
            found._load_or_make(member, cluster_name, random_u64)
            found._count_start(random_u64)
        except BaseException as error:
            if lock is not None:
                lock.release()
            if isinstance(error, DamagedFile):
                raise IdentityRefused(f"{error}. Without it this node cannot prove who it is", path=path) from error
            if isinstance(error, OSError):
                raise StorageFailed(f"the data directory {path} cannot be used: {error}") from error
            raise
        return found

    @property
    def peer_boots(self) -> Mapping[int, PeerBoot]:
        """The newest start met of each peer, by member id."""
        return MappingProxyType(self._peer_boots)

    def save_identity(self, identity: Identity) -> None:
        """Replace the identity, durably; who this is never changes, once it is known. Raises: StorageFailed."""
        before = self.identity
        assert identity.incarnation == before.incarnation, (identity, before)
        assert before.member in {0, identity.member}, (identity, before)
        assert before.configuration_index <= identity.configuration_index, (identity, before)
        assert before.cluster_id in {0, identity.cluster_id}, (identity, before)
        self._save(self._identity_path, identity)
        self.identity = identity

    def save_peer_boot(self, member: int, boot: PeerBoot) -> None:
        """Remember a peer's start, durably. Raises: StorageFailed."""
        boots = {**self._peer_boots, member: boot}
        self._save(self._peers_path, boots)
        self._peer_boots = boots

    def lamport_ceiling(self) -> int:
        """The greatest one saved; it outlives the store of the events. Raises: IdentityRefused if it is damaged."""
        if not self._disk.exists(self._lamport_path):
            return 0
        return self._read(self._lamport_path, LamportCeiling).ceiling

    def save_lamport_ceiling(self, ceiling: int) -> None:
        """Durable on return. From any one thread. Raises: StorageFailed."""
        self._save(self._lamport_path, LamportCeiling(ceiling))

    def note_diverged(self, sentence: str) -> None:
        """From now on the node does not start in this directory. Raises: StorageFailed."""
        self._save(f"{self.path}/{DIVERGED}", Diverged(sentence))

    def close(self) -> None:
        """Release the lock. Idempotent."""
        self._lock.release()

    def _load_or_make(self, member: int, cluster_name: str, random_u64: Callable[[], int]) -> None:
        disk = self._disk
        if not disk.exists(self._identity_path):
            self._refuse_leftovers()
            for directory in (self.wal_dir, self.store_dir, self.snap_dir):
                disk.mkdir(directory)
            write_small(disk, self._boot_path, OwnBoot(0, 0))
            write_small(disk, self._peers_path, {})
            identity = Identity(FORMAT, cluster_name, member, random_u64())
            write_small(disk, self._identity_path, identity)
        self.identity = self._read_identity(member, cluster_name)
        self.boot = self._read(self._boot_path, OwnBoot)
        self._peer_boots = self._read(self._peers_path, dict[int, PeerBoot])
        for directory in (self.wal_dir, self.store_dir, self.snap_dir):
            if not disk.exists(directory):
                raise IdentityRefused(f"{directory} is missing beside {self._identity_path}", path=directory)

    def _refuse_if_diverged(self) -> None:
        path = f"{self.path}/{DIVERGED}"
        if self._disk.exists(path):
            raise StateDiverged(
                f"{path} says: {self._read(path, Diverged).sentence}. What this member would serve may be wrong, so it "
                "does not start. Keep it for diagnosis, remove the member, and add it again with an empty directory",
                path=path,
            )

    def _refuse_leftovers(self) -> None:
        """Without an identity there must be nothing it could have promised."""
        disk = self._disk
        for directory in (self.wal_dir, self.store_dir, self.snap_dir, self.ap_dir):
            # `ap` has its name only once it holds something
            if disk.exists(directory) and (directory == self.ap_dir or disk.listdir(directory)):
                raise IdentityRefused(
                    f"{directory} holds files, but {self._identity_path} is missing: the directory is damaged or not "
                    f"kvnode's. Start with an empty directory, as a new member",
                    path=directory,
                )
        if disk.exists(self._boot_path) and self._read(self._boot_path, OwnBoot).counter:
            raise IdentityRefused(
                f"{self._identity_path} is missing, but {self._boot_path} shows that there was one. Start with an "
                f"empty directory, as a new member",
                path=self._identity_path,
            )

    def _read_identity(self, member: int, cluster_name: str) -> Identity:
        version = self._read(self._identity_path, _Format).format
        if version != FORMAT:
            raise IdentityRefused(
                f"{self.path} has format {version}, this version of kvnode knows format {FORMAT}", path=self.path
            )
        identity = self._read(self._identity_path, Identity)
        if member and not identity.member:
            raise IdentityRefused(
                f"{self.path} was made to join a cluster, and has not yet: join again", path=self.path
            )
        if member and identity.member != member:
            raise IdentityRefused(
                f"{self.path} belongs to member {identity.member}, but node.id is {member}", path=self.path
            )
        if identity.cluster_name != cluster_name:
            raise IdentityRefused(
                f"{self.path} belongs to cluster {identity.cluster_name!r}, but cluster.name is {cluster_name!r}",
                path=self.path,
            )
        return identity

    def _count_start(self, random_u64: Callable[[], int]) -> None:
        """Also syncs the directory: what was read before may stand in memory only, after a kill at the wrong moment."""
        last = self.boot
        earlier = (last.nonce, *last.earlier)[:EARLIER_BOOTS_MAX] if last.counter else ()
        boot = OwnBoot(last.counter + 1, random_u64(), earlier)
        write_small(self._disk, self._boot_path, boot)
        self.boot = boot

    def _read(self, path: str, kind: type[T]) -> T:
        try:
            return read_small(self._disk, path, kind)
        except FileNotFoundError:
            raise IdentityRefused(f"{path} is missing beside the other files of {self.path}", path=path) from None

    def _save(self, path: str, content: object) -> None:
        try:
            write_small(self._disk, path, content)
        except OSError as error:
            raise StorageFailed(f"writing {path} failed: {error}") from error


def make_data_dir(
    disk: Disk, path: str, identity: Identity, fill_store: Callable[[str], None], *, allow_unsafe_filesystem: bool
) -> None:
    """A new data directory with a store in it; durable on return.

    `fill_store` makes the store in the directory that it is given. The identity comes last: what a crash leaves before
    it is no data directory, and no start takes it for one.

    Raises: IdentityRefused if something is there, ConfigInvalid (file system), DataDirLocked, OSError, and what
    `fill_store` raises.
    """
    path = path.rstrip("/") or path
    if disk.exists(path) and disk.listdir(path):
        made = disk.exists(f"{path}/identity")
        what = "is a data directory already" if made else "is not empty; a restore that was cut short leaves it so, too"
        raise IdentityRefused(f"{path} {what}: name a new directory, or remove this one if it is of no use", path=path)
    _refuse_unsafe(disk, path, allow_unsafe_filesystem)
    _make_directory(disk, path)
    lock = _take_lock(disk, path)
    try:
        data = DataDir(disk, path, lock)
        for directory in (data.wal_dir, data.store_dir, data.snap_dir):
            disk.mkdir(directory)
        disk.fsync_dir(path)
        fill_store(data.store_dir)
        write_small(disk, data._boot_path, OwnBoot(0, 0))
        write_small(disk, data._peers_path, {})
        write_small(disk, data._identity_path, identity)
    finally:
        lock.release()


def _refuse_unsafe(disk: Disk, path: str, allowed: bool) -> None:
    kind = disk.filesystem(path)
    if kind in UNSAFE_FILESYSTEMS and not allowed:
        raise ConfigInvalid(
            f"the data directory {path} is on {kind}, where a synced write may still be lost. Use a local disk, or set "
            f"storage.allow_unsafe_filesystem for a test"
        )


def _make_directory(disk: Disk, path: str) -> None:
    """Make the directory and what is missing above it, durably."""
    made = []
    at = path
    while at and not disk.exists(at):
        made.append(at)
        at = posixpath.dirname(at)
    disk.mkdir(path)
    for directory in reversed(made):
        disk.fsync_dir(posixpath.dirname(directory) or ".")


def _take_lock(disk: Disk, path: str) -> DirectoryLock:
    try:
        return disk.lock(f"{path}/LOCK")
    except BlockingIOError as error:
        raise DataDirLocked(f"the data directory {path} is in use by another process", path=path) from error
