"""What a cell's identity is made of."""

import pytest

from lewm.overrides import make_config
from pipeline.cells import ADDED_LATER, ManifestRef, dataset_name, floor_cells, section_of
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
