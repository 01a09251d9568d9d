"""What orchestration costs: many trials that return at once, and many writers to one MLflow.

    python -m tests.drills.scale --trials 1000 --raylets 4 --out scale

Runs `scale.toml` over a Ray cluster on this machine, with MLflow on PostgreSQL, and watches the driver;
then lets 8 processes, each as busy as a trial, log every step of a curve through `CurveLogger`. Prints
every figure beside its bound and writes them to scale.json. Close other programs first.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from pipeline.storage import read_marker
from tests.drills.daemons import ROOT, Daemon
from tests.drills.raylets import raylets
from tests.drills.services import mlflow_server, postgres
from tests.drills.sweeps import Sweep

SWEEP = ROOT / "tests" / "drills" / "scale.toml"
WRITERS, STEPS, STEP_S, CHECKPOINT = 8, 1000, 0.04, 50
"""Steps of 40 ms of CPU are those of the quick profile."""
Figures = dict[str, float]
BOUNDS = {
    "driver_rss_gb": 1.0,
    "driver_growth": 1.2,
    "s_per_trial": 0.5,
    "status_during_s": 2.0,
    "status_after_s": 2.0,
    "report_s": 60.0,
    "points_lost": 0.0,
    "logging_cpu_share": 0.02,
}
"""What the issue allows; `driver_growth` is memory at nine tenths of the trials over that at a quarter."""


def measure_sweep(folder: Path, num_trials: int, num_raylets: int, mlflow_uri: str) -> Figures:
    """Memory and time of a driver with many trials that return at once."""
    with raylets(num_raylets) as cluster:
        environment = {**cluster.environment, "MLFLOW_TRACKING_URI": mlflow_uri}
        options = ("--address", cluster.address, f"--seeds=0-{num_trials // 2 - 1}")
        sweep = Sweep(folder / "runs", folder, environment, options, SWEEP)
        began = time.monotonic()
        driver = sweep.start()
        samples, during = _watch(sweep, driver)
        printed = sweep.finish(driver)
        took = time.monotonic() - began
    print(printed[-400:])
    markers = [read_marker(sweep.storage, trial_id) or {} for trial_id in sweep.trials()]
    assert [marker.get("status") for marker in markers] == ["done"] * num_trials
    ends = sorted(datetime.fromisoformat(marker["finished_at"]).timestamp() for marker in markers)
    begins = sorted(datetime.fromisoformat(marker["started_at"]).timestamp() for marker in markers)
    quarter = [rss for done, rss in samples if num_trials // 4 <= done <= num_trials // 3]
    late = [rss for done, rss in samples if num_trials * 9 // 10 <= done < num_trials]
    return {
        "trials": num_trials,
        "driver_rss_gb": max(rss for _, rss in samples) / 1e9,
        "driver_growth": max(late) / min(quarter) if quarter and late else float("nan"),
        "s_per_trial": (ends[-1] - begins[0]) / num_trials,
        "whole_command_s": took,
        "status_during_s": during,
        "status_after_s": _seconds_of("pipeline.status", sweep),
        "report_s": _seconds_of("pipeline.report", sweep),
    }


def _watch(sweep: Sweep, driver: Daemon) -> tuple[list[tuple[int, int]], float]:
    """(Trials done, bytes of the driver) every two seconds; and what status takes half-way."""
    process, samples, status_s = psutil.Process(driver.pid), [], float("nan")
    half_way = False
    while driver.exit_code is None:
        try:
            rss = process.memory_info().rss
        except psutil.Error:
            break
        done = sum(1 for _ in (Path(sweep.where) / "trials").glob("*/done.json"))
        samples.append((done, rss))
        if not half_way and done >= samples[0][0] + 100:
            half_way, status_s = True, _seconds_of("pipeline.status", sweep)
        time.sleep(2)
    return samples, status_s


def _seconds_of(module: str, sweep: Sweep) -> float:
    """Wall time of a command about the sweep, start of Python included."""
    began = time.monotonic()
    command = [sys.executable, "-m", module, sweep.folder, "--storage", sweep.where]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return time.monotonic() - began


def write_curve(tracker: Any, number: int, answers: Any) -> None:
    """One writer: a trial's arithmetic, and every step of its curve to MLflow."""
    began = time.process_time()
    import mlflow  # noqa: F401  once per worker process, whatever its trials log

    import_s = time.process_time() - began
    from pipeline.tracking import CURVE_METRICS, CurveLogger

    began = time.process_time()
    logger = CurveLogger(tracker, f"writer{number}", f"writer {number}", {}, {})
    clock = time.pthread_getcpuclockid(logger._thread.ident or 0)
    for first in range(0, STEPS, CHECKPOINT):
        end = time.process_time() + CHECKPOINT * STEP_S
        while time.process_time() < end:
            sum(range(1000))
        rows = range(first, first + CHECKPOINT)
        logger.add([{"step": step, **dict.fromkeys(CURVE_METRICS, step / 7)} for step in rows])
    logging_s = time.clock_gettime(clock)
    logger.close(120)
    answers.put((import_s, logging_s, time.process_time() - began, logger.error))


