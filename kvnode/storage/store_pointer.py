"""Which environment is this node's store: the file `CURRENT` in `store/` names it, and is replaced as a whole.

An environment is durable before `CURRENT` names it, so the rename of `CURRENT` is the moment at which a snapshot
becomes the store. Every other environment is a leftover: of a snapshot that was not finished, or the one before it. The
first is 1, and `CURRENT` is there before it is; without `CURRENT` there must be none.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from kvnode.errors import StorageFailed
from kvnode.machine.backend import Backend
from kvnode.storage.disk import Disk
from kvnode.storage.environments import Environments
from kvnode.storage.small_file import DamagedFile, read_small, write_small

NAME = "CURRENT"
FIRST = 1
_OLD_NAME = "data.mdb"


class Current(msgspec.Struct, frozen=True):
    """The content of the file."""

    environment: int


class StorePointer:
    """The pointer, and the environments it may point to. `number` is the one that counts."""

    def __init__(self, disk: Disk, directory: str, environments: Environments) -> None:
        """Reads the pointer, or makes it at the first start; removes leftovers. Raises: StorageFailed."""
        self.environments = environments
        self._disk = disk
        self._directory = directory
        self._path = f"{directory}/{NAME}"
        try:
            self.number = self._read_or_make()
            disk.fsync_dir(directory)  # what was read may stand in memory only, after a kill at the wrong moment
            for number in environments.numbers():
                if number != self.number:
                    environments.remove(number)
        except DamagedFile as error:
            raise StorageFailed(f"{error}. It names this node's store, so the node does not start") from error
        except OSError as error:
            raise StorageFailed(f"the store in {directory} cannot be used: {error}") from error

    def open(self) -> Backend:
        """The store that counts. Raises: StorageFailed."""
        return self.environments.open(self.number)

    def next_number(self) -> int:
        """One that no environment has. Raises: OSError."""
        return max(self.number, *self.environments.numbers(), 0) + 1

    def switch(self, number: int) -> None:
        """`number`, which is durable, is the store from now on; the one before is removed. Raises: StorageFailed."""
        before = self.number
        try:
            write_small(self._disk, self._path, Current(number))
            self.number = number
            self.environments.remove(before)
        except OSError as error:
            raise StorageFailed(f"switching to the snapshot's store in {self._directory} failed: {error}") from error

    def _read_or_make(self) -> int:
        """Raises: StorageFailed, DamagedFile, OSError."""
        number = read_pointer(self._disk, self._directory, self.environments.numbers())
        if number is not None:
            return number
        write_small(self._disk, self._path, Current(FIRST))
        return FIRST


def read_pointer(disk: Disk, directory: str, numbers: Sequence[int]) -> int | None:
    """Which of the environments `numbers` in `directory` counts; None: there has been none yet. Changes nothing.

    Raises: StorageFailed, DamagedFile, OSError.
    """
    path = f"{directory}/{NAME}"
    if disk.exists(path):
        number = read_small(disk, path, Current).environment
        if number not in numbers and number != FIRST:
            raise StorageFailed(f"{path} names store {number}, which is missing in {directory}")
        return number
    if numbers or disk.exists(f"{directory}/{_OLD_NAME}"):
        raise StorageFailed(
            f"{path} is missing beside the stores of {directory}: which of them counts cannot be told. "
            "Remove this member and add it again with an empty data directory"
        )
    return None
