"""Restore: a backup becomes the data directory of a new cluster of one member; others join that one later.

It is another cluster than the one that the backup was taken of: its id is derived from a directory that is new, so no
member of the old one talks to it. Its revisions and indexes begin far above (`kvnode.machine.restore`). Whatever is not
in a snapshot does not come back: configuration files, the secret, the log.

The backup is verified whole before anything is made, and again as it is written. The identity is written last, so that
a restore which is cut short leaves nothing that starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

import msgspec

from kvnode.errors import SnapshotRefused
from kvnode.ids import NodeId, Revision
from kvnode.machine.backend import Row
from kvnode.machine.restore import Restoration
from kvnode.machine.snapshot import SnapshotHeader, SnapshotVerifier, describe, pieces
from kvnode.node.roster import derive_cluster_id
from kvnode.raft.messages import Configuration, Member
from kvnode.storage.datadir import FORMAT, Identity, make_data_dir
from kvnode.storage.environments import LmdbEnvironments
from kvnode.storage.realdisk import RealDisk
from kvnode.storage.store_pointer import FIRST, StorePointer
from kvnode.wire.codec import decode_configuration, encode_configuration
from kvnode.wire.frames import FEATURE_LEVEL

MAP_BYTES = 64 << 30
"""Address space of the store while it is written; a node opens it with its own `storage.map_bytes`."""


class Verified(msgspec.Struct, frozen=True):
    """A backup that was read to its end."""

    description: SnapshotHeader
    members: tuple[Member, ...]
    feature_level: int
    blocks: int
    rows: int
    bytes: int  # of the whole file
    chain: str  # names the snapshot: 64 hexadecimal digits


class Restored(msgspec.Struct, frozen=True):
    """The new cluster as it begins."""

    cluster_id: int
    member: NodeId
    revision: Revision
    old: SnapshotHeader


def verify(file: BinaryIO, on_progress: Callable[[int], None] = lambda read: None) -> Verified:
    """Read all of it. `on_progress`: so many bytes more are proven.

    Raises: SnapshotRefused naming the place, OSError.
    """
    source = pieces(file.read)
    header = next(source)
    verifier, size = SnapshotVerifier(header), len(header)
    for block in source:
        verifier.add(block)
        size += len(block)
        on_progress(len(block))
    end = verifier.finish()
    configuration = _configuration_of(verifier.description)
    return Verified(
        verifier.description,
        configuration.members,
        configuration.feature_level,
        verifier.next,
        end.rows,
        size,
        verifier.chain.hex(),
    )


def restore(
    file: BinaryIO,
    data_dir: str,
    *,
    member: NodeId,
    peer: str,
    name: str,
    cluster_name: str,
    skipped: int,
    random_u64: Callable[[], int],
    allow_unsafe_filesystem: bool = False,
    on_progress: Callable[[int], None] = lambda read: None,
) -> Restored:
    """Make `data_dir`, which must be new or empty, of a verified backup; `peer` is where others will reach the member.

    `skipped`: how many revisions and indexes the new cluster leaves out.

    Raises: SnapshotRefused, BadRequest (`skipped`), IdentityRefused (`data_dir`), ConfigInvalid, DataDirLocked,
    StorageFailed, OSError.
    """
    file.seek(0)
    old = describe(next(pieces(file.read)))
    incarnation = random_u64()
    cluster_id = derive_cluster_id({member: (incarnation, peer)})
    configuration = Configuration(
        voters=(member,),
        members=(Member(member, incarnation, peer, name),),
        last_id=member,
        feature_level=_configuration_of(old).feature_level,
    )
    restoration = Restoration(old, configuration=encode_configuration(configuration), skipped=skipped)
    identity = Identity(
        FORMAT,
        cluster_name,
        member,
        incarnation,
        cluster_id=cluster_id,
        configuration=configuration,
        configuration_index=restoration.index,
    )
    disk = RealDisk()

    def fill(store_dir: str) -> None:
        environments = LmdbEnvironments(store_dir, map_bytes=MAP_BYTES)
        pointer = StorePointer(disk, store_dir, environments)
        assert pointer.number == FIRST, pointer.number
        environments.build(FIRST, _pieces_of_rows(file, restoration, on_progress)).close()

    make_data_dir(disk, data_dir, identity, fill, allow_unsafe_filesystem=allow_unsafe_filesystem)
    return Restored(cluster_id, member, restoration.revision, old)


def _configuration_of(description: SnapshotHeader) -> Configuration:
    """Raises: SnapshotRefused."""
    try:
        found = decode_configuration(description.configuration)
    except ValueError as error:
        raise SnapshotRefused(f"the snapshot's configuration is not as this version writes it: {error}") from error
    if found.feature_level > FEATURE_LEVEL:
        raise SnapshotRefused(
            f"the snapshot is of a cluster of feature level {found.feature_level}, this version knows {FEATURE_LEVEL}: "
            "use a newer one"
        )
    return found


def _pieces_of_rows(
    file: BinaryIO, restoration: Restoration, on_progress: Callable[[int], None]
) -> Iterator[Sequence[Row]]:
    """The new store's rows, proven once more. Raises: SnapshotRefused, OSError."""
    file.seek(0)
    source = pieces(file.read)
    verifier = SnapshotVerifier(next(source))
    for block in source:
        yield list(restoration.rows(verifier.add(block)))
        on_progress(len(block))
    verifier.finish()
