"""Canaries of snapshots (what they carry, what is believed of them, what stays of before) and of state checks."""

from __future__ import annotations

from canary import Canary

_FORMAT = "tests/machine/test_snapshot.py"
_CARRIED = "tests/machine/test_take_over.py"

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
)
