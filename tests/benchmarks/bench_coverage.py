"""What the intervals of the page cover: simulated sweeps with a known truth, every interval called 95 %.

    python -m tests.benchmarks.bench_coverage                 the table of docs/statistics.md, in minutes
    python -m tests.benchmarks.bench_coverage --sweeps 500    a rougher one
    python -m tests.benchmarks.bench_coverage --out FILE      writes it as Markdown

A simulated sweep draws training seeds and start/goal pairs anew; seeds are crossed with pairs, as all seeds
plan the same pairs. A run's chance on a pair is logistic in the sum of the seed's and the pair's effect.
The truth is the mean over all seeds and pairs there could be.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from pipeline import stats

Array = npt.NDArray[np.float64]
SEEDS, PAIRS = (2, 3, 5, 10), (50, 150, 300)
NOMINAL, WANTED = 0.95, 0.93


@dataclass(frozen=True)
class World:
    """Where success comes from, on the logit scale.

    Attributes:
        centre: of seeds and pairs.
        of_seeds, of_pairs: standard deviations of their effects.
    """

    name: str
    centre: float
    of_seeds: float
    of_pairs: float

    def rates(self, effects: Array) -> Array:
        """The chance of success."""
        return np.asarray(expit(self.centre + effects), np.float64)

    def truth(self) -> float:
        """The mean rate over all seeds and pairs (Gauss-Hermite quadrature)."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(81)
        spread = np.hypot(self.of_seeds, self.of_pairs)
        return float(np.sum(weights * self.rates(spread * nodes)) / np.sum(weights))

    def sweep(self, rng: np.random.Generator, num_seeds: int, num_pairs: int) -> Array:
        """Success of (seeds, pairs)."""
        seeds = rng.normal(0, self.of_seeds, (num_seeds, 1))
        pairs = rng.normal(0, self.of_pairs, (1, num_pairs))
        return (rng.random((num_seeds, num_pairs)) < self.rates(seeds + pairs)).astype(np.float64)


WORLDS = (
    World("93 %, seeds ± 2", 3.5, 0.6, 1.5),
    World("93 %, seeds alike", 3.5, 0.2, 1.5),
    World("80 %, seeds ± 7", 2.0, 0.6, 1.5),
    World("50 %, seeds ± 12", 0.0, 0.5, 1.5),
    World("80 %, seeds ± 15", 2.0, 1.2, 1.0),
    World("98 %, seeds ± 1", 5.0, 0.6, 1.5),
)
HEAVY = World("96 %, one seed in twenty below 80 %", 5.0, 1.5, 1.5)
"""Failing seeds too rare for a few seeds to show them: no interval from the runs alone can know."""

Draw = Callable[[np.random.Generator, int, int], tuple[stats.Interval | None, float]]
"""One simulated sweep: its interval and the truth."""


def rate(world: World) -> Draw:
    """`stats.rate_interval`: a method's success."""
    truth = world.truth()
    return lambda rng, s, p: (stats.rate_interval(world.sweep(rng, s, p)), truth)


def t_over_seeds(world: World) -> Draw:
    """Student's t over seeds as an interval for new pairs too, which the page does not use it for."""
    truth = world.truth()

    def draw(rng: np.random.Generator, s: int, p: int) -> tuple[stats.Interval | None, float]:
        return stats.t_interval(world.sweep(rng, s, p).mean(axis=1), bounds=(0, 1)), truth

    return draw


def seed_bootstrap(world: World) -> Draw:
    """The percentile bootstrap over seeds, which the page does not use."""
    truth = world.truth()

    def draw(rng: np.random.Generator, s: int, p: int) -> tuple[stats.Interval | None, float]:
        means = world.sweep(rng, s, p).mean(axis=1)
        return stats.stratified_bootstrap([means], lambda x: float(x[0].mean()), rng, 400), truth

    return draw


