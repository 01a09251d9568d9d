"""Size of the report and seconds to make it, for invented sweeps of 100 and 1,000 trials.

python -m tests.benchmarks.bench_report                    100 and 1,000 trials
python -m tests.benchmarks.bench_report --trials 100 --steps 2000 --out /tmp/reports

Limits: 5 MB and 20 s for 100 trials, 15 MB and 60 s for 1,000. The judgement (`stability`) is timed apart;
a report without it is what `python -m pipeline.report` makes of a finished sweep.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl

sys.path.append(str(Path(__file__).parents[1]))

from synthetic_sweep import LAMS, META, make_tables

from pipeline.stages import stability
from pipeline.tables import SCHEMAS, conform
from reports.page import figures_svg, render

LIMITS = {100: (5.0, 20.0), 1000: (15.0, 60.0)}
NUM_SEEDS = {100: 10, 1000: 25}


def sweep(num_trials: int, num_steps: int) -> dict[str, pl.DataFrame]:
    """Per-trial tables of an invented sweep: λ on a log grid with the control, equal seeds each."""
    seeds = tuple(range(NUM_SEEDS.get(num_trials, 10)))
    positive = np.geomspace(LAMS[1], LAMS[-1], num_trials // len(seeds) - 1)
    lams = (0.0, *(float(f"{lam:.4g}") for lam in positive))
    failed, diverged = ((lams[-1], 2),), ((lams[2], 2), (lams[-1], 3))
    tables = make_tables(lams, seeds, failed, diverged, num_pairs=50, num_steps=4)
    return tables | {"curves": curves(tables["trials"], num_steps)}


def curves(trials: pl.DataFrame, num_steps: int) -> pl.DataFrame:
    """Falling losses of every trained trial, every step a row."""
    keys = ["trial_id", "method", "env", "profile", "point", "lam", "seed"]
    rng, step = np.random.default_rng(0), np.arange(1, num_steps + 1)
    frames = []
    for row in trials.filter(pl.col("status") != "failed").iter_rows(named=True):
        fall = np.exp(-step / (0.12 * num_steps))
        pred = (0.02 + row["lam"] + 0.9 * fall) * np.exp(rng.normal(0, 0.1, num_steps))
        validated = step % 250 == 0
        columns = {name: [row[name]] * num_steps for name in keys} | {
            "step": step,
            "loss": pred + 1.5 * row["lam"],
            "pred_loss": pred,
            "sigreg_loss": (1.6 + 11 * fall) * np.exp(rng.normal(0, 0.05, num_steps)),
            "val_pred_loss": np.where(validated, pred, np.nan),
            "grad_norm": 1 + fall,
            "lr": np.full(num_steps, 1e-3),
            "mean_std": np.where(validated, 1 - fall, np.nan),
        }
        frames.append(pl.DataFrame(columns, nan_to_null=True))
    return conform(pl.concat(frames), SCHEMAS["curves"])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path, help="keep the pages here")
    args = parser.parse_args()
    exceeded = False
    for num_trials in args.trials:
        tables = sweep(num_trials, args.steps)
        begun = time.perf_counter()
        judged = tables | stability.run(tables)
        judged_s = time.perf_counter() - begun
        begun = time.perf_counter()
        page = render(judged, META)
        page_s = time.perf_counter() - begun
        begun = time.perf_counter()
        pictures = figures_svg(judged, META)
        figures_s = time.perf_counter() - begun
        size_mb = len(page.encode()) / 1e6
        max_mb, max_s = LIMITS.get(num_trials, (np.inf, np.inf))
        exceeded |= size_mb > max_mb or page_s + figures_s > max_s
        print(
            f"{num_trials} trials, {tables['curves'].height:,} curve rows: page {size_mb:.2f} MB "
            f"(limit {max_mb:g}) in {page_s:.1f} s, {len(pictures)} figures in {figures_s:.1f} s "
            f"(limit {max_s:g} together); judged in {judged_s:.1f} s"
        )
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            (args.out / f"{num_trials}.html").write_text(page, encoding="utf-8")
    return int(exceeded)


if __name__ == "__main__":
    sys.exit(main())