def measure_writers(mlflow_uri: str) -> Figures:
    """What 8 busy processes lose and spend that log every step at once."""
    from pipeline.tracking import CURVE_METRICS, open_sweep, open_trial

    tracker = open_sweep(mlflow_uri, None, "writers", {})
    spawn = multiprocessing.get_context("spawn")
    answers: Any = spawn.Queue()
    began = time.monotonic()
    writers = [
        spawn.Process(target=write_curve, args=(tracker, number, answers))
        for number in range(WRITERS)
    ]
    for writer in writers:
        writer.start()
    found = [answers.get(timeout=1800) for _ in writers]
    for writer in writers:
        writer.join()
    took = time.monotonic() - began
    errors = [error for *_, error in found if error]
    assert not errors, errors
    lost = 0
    for number in range(WRITERS):
        run_id = open_trial(tracker, f"writer{number}", "", {}, {})
        for name in CURVE_METRICS:
            points = tracker.client.get_metric_history(run_id, f"train/{name}")
            lost += sorted(point.step for point in points) != list(range(STEPS))
    logging = sum(logging_s for _, logging_s, _, _ in found)
    return {
        "writers": WRITERS,
        "points": WRITERS * STEPS * len(CURVE_METRICS),
        "points_per_s": WRITERS * STEPS * len(CURVE_METRICS) / took,
        "points_lost": lost,
        "logging_cpu_s": logging / WRITERS,
        "logging_cpu_share": logging / sum(cpu_s for _, _, cpu_s, _ in found),
        "mlflow_import_cpu_s": sum(import_s for import_s, _, _, _ in found) / WRITERS,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 0 if every figure is within its bound."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.drills.scale",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
    )
    add = parser.add_argument
    add("--trials", type=int, default=1000, help="an even number (default: 1000)")
    add("--raylets", type=int, default=4, help="nodes of one CPU each (default: 4)")
    add("--only", choices=["sweep", "writers"], help="one of the two measurements")
    add("--out", type=Path, required=True, help="a new folder for runs, logs and scale.json")
    args = parser.parse_args(argv)
    folder: Path = args.out.absolute()
    folder.mkdir(parents=True)
    figures: Figures = {}
    with ExitStack() as stack:
        mlflow = stack.enter_context(mlflow_server(stack.enter_context(postgres()), folder))
        if args.only != "writers":
            figures |= measure_sweep(folder, args.trials, args.raylets, mlflow.uri)
        if args.only != "sweep":
            figures |= measure_writers(mlflow.uri)
    (folder / "scale.json").write_text(json.dumps(figures, indent=1) + "\n")
    for name, value in figures.items():
        bound = f"  <= {BOUNDS[name]:g}" if name in BOUNDS else ""
        wrong = "  TOO MUCH" if name in BOUNDS and not value <= BOUNDS[name] else ""
        print(f"{name:20s} {value:10.4g}{bound}{wrong}")
    return int(any(not figures[name] <= bound for name, bound in BOUNDS.items() if name in figures))


if __name__ == "__main__":
    sys.exit(main())
