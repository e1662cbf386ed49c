"""Canaries of snapshots (what they carry, what is believed of them, what stays of before) and of state checks."""

from __future__ import annotations

from canary import Canary

_FORMAT = "tests/machine/test_snapshot.py"
_CARRIED = "tests/machine/test_take_over.py"
_COMMAND = "tests/cli/test_snapshot.py"
_BACKUPS = "tests/node/test_backups.py"
_LIFE = "tests/sim/test_snapshot_scenarios.py"

CANARIES = (
    Canary(
        "snapshot-without-sessions",
        "sessions, their answers and Idempotency-Keys do not travel",
        "kvnode/machine/snapshot.py",
        "            block, chain = _block(at.number, BlockKind.ROWS, _encode(rows), at.chain)\n",
        '            rows = [row for row in rows if row[0][:1] not in {b"0", b"1", b"2"}]\n'
        "            size = sum(len(key) + len(value) for key, value in rows)\n"
        "            block, chain = _block(at.number, BlockKind.ROWS, _encode(rows), at.chain)\n",
        (_CARRIED,),
        sim=("runtime", 60),
        number=22,
    ),
    Canary(
        "snapshot-chain-unchecked",
        "a block of another snapshot is taken if its number fits",
        "kvnode/machine/snapshot.py",
        "if chain != _chain(self.chain, number, kind, body):",
        "if False:",
        (_FORMAT,),
    ),
    Canary(
        "snapshot-end-unneeded",
        "a snapshot that is cut off between two blocks passes as whole",
        "kvnode/machine/snapshot.py",
        "        if self.end is None:\n",
        "        if self.next == 0:\n",
        (_FORMAT,),
    ),
    Canary(
        "snapshot-tells-its-sender",
        "the meta row travels as it is, so that equal states have different snapshots",
        "kvnode/machine/snapshot.py",
        "installed=(meta.applied_index, meta.applied_term)\n",
        "installed=meta.installed or (meta.applied_index, meta.applied_term)\n",
        (_FORMAT,),
    ),
    Canary(
        "old-cut-evicts",
        "the end of a flush into the store before drops what the new one has not flushed",
        "kvnode/machine/machine.py",
        "        if cut.generation != self.generation:\n            return\n",
        "",
        (_CARRIED,),
    ),
    Canary(
        "read-goes-on-in-the-old-store",
        "a read that has begun goes on in the store that a snapshot has replaced",
        "kvnode/machine/machine.py",
        "while revision >= self.compact_revision and generation == self.generation:",
        "while revision >= self.compact_revision:",
        (_CARRIED,),
    ),
    Canary(
        "watch-skips-a-snapshot",
        "streams go on with what is applied after a snapshot and never hear what was in it",
        "kvnode/node/watches.py",
        "            self._waker.wake(audience.overrun(first, self.next))\n\n    # ── those who watch",
        "            self._waker.wake(audience.overrun(self.next, self.next))\n\n    # ── those who watch",
        ("tests/node/test_watches.py",),
        number=36,
    ),
    Canary(
        "restore-repeats-revisions",
        "a restored cluster goes on at the snapshot's revision: what was lost comes again as something else",
        "kvnode/machine/restore.py",
        "Revision(description.revision + skipped)",
        "Revision(description.revision)",
        ("tests/machine/test_restore.py",),
    ),
    Canary(
        "restore-repeats-ids",
        "a restored cluster gives ids of sessions and leases again that the old one gave",
        "kvnode/machine/restore.py",
        "Index(description.index + skipped)",
        "Index(description.index)",
        ("tests/machine/test_restore.py",),
    ),
    Canary(
        "restore-keeps-the-past",
        "revisions of before the restore can be read, and streams go on from them past what was lost",
        "kvnode/machine/restore.py",
        "                compact_revision=self.revision,\n",
        "",
        ("tests/machine/test_restore.py",),
    ),
    Canary(
        "restore-keeps-the-cluster",
        "a restored cluster has the id of the old one, and members of both take each other for their own",
        "kvnode/restore.py",
        "cluster_id = derive_cluster_id({member: (incarnation, peer)})",
        "cluster_id = old.cluster_id",
        (_COMMAND,),
    ),
    Canary(
        "restore-half-done-starts",
        "the identity is there before the store: a restore that was cut short starts as an empty cluster",
        "kvnode/storage/datadir.py",
        "        fill_store(data.store_dir)\n",
        "        write_small(disk, data._boot_path, OwnBoot(0, 0))\n"
        "        write_small(disk, data._peers_path, {})\n"
        "        write_small(disk, data._identity_path, identity)\n"
        "        fill_store(data.store_dir)\n",
        (_COMMAND,),
    ),
    Canary(
        "restore-over-what-is-there",
        "a restore writes into a directory that holds something",
        "kvnode/storage/datadir.py",
        "    if disk.exists(path) and disk.listdir(path):\n        made",
        "    if not disk.exists(path) and disk.listdir(path):\n        made",
        (_COMMAND,),
    ),
    Canary(
        "backup-without-a-read-index",
        "a backup has what this node has applied, not all that was committed before it was asked for",
        "kvnode/node/backups.py",
        "        await self._reach_read_index(deadline_ms, options)\n",
        "",
        (_BACKUPS,),
    ),
    Canary(
        "backup-without-a-flush",
        "a backup is of the store as the last flush happened to leave it",
        "kvnode/node/backups.py",
        "await self._applier.flushed_through(index)",
        "index = Index(0)",
        (_BACKUPS,),
    ),
    Canary(
        "backup-view-is-never-taken-away",
        "a backup that nobody reads pins the store for ever",
        "kvnode/node/backups.py",
        '            self.close("nobody reads the backup")\n',
        "            pass\n",
        (_BACKUPS,),
    ),
    Canary(
        "backup-outlives-its-store",
        "a backup goes on in the store that a snapshot has replaced, and which is closed under it",
        "kvnode/node/snapshots.py",
        "        self.on_installing()\n",
        "",
        (_BACKUPS,),
    ),
    Canary(
        "broken-backup-ends-well",
        "a backup that breaks off ends as HTTP ends a whole one",
        "kvnode/api/http/snapshot.py",
        "        outlet.cut()\n",
        "        outlet.end()\n",
        ("tests/api/test_snapshot.py",),
    ),
    Canary(
        "diverged-member-serves",
        "a member whose state is not the majority's goes on",
        "kvnode/node/state_checks.py",
        "            if own != state:\n",
        "            if own != state and index < 0:\n",
        ("tests/node/test_state_checks.py",),
    ),
    Canary(
        "minority-is-believed",
        "one member that differs makes others stop",
        "kvnode/node/state_checks.py",
        "        needed = len(voters) // 2 + 1\n",
        "        needed = 1\n",
        ("tests/node/test_state_checks.py",),
    ),
    Canary(
        "installed-members-untold",
        "members that came with a snapshot are not told to roster and links",
        "kvnode/node/applier.py",
        "        self._on_configured()  # the snapshot may contain changes of members\n",
        "",
        ("tests/node/test_installs.py",),
    ),
    Canary(
        "backlog-applied-during-an-install",
        "what is left of a backlog is applied while a snapshot takes the state's place",
        "kvnode/node/driver.py",
        "                self._applier.pause()\n",
        "",
        ("tests/node/test_installs.py",),
    ),
    Canary(
        "store-closed-under-reader",
        "the environment is closed although a view of it is pinned",
        "kvnode/storage/lmdb_backend.py",
        "            self._is_closed = True\n            if not self._pinned:\n",
        "            self._is_closed = True\n            if True:\n",
        ("tests/storage/test_lmdb_backend.py",),
    ),
    Canary(
        "log-trimmed-above-the-flush",
        "the log is trimmed up to what is applied in memory, not to what the store has",
        "kvnode/node/applier.py",
        "        self._on_flushed(cut.applied_index)\n",
        "        self._on_flushed(self._machine.applied_index)\n",
        (_LIFE,),
    ),
    Canary(
        "install-left-unfinished",
        "a start that finds a snapshot's store before the old log takes the two for what they were",
        "kvnode/open_storage.py",
        "    index, term = machine.installed\n    return LogPosition(term, index)\n",
        "    return None\n",
        (_LIFE,),
    ),
)
