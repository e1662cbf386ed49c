"""Canaries of export and import: a file that is whole, and keys that are written at most once."""

from __future__ import annotations

from canary import Canary

_IMPORTER = "kvnode/client/importer.py"
_ONCE = "tests/client/test_importer.py"

CANARIES = (
    Canary(
        "import-without-the-condition",
        "an import writes a key whatever has become of it since it was seen",
        _IMPORTER,
        "Put(each.entry.kv.key, each.entry.kv.value, if_revision=each.seen)",
        "Put(each.entry.kv.key, each.entry.kv.value)",
        (_ONCE, "tests/cli/test_import.py"),
    ),
    Canary(
        "import-forgets-a-lost-answer",
        "an import writes again over what was written on top of a write whose answer was lost",
        _IMPORTER,
        "elif is_doubtful and each.seen != each.sent_at and",
        "elif False and",
        (_ONCE,),
    ),
    Canary(
        "import-holds-locks",
        "keys that were under a lease are imported unasked, places in the queues of locks among them",
        "kvnode/cli/import_.py",
        'if entry.kv.lease and not self._given["with_leased"]:',
        "if False:",
        ("tests/cli/test_import.py",),
    ),
    Canary(
        "export-digest-unread",
        "the end of an export is believed for its number of keys alone",
        "kvnode/client/export_file.py",
        "(end.items, end.digest) == (self.items, _digest_text(self._digest))",
        "end.items == self.items",
        ("tests/client/test_export_file.py", "tests/cli/test_import.py"),
    ),
    Canary(
        "export-of-many-revisions",
        "the pages of an export after the first show what is newest",
        "kvnode/cli/export.py",
        '        pinned = {"cursor": page.cursor or ""}\n',
        '        query = {"start": page.items[-1].key + "\\0", "end": prefix + b"\\xff", "limit": query["limit"]}\n'
        "        pinned = {}\n",
        ("tests/cli/test_export.py",),
    ),
)
