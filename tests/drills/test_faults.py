"""Each fault that happens in practice, with real processes; the result is that of an unbroken sweep.

Kills of a local sweep at other moments, signals and torn files are in `tests/pipeline/test_sweep_drills.py`.
"""

import os
import shutil
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from pipeline.tables import table_key
from tests.drills.raylets import raylets
from tests.drills.sweeps import Sweep, check_mlflow, differences

pytestmark = [pytest.mark.timeout(900)]
ci, drill = pytest.mark.ci, pytest.mark.drill

WORKER_S, NODE_S = 20.0, 40.0
"""Bounds on the seconds from a kill to the next checkpoint of what was killed."""


@pytest.fixture
def local(tmp_path):
    """A sweep in a folder, on a Ray of its own."""
    return Sweep(tmp_path / "runs", tmp_path)


@pytest.fixture
def spread(cluster, tmp_path):
    """A sweep in a folder, on three nodes: one more than it has trials."""
    options = ("--address", cluster.address)
    return Sweep(tmp_path / "runs", tmp_path, cluster.environment, options)


def seconds_to_recover(sweep, driver, steps):
    """Until every trial of `steps` has a newer checkpoint, or is done, after all had lost a process."""

    def newer():
        return all(sweep.step(t) > step or t in sweep.ended() for t, step in steps.items())

    return sweep.wait(driver, newer, "trials are training again")


def whole(unbroken, sweep, *, one_clock=True):
    """The tables are those of the unbroken sweep, and so is what MLflow has in the storage."""
    assert differences(unbroken, sweep) == []
    if sweep.storage.is_local and "MLFLOW_TRACKING_URI" not in sweep.environment:
        check_mlflow(f"sqlite:///{sweep.storage.root / 'mlflow.db'}", sweep, one_clock=one_clock)


def owner_pid(sweep, trial_id):
    return sweep.storage.read_json(f"trials/{trial_id}/owner.json")["pid"]


@ci
def test_a_killed_worker_is_training_again_in_time(unbroken, local):
    driver = local.start()
    local.wait(driver, lambda: local.training(step=60), "training")
    trial_id = local.training()[0]
    os.kill(owner_pid(local, trial_id), signal.SIGKILL)
    step = local.step(trial_id)
    took = seconds_to_recover(local, driver, {trial_id: step})
    print(f"worker killed at step {step}: next checkpoint after {took:.1f} s")
    local.finish(driver)
    assert took <= WORKER_S
    lost = step - local.attempts(trial_id)[1]["from_step"]
    assert lost <= 20, f"{lost} steps lost, a checkpoint interval has 20"
    whole(unbroken, local)


@drill
def test_a_killed_node_is_replaced_by_a_spare_one_in_time(unbroken, cluster, spread):
    driver = spread.start()
    spread.wait(driver, lambda: len(spread.training()) == 2, "both train")
    victim = cluster.busy_nodes()[0]
    steps = {t: spread.step(t) for t in spread.training()}
    victim.kill()
    took = seconds_to_recover(spread, driver, steps)
    print(f"node killed: next checkpoints after {took:.1f} s")
    spread.finish(driver)
    assert took <= NODE_S
    assert sorted(len(spread.attempts(t)) for t in steps) == [1, 2]
    whole(unbroken, spread)


@drill
def test_without_a_spare_node_trials_wait_for_a_new_one(unbroken, cluster, spread):
    driver = spread.start()
    spread.wait(driver, lambda: len(spread.training()) == 2, "both train")
    steps = {t: spread.step(t) for t in spread.training()}
    for node in list(cluster.nodes):
        node.kill()
    time.sleep(15)
    assert driver.exit_code is None
    cluster.add_nodes(2)
    took = seconds_to_recover(spread, driver, steps)
    print(f"nodes added: next checkpoints after {took:.1f} s")
    spread.finish(driver)
    assert took <= NODE_S
    whole(unbroken, spread)


