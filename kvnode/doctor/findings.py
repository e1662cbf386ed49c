"""Finding: one thing the doctor has to say about one subject, how grave it is, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

Level = Literal["ok", "note", "warning", "problem"]

LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "problem")
"""From harmless to grave. A problem needs somebody; a warning may become one; a note is worth knowing."""


class Finding(msgspec.Struct, frozen=True):
    level: Level
    check: str  # which check says so; stable, for programs
    what: str
    do: tuple[str, ...] = ()  # commands as they are typed, or where there is none a sentence
    is_unread: bool = False  # the check could not be made: something cannot be read


class Report(msgspec.Struct, frozen=True):
    """All findings about one data directory or one cluster."""

    subject: str  # the directory, or the endpoints asked
    kind: Literal["directory", "cluster"]
    findings: tuple[Finding, ...]

    @property
    def is_unread(self) -> bool:
        return any(finding.is_unread for finding in self.findings)


def worst(findings: Iterable[Finding]) -> Level:
    return max((finding.level for finding in findings), key=LEVELS.index, default="ok")


def count(findings: Iterable[Finding]) -> dict[Level, int]:
    """How many of each level, the gravest first."""
    levels = [finding.level for finding in findings]
    return {level: levels.count(level) for level in reversed(LEVELS)}


def ok(check: str, what: str) -> Finding:
    return Finding("ok", check, what)


def note(check: str, what: str, *do: str) -> Finding:
    return Finding("note", check, what, do)


def warning(check: str, what: str, *do: str) -> Finding:
    return Finding("warning", check, what, do)


def problem(check: str, what: str, *do: str) -> Finding:
    return Finding("problem", check, what, do)


def unread(check: str, what: str, *do: str) -> Finding:
    """Something stands in the way of looking; worse than a problem, for nobody knows what is behind it."""
    return Finding("problem", check, what, do, is_unread=True)


def bytes_text(count: int) -> str:
    """``1.5 GiB``"""
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"


def counted(count: int, noun: str, nouns: str = "") -> str:
    """``1 file``, ``2 files``"""
    return f"{count} {noun}" if count == 1 else f"{count} {nouns or noun + 's'}"
