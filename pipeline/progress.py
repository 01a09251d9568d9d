"""What a sweep shows while it works: one live table on a terminal, one line per event elsewhere."""

import contextlib
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from pipeline.storage import Storage

BEACON_S = 10.0
QUIET_S = 15.0
"""Without a terminal, a summary line at most this often."""


def duration(seconds: float | None) -> str:
    """`1 h 05 min`, `3 min 20 s`, `12 s`, or `?`."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


class Progress:
    """Live state of the trials and cells of a sweep.

    Args:
        names: per trial id its label, in the order to show.
        done: trials that are already finished.
        evaluate_s: expected seconds of evaluation per trial, for the ETA; None if unknown.
        workers: how many trials run at once.
    """

    def __init__(
        self, names: dict[str, str], done: dict[str, str], evaluate_s: float | None, workers: int
    ) -> None:
        self.console = Console(stderr=True)
        self.rows: dict[str, dict[str, Any]] = {
            trial_id: {"name": name, "status": done.get(trial_id, "waiting")}
            for trial_id, name in names.items()
        }
        self.phase = "training"
        self.cells_done = 0
        self.cells_total = 0
        self._evaluate_s = evaluate_s
        self._workers = max(workers, 1)
        self._started = time.time()
        self._evaluate_from = (self._started, 0)
        self._pace_from: float | None = None
        self._steps_seen = 0
        self._last_line = 0.0
        self._live: Live | None = None

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self._live = Live(self._table(), console=self.console, refresh_per_second=2)
            self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.update(self._table())
            self._live.__exit__(kind, error, trace)

    def step(self, trial_id: str, metrics: dict[str, Any]) -> None:
        """A trial reported: step, num_steps and losses."""
        row = self.rows[trial_id]
        if self._pace_from is None:  # the start-up of Ray and torch says nothing about the pace
            self._pace_from = time.time()
        else:
            self._steps_seen += max(metrics.get("step", 0) - row.get("step", 0), 0)
        row.update(
            {k: v for k, v in metrics.items() if k in ("step", "num_steps", "loss", "pred_loss")}
        )
        row["status"] = metrics.get("status", "running")
        if "status" in metrics and row["status"] != "paused":
            self.line(f"{row['name']}: {row['status']} at step {row.get('step', 0)}")
        self._refresh()

    def add(self, names: Mapping[str, str]) -> None:
        """A search chose further trials."""
        for trial_id, name in names.items():
            self.rows.setdefault(trial_id, {"name": name, "status": "waiting"})
        self._refresh()

    def end(self, trial_id: str, status: str) -> None:
        """A trial ended without having reported so itself."""
        self.rows[trial_id]["status"] = status
        self._refresh()

    def snapshot(self) -> dict[str, Any]:
        """What another process may want to know of this one."""
        rows = dict(self.rows)
        running = {
            trial_id: {"step": row.get("step", 0), "num_steps": row.get("num_steps")}
            for trial_id, row in rows.items()
            if row["status"] == "running"
        }
        found = [row["status"] for row in rows.values()]
        return {
            "at": _now(),
            "started_at": datetime.fromtimestamp(self._started, UTC).isoformat(timespec="seconds"),
            "phase": self.phase,
            "running": running,
            "counts": {status: found.count(status) for status in sorted(set(found))},
            "cells": {"done": self.cells_done, "total": self.cells_total},
            "workers": self._workers,
        }

    def pairs(self, name: str, found: int, asked: int) -> None:
        """Start/goal pairs of a manifest are being drawn; slow worlds take seconds for each."""
        self.phase = f"drawing pairs for {name}, {found}/{asked}"
        self._refresh()

    def add_cells(self, count: int) -> None:
        """So many evaluation tasks more, which run when there is room."""
        self.cells_total += count

    def begin_cells(self) -> None:
        """Training is over; the evaluation tasks that are left follow."""
        left = self.cells_total - self.cells_done
        if left:
            self.phase = "evaluating"
            self._evaluate_from = time.time(), self.cells_done
            self.line(f"evaluating: {left} tasks")
            self._refresh()

    def cell_done(self, error: str | None) -> None:
        """One evaluation task ended."""
        self.cells_done += 1
        if error:
            self.line(f"evaluation failed: {error}")
        self._refresh()

    def line(self, text: str) -> None:
        """A line of its own, above the live table."""
        (self._live.console if self._live else self.console).print(text, highlight=False)

    def eta_s(self) -> float | None:
        """Seconds to go, from the rate so far; None before there is one."""
        if self.phase == "evaluating":
            began, already = self._evaluate_from
            if self.cells_done == already:
                return None
            rate = (time.time() - began) / (self.cells_done - already)
            return rate * (self.cells_total - self.cells_done)
        known = [row["num_steps"] for row in self.rows.values() if row.get("num_steps")]
        if not known or not self._steps_seen or self._pace_from is None:
            return None
        open_rows = [r for r in self.rows.values() if r["status"] in ("waiting", "running")]
        left = sum((row.get("num_steps") or known[0]) - row.get("step", 0) for row in open_rows)
        training = left * (time.time() - self._pace_from) / self._steps_seen
        if self._evaluate_s is None:
            return training
        return training + self._evaluate_s * (len(self.rows) - self.cells_done) / self._workers

    def counts(self) -> str:
        """`3 done, 2 running, 10 waiting`."""
        order = (
            "done",
            "diverged",
            "failed",
            "stopped",
            "unavailable",
            "paused",
            "running",
            "waiting",
        )
        found = [row["status"] for row in self.rows.values()]
        return ", ".join(f"{found.count(name)} {name}" for name in order if name in found)

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.update(self._table())
        elif time.time() - self._last_line > QUIET_S:
            self._last_line = time.time()
            cells = f", {self.cells_done}/{self.cells_total} evaluated" if self.cells_total else ""
            self.line(f"{self.phase}: {self.counts()}{cells}; {self._eta_text()}")

    def _eta_text(self) -> str:
        elapsed = duration(time.time() - self._started)
        return f"{elapsed} so far, about {duration(self.eta_s())} to go"

    def _table(self) -> Table:
        cells = f" · evaluated {self.cells_done}/{self.cells_total}" if self.cells_total else ""
        table = Table(
            title=f"{self.phase}: {self.counts()}{cells}",
            caption=self._eta_text(),
            title_justify="left",
            caption_justify="left",
        )
        for column, justify in (("trial", "left"), ("status", "left"), ("step", "right")):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        table.add_column("loss", justify="right")
        table.add_column("prediction loss", justify="right")
        shown = list(self.rows.values())
        if len(shown) > 30:
            shown = [r for r in shown if r["status"] not in ("waiting", "done")][:30]
        for row in shown:
            step = f"{row.get('step', 0)}/{row.get('num_steps') or '?'}" if "step" in row else ""
            table.add_row(
                row["name"], row["status"], step, _number(row, "loss"), _number(row, "pred_loss")
            )
        return table


class Beacon:
    """Writes what a driver is doing to storage while the block lasts, for `pipeline.status`."""

    def __init__(self, progress: Progress, storage: Storage, key: str) -> None:
        self._progress, self._storage, self._key = progress, storage, key
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="beacon", daemon=True)

    def __enter__(self) -> "Beacon":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def _run(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                self._storage.write_json(self._key, self._progress.snapshot())
            if self._stop.wait(BEACON_S):
                return


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _number(row: dict[str, Any], key: str) -> str:
    return f"{row[key]:.4f}" if isinstance(row.get(key), float) else ""