@drill
def test_a_preemption_notice_and_then_the_kill(unbroken, cluster, spread):
    driver = spread.start()
    spread.wait(driver, lambda: len(spread.training()) == 2, "both train")
    victim = cluster.busy_nodes()[0]
    victim.drain(deadline_s=10)
    time.sleep(5)
    steps = {t: spread.step(t) for t in spread.training()}
    victim.kill()
    took = seconds_to_recover(spread, driver, steps)
    print(f"drained node killed: next checkpoints after {took:.1f} s")
    spread.finish(driver)
    assert took <= NODE_S
    whole(unbroken, spread)


@drill
def test_a_driver_killed_after_training_during_stability_and_in_the_report(unbroken, local):
    num_cells = len(unbroken.cells())
    local.kill_when(lambda: len(local.ended()) == 2, "all is trained")
    assert not local.cells()
    local.kill_when(lambda: len(local.cells()) == num_cells, "all is evaluated")
    assert not local.tables.exists("report/index.html")
    local.kill_when(lambda: local.tables.exists(table_key("summary")), "a report is being made")
    assert not local.tables.exists("report/index.html")
    local.run()
    whole(unbroken, local)


@drill
def test_a_lost_head_and_a_new_cluster_from_storage_alone(unbroken, s3, mlflow, tmp_path):
    where = f"{s3.uri}-head"
    environment = {**s3.environment, "MLFLOW_TRACKING_URI": mlflow.uri}
    with raylets(2) as first:
        options = ("--address", first.address)
        sweep = Sweep(where, tmp_path / "1", first.environment | environment, options)
        driver = sweep.start()
        sweep.wait(driver, lambda: len(sweep.training()) == 2, "both train")
        first.kill()
        driver.kill()  # it ran on the head
    with raylets(2) as second:
        options = ("--address", second.address)
        sweep = Sweep(where, tmp_path / "2", second.environment | environment, options)
        began = {t: sweep.step(t) for t in sweep.trials()}
        sweep.run()
    assert all(sweep.attempts(t)[1]["from_step"] == step > 0 for t, step in began.items())
    assert differences(unbroken, sweep) == []
    check_mlflow(mlflow.uri, sweep)


@drill
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk_that_is_freed(unbroken, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", small], check=True)
    try:
        sweep = Sweep(small / "runs", tmp_path)
        driver = sweep.start()
        sweep.wait(driver, lambda: len(sweep.training()) == 2, "both train")
        fill(small / "ballast")
        time.sleep(20)
        steps = {t: sweep.step(t) for t in sweep.trials()}
        time.sleep(5)
        assert steps == {t: sweep.step(t) for t in sweep.trials()}, "the disk was not full"
        (small / "ballast").unlink()
        took = seconds_to_recover(sweep, driver, steps)
        print(f"disk freed: next checkpoints after {took:.1f} s")
        sweep.finish(driver)
        sweep.run()  # what MLflow's database on that disk had no room for
        whole(unbroken, sweep)
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)


def fill(path):
    """Takes the last byte of a file system."""
    with path.open("wb", buffering=0) as ballast:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    ballast.write(b"x" * size)
            except OSError:
                continue


@drill
@pytest.mark.parametrize(("mode", "seconds"), [("refuse", 60), ("hang", 30), ("busy", 30)])
def test_a_storage_that_fails_for_a_while(unbroken, s3, mlflow, tmp_path, mode, seconds):
    environment = {**s3.environment, "MLFLOW_TRACKING_URI": mlflow.uri}
    sweep = Sweep(f"{s3.uri}-{mode}", tmp_path, environment)
    driver = sweep.start()
    sweep.wait(driver, lambda: len(sweep.training()) == 2, "both train")
    with s3.proxy.fails(mode):
        time.sleep(seconds)
        assert driver.exit_code is None
    sweep.finish(driver)
    assert all(len(sweep.attempts(t)) == 1 for t in sweep.trials()), "a process was lost to it"
    assert differences(unbroken, sweep) == []


