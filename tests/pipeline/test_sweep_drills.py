"""The smoke sweep for real: unbroken, killed again and again, interrupted, extended.

Every process here is a real one: Ray, MLflow on SQLite, SIGKILL of the driver and of a trial's worker.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import psutil
import pytest

from pipeline.tables import read_table, same_tables

pytestmark = [pytest.mark.ci, pytest.mark.timeout(600)]

FOLDER = "smoke-two_room-quick"


def command(storage, *more):
    return [sys.executable, "-m", "pipeline.sweep", "smoke", "--storage", str(storage), *more]


def run(storage, *more):
    return subprocess.run(command(storage, *more), capture_output=True, text=True, timeout=400)


def sweep_dir(storage):
    return storage / "sweeps" / FOLDER


def snapshot(folder):
    """Path, size and modification time of every file."""
    return {
        path: (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def kill_when(storage, happened, victim=None, timeout_s=200):
    """Starts the sweep, SIGKILLs the driver (or a victim's pid) once `happened()` holds."""
    with subprocess.Popen(
        command(storage), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as p:
        end = time.time() + timeout_s
        while not happened():
            assert p.poll() is None, "the sweep ended before the moment came"
            assert time.time() < end, "the moment never came"
            time.sleep(0.02)
        pid = victim() if victim else p.pid
        os.kill(pid, signal.SIGKILL)
        if victim:
            assert p.wait(timeout=300) == 0
        else:
            p.wait(timeout=30)


def mlflow_runs(storage):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{storage / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("lewm")
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if run.data.tags["lewm.kind"] == "sweep"]
    trials = [run for run in runs if run.data.tags["lewm.kind"] == "trial"]
    return client, parents, trials


def check_mlflow(storage, num_trials):
    client, parents, trials = mlflow_runs(storage)
    assert len(parents) == 1 and len(trials) == num_trials
    assert len({run.data.tags["lewm.trial_id"] for run in trials}) == num_trials
    assert {run.info.status for run in (*parents, *trials)} == {"FINISHED"}
    for run in trials:
        assert run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "train/pred_loss")]
        assert steps == list(range(40))
        assert "final/success_strict" in run.data.metrics
    artifacts = {file.path for file in client.list_artifacts(parents[0].info.run_id)}
    assert {"index.html", "sweep.json"} <= artifacts


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    storage = tmp_path_factory.mktemp("unbroken")
    started = time.time()
    done = run(storage)
    assert done.returncode == 0, done.stderr
    print(f"smoke sweep: {time.time() - started:.1f} s")
    return storage, done


def test_an_unbroken_sweep_leaves_everything(unbroken):
    storage, done = unbroken
    assert "report" in done.stdout and "mlflow ui" in done.stdout
    assert (sweep_dir(storage) / "report" / "index.html").is_file()
    trials = read_table(sweep_dir(storage), "trials")
    assert trials["status"].to_list() == ["done"] * 4
    planning = read_table(sweep_dir(storage), "planning")
    floors = planning.filter(pl.col("trial_id").is_null())
    assert set(floors["planner"]) == {"random", "zero", "oracle"}
    assert floors["lam"].null_count() == floors.height
    own = planning.filter(pl.col("trial_id").is_not_null())
    assert own.group_by("trial_id", "protocol").len()["len"].to_list() == [6] * 8
    for table in ("latents", "probing", "surprise", "stability", "comparison", "summary", "curves"):
        assert read_table(sweep_dir(storage), table).height, table
    check_mlflow(storage, 4)


def test_the_same_command_again_changes_nothing(unbroken):
    storage, _ = unbroken
    watched = [storage / "trials", sweep_dir(storage) / "tables"]
    before = [snapshot(folder) for folder in watched]
    started = time.time()
    assert run(storage).returncode == 0
    assert time.time() - started < 20
    assert [snapshot(folder) for folder in watched] == before


def test_the_report_alone_needs_no_torch_ray_or_mlflow(unbroken):
    storage, _ = unbroken
    page = sweep_dir(storage) / "report" / "index.html"
    before = page.read_bytes()
    page.unlink()
    code = (
        "import sys; from pipeline.report import main\n"
        f"assert main(['smoke', '--storage', {str(storage)!r}]) == 0\n"
        "bad = {'torch', 'ray', 'mlflow'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert page.read_bytes() == before


def test_a_torn_part_is_done_again(unbroken):
    storage, _ = unbroken
    part = sorted(storage.glob("trials/*/cells/latents-*.parquet"))[0]
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    again = run(storage)
    assert again.returncode == 0 and part.name in again.stderr
    assert part.read_bytes() == whole


def test_torn_and_lost_tables_and_a_torn_manifest_are_made_again(unbroken):
    storage, _ = unbroken
    tables = sweep_dir(storage) / "tables"
    before = {path: path.read_bytes() for path in tables.glob("*.parquet")}
    torn = tables / "planning.parquet"
    torn.write_bytes(before[torn][:900])
    (tables / "summary.parquet").unlink()
    manifest = next(storage.glob("manifests/*strict*.json"))
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:300])
    again = run(storage)
    assert again.returncode == 0, again.stderr
    assert manifest.read_bytes() == whole
    assert {path: path.read_bytes() for path in tables.glob("*.parquet")} == before


