"""What a cell's identity is made of."""

from lewm.config import make_config
from pipeline.cells import ADDED_LATER, section_of


def test_a_setting_younger_than_stored_cells_counts_once_it_is_used() -> None:
    plain = section_of(make_config({}), "planning")
    assert "gradient_optimiser" not in plain and plain["gradient_lr"] == 0.1
    chosen = section_of(make_config({"planning.gradient_optimiser": "sgd"}), "planning")
    assert chosen == {**plain, "gradient_optimiser": "sgd"}


def test_what_is_left_out_is_the_default() -> None:
    for name, later in ADDED_LATER.items():
        section = getattr(make_config({}), name)
        assert {key: getattr(section, key) for key in later} == later
