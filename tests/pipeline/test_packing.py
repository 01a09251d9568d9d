"""Trials side by side: capped memory, out of memory answered by packing less, shares that fit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import tuner
from pipeline.cluster import _check_memory
from pipeline.options import Options
from pipeline.progress import Progress
from pipeline.resolve import resolve
from pipeline.spec import Request
from pipeline.storage import Storage, read_marker
from pipeline.storage.lease import Lease
from pipeline.training import Training
from pipeline.trial import OUT_OF_MEMORY, _is_out_of_memory

ROOT = Path(__file__).parents[2]
CAPPED = """
import json, psutil
from pipeline import trial
total = psutil.virtual_memory().total
trial._cap_memory(total // (600 << 20))
import torch
ok = torch.zeros(10 << 20)
try:
    torch.zeros(800 << 20, dtype=torch.uint8).sum()
    said = "fits"
except Exception as error:
    said = trial._is_out_of_memory(error)
print(json.dumps(said))
"""


def test_a_capped_process_is_refused_memory_instead_of_taking_its_neighbours():
    done = subprocess.run([sys.executable, "-c", CAPPED], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) is True


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_what_is_out_of_memory(error, wanted):
    assert _is_out_of_memory(error) is wanted


def test_more_than_the_memory_allows_is_one_line():
    nodes = [{"CPU": 2.0, "memory": 16 * 2.0**30}, {"memory": 2.0**30}]
    _check_memory(10, 1.5, nodes)
    _check_memory(100, None, nodes)
    with pytest.raises(ValueError, match=r"--trials-per-node 11: .* 1\.5 GB.* at most 10"):
        _check_memory(11, 1.5, nodes)


def test_what_does_not_fit_is_trained_with_fewer_side_by_side(tmp_path, monkeypatch, capsys):
    spec = resolve(Request("smoke"))
    storage = Storage(tmp_path)
    lease = Lease(storage, "o.json")
    training = Training(spec, storage, Options("c", per_node=3), lease, None, lambda: False)
    seen = []

    def run_trials(tasks, share, on_report, stopped, retries):
        seen.append((tasks[0].packed, [task.trial_id for task in tasks]))
        ends = {}
        for place, task in enumerate(tasks):
            fits = place == 0 or task.packed == 1
            ends[task.trial_id] = "done" if fits else OUT_OF_MEMORY
            if fits:
                storage.write_json(f"{task.key}/done.json", {"status": "done"})
        return ends

    monkeypatch.setattr(tuner, "run_trials", run_trials)
    monkeypatch.setattr(Training, "share_out", lambda self: None)
    progress = Progress({t.trial_id: spec.label(t) for t in spec.trials}, {}, None, 2)
    training._run_trials(spec.trials, None, progress, None, {})
    assert [packed for packed, _ in seen] == [3, 2, 1]
    assert [len(ids) for _, ids in seen] == [4, 3, 2]
    assert {read_marker(storage, t.trial_id)["status"] for t in spec.trials} == {"done"}
    said = " ".join(capsys.readouterr().err.split())
    assert "out of memory with 3 trials side by side: going on with 2" in said
