"""What a search for λ costs: simulated on the response curve that a finished sweep recorded.

python -m pipeline.simulate lambda                              200 searches per strategy, 24 trials each
python -m pipeline.simulate lambda --objective success_paper    on another final metric
python -m pipeline.simulate lambda --margin 0.1 --budget 36     a wider plateau, more trials
python -m pipeline.simulate pldm --against lambda               six weights beside one: searches replayed

Takes the sweep's means and spread over seeds at every λ > 0 and lets grid, random, bisect and TPE search
that curve, with the code that searches for real; only training is replaced by a draw. How many trials
until the recommended λ is on the plateau, its true mean within the margin of the best, goes into the
sweep's tables; the report plots it. Trains nothing; the same arguments give the same rows.

With --against, SWEEP has searched several weights at random (sweeps/pldm.toml), and the sweep named there
is one over λ of the same environment, profile and objective: searches of both are replayed on what was
recorded, and the report shows success against trials.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.options import ALREADY_RUNNING, BAD_INPUT, COMPLETE

if TYPE_CHECKING:
    from pipeline.search.settings import Search
    from pipeline.search.simulation_rows import Question

QUIET_S = 5.0
"""A progress line at most this often."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.simulate",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
        epilog="Exit codes: 0 done, 2 bad input, 3 the sweep is running.",
    )
    add = parser.add_argument
    add("sweep", help="a finished sweep over λ: its folder name, or the start of it")
    add("--storage", default="runs", help="where it lives: a folder or s3://… (default: runs)")
    add("--objective", help="a final metric; default: the search's own, else strict success")
    add("--mode", choices=["max", "min"], default="max", help="which is better (default: max)")
    add("--against", metavar="SWEEP", help="a finished sweep over λ to set this search beside")
    add("--margin", type=float, help="width of the plateau; default 0.05 (5 points) for rates")
    add("--budget", type=int, default=24, help="trials a search may spend (default: 24)")
    add("--repetitions", type=int, default=200, help="searches per strategy (default: 200)")
    add("--seed", type=int, default=0, help="of the draws (default: 0)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = parse(argv)
    from pipeline.recorded_search import replay_sweep, simulate_sweep
    from pipeline.search import replay
    from pipeline.search.settings import load_search
    from pipeline.search.simulation import STRATEGIES
    from pipeline.storage import Storage
    from pipeline.storage.lease import Lease
    from pipeline.survey import find_sweep

    try:
        storage = Storage(args.storage)
        folder = find_sweep(args.sweep, storage)
        stored = storage.read_json(f"sweeps/{folder}/sweep.json") or {}
        question = _question(args, load_search(stored.get("search")))
        lease = Lease(storage, f"sweeps/{folder}/owner.json")
        if lease.acquire() is not None:
            print(f"error: sweep {folder} is running; wait for it", file=sys.stderr)
            return ALREADY_RUNNING
        try:
            own = storage.at(f"sweeps/{folder}")
            if args.against is None:
                lines = simulate_sweep(own, question, _Progress(STRATEGIES))
            else:
                other = storage.at(f"sweeps/{find_sweep(args.against, storage)}")
                search = load_search(stored.get("search"))
                lines = replay_sweep(own, other, search, question, _Progress(replay.STRATEGIES))
        finally:
            lease.release()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    where = "" if args.storage == "runs" else f" --storage {args.storage}"
    print("\n".join([*lines, f"next     python -m pipeline.report {folder}{where}"]))
    return COMPLETE


def _question(args: argparse.Namespace, search: "Search") -> "Question":
    from pipeline.search.settings import Bisect, Optuna
    from pipeline.search.simulation_rows import Question

    own = search.objective if isinstance(search, Bisect | Optuna) else "success_strict"
    objective = args.objective or own
    margin = args.margin
    if margin is None and objective.startswith("success_"):
        margin = 0.05
    if margin is None or margin <= 0:
        raise ValueError(
            f"--margin: how far below the best {objective} still counts as the plateau, above 0 and in "
            "its unit, e.g. --margin 0.05"
        )
    for name, least in (("budget", 2), ("repetitions", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name} is at least {least}, got {getattr(args, name)}")
    return Question(objective, args.mode, margin, args.budget, args.repetitions, args.seed)


class _Progress:
    """A line with the time to go, where it takes longer than some seconds."""

    def __init__(self, strategies: Sequence[str]) -> None:
        self._strategies = strategies
        self._started = self._last = time.monotonic()

    def __call__(self, strategy: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last > QUIET_S and done < total:
            self._last = now
            share = (self._strategies.index(strategy) + done / total) / len(self._strategies)
            from pipeline.progress import duration

            left = duration((now - self._started) * (1 - share) / share)
            print(f"simulating {strategy}: {done}/{total}, about {left} to go", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