@drill
def test_a_torn_checkpoint_falls_back_to_the_one_before(unbroken, local):
    local.kill_when(lambda: local.training(step=100), "training")
    trial_id = local.training(step=100)[0]
    time.sleep(3)  # its workers notice
    step = local.step(trial_id)
    torn = local.storage.path(f"trials/{trial_id}/checkpoint.pt")
    torn.write_bytes(torn.read_bytes()[:1000])
    local.run()
    log = local.storage.read_bytes(f"trials/{trial_id}/train.log").decode()
    assert f"step {step - 20} of 600" in log, log
    whole(unbroken, local)


@drill
def test_orphans_of_a_killed_driver_write_nothing_more(unbroken, cluster, spread):
    spread.kill_when(lambda: len(spread.training()) == 2, "both train")
    spread.run()
    whole(unbroken, spread)


@drill
def test_a_node_that_was_frozen_for_long_commits_nothing(unbroken, cluster, spread):
    """Like a network that splits: declared dead, replaced, and then it comes back and goes on."""
    driver = spread.start()
    spread.wait(driver, lambda: len(spread.training()) == 2, "both train")
    victim = cluster.busy_nodes()[0]
    steps = {t: spread.step(t) for t in spread.training()}
    with frozen(victim):
        took = seconds_to_recover(spread, driver, steps)
        print(f"node frozen: next checkpoints after {took:.1f} s")
    spread.finish(driver)
    whole(unbroken, spread)


class frozen:
    """SIGSTOP for all processes of a node, SIGCONT at the end."""

    def __init__(self, node):
        self.family = node.processes()

    def __enter__(self):
        for process in self.family:
            process.suspend()

    def __exit__(self, *_):
        for process in self.family:
            if psutil.pid_exists(process.pid):
                process.resume()


@drill
def test_a_locked_mlflow_database(unbroken, local):
    driver = local.start()
    local.wait(driver, lambda: local.training(step=40), "training")
    with closing(sqlite3.connect(local.storage.root / "mlflow.db", timeout=60)) as database:
        database.isolation_level = None
        database.execute("BEGIN EXCLUSIVE")
        time.sleep(25)
        database.execute("ROLLBACK")
    local.finish(driver)
    local.run()  # delivers what the lock kept out
    whole(unbroken, local)


@drill
@pytest.mark.skipif(shutil.which("cc") is None, reason="compiles skew.c")
@pytest.mark.parametrize("skew_s", [-7200, 7200])
def test_a_node_with_a_skewed_clock(unbroken, tmp_path, skew_s):
    library = tmp_path / "skew.so"
    source = Path(__file__).parent / "skew.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    with raylets(1) as cluster:
        cluster.add_nodes(1, environment={"LD_PRELOAD": str(library), "SKEW_S": str(skew_s)})
        options = ("--address", cluster.address)
        sweep = Sweep(tmp_path / "runs", tmp_path, cluster.environment, options)
        driver = sweep.start()
        sweep.wait(driver, lambda: len(sweep.training()) == 2, "both train")
        begins = [
            datetime.fromisoformat(sweep.attempts(t)[0]["started_at"]) for t in sweep.trials()
        ]
        assert abs(begins[0] - begins[1]).total_seconds() > 7000, "no clock is skewed"
        driver.kill()  # leases of two clocks are left behind
        sweep.run()
        whole(unbroken, sweep, one_clock=False)


@ci
def test_a_second_driver_on_a_bucket_leaves_with_three(unbroken, s3, tmp_path):
    environment = {
        **s3.environment,
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
    }
    sweep = Sweep(f"{s3.uri}-two", tmp_path, environment)
    driver = sweep.start()
    sweep.wait(driver, lambda: sweep.storage.exists(f"sweeps/{sweep.folder}/owner.json"), "a lease")
    assert "already running" in sweep.run(expected=3)
    sweep.finish(driver)
    assert differences(unbroken, sweep) == []
