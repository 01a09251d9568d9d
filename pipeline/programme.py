"""The programme: every sweep about a published claim, one after the other, then the page of all claims.

`python -m pipeline.sweep paper`; each sweep runs as a process of its own, so that none can take the others
down. A sweep that fails is told at the end, and the rest goes on; the same command does what is missing.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType

from lewm.identity import digest
from lewm.spelling import nearest
from pipeline.claims import load_claims
from pipeline.dry_run import num_steps
from pipeline.options import COMPLETE, SOME_FAILED
from pipeline.progress import duration
from pipeline.reporting import write_reproduction
from pipeline.resolve import resolve
from pipeline.search.settings import Bisect, Optuna
from pipeline.shipped import load_programme
from pipeline.spec import Request, Spec, World
from pipeline.storage import Storage, read_marker

NOT_WITH = ("env", "seeds", "grid", "set", "dataset", "only")
"""Options that would make the programme's sweeps other ones."""
Run = Callable[[Sequence[str]], tuple[int, str]]
"""Runs one command line of `pipeline.sweep`; its exit code and the last line of its errors."""


@dataclass(frozen=True)
class Cost:
    """What one sweep of the programme asks for.

    Attributes:
        spec: None where its file does not resolve; then `error` says why.
        num_trials: all of them, further trials of a search included.
        num_shared: trained for an earlier sweep of the programme already.
        num_done: of the others, in the storage already.
        unit: `gpu` or `cpu`; None where the profile's speed is not known, then the hours are None too.
        hours: of the rest: training, and evaluations that no earlier sweep made.
        longest_hours: of a single trial.
        unpriced: methods whose speed at this profile is not known; their hours are left out.
        num_claims: published numbers and statements that name the sweep first.
    """

    name: str
    spec: Spec | None
    error: str = ""
    num_trials: int = 0
    num_shared: int = 0
    num_done: int = 0
    unit: str | None = None
    hours: float | None = None
    longest_hours: float = 0.0
    num_claims: int = 0
    unpriced: tuple[str, ...] = ()


def choose(text: str | None) -> tuple[str, ...]:
    """The sweeps of `--sweeps` in the programme's order; all without it.

    Raises:
        ValueError: one that is not of the programme; names the nearest.
    """
    known = load_programme()
    if text is None:
        return known
    chosen = [part.strip() for part in text.split(",")]
    for name in chosen:
        if name not in known:
            raise ValueError(
                f"--sweeps: {name!r} is not of the programme{nearest(name, known)}; known: {', '.join(known)}"
            )
    return tuple(name for name in known if name in chosen)


def costs(names: Sequence[str], profile: str, storage: Storage) -> list[Cost]:
    """What each sweep adds to those before it; trials and evaluations count once, by identity."""
    asked = Counter(q.sweeps[0] for q in load_claims() if q.sweeps)
    trained: set[str] = set()
    evaluated: set[str] = set()
    found = []
    for name in names:
        try:
            spec = resolve(Request(name, profile=profile))
        except ValueError as error:
            found.append(Cost(name, None, str(error), num_claims=asked[name]))
            continue
        if not spec.trials:  # a sweep that only times
            found.append(Cost(name, spec, num_claims=asked[name]))
            continue
        found.append(_cost(spec, name, storage, trained, evaluated, asked[name]))
    return found


def _cost(
    spec: Spec, name: str, storage: Storage, trained: set[str], evaluated: set[str], claims: int
) -> Cost:
    """The cost of a sweep; adds its trials and evaluations to those known."""
    shared = done = 0
    seconds, longest = 0.0, 0.0
    known = [world for world in spec.worlds if "seconds_per_step" in world.estimate]
    unpriced = tuple(sorted({w.method for w in spec.worlds} - {w.method for w in known}))
    for trial in spec.trials:
        world, is_done = spec.world(trial), False
        if trial.trial_id in trained:
            shared += 1
        elif (read_marker(storage, trial.trial_id) or {}).get("status") == "done":
            done, is_done = done + 1, True
        variants = [f"{trial.trial_id} {key}" for key in _evaluations(spec, world)]
        new = [key for key in variants if key not in evaluated and not is_done]
        evaluate_s = world.estimate.get("evaluate_s", 0.0) * len(new)
        train_s = 0.0
        if trial.trial_id not in trained and not is_done:
            train_s = num_steps(trial.config) * world.estimate.get("seconds_per_step", 0.0)
        trained.add(trial.trial_id)
        evaluated.update(variants)
        seconds, longest = seconds + train_s + evaluate_s, max(longest, train_s + evaluate_s)
    total = len(spec.trials)
    if isinstance(spec.search, Bisect | Optuna):
        total = max(spec.search.budget, total)
        seconds += (total - len(spec.trials)) * longest
    unit = str(known[0].estimate["unit"]) if known else None
    hours = seconds / 3600 if known else None
    return Cost(name, spec, "", total, shared, done, unit, hours, longest / 3600, claims, unpriced)


def _evaluations(spec: Spec, world: World) -> list[str]:
    """What each evaluation setting is, whatever it is called."""
    keys = ("planning", "latents", "probing", "surprise")
    stages = sorted(set(spec.stages) & set(keys))
    settings = [
        {stage: config.model_dump(mode="json")[stage] for stage in stages}
        for _, config in world.variants
    ]
    return [digest(setting, 12) for setting in settings if setting]


