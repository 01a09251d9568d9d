"""What a cell's identity is made of."""

import json
from pathlib import Path

import pytest
import torch

from lewm.overrides import make_config
from pipeline.cell_runner import EvaluateTask, run_cells
from pipeline.cells import ADDED_LATER, Cell, ManifestRef, dataset_name, floor_cells, section_of
from pipeline.resolve import resolve
from pipeline.spec import Request


def test_a_setting_younger_than_stored_cells_counts_once_it_is_used() -> None:
    plain = section_of(make_config({}), "planning")
    assert "gradient_optimiser" not in plain and plain["gradient_lr"] == 0.1
    chosen = section_of(make_config({"planning.gradient_optimiser": "sgd"}), "planning")
    assert chosen == {**plain, "gradient_optimiser": "sgd"}


def test_what_is_left_out_is_the_default() -> None:
    for name, later in ADDED_LATER.items():
        section = getattr(make_config({}), name)
        assert {key: getattr(section, key) for key in later} == later


@pytest.mark.parametrize(("hashes", "num_cells"), [(("a", "a"), 3), (("a", "b"), 6)])
def test_the_same_pairs_are_one_floor_whatever_their_pictures(
    hashes: tuple[str, str], num_cells: int
) -> None:
    spec = resolve(Request("seeds", profile="tiny"))
    names = sorted({dataset_name(trial.config, None) for trial in spec.trials})
    assert len(names) == 2  # DINO-WM sees other frames of the same episodes
    manifests = {
        (name, "strict", 42, 4): ManifestRef(f"manifests/{name}", found, {}, "strict", 42, 4)
        for name, found in zip(names, hashes, strict=True)
    }
    cells = floor_cells(spec, manifests)
    assert len(cells) == num_cells and len({cell.cell_id for cell in cells}) == num_cells


@pytest.mark.parametrize(
    ("error", "tried_again"),
    [
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (torch.AcceleratorError("CUDA error: no kernel image is available"), False),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), True),
    ],
)
def test_a_failed_cell_is_a_marker_and_a_lost_device_another_process(
    error: RuntimeError, tried_again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr("pipeline.cell_runner._read_manifest", lambda *_: None)
    monkeypatch.setattr("pipeline.stages.planning.run_floor", broken)
    cell = Cell("two_room", "planning", "abc", "baselines/b", {"planner": "random"}, "")
    task = EvaluateTask(str(tmp_path), None, None, None, (cell,))
    if tried_again:
        with pytest.raises(OSError, match="the device failed: CUDA error"):
            run_cells(task)
        assert not (tmp_path / cell.marker).exists()
    else:
        assert run_cells(task) == 1
        marker = json.loads((tmp_path / cell.marker).read_text())
        assert marker["status"] == "failed" and str(error) in marker["error"]
