"""A file that a command makes: written aside, and there only when it is complete and durable."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import click

from kvnode.cli.main import REFUSED


def place(file: str, *, force: bool) -> Path:
    path = Path(os.path.realpath(file))
    if not path.parent.is_dir():
        raise click.UsageError(f"there is no directory {path.parent}")
    if path.exists() and not path.is_file():
        raise click.UsageError(f"{file} is no regular file; write to standard output instead (-f -)")
    if path.exists() and not force:
        click.echo(f"kvnode: {file} is there already; --force replaces it", err=True)
        sys.exit(REFUSED)
    return path


@contextmanager
def written_aside(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    """A file beside `path`, for its user only, that takes its name when the block has ended well, and is durable then.

    Raises: OSError; FileExistsError.
    """
    number, aside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".unfinished", dir=path.parent)
    try:
        with open(number, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if not force and path.exists():
            raise FileExistsError(path)
        os.replace(aside, path)
    except BaseException:
        with suppress(FileNotFoundError):  # interrupted right after it got its name
            os.unlink(aside)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
