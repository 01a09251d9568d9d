"""The curve of a training, and the files others watch while it runs.

A curve is a float64 tensor with one row per step and the columns below, NaN where nothing was
measured. Row k belongs to the weights after k updates: losses, grad_norm and lr of the update that
follows, val_pred_loss and mean_std where they were measured. The last row has only those two.
"""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from lewm.checkpoint import atomic_file

COLUMNS = ("loss", "pred_loss", "sigreg_loss", "val_pred_loss", "grad_norm", "lr", "mean_std")
PROGRESS_EVERY_S = 1.0


def make_curve(num_steps: int) -> Tensor:
    """Nothing measured yet."""
    return torch.full((num_steps + 1, len(COLUMNS)), math.nan, dtype=torch.float64)


def record(curve: Tensor, step: int, values: Mapping[str, float]) -> None:
    """Sets columns of one row."""
    for name, value in values.items():
        curve[step, COLUMNS.index(name)] = value


def newest(curve: Tensor) -> dict[str, float]:
    """The last known value of every column that has one."""
    values = {}
    for name, column in zip(COLUMNS, curve.T, strict=True):
        known = column[~column.isnan()]
        if len(known):
            values[name] = known[-1].item()
    return values


class RunFiles:
    """`curve.jsonl` (a row per step, null where not measured or not finite), `progress.json` (step,
    num_steps, frames_per_s of this process, updated_at, newest losses) and `train.log`.

    Args:
        curve: filled in by the owner; rows are read when they are added.
        num_rows: rows that are complete already; curve.jsonl is rewritten to hold just these.
        frames_per_step: what one update learns from.
    """

    def __init__(self, run_dir: Path, curve: Tensor, num_rows: int, frames_per_step: int) -> None:
        self._run_dir = run_dir
        self._table = curve
        self._first = num_rows
        self._frames_per_step = frames_per_step
        self._began = self._shown = time.monotonic()

    def __enter__(self) -> "RunFiles":
        with atomic_file(self._run_dir / "curve.jsonl") as file:
            file.writelines(self._row(step).encode() for step in range(self._first))
        self._curve: TextIO = (self._run_dir / "curve.jsonl").open("a")
        self._log: TextIO = (self._run_dir / "train.log").open("a", buffering=1)
        return self

    def __exit__(self, *_: object) -> None:
        self._curve.close()
        self._log.close()

    def _row(self, step: int) -> str:
        values = (v if math.isfinite(v) else None for v in self._table[step].tolist())
        return json.dumps({"step": step, **dict(zip(COLUMNS, values, strict=True))}) + "\n"

    def add_row(self, step: int) -> None:
        """Appends a finished row; about once a second everything is made visible."""
        self._curve.write(self._row(step))
        if time.monotonic() - self._shown >= PROGRESS_EVERY_S:
            self.show(step + 1)

    def show(self, step: int) -> None:
        """Flushes the curve and rewrites progress.json after `step` updates."""
        self._curve.flush()
        self._shown = time.monotonic()
        frames = max(step - self._first, 0) * self._frames_per_step
        known = newest(self._table[max(step - 1, 0) : step + 1])
        progress = {
            "step": step,
            "num_steps": len(self._table) - 1,
            "frames_per_s": frames / max(self._shown - self._began, 1e-9),
            "updated_at": time.time(),
            **{key: known[key] for key in COLUMNS[:3] if math.isfinite(known.get(key, math.nan))},
        }
        with atomic_file(self._run_dir / "progress.json", durable=False) as file:
            file.write(json.dumps(progress).encode())

    def log(self, text: str) -> None:
        """One line with the time in train.log."""
        self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
