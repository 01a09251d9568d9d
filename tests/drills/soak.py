"""A weekend on spot machines in a quarter of an hour: random faults hit a sweep of cheap, real trials.

    python -m tests.drills.soak --seed 0 --faults 40 --out soak     figures and the log of faults in soak/

The sweep runs on a Ray cluster of three nodes, with S3 storage and MLflow on PostgreSQL. Faults, their
order and their lengths come from the seed; whom they hit depends on the moment. A driver that ended is
started again with the same command; a sweep that is complete too soon is given more seeds. At last the
faults stop, the command runs to its end, and the result is compared with an unbroken local sweep.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from pipeline.storage import read_marker
from pipeline.tables import read_table
from tests.drills.daemons import Daemon, wait_for
from tests.drills.proxy import Mode
from tests.drills.raylets import Node, Raylets
from tests.drills.services import mlflow_server, postgres, s3_server
from tests.drills.sweeps import Sweep, check_mlflow, differences

NODES = 3
MORE_SEEDS = 4
Fact = dict[str, Any]


class Site:
    """Everything that can break, and the driver that must outlive it."""

    def __init__(self, stack: ExitStack, out: Path, rng: random.Random, num_seeds: int) -> None:
        self.rng = rng
        self.chance = random.Random()
        self.out = out
        self.num_seeds = num_seeds
        self.mlflow = stack.enter_context(mlflow_server(stack.enter_context(postgres()), out))
        self.s3 = stack.enter_context(s3_server(out))
        os.environ.update(self.s3.environment)
        self.cluster = Raylets()
        stack.callback(lambda: self.cluster.stop())
        self.cluster.add_nodes(NODES)
        self.sweep = Sweep(self.s3.uri, out / "drivers")
        self.finished: dict[str, bytes] = {}
        self.starts = 0
        self.ends: list[int] = []
        self.driver = self.start()
        stack.callback(lambda: self.driver.kill())

    def start(self) -> Daemon:
        """The same command again, on whatever cluster there is."""
        self.starts += 1
        self.sweep.environment = {
            **self.cluster.environment,
            **self.s3.environment,
            "MLFLOW_TRACKING_URI": self.mlflow.uri,
        }
        self.sweep.options = ("--address", self.cluster.address, f"--seeds=0-{self.num_seeds - 1}")
        return self.sweep.start()

    def tend(self) -> None:
        """Starts the driver again if it ended; a complete sweep is given more to do."""
        code = self.driver.exit_code
        if code is None:
            return
        self.ends.append(code)
        if code == 0:
            self.num_seeds += MORE_SEEDS
        self.driver = self.start()

    def settle(self) -> None:
        """Waits until there is something to hit: faults that meet nobody prove nothing."""
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: self.driver.exit_code is not None or self.worker(), "work", 90)

    def note_finished(self) -> None:
        """Remembers the marker of every ended trial; one that changed was done twice."""
        for trial_id in self.sweep.ended():
            marker = self.sweep.storage.read_bytes(f"trials/{trial_id}/done.json")
            first = self.finished.setdefault(trial_id, marker)
            assert first == marker, f"trial {trial_id} was finished twice"

    def worker(self) -> psutil.Process | None:
        """Some process that trains or evaluates."""
        pids = [pid for node in self.cluster.nodes for pid in node.workers()]
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.chance.choice(pids)) if pids else None
        return None

    def node(self) -> Node:
        """Some node."""
        return self.chance.choice(self.cluster.nodes)


def kill_worker(site: Site) -> Fact:
    process = site.worker()
    if process is None:
        return {"hit": None}
    process.kill()
    return {"hit": process.pid}


def freeze_worker(site: Site) -> Fact:
    process, seconds = site.worker(), site.rng.uniform(3, 10)
    if process is None:
        return {"hit": None}
    process.suspend()
    time.sleep(seconds)
    with contextlib.suppress(psutil.NoSuchProcess):
        process.resume()
    return {"hit": process.pid, "seconds": seconds}


def kill_node(site: Site) -> Fact:
    node, seconds = site.node(), site.rng.uniform(0, 8)
    node.kill()
    time.sleep(seconds)
    site.cluster.add_nodes()
    return {"hit": node.name, "seconds": seconds}


def preempt_node(site: Site) -> Fact:
    node, seconds = site.node(), site.rng.uniform(1, 6)
    node.drain(deadline_s=6)
    time.sleep(seconds)
    node.kill()
    site.cluster.add_nodes()
    return {"hit": node.name, "seconds": seconds}


def kill_driver(site: Site) -> Fact:
    site.driver.kill_alone()
    return {}


def signal_driver(site: Site) -> Fact:
    number = site.rng.choice([signal.SIGTERM, signal.SIGINT])
    site.driver.send(number)
    try:
        return {"signal": number.name, "exit_code": site.driver.wait(90)}
    except subprocess.TimeoutExpired:
        site.driver.kill()
        return {"signal": number.name, "exit_code": "none in 90 s"}


def lose_cluster(site: Site) -> Fact:
    site.cluster.kill()
    site.driver.kill()
    site.cluster.stop()
    site.cluster = Raylets()
    site.cluster.add_nodes(NODES)
    return {}


def lose_mlflow(site: Site) -> Fact:
    seconds = site.rng.uniform(2, 15)
    site.mlflow.kill()
    time.sleep(seconds)
    site.mlflow.start()
    return {"seconds": seconds}


def fail_storage(site: Site) -> Fact:
    modes: list[Mode] = ["refuse", "hang", "busy"]
    mode, seconds = site.rng.choice(modes), site.rng.uniform(2, 15)
    with site.s3.proxy.fails(mode):
        time.sleep(seconds)
    return {"mode": mode, "seconds": seconds}


def tear_checkpoint(site: Site) -> Fact:
    keys = [f"trials/{t}/checkpoint.pt" for t in site.sweep.training(step=40)]
    return _tear(site, keys)


def tear_part(site: Site) -> Fact:
    keys = [f"trials/{key.removesuffix('.json')}.parquet" for key in _cell_keys(site)]
    return _tear(site, keys)


def _cell_keys(site: Site) -> list[str]:
    return [key.replace("/", "/cells/", 1) for key in site.sweep.cells()]


def _tear(site: Site, keys: Sequence[str]) -> Fact:
    """Cuts an object short while nobody works."""
    site.driver.kill_alone()
    time.sleep(3)
    if not keys:
        return {"hit": None}
    key = site.chance.choice(keys)
    content = site.sweep.storage.read_bytes(key)
    site.sweep.storage.write_bytes(key, content[: len(content) // 2])
    return {"hit": key}


FAULTS: dict[Callable[[Site], Fact], int] = {
    kill_worker: 5,
    freeze_worker: 2,
    kill_node: 4,
    preempt_node: 2,
    kill_driver: 4,
    signal_driver: 2,
    lose_cluster: 1,
    lose_mlflow: 3,
    fail_storage: 4,
    tear_checkpoint: 2,
    tear_part: 2,
}
"""With how often each is drawn."""


def soak(out: Path, seed: int, num_faults: int, num_seeds: int) -> Fact:
    """Runs it all; returns the verdict. The faults are in `faults.jsonl`, line by line."""
    rng = random.Random(seed)
    out.mkdir(parents=True)
    began = time.monotonic()
    with ExitStack() as stack:
        site = Site(stack, out, rng, num_seeds)
        site.sweep.wait(site.driver, lambda: site.sweep.training(), "training")
        drawn = rng.choices(list(FAULTS), list(FAULTS.values()), k=num_faults)
        for number, fault in enumerate(drawn, 1):
            site.tend()
            site.settle()
            time.sleep(rng.uniform(1, 8))
            at = time.monotonic() - began
            fact = {"n": number, "at_s": round(at, 1), "fault": fault.__name__, **fault(site)}
            site.note_finished()
            fact |= {"trials_done": len(site.finished), "trials_asked": 2 * site.num_seeds}
            with (out / "faults.jsonl").open("a") as log:
                log.write(json.dumps(fact) + "\n")
            print(json.dumps(fact), flush=True)
            site.tend()
        faults_s = time.monotonic() - began
        code = _finish(site)
        verdict = _judge(site, code)
    verdict |= {"seed": seed, "faults": num_faults, "faults_s": round(faults_s)}
    verdict["total_s"] = round(time.monotonic() - began)
    (out / "verdict.json").write_text(json.dumps(verdict, indent=1) + "\n")
    return verdict


def _finish(site: Site) -> int:
    """No more faults: the driver that runs ends, and the command is given until nothing is missing."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        site.ends.append(site.driver.wait(1800))
    site.note_finished()
    site.driver.kill()
    site.driver = site.start()
    return site.driver.wait(1800)