def pooled(world: World) -> Draw:
    """Wilson over the pooled episodes, which the page does not use."""
    truth = world.truth()

    def draw(rng: np.random.Generator, s: int, p: int) -> tuple[stats.Interval | None, float]:
        found = world.sweep(rng, s, p)
        return stats.wilson(int(found.sum()), found.size), truth

    return draw


def difference(first: World, second: World) -> Draw:
    """`stats.paired_two_way`: two points on the same pairs (their seeds train apart)."""
    truth = first.truth() - second.truth()

    def draw(rng: np.random.Generator, s: int, p: int) -> tuple[stats.Interval | None, float]:
        pairs = rng.normal(0, first.of_pairs, (1, p))
        runs = []
        for world in (first, second):
            seeds = rng.normal(0, world.of_seeds, (s, 1))
            runs.append((rng.random((s, p)) < world.rates(seeds + pairs)).astype(np.float64))
        found = stats.paired_two_way(runs[0] - runs[1], bounds=(-1, 1))
        return found.interval, truth

    return draw


def one_run(world: World) -> Draw:
    """`stats.wilson` over the pairs of one trained model, for that model."""

    def draw(rng: np.random.Generator, s: int, p: int) -> tuple[stats.Interval | None, float]:
        seed = rng.normal(0, world.of_seeds)
        own = World(world.name, world.centre + seed, 0.0, world.of_pairs)
        return stats.wilson(int(own.sweep(rng, 1, p).sum()), p), own.truth()

    return draw


def metric(skewed: bool) -> Draw:
    """`stats.t_interval` over seeds: a metric such as probe r, for new seeds on the same clips."""

    def draw(rng: np.random.Generator, s: int, p: int) -> tuple[stats.Interval | None, float]:
        if skewed:
            return stats.t_interval(rng.lognormal(0, 0.4, s)), float(np.exp(0.08))
        return stats.t_interval(rng.normal(1, 0.1, s)), 1.0

    return draw


def count_of_seeds(share: float) -> Draw:
    """`stats.exact` over seeds: collapse and divergence rates, performance profiles."""
    return lambda rng, s, p: (stats.exact(int(rng.binomial(s, share)), s), share)


@dataclass(frozen=True)
class Coverage:
    """What one kind of interval did in one design."""

    kind: str
    world: str
    num_seeds: int
    num_pairs: int
    covered: float
    width: float
    given: float
    """Share of sweeps in which an interval could be given at all; coverage is among these."""


def measure(kind: str, world: str, draw: Draw, s: int, p: int, num_sweeps: int) -> Coverage:
    """Coverage and mean width over simulated sweeps."""
    rng = np.random.default_rng([s, p, num_sweeps])
    hits, widths = 0, []
    for _ in range(num_sweeps):
        interval, truth = draw(rng, s, p)
        if interval is not None:
            hits += interval.low <= truth <= interval.high
            widths.append(interval.high - interval.low)
    n = max(len(widths), 1)
    width = float(np.mean(widths)) if widths else float("nan")
    return Coverage(kind, world, s, p, hits / n, width, len(widths) / num_sweeps)


OURS = "success over new seeds and pairs"
GROUPS: tuple[tuple[str, bool, list[tuple[str, Draw]]], ...] = (
    (OURS, True, [(world.name, rate(world)) for world in WORLDS]),
    (
        "difference of two points, same pairs",
        True,
        [
            (f"{a.name} against {b.name}", difference(a, b))
            for a, b in ((WORLDS[0], WORLDS[2]), (WORLDS[2], WORLDS[3]), (WORLDS[5], WORLDS[0]))
        ],
    ),
    ("one run over its pairs (Wilson)", True, [(w.name, one_run(w)) for w in WORLDS[:4]]),
    (
        "other metrics over seeds (t)",
        True,
        [("normal seeds", metric(False))],
    ),
    (
        "shares of seeds (exact)",
        True,
        [(f"{100 * q:.0f} % of seeds", count_of_seeds(q)) for q in (0.1, 0.3, 0.5)],
    ),
    ("known limit: rare failing seeds", False, [(HEAVY.name, rate(HEAVY))]),
    ("known limit: metrics skewed over seeds (t)", False, [("skewness 1.3", metric(True))]),
    ("not on the page: t over seeds", False, [(w.name, t_over_seeds(w)) for w in WORLDS]),
    (
        "not on the page: bootstrap over seeds",
        False,
        [(w.name, seed_bootstrap(w)) for w in WORLDS[:2]],
    ),
    ("not on the page: pooled Wilson", False, [(w.name, pooled(w)) for w in WORLDS]),
)


