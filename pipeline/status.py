"""What a sweep is doing and has cost, from storage alone: while it runs, and after.

python -m pipeline.status lambda                              the sweep whose folder begins so
python -m pipeline.status lambda --storage s3://bucket/runs   from anywhere that can read it
python -m pipeline.status lambda --watch                      again every 5 s, until it ends
python -m pipeline.status lambda --price gpu=1.2,cpu=0.05     cost at prices per GPU-hour and CPU-hour
python -m pipeline.status lambda --json                       for programs

Reads no tables and asks neither Ray nor MLflow.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from pipeline.progress import duration
from pipeline.storage import Storage
from pipeline.storage.lease import is_stale
from pipeline.survey import Row, Seen, expected_cells, find_sweep, newest_errors, survey

OK, BAD_INPUT = 0, 2
WATCH_S = 5.0
STATES = ("done", "diverged", "failed", "stopped", "unavailable", "running", "waiting")
PAID_FOR = ("gpu", "cpu", "trial")
SHOWN_ERRORS, SHOWN_RUNNING = 5, 12


@dataclass(frozen=True)
class Status:
    """The answer, in the order it is printed."""

    sweep: str
    state: str
    driver: Row | None
    """The live driver's heartbeat, with host and pid; None if none runs."""
    trials: dict[str, int]
    cells: dict[str, dict[str, int]]
    """By stage: done, failed, expected."""
    running: list[Row]
    trials_per_h: float | None
    steps_per_s: float | None
    eta_s: float | None
    gpu_hours: float
    cpu_hours: float
    trial_hours: float
    lost_attempts: int
    cost: float | None
    errors: list[str] = field(default_factory=list)
    report: str | None = None


def read_status(storage: Storage, folder: str, prices: Mapping[str, float]) -> Status:
    """Everything about a sweep that can be known without asking its driver.

    Args:
        folder: the sweep's, under `sweeps/`.
        prices: per hour of a `gpu`, a `cpu` or a whole `trial`; empty if the cost is not asked for.

    Raises:
        ValueError: the sweep has no readable `sweep.json`.
    """
    key = f"sweeps/{folder}"
    sweep = storage.read_json(f"{key}/sweep.json")
    if sweep is None:
        raise ValueError(f"sweep {folder} has no readable sweep.json in {storage.uri}")
    seen = survey(storage, sweep)
    driver = _driver(storage, key)
    now = time.time()
    hours = [_hours(trial, _device(seen), now) for trial in seen]
    gpu, cpu, whole = (sum(column) for column in zip(*hours)) if hours else (0.0, 0.0, 0.0)
    spent = {"gpu": gpu, "cpu": cpu, "trial": whole}
    trials_per_h, steps_per_s = _rates(seen, driver, now)
    state = (storage.read_json(f"{key}/state.json") or {}).get("state", "begun")
    page = f"{key}/report/index.html"
    return Status(
        sweep=folder,
        state="running" if driver else "interrupted" if state == "running" else state,
        driver=driver,
        trials={name: n for name in STATES if (n := sum(t.state == name for t in seen))},
        cells=_cells(seen, expected_cells(sweep)),
        running=[
            {"trial": t.label, "step": t.progress.get("step", 0), "num_steps": t.num_steps}
            for t in seen
            if t.state == "running"
        ],
        trials_per_h=trials_per_h,
        steps_per_s=steps_per_s,
        eta_s=_eta_s(seen, steps_per_s) if driver else None,
        gpu_hours=gpu,
        cpu_hours=cpu,
        trial_hours=whole,
        lost_attempts=sum(r["wall_s"] is None for t in seen for r in _ended(t)),
        cost=sum(spent[name] * price for name, price in prices.items()) if prices else None,
        errors=newest_errors(storage, seen, SHOWN_ERRORS),
        report=storage.where(page) if storage.exists(page) else None,
    )


def _cells(seen: Sequence[Seen], expected: Counter[str]) -> dict[str, dict[str, int]]:
    found: Counter[tuple[str, str]] = sum((trial.cells for trial in seen), Counter())
    trained = sum(trial.state in ("done", "running", "waiting") for trial in seen)
    return {
        stage: {
            "done": min(found[stage, "done"], num * trained),
            "failed": found[stage, "failed"],
            "expected": num * trained,
        }
        for stage, num in expected.items()
    }


def _driver(storage: Storage, key: str) -> Row | None:
    owner = storage.read_json(f"{key}/owner.json")
    if owner is None or is_stale(storage, f"{key}/owner.json", owner):
        return None
    beat = storage.read_json(f"{key}/driver.json") or {}
    shown = {name: beat.get(name) for name in ("at", "phase", "started_at", "workers")}
    return {"host": owner["host"], "pid": owner["pid"], **shown}


def _device(seen: Sequence[Seen]) -> str:
    """What the trials of the sweep ran on: that of one that ended."""
    return next((str(t.marker["device"]) for t in seen if t.marker.get("device")), "cpu")


def _hours(trial: Seen, device: str, now: float) -> tuple[float, float, float]:
    """GPU-hours, CPU-hours and hours of a trial's attempts; lost ones left no time to count."""
    total = sum(float(row["wall_s"] or 0.0) for row in _ended(trial))
    if trial.state == "running" and trial.attempts:
        total += max(now - _time(trial.attempts[-1]["started_at"]), 0.0)
    on_gpu = str(trial.marker.get("device") or device).startswith("cuda")
    hours = total / 3600
    return hours if on_gpu else 0.0, hours * trial.threads, hours


