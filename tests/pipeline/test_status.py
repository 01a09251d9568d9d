"""What a sweep is doing, told from files that trials, drivers and cells leave on storage."""

import json
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest

from lewm.overrides import make_config
from pipeline import status
from pipeline.storage import Storage
from pipeline.storage.lease import Lease

FOLDER = "lambda-two_room-quick"


def iso(ago_s):
    return datetime.fromtimestamp(time.time() - ago_s, UTC).isoformat(timespec="seconds")


def begin(storage, num_trials, stages=("latents", "planning")):
    """A sweep's description with nothing done."""
    config = make_config({"optim.num_steps": 100, "optim.num_threads": 2, "planning.eval_seeds": [1, 2]})  # fmt: skip
    data = config.model_dump(mode="json")
    trials = [
        {"trial_id": f"t{i:04d}", "point": "loss.lam=0.1", "seed": i, "config": data}
        for i in range(num_trials)
    ]
    worlds = [{"variants": [{"eval_point": "", "config": data}]}]
    sweep = {"folder": FOLDER, "trials": trials, "worlds": worlds, "stages": list(stages)}
    storage.write_json(f"sweeps/{FOLDER}/sweep.json", sweep)
    return [trial["trial_id"] for trial in trials]


def end(storage, trial_id, how="done", **fields):
    marker = {
        "status": how,
        "error": None,
        "attempts": 1,
        "wall_s": 1800.0,
        "num_steps": 100,
        "started_at": iso(3600),
        "finished_at": iso(1800),
        "device": "cpu",
    }
    storage.write_json(f"trials/{trial_id}/done.json", marker | fields)


def cell(storage, trial_id, name, how="done"):
    folder = f"trials/{trial_id}/cells"
    if how == "done":
        storage.write_bytes(f"{folder}/{name}.parquet", b"rows")
    storage.write_json(f"{folder}/{name}.json", {"status": how, "error": "ValueError: odd"})


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path)


def read(storage, **prices):
    return status.read_status(storage, FOLDER, prices)


def test_a_sweep_that_only_began(storage):
    begin(storage, 3)
    seen = read(storage)
    assert seen.trials == {"waiting": 3} and seen.driver is None and seen.report is None
    assert seen.cells == {
        "latents": {"done": 0, "failed": 0, "expected": 3},
        "planning": {"done": 0, "failed": 0, "expected": 12},  # 2 protocols x 2 eval seeds
    }
    assert seen.trials_per_h is None and seen.eta_s is None and seen.cost is None
    assert "report   not yet" in status.lines(seen)


def test_a_sweep_that_runs(storage):
    ids = begin(storage, 4)
    driver = Lease(storage, f"sweeps/{FOLDER}/owner.json")
    driver.acquire()
    beat = {"at": iso(2), "started_at": iso(3600), "phase": "training", "workers": 2}
    storage.write_json(f"sweeps/{FOLDER}/driver.json", beat)
    end(storage, ids[0])
    running = Lease(storage, f"trials/{ids[1]}/owner.json")
    running.acquire()
    storage.write_json(f"trials/{ids[1]}/progress.json", {"step": 60, "num_steps": 100})
    row = {"started_at": iso(1800), "finished_at": None, "wall_s": None, "from_step": 20}
    lost = {"started_at": iso(3000), "finished_at": None, "wall_s": None, "from_step": 0}
    storage.write_json(f"trials/{ids[1]}/attempts.json", {"rows": [lost, row]})
    seen = read(storage, trial=2.0)
    assert seen.state == "running" and seen.driver["phase"] == "training"
    assert seen.trials == {"done": 1, "running": 1, "waiting": 2}
    assert seen.running == [{"trial": "loss.lam=0.1 seed=1", "step": 60, "num_steps": 100}]
    assert seen.steps_per_s == pytest.approx((100 + 40) / 3600, rel=0.01)
    assert seen.trials_per_h == pytest.approx(1.0, rel=0.01)
    assert seen.eta_s == pytest.approx((40 + 200) / (140 / 3600), rel=0.01)
    assert seen.trial_hours == pytest.approx(1.0, rel=0.01) and seen.lost_attempts == 1
    assert seen.cost == pytest.approx(2.0, rel=0.01)
    assert seen.cpu_hours == pytest.approx(2.0, rel=0.01) and seen.gpu_hours == 0
    running.release()
    driver.release()
    after = read(storage)
    assert after.trials == {"done": 1, "waiting": 3} and after.driver is None


