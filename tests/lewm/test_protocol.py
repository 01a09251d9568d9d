import tomllib
from pathlib import Path

import pytest

from lewm.protocol import Protocol, protocol_from_dict

TOML = Path(__file__).parents[2] / "sweeps/protocols/two_room.toml"
TABLES = tomllib.loads(TOML.read_text())


def protocol(name: str, **changes) -> Protocol:
    return protocol_from_dict("two_room", name, {**TABLES[name], **changes})


def test_shipped_protocols_say_what_the_design_says():
    paper, moderate, strict = (protocol(name) for name in ("paper", "moderate", "strict"))
    assert (paper.episodes, paper.pre_solved, paper.sampling) == ("train", "kept", "rows_old")
    assert paper.options == {"collision": "endpoint"} and paper.success == {"distance_px": 16.0}
    for closed, distance in ((moderate, 16.0), (strict, 8.0)):
        assert (closed.episodes, closed.pre_solved) == ("held_out", "dropped")
        assert closed.options == {"collision": "swept"} and closed.success["cross_room"] is True
        assert closed.success["distance_px"] == distance
    assert strict.success["goal_side"] is True
    for rule in (paper, moderate, strict):
        assert (rule.goal_offset, rule.budget, rule.hold, rule.history) == (25, 50, 1, 1)


def test_options_and_history_may_be_left_out():
    table = {key: value for key, value in TABLES["strict"].items() if key != "history"}
    del table["options"]
    rule = protocol_from_dict("two_room", "bare", table)
    assert rule.options == {} and rule.history == 1
    assert protocol("strict", history=3).history == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre_solvd": "kept"}, r"two_room\.strict.*'pre_solvd'.*did you mean 'pre_solved'"),
        (
            {"sampling": "row"},
            r"sampling must be one of rows, rows_old, one_per_episode, got 'row'",
        ),
        ({"hold": 0}, r"hold must be a whole number >= 1, got 0"),
        ({"budget": 50.0}, r"budget must be a whole number"),
        ({"success": {"distance_pxx": 8.0}}, r"strict\.success.*did you mean 'distance_px'"),
        ({"success": {"goal_side": 1}}, r"goal_side must be true or false, got 1"),
        ({"success": {"distance_px": True}}, r"distance_px must be a number, got True"),
        ({"success": {"distance_px": 0.0}}, r"distance_px must be above 0"),
        ({"success": 8.0}, r"success must be a table"),
        ({"options": {"collision": "sweep"}}, r"collision must be endpoint or swept, got 'sweep'"),
        ({"options": "swept"}, r"options must be a table, got 'swept'"),
        ({"options": {"colision": "swept"}}, r"two_room\.strict: options .*colision"),
        ({"history": 0}, r"history must be a whole number >= 1, got 0"),
        ({"sampling": "rows"}, r"episodes held_out needs sampling one_per_episode"),
    ],
)
def test_bad_tables_are_one_clear_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        protocol("strict", **changes)
    assert "\n" not in str(caught.value)


def test_missing_keys_and_unknown_env_are_named():
    with pytest.raises(ValueError, match=r"two_room\.x: missing .*budget"):
        protocol_from_dict("two_room", "x", {"episodes": "train"})
    with pytest.raises(ValueError, match="two_room"):
        protocol_from_dict("two_rom", "paper", TABLES["paper"])
