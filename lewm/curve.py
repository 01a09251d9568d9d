"""The curve of a training, and the files others watch while it runs.

A curve has one row per step and the columns below, then the method's own terms; NaN where nothing was
measured. Row k belongs to the weights after k updates: losses, grad_norm and lr of the update that
follows, val_pred_loss and mean_std where they were measured. The last row has only those two.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

import torch

from lewm.checkpoint import atomic_file

COLUMNS = ("loss", "pred_loss", "sigreg_loss", "val_pred_loss", "grad_norm", "lr", "mean_std")
PROGRESS_EVERY_S = 1.0


class Curve:
    """What was measured of a training.

    Args:
        num_steps: of the training; there is one row more.
        terms: names of the method's own terms of the loss.

    Attributes:
        columns: names, in the order of the table.
        table: (num_steps + 1, columns) float64.
    """

    def __init__(self, num_steps: int, terms: Sequence[str] = ()) -> None:
        self.columns = (*COLUMNS, *terms)
        self.table = torch.full((num_steps + 1, len(self.columns)), math.nan, dtype=torch.float64)

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Sets columns of one row."""
        for name, value in values.items():
            self.table[step, self.columns.index(name)] = value

    def newest(self, end: int, first: int = 0) -> dict[str, float]:
        """The last known value of every column that has one among rows `first` .. `end` - 1."""
        values = {}
        for name, column in zip(self.columns, self.table[first:end].T, strict=True):
            known = column[~column.isnan()]
            if len(known):
                values[name] = known[-1].item()
        return values

    def row(self, step: int) -> dict[str, float | None]:
        """One row by column; None where nothing was measured or it is not finite."""
        values = (v if math.isfinite(v) else None for v in self.table[step].tolist())
        return dict(zip(self.columns, values, strict=True))


class RunFiles:
    """`curve.jsonl` (a row per step, null where not measured or not finite), `progress.json` (step,
    num_steps, frames_per_s of this process, updated_at, newest losses) and `train.log`.

    Args:
        curve: filled in by the owner; rows are read when they are added.
        num_rows: rows that are complete already; curve.jsonl is rewritten to hold just these.
        frames_per_step: what one update learns from.
    """

    def __init__(self, run_dir: Path, curve: Curve, num_rows: int, frames_per_step: int) -> None:
        self._run_dir = run_dir
        self._measured = curve
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
        return json.dumps({"step": step, **self._measured.row(step)}) + "\n"

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
        known = self._measured.newest(step + 1, first=max(step - 1, 0))
        progress = {
            "step": step,
            "num_steps": len(self._measured.table) - 1,
            "frames_per_s": frames / max(self._shown - self._began, 1e-9),
            "updated_at": time.time(),
            **{key: known[key] for key in COLUMNS[:3] if math.isfinite(known.get(key, math.nan))},
        }
        with atomic_file(self._run_dir / "progress.json", durable=False) as file:
            file.write(json.dumps(progress).encode())

    def log(self, text: str) -> None:
        """One line with the time in train.log."""
        self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