def test_a_sweep_whose_driver_was_killed_does_not_run(storage):
    begin(storage, 1)
    storage.write_json(f"sweeps/{FOLDER}/state.json", {"state": "running"})
    lease = Lease(storage, f"sweeps/{FOLDER}/owner.json")
    lease.acquire()
    assert read(storage).driver is not None
    owner = storage.read_json(f"sweeps/{FOLDER}/owner.json")
    child = subprocess.Popen(["true"])
    child.wait()
    storage.write_json(f"sweeps/{FOLDER}/owner.json", owner | {"pid": child.pid})
    seen = read(storage)
    assert seen.driver is None and seen.state == "interrupted"


def test_a_sweep_that_ended_with_failures(storage):
    ids = begin(storage, 4)
    end(storage, ids[0], device="cuda", attempts=2)
    rows = [{"started_at": iso(7200 - 1800 * i), "finished_at": iso(5400 - 1800 * i),
             "wall_s": 1800.0, "from_step": 50 * i} for i in range(2)]  # fmt: skip
    storage.write_json(f"trials/{ids[0]}/attempts.json", {"rows": rows})
    end(storage, ids[1], "diverged", device="cuda")
    end(storage, ids[2], "failed", error="RuntimeError: " + "long " * 50, device=None)
    end(storage, ids[3], device="cuda")
    for name in ("latents-a1", "planning-b1", "planning-b2"):
        cell(storage, ids[0], name)
    cell(storage, ids[0], "planning-b3", "failed")
    storage.write_bytes(f"sweeps/{FOLDER}/report/index.html", b"page")
    seen = read(storage, gpu=1.0, cpu=0.5)
    assert seen.trials == {"done": 2, "diverged": 1, "failed": 1}
    assert seen.cells["latents"] == {"done": 1, "failed": 0, "expected": 2}
    assert seen.cells["planning"] == {"done": 2, "failed": 1, "expected": 8}
    assert seen.gpu_hours == pytest.approx(2.5) and seen.trial_hours == pytest.approx(2.5)
    assert seen.cost == pytest.approx(2.5 * 1.0 + 2.5 * 2 * 0.5)
    assert (
        seen.errors[0].startswith("loss.lam=0.1 seed=2: RuntimeError")
        and len(seen.errors[0]) == 160
    )
    assert seen.errors[1] == "loss.lam=0.1 seed=0 planning: ValueError: odd"
    assert seen.report == storage.where(f"sweeps/{FOLDER}/report/index.html")
    assert json.loads(json.dumps(status.asdict(seen)))["sweep"] == FOLDER


def test_a_thousand_trials_take_two_seconds(storage):
    """The bound of the issue, interpreter and imports included."""
    ids = begin(storage, 1000)
    end(storage, ids[0])
    marker = storage.read_bytes(f"trials/{ids[0]}/done.json")
    for trial_id in ids[:750]:  # not through Storage, which would wait for the disk 8,250 times
        cells = storage.path(f"trials/{trial_id}/cells")
        cells.mkdir(parents=True, exist_ok=True)
        (cells.parent / "done.json").write_bytes(marker)
        for n in range(5):
            (cells / f"planning-{n}.parquet").write_bytes(b"rows")
            (cells / f"planning-{n}.json").write_bytes(b"{}")
    command = [sys.executable, "-m", "pipeline.status", FOLDER, "--storage", str(storage.root)]
    took = []
    for _ in range(2):  # the better of two: a busy machine is not ours to answer for
        began = time.monotonic()
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        took.append(time.monotonic() - began)
    assert "750 done, 250 waiting" in shown.stdout
    assert min(took) < 2.0


def test_the_command_line(storage, capsys):
    begin(storage, 1)
    root = ["--storage", str(storage.root)]
    assert status.main(["lambda", *root, "--json", "--watch"]) == 0
    assert json.loads(capsys.readouterr().out)["trials"] == {"waiting": 1}
    for wrong in (["--price", "gpu"], ["--price", "tpu=1"], ["--price", "gpu=x"]):
        assert status.main(["lambda", *root, *wrong]) == 2
        assert "expected gpu=1.2,cpu=0.05" in capsys.readouterr().err
    assert status.main(["lamda", *root]) == 2
    assert "did you mean" in capsys.readouterr().err
    assert status.main(["../lambda", *root]) == 2