UNPAIRED = ("normal seeds", "skewness 1.3", "10 % of seeds")
"""Worlds that know no pairs: one design per number of seeds will do."""


def study(num_sweeps: int, groups: Sequence[str] = ()) -> Iterator[Coverage]:
    """Every kind of interval in every world and design."""
    for kind, _, draws in GROUPS:
        if groups and kind not in groups:
            continue
        for (world, draw), s, p in itertools.product(draws, SEEDS, PAIRS):
            if p != PAIRS[0] and draws[0][0] in UNPAIRED:
                continue  # these know no pairs
            yield measure(kind, world, draw, s, p, num_sweeps)


def markdown(rows: Sequence[Coverage], num_sweeps: int) -> str:
    """Per kind of interval and number of seeds: lowest, mean and highest coverage, and widths."""
    lines = [
        "# What the intervals cover",
        "",
        "Made by `python -m tests.benchmarks.bench_coverage`; read with [statistics.md](statistics.md). Worlds are "
        "named by their mean success and the standard deviation of the seeds' rates in points.",
        "",
        f"{num_sweeps:,} simulated sweeps per design; {', '.join(map(str, PAIRS))} pairs; "
        "lowest coverage first, with its standard error.",
        "",
        "| interval | seeds | lowest coverage | mean | highest | mean width | none given |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, _, _ in GROUPS:
        for s in SEEDS:
            own = [row for row in rows if row.kind == kind and row.num_seeds == s]
            if not own:
                continue
            low = min(own, key=lambda row: row.covered)
            error = np.sqrt(low.covered * (1 - low.covered) / num_sweeps)
            mean = np.mean([row.covered for row in own])
            high = max(row.covered for row in own)
            width = np.mean([row.width for row in own])
            none = 1 - np.mean([row.given for row in own])
            where = f"{low.world}, {low.num_pairs} pairs"
            lines.append(
                f"| {kind} | {s} | {low.covered:.3f} ± {error:.3f} ({where}) | {mean:.3f} | "
                f"{high:.3f} | {width:.3f} | {none:.1%} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.bench_coverage",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
    )
    parser.add_argument("--sweeps", type=int, default=2000, help="per design (default: 2000)")
    parser.add_argument("--out", type=Path, help="a Markdown file")
    args = parser.parse_args()
    rows = []
    for row in study(args.sweeps):
        rows.append(row)
        print(
            f"{row.kind:40s} {row.world:50s} {row.num_seeds:2d} seeds {row.num_pairs:3d} pairs  "
            f"{row.covered:.3f}  width {row.width:.3f}  given {row.given:.2f}",
            flush=True,
        )
    table = markdown(rows, args.sweeps)
    print("\n" + table)
    if args.out:
        args.out.write_text(table, encoding="utf-8")
    on_page = {kind for kind, shown, _ in GROUPS if shown}
    low = [row for row in rows if row.kind in on_page and row.covered < WANTED]
    print(f"{len(low)} designs of the page's intervals cover less than {WANTED:.0%}")
    for row in low:
        print(
            f"  {row.kind}: {row.world}, {row.num_seeds} seeds, {row.num_pairs} pairs: {row.covered:.3f}"
        )


if __name__ == "__main__":
    main()