def print_costs(found: Sequence[Cost], profile: str, gpus: int, uri: str) -> None:
    """The dry run: a line per sweep, and the sums."""
    unit = next((cost.unit for cost in found if cost.unit), None)
    of = {"gpu": "GPU-hours", "cpu": "CPU-hours"}.get(unit or "", "hours")
    print(f"programme {len(found)} sweeps at profile {profile}, storage {uri}")
    print(f"{'sweep':16s} {'claims':>6s} {'trials':>6s} {'shared':>6s} {'done':>5s} {of:>10s}")
    for cost in found:
        if cost.spec is None:
            print(f"{cost.name:16s} {cost.num_claims:6d} {cost.error.partition(';')[0]}")
            continue
        hours = "unknown" if cost.hours is None else _hours(cost.hours)
        without = f"  without {', '.join(cost.unpriced)}: speed not known" if cost.unpriced else ""
        counts = f"{cost.num_trials:6d} {cost.num_shared:6d} {cost.num_done:5d}"
        print(f"{cost.name:16s} {cost.num_claims:6d} {counts} {hours:>10s}{without}")
    ready = [cost for cost in found if cost.spec is not None]
    total = sum(cost.hours or 0.0 for cost in ready)
    counts = (
        f"{sum(c.num_trials for c in ready):6d} {sum(c.num_shared for c in ready):6d} "
        f"{sum(c.num_done for c in ready):5d}"
    )
    print(f"{'total':16s} {sum(c.num_claims for c in found):6d} {counts} {_hours(total):>10s}")
    if unit == "gpu":
        print(f"one GPU   about {duration(total * 3600)}")
        print(
            f"{gpus} GPUs    about {duration(wall_hours(ready, gpus) * 3600)}, if every sweep fills them"
        )
    elif unit == "cpu":
        workers = os.cpu_count() or 1
        at_once = duration(wall_hours(ready, workers) * 3600)
        print(f"here      about {at_once} on {workers} CPUs; on one about {duration(total * 3600)}")
    worlds = [world for cost in ready if cost.spec for world in cost.spec.worlds]
    sources = {w.estimate["source"] for w in worlds if "source" in w.estimate}
    print(f"estimate  {'; '.join(sorted(sources)) or 'no speed measured for this profile yet'}; "
          "shared: trained for a sweep above; evaluation of trials that are done is not counted")  # fmt: skip


def wall_hours(found: Sequence[Cost], workers: int) -> float:
    """Hours of the programme, one sweep after the other, each on all workers but none faster than a trial."""
    return sum(max((c.hours or 0.0) / workers, c.longest_hours) for c in found)


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 0.1 or hours == 0 else f"{hours:.2f}"


def main(args: argparse.Namespace, run: Run | None = None) -> int:
    """The command line of `pipeline.sweep paper`; returns the exit code.

    Args:
        run: runs one sweep; by default as a process.

    Raises:
        ValueError: an unknown sweep, or an option that does not go with the programme.
    """
    for name in NOT_WITH:
        if getattr(args, name):
            raise ValueError(
                f"--{name} does not go with `paper`: it would make the sweeps other ones"
            )
    names = choose(args.sweeps)
    storage = Storage(args.storage)
    if args.dry_run:
        print_costs(costs(names, args.profile, storage), args.profile, args.gpus or 8, storage.uri)
        return COMPLETE
    if args.gpus is not None:
        raise ValueError("--gpus goes with --dry-run; trials take what GPUs the cluster has")
    storage.check_writable()
    run = run or run_process
    failed: list[tuple[str, int, str]] = []
    for number, name in enumerate(names, 1):
        print(f"\n== {number}/{len(names)} {name}", flush=True)
        code, error = run(command(args, name))
        if code >= 128 or code < 0:
            print(f"interrupted at {name}; the same command goes on from there", file=sys.stderr)
            return code if code >= 128 else 128 - code
        if code != COMPLETE:
            failed.append((name, code, error or "no line on its error stream"))
    made = write_reproduction(storage, ("html", "md"))
    print(f"\nclaims   {made.folder.where(made.keys[-1])}")
    for name, code, error in failed:
        print(f"failed   {name} (exit code {code}): {error}", file=sys.stderr)
    return SOME_FAILED if failed else COMPLETE


def command(args: argparse.Namespace, name: str) -> list[str]:
    """The command line of one sweep, after `python -m pipeline.sweep`."""
    words = [name, "--profile", args.profile, "--storage", args.storage]
    if args.trials_per_gpu != 1:
        words += ["--trials-per-gpu", str(args.trials_per_gpu)]
    for option in ("address", "trials_per_node", "retry"):
        if getattr(args, option) is not None:
            words += [f"--{option.replace('_', '-')}", str(getattr(args, option))]
    return words


def run_process(words: Sequence[str]) -> tuple[int, str]:
    """One sweep as a process: what it says passes through, a signal to us goes on to it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.sweep", *words], stderr=subprocess.PIPE, text=True
    )

    def pass_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, pass_on) for number in signals}
    last = ""
    try:
        assert process.stderr is not None
        for line in process.stderr:
            sys.stderr.write(line)
            sys.stderr.flush()
            last = line.strip() or last
        return process.wait(), last
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
