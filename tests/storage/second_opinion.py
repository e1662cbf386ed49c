"""Both readers on one image of a log: recovery, and the independent one that shares no code with it.

They must agree on every disk a crash or damage may leave: the same log, a torn end of the same length, or damage.
The one difference: a file that has lost its preallocated end, which a start mends, is always told by the independent
reader.
"""

from __future__ import annotations

from pathlib import Path

from kvnode.errors import IdentityRefused, LogCorrupted
from kvnode.sim.disk import FakeDisk
from kvnode.storage.wal import Recovered
from kvnode.storage.wal_verify import Problem, VerifiedLog, verify
from tests.storage.wal_world import HOME, open_wal

Opinion = Recovered | LogCorrupted | IdentityRefused

_MENDED = "has lost its end"


class SecondOpinion:
    """Holds images against the independent reader. `into`: an empty directory for the copies it reads."""

    def __init__(self, into: Path) -> None:
        self._into = into
        self._written: dict[str, bytes] = {}
        self.same = self.torn = self.refused = 0

    @property
    def counts(self) -> str:
        return f"{self.same} whole, {self.torn} torn, {self.refused} refused"

    def judge(self, image: FakeDisk, where: str, **options: int) -> Opinion:
        """What a start finds on `image`, which stays as it is. Fails if the independent reader finds another thing."""
        log = self._read(image)
        found = _recover(image, options)
        if not isinstance(found, Recovered):
            self.refused += 1
            assert log.problems, (where, found.message)
            return found
        problems = [problem for problem in log.problems if _MENDED not in problem.what]
        assert not problems, (where, problems)
        cut = found.report.torn.bytes_cut if found.report.torn else 0
        state = found.hard_state
        assert (log.first_index, log.last_index, log.unfinished_bytes, log.term, log.vote, log.commit) == (
            found.base.index + 1,
            found.last_index,
            cut,
            state.term,
            state.vote,
            state.commit,
        ), where
        runs = [
            (index, term) for index, term in zip(range(log.first_index, log.last_index + 1), log.terms, strict=True)
        ]
        firsts = tuple(run for at, run in enumerate(runs) if at == 0 or runs[at - 1][1] != run[1])
        assert firsts == found.term_runs, where
        if cut:
            self.torn += 1
        else:
            self.same += 1
        return found

    def _read(self, image: FakeDisk) -> VerifiedLog:
        segments = {
            path.rsplit("/", 1)[1]: image.content(path)
            for path in image.files()
            if path.startswith(f"{HOME}/") and path.endswith(".wal")
        }
        for name in [name for name in self._written if name not in segments]:
            (self._into / name).unlink()
            del self._written[name]
        for name, content in segments.items():
            if self._written.get(name) != content:
                (self._into / name).write_bytes(content)
                self._written[name] = content
        if not segments:
            return VerifiedLog(HOME, problems=[Problem(HOME, "holds no log")])
        return verify(str(self._into))


def _recover(image: FakeDisk, options: dict[str, int]) -> Opinion:
    try:
        return open_wal(image.kill(), **options)[1]
    except (LogCorrupted, IdentityRefused) as refusal:
        return refusal
