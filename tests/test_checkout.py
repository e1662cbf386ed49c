"""What a report says of the code that made it."""

from __future__ import annotations

from pathlib import Path

from kvnode.checkout import source_digest


def test_the_same_source_has_the_same_digest_wherever_it_lies(tmp_path: Path) -> None:
    for place in ("here", "there"):
        (tmp_path / place / "inner").mkdir(parents=True)
        (tmp_path / place / "inner" / "one.py").write_text("ONE = 1\n")
        (tmp_path / place / "two.py").write_text("TWO = 2\n")
    (tmp_path / "there" / "two.pyc").write_text("of no account")
    assert source_digest(tmp_path / "here") == source_digest(tmp_path / "there")


def test_other_contents_and_other_names_are_another_source(tmp_path: Path) -> None:
    module = tmp_path / "one.py"
    module.write_text("ONE = 1\n")
    digests = {source_digest(tmp_path)}
    module.write_text("ONE = 2\n")
    digests.add(source_digest(tmp_path))
    module.rename(tmp_path / "two.py")
    digests.add(source_digest(tmp_path))
    assert len(digests) == 3