def _ended(trial: Seen) -> list[Row]:
    return trial.attempts[:-1] if trial.state == "running" else trial.attempts


def _rates(
    seen: Sequence[Seen], driver: Row | None, now: float
) -> tuple[float | None, float | None]:
    """Trials per hour and steps per second: since the live driver began, else over the sweep's whole life."""
    rows = [(t, row) for t in seen for row in t.attempts]
    if not rows:
        return None, None
    since = min(_time(row["started_at"]) for _, row in rows)
    if driver and driver["started_at"]:
        since = _time(driver["started_at"])
    ends = [_time(t.marker["finished_at"]) for t in seen if t.marker.get("finished_at")]
    until = now if driver else max(ends, default=now)
    span = until - since
    if span <= 0:
        return None, None
    last = [(t, t.attempts[-1]) for t in seen if t.attempts]
    mine = [(t, row) for t, row in last if _time(row["started_at"]) >= since - 1.0]
    steps = sum(max(_step(t) - int(row.get("from_step") or 0), 0) for t, row in mine)
    return sum(end >= since for end in ends) * 3600 / span, steps / span


def _step(trial: Seen) -> int:
    return int(trial.marker.get("num_steps") or trial.progress.get("step") or 0)


def _eta_s(seen: Sequence[Seen], steps_per_s: float | None) -> float | None:
    """Seconds until the last step is trained, at the pace so far; evaluation comes on top."""
    usual = max((t.num_steps or 0 for t in seen), default=0)
    left = [t for t in seen if t.state in ("running", "waiting")]
    if not steps_per_s or not usual:
        return None if left else 0.0
    return sum(max((t.num_steps or usual) - _step(t), 0) for t in left) / steps_per_s


def _time(text: str) -> float:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def lines(status: Status) -> list[str]:
    """The answer for people."""
    counts = ", ".join(f"{num} {name}" for name, num in status.trials.items()) or "none"
    out = [f"sweep    {status.sweep}: {status.state}", f"trials   {counts}"]
    driver = status.driver
    if driver is None:
        out.append("driver   none runs; the sweep's command goes on with what is missing")
    else:
        beat = f", {driver['phase']}, {driver['workers']} workers" if driver["phase"] else ""
        out.append(f"driver   pid {driver['pid']} on {driver['host']}{beat}")
    for row in status.running[:SHOWN_RUNNING]:
        out.append(f"running  {row['trial']}: step {row['step']}/{row['num_steps'] or '?'}")
    if len(status.running) > SHOWN_RUNNING:
        out.append(f"running  and {len(status.running) - SHOWN_RUNNING} more")
    for stage, num in status.cells.items():
        failed = f", {num['failed']} failed" if num["failed"] else ""
        out.append(f"cells    {stage}: {num['done']}/{num['expected']} done{failed}")
    if status.steps_per_s is not None:
        pace = f"{status.trials_per_h:.1f} trials/h, {status.steps_per_s:.1f} steps/s"
        eta = f"; about {duration(status.eta_s)} of training to go" if status.driver else ""
        out.append(f"pace     {pace}{eta}")
    out.append(_cost_line(status))
    out += [f"error    {line}" for line in status.errors]
    out.append(f"report   {status.report or 'not yet'}")
    return out


def _cost_line(status: Status) -> str:
    gpu = f"{status.gpu_hours:.2f} GPU-hours, " if status.gpu_hours else ""
    lost = (
        f"; {status.lost_attempts} attempts were killed and left no time to count"
        if status.lost_attempts
        else ""
    )
    cost = "" if status.cost is None else f" = {status.cost:.2f}"
    spent = f"{gpu}{status.cpu_hours:.2f} CPU-hours in {status.trial_hours:.2f} trial-hours"
    return f"training {spent}{cost}{lost}"


def parse_prices(text: str) -> dict[str, float]:
    """`gpu=1.2,cpu=0.05` or `trial=1.5` as prices per hour.

    Raises:
        ValueError: an unknown name, or no price.
    """
    prices = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        try:
            if name.strip() not in PAID_FOR:
                raise ValueError
            prices[name.strip()] = float(value)
        except ValueError:
            raise ValueError(
                f"--price {part!r}: expected gpu=1.2,cpu=0.05 (or trial=1.5), each per hour"
            ) from None
    return prices


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.status",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
        epilog="A trial on a GPU counts as one whole GPU, however many share it. Exit codes: 0, 2 bad input.",
    )
    add = parser.add_argument
    add("sweep", help="a sweep's folder name, or the start of it")
    add("--storage", default="runs", help="folder or s3://bucket/prefix (default: runs)")
    add(
        "--price",
        default="",
        metavar="gpu=X,cpu=Y",
        help="per GPU-hour and CPU-hour in your currency; trial=X: per hour of one trial",
    )
    add("--watch", action="store_true", help=f"again every {WATCH_S:.0f} s while a driver runs")
    add("--json", action="store_true", help="one JSON object")
    args = parser.parse_args(argv)
    try:
        prices = parse_prices(args.price)
        storage = Storage(args.storage)
        folder = find_sweep(args.sweep, storage)
        while True:
            status = read_status(storage, folder, prices)
            text = json.dumps(asdict(status)) if args.json else "\n".join(lines(status))
            clear = "\033[H\033[2J" if args.watch and sys.stdout.isatty() else ""
            print(clear + text, flush=True)
            if not args.watch or status.driver is None:
                return OK
            time.sleep(WATCH_S)
    except KeyboardInterrupt:
        return OK
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
