"""Advice: what is typed when a member or its disk is beyond repair, the same words wherever it is given."""

from __future__ import annotations

from kvnode.doctor.directory_facts import DirectoryFacts

DISK_CHECK = "sudo dmesg | grep -i 'i/o error'; sudo smartctl -a DEVICE"


def replacement(facts: DirectoryFacts) -> tuple[str, ...]:
    """How a member comes back whose data are lost: as a new one, or if it was alone from a backup."""
    aside = f"mv {facts.typed} {facts.typed}.old"
    if facts.members == 1:
        return (aside, f"kvnode snapshot restore BACKUP --data-dir {facts.typed} --peer HOST:PORT")
    return (aside, f"kvnode serve --config FILE --join URL --replace {facts.member or 'ID'}")
