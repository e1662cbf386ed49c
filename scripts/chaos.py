"""Chaos: a real cluster, clients that record what they are told, and everything that can go wrong, drawn from a seed.

    make chaos MINUTES=10 NODES=5 SEED=7
    python scripts/chaos.py --minutes 2 --faults "power cut" --faults partition

The time is divided between two kinds of network: nodes on hosts of their own (network namespaces) and nodes behind
TCP proxies. What this machine does not allow is skipped, with its reason. docs/chaos.md describes all faults.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import shutil
import signal
import sys
from pathlib import Path
from time import strftime

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.faults import capability, report, sandbox  # noqa: E402 - the path comes first
from scripts.faults.kinds import KINDS  # noqa: E402
from scripts.faults.leftovers import leftovers  # noqa: E402
from scripts.faults.run import Leg, Run  # noqa: E402
from scripts.faults.scenarios import SCENARIOS, Outcome, play  # noqa: E402
from scripts.faults.stage import Network, Setting  # noqa: E402
from scripts.faults.undo import Undo  # noqa: E402


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=2.0, help="of mixed faults, both networks together")
    parser.add_argument("--nodes", type=int, default=3, choices=(1, 3, 5, 7))
    parser.add_argument("--seed", default="", help="default: a new one")
    parser.add_argument("--network", choices=("both", "hosts", "proxies"), default="both")
    parser.add_argument("--rate", type=float, default=120.0, help="operations a second")
    parser.add_argument("--faults", action="append", default=[], choices=sorted(KINDS), help="only these; repeatable")
    parser.add_argument("--scenario", action="append", default=[], choices=[*SCENARIOS, "all"], help="play these after")
    parser.add_argument("--keep", action="store_true", help="keep history, logs and data also of a leg that passed")
    parser.add_argument("--home", type=Path, default=ROOT / "data" / "chaos", help="on a real disk; what failed stays")
    return parser.parse_args()


def main() -> int:
    chosen = options()
    chosen.seed = chosen.seed or str(secrets.randbelow(1_000_000))
    level = sandbox.enter([sys.executable, __file__, *sys.argv[1:], "--seed", chosen.seed])
    chosen.home.mkdir(parents=True, exist_ok=True)
    print(f"seed {chosen.seed}, {chosen.nodes} nodes, sandbox: {level}")
    reasons = capability.probe(level, chosen.home)
    print(capability.table(reasons), flush=True)
    show = Show(chosen, reasons)
    asyncio.run(show.run())
    print(report.text(show.legs, show.outcomes, show.command()))
    left = leftovers(show.home)
    if left:
        print("left over:", *left, sep="\n  ")
    return 0 if show.passed and not left else 1


class Show:
    """The legs, one for each network, then the scenarios. Ctrl-C ends what runs with its verdict, the rest is left."""

    def __init__(self, chosen: argparse.Namespace, reasons: capability.Reasons) -> None:
        self._chosen = chosen
        self._reasons = reasons
        self._stop = asyncio.Event()
        self.home = chosen.home / f"{strftime('%Y%m%d-%H%M%S')}-{chosen.seed}"
        self.legs: list[Leg] = []
        self.outcomes: list[Outcome] = []

    @property
    def passed(self) -> bool:
        """Something ran, and all that ran passed."""
        return (
            bool(self.legs or self.outcomes)
            and all(leg.verdict == "passed" for leg in self.legs)
            and not any(outcome.problems for outcome in self.outcomes)
        )

    async def run(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        both: tuple[Network, ...] = ("hosts", "proxies")
        networks = [name for name in both if self._chosen.network in (name, "both") and not self._reasons[name]]
        for network in networks if self._chosen.minutes else ():
            if not self._stop.is_set():
                await self._leg(network, self._chosen.minutes * 60 / len(networks))
        names = list(SCENARIOS) if "all" in self._chosen.scenario else self._chosen.scenario
        for name in names:
            if not self._stop.is_set():
                outcome = await play(name, self._chosen.seed, Path(f"{self.home}-{name}"), self._reasons)
                self.outcomes.append(outcome)
                print(report.outcome(outcome), flush=True)

    async def _leg(self, network: Network, seconds: float) -> None:
        chosen, undo = self._chosen, Undo()
        home = Path(f"{self.home}-{network}")
        home.mkdir(parents=True)
        setting = Setting(seed=chosen.seed, nodes=chosen.nodes, network=network, home=home, rate=chosen.rate)
        run = Run(setting, seconds, frozenset(chosen.faults), self._reasons, undo, _print, self._stop)
        self.legs.append(run.leg)
        try:
            await run.run()
        finally:
            problems = undo.all()
            if problems:
                run.leg.problems += [f"not undone: {problem}" for problem in problems]
                run.leg.verdict = "failed"
        if run.leg.verdict == "passed" and not chosen.keep:
            shutil.rmtree(home)

    def command(self) -> str:
        """Repeats the run."""
        chosen = self._chosen
        faults = "".join(f' --faults "{name}"' for name in chosen.faults)
        scenarios = "".join(f" --scenario {name}" for name in chosen.scenario)
        return (
            f"python scripts/chaos.py --seed {chosen.seed} --nodes {chosen.nodes} --minutes {chosen.minutes:g} "
            f"--network {chosen.network} --rate {chosen.rate:g}{faults}{scenarios}"
        )


def _print(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