def test_one_stage_can_be_evaluated_alone(unbroken):
    storage, _ = unbroken
    part = sorted(storage.glob("trials/*/cells/probing-*.parquet"))[0]
    whole = part.read_bytes()
    part.with_suffix(".json").unlink()
    part.unlink()
    evaluate = [sys.executable, "-m", "pipeline.evaluate", "smoke", "--storage", str(storage)]
    wrong = subprocess.run([*evaluate, "--only", "probin"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "probing" in wrong.stderr
    done = subprocess.run([*evaluate, "--only", "probing"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert part.read_bytes() == whole
    assert run(storage).returncode == 0


def test_kills_at_four_moments_change_no_result(unbroken, tmp_path):
    storage = tmp_path / "killed"
    trials, sweep = storage / "trials", sweep_dir(storage)

    def finished():
        return list(trials.glob("*/done.json"))

    def worker():
        records = [json.loads(path.read_text()) for path in trials.glob("*/owner.json")]
        return next(r["pid"] for r in records if psutil.pid_exists(r["pid"]))

    def training():
        return any(
            (path.parent / "checkpoint.pt").is_file() and not (path.parent / "done.json").exists()
            for path in trials.glob("*/owner.json")
        )

    kill_when(storage, training)
    kill_when(storage, lambda: len(finished()) >= 2)
    done_before = snapshot_of(finished())
    kill_when(storage, lambda: any(trials.glob("*/cells/*.json")))
    assert done_before.items() <= snapshot_of(finished()).items(), "a finished trial was touched"
    kill_when(storage, lambda: (sweep / "tables").is_dir())
    again = run(storage)
    assert again.returncode == 0, again.stderr
    assert same_tables(sweep_dir(unbroken[0]), sweep) == []
    check_mlflow(storage, 4)

    other = tmp_path / "worker"
    trials = other / "trials"
    kill_when(other, training, victim=worker)
    assert same_tables(sweep_dir(unbroken[0]), sweep_dir(other)) == []
    attempts = read_table(sweep_dir(other), "attempts")
    assert attempts["attempt"].max() == 2
    check_mlflow(other, 4)


def snapshot_of(paths):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def test_a_further_seed_trains_only_its_own_trials(unbroken):
    storage, _ = unbroken
    before = {path.parent: path.stat().st_mtime_ns for path in storage.glob("trials/*/done.json")}
    assert run(storage, "--seeds", "0,1,2").returncode == 0
    after = {path.parent: path.stat().st_mtime_ns for path in storage.glob("trials/*/done.json")}
    assert len(after) - len(before) == 2
    assert before.items() <= after.items()
    assert read_table(sweep_dir(storage), "trials").height == 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_cleanly_and_says_how_to_go_on(number, tmp_path):
    trials = tmp_path / "trials"
    with subprocess.Popen(
        command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as p:
        while not list(trials.glob("*/checkpoint.pt")):
            assert p.poll() is None
            time.sleep(0.05)
        p.send_signal(number)
        _, message = p.communicate(timeout=60)
    assert p.returncode == 128 + number
    assert "Go on with the same command" in message and "pipeline.sweep smoke" in message
    assert json.loads((sweep_dir(tmp_path) / "state.json").read_text())["state"] == "interrupted"


def test_a_second_driver_leaves_with_three(tmp_path):
    with subprocess.Popen(
        command(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as p:
        while not (sweep_dir(tmp_path) / "owner.json").is_file():
            assert p.poll() is None
            time.sleep(0.05)
        second = run(tmp_path)
        p.send_signal(signal.SIGINT)
        p.wait(timeout=60)
    assert second.returncode == 3 and "already running" in second.stderr


def test_a_sick_trial_is_a_row_and_the_others_go_on(tmp_path):
    """A learning rate that overflows: one axis value diverges, the rest is trained and reported."""
    sweep = tmp_path / "sick.toml"
    text = (Path(__file__).parent.parent.parent / "sweeps" / "smoke.toml").read_text()
    sweep.write_text(
        text.replace('name = "smoke"', 'name = "sick"').replace(
            '"loss.lam" = [0.0, 0.1]', '"optim.lr" = [1e-3, 1e30]'
        )
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pipeline.sweep",
            str(sweep),
            "--storage",
            str(tmp_path),
            "--seeds",
            "0",
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    trials = read_table(tmp_path / "sweeps" / "sick-two_room-quick", "trials")
    assert sorted(trials["status"]) == ["diverged", "done"]
    assert trials.filter(pl.col("status") == "diverged")["diverged_step"].null_count() == 0


def test_a_trained_trial_is_evaluated_while_another_trains(tmp_path):
    """Three trials in two places: the third trains alone. Their curves are in MLflow by then."""
    more = ("--seeds", "0", "--grid", "loss.lam=0.1,0.2,0.3", "--set", "optim.num_steps=520")
    done = run(tmp_path, *more, "--trials-per-node", "2")
    assert done.returncode == 0, done.stderr
    trained = max(path.stat().st_mtime for path in tmp_path.glob("trials/*/done.json"))
    evaluated = [path.stat().st_mtime for path in tmp_path.glob("trials/*/cells/*.json")]
    assert len(list(tmp_path.glob("trials/*"))) == 3
    assert min(evaluated) < trained < max(evaluated)
    client, _, trials = mlflow_runs(tmp_path)
    curves = [client.get_metric_history(r.info.run_id, "train/loss") for r in trials]
    assert min(point.timestamp for curve in curves for point in curve) < 1000 * trained
    steps = [*range(500), 500, 510, 519]
    assert [[point.step for point in curve] for curve in curves] == [steps] * 3
