"""The report of an invented sweep of 100 trials, from its tables to the page; the judgement timed apart."""

import numpy as np
import polars as pl
import pytest

from pipeline.stages import stability
from pipeline.tables import SCHEMAS, conform
from reports.page import render
from tests.benchmarks.plugin import Measure
from tests.synthetic_sweep import LAMS, META, make_tables

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


@pytest.fixture(scope="module")
def judged() -> dict[str, pl.DataFrame]:
    tables = sweep(100, 2000)
    return tables | stability.run(tables)


@pytest.mark.benchmark(group="report of 100 trials x 2,000 steps")
def bench_ours(judged: dict[str, pl.DataFrame], measure: Measure) -> None:
    size_mb = len(render(judged, META).encode()) / 1e6
    measure(lambda: render(judged, META), 1, "pages", 3, size_mb=size_mb)


@pytest.mark.benchmark(group="judgement of 100 trials x 50 pairs")
def bench_judgement_ours(measure: Measure) -> None:
    tables = sweep(100, 200)
    measure(lambda: stability.run(tables), 1, "sweeps", 3)