def _judge(site: Site, code: int) -> Fact:
    """Compares with a sweep that nothing ever hit."""
    site.note_finished()
    options = (f"--seeds=0-{site.num_seeds - 1}",)
    unbroken = Sweep(site.out / "unbroken", site.out / "unbroken-logs", options=options)
    unbroken.run(timeout_s=3600)
    wrong = differences(unbroken, site.sweep)
    if code != 0:
        wrong.append(f"the last command left with {code}")
    try:
        check_mlflow(site.mlflow.uri, site.sweep)
    except AssertionError as error:
        wrong.append(f"MLflow: {error}")
    trials = read_table(site.sweep.tables, "trials")
    attempts = read_table(site.sweep.tables, "attempts")
    failed = [t for t in site.sweep.trials() if _status(site, t) == "failed"]
    return {
        "verdict": "no lost, doubled or wrong row" if not wrong else "WRONG",
        "wrong": wrong,
        "trials": trials.height,
        "attempts": attempts.height,
        "failed": failed,
        "driver_starts": site.starts,
        "driver_ends": site.ends,
    }


def _status(site: Site, trial_id: str) -> str | None:
    return (read_marker(site.sweep.storage, trial_id) or {}).get("status")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 0 if nothing was lost, doubled or wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.drills.soak",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
    )
    add = parser.add_argument
    add("--seed", type=int, default=0, help="draws the faults (default: 0)")
    add("--faults", type=int, default=40, help="how many (default: 40)")
    add(
        "--seeds",
        type=int,
        default=12,
        help="training seeds at first, two trials each (default: 12)",
    )
    add("--out", type=Path, required=True, help="a new folder for logs and the verdict")
    args = parser.parse_args(argv)
    verdict = soak(args.out.absolute(), args.seed, args.faults, args.seeds)
    print(json.dumps(verdict, indent=1))
    return 1 if verdict["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
