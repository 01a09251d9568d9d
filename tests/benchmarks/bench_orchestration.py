"""What a sweep costs besides its work, each in processes of their own: help, start, a further trial, all of it.

No rival and no floor: `target_s` is what is promised for each unit, and `make bench` says where it was missed.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.plugin import SHORT, Measure

ROOT = Path(__file__).parents[2]
AT_ONCE = 2
"""Trials that end in a round: as many as run side by side on 2 cores."""


def start(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pipeline.sweep", "smoke", "--storage", str(folder), *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def await_files(sweep: subprocess.Popen[bytes], folder: Path, pattern: str, count: int) -> None:
    while len(list(folder.glob(pattern))) < count:
        assert sweep.poll() is None, "the sweep ended too early"
        time.sleep(0.01)


def end(sweep: subprocess.Popen[bytes]) -> None:
    sweep.send_signal(signal.SIGINT)
    sweep.wait()


@pytest.mark.benchmark(group="sweep --help")
def bench_help_ours(measure: Measure) -> None:
    command = [sys.executable, "-m", "pipeline.sweep", "--help"]

    def call() -> None:
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

    measure(call, 1, "helps", 15, target_s=0.3)


@pytest.mark.benchmark(group="command to first training step")
def bench_first_step_ours(benchmark: Any, tmp_path: Path) -> None:
    """Data and manifests are there: a sweep broken off once made them."""
    running: list[subprocess.Popen[bytes]] = []
    logs = "trials/*/train.log"

    def until_trained(number: int) -> None:
        known = len(list(tmp_path.glob(logs)))
        options = ("--seeds", str(number), "--set", f"optim.lr=1e-{number + 3}")
        running.append(start(tmp_path, *options))
        await_files(running[-1], tmp_path, logs, known + 1)

    rounds = iter(range(10))
    benchmark.extra_info.update(units=1, unit="starts", target_s=10.0)
    benchmark.pedantic(
        until_trained,
        setup=lambda: ((next(rounds),), {}),
        teardown=lambda _: end(running[-1]),
        rounds=2 if SHORT else 5,
        warmup_rounds=1,
    )


@pytest.fixture
def many_trials(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A sweep over trials of two updates each, under way."""
    sweep = start(tmp_path, "--seeds", "0-39", "--set", "optim.num_steps=2")
    yield sweep
    end(sweep)


@pytest.mark.benchmark(group="every further trial, two updates included")
def bench_further_trial_ours(
    many_trials: subprocess.Popen[bytes], benchmark: Any, tmp_path: Path
) -> None:
    """From one pair of trials done to the next: scheduling, data, checkpoints, curves, markers."""
    markers = "trials/*/done.json"
    done = 2 * AT_ONCE
    await_files(many_trials, tmp_path, markers, done)

    def one_more_each() -> None:
        nonlocal done
        done += AT_ONCE
        await_files(many_trials, tmp_path, markers, done)

    benchmark.extra_info.update(units=AT_ONCE, unit="trials", target_s=0.5)
    benchmark.pedantic(one_more_each, rounds=5 if SHORT else 25)


@pytest.mark.benchmark(group="a smoke sweep of 8 trials, command to report")
def bench_sweep_ours(benchmark: Any, tmp_path: Path) -> None:
    folders = (tmp_path / str(number) for number in range(10))

    def sweep() -> None:
        assert start(next(folders), "--seeds", "0-3").wait() == 0

    benchmark.extra_info.update(units=8, unit="trials")
    benchmark.pedantic(sweep, rounds=1 if SHORT else 3)
