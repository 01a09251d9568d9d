"""Axes of a sweep: config keys, composite axes, several methods; what they set and who shares trials."""

from pathlib import Path

import pytest

from pipeline.axes import check_settings, make_axes
from pipeline.record import merge
from pipeline.record import write as write_record
from pipeline.resolve import NOT_SWEPT, resolve
from pipeline.spec import Request
from pipeline.storage import Storage

SIZES = {"size": {"tiny": {"model.predictor_depth": 1}, "base": {"model.predictor_mlp": 512}}}
SWEEP = """
name = "sized"
method = "lewm"
seeds = [0]
[grid]
size = ["tiny", "small", "base"]
[axis.size.tiny]
"model.predictor_depth" = 1
"model.predictor_mlp" = 64
[axis.size.base]
"model.predictor_mlp" = 512
[evaluate.grid]
"planning.budget" = ["short", "long"]
[axis."planning.budget".short]
"planning.num_iterations" = 2
[profile.paper.axis.size.tiny]
"model.predictor_depth" = 2
[profile.paper]
envs = ["push_t"]
"""


@pytest.fixture
def sized(tmp_path):
    def make(text: str = SWEEP) -> str:
        (tmp_path / "sized.toml").write_text(text)
        return str(tmp_path / "sized.toml")

    return make


def test_points_are_all_combinations_and_a_value_without_a_table_sets_nothing():
    axes = make_axes({"size": ["tiny", "small"], "loss.lam": [0.1, 0.3]}, SIZES, NOT_SWEPT, "here")
    found = [(point.named["size"], point.overrides) for point in axes.points()]
    tiny = {"model.predictor_depth": 1}
    assert found == [
        ("tiny", {**tiny, "loss.lam": 0.1}),
        ("tiny", {**tiny, "loss.lam": 0.3}),
        ("small", {"loss.lam": 0.1}),
        ("small", {"loss.lam": 0.3}),
    ]
    assert set(axes.keys) == {"loss.lam", "model.predictor_depth", "model.predictor_mlp"}
    assert [p.overrides for p in make_axes({}, SIZES, NOT_SWEPT, "here").points()] == [{}]


def test_a_composite_axis_names_the_point_and_sets_what_its_table_says(sized):
    spec = resolve(Request(sized()))
    assert spec.points == ["size=tiny", "size=small", "size=base"]
    tiny, small, base = (trial.config.model for trial in spec.trials)
    assert (tiny.predictor_depth, tiny.predictor_mlp) == (1, 64)
    assert (small.predictor_depth, small.predictor_mlp) == (3, 256)
    assert (base.predictor_depth, base.predictor_mlp) == (3, 512)
    variants = dict(spec.worlds[0].variants)
    budgets = {point: config.planning.num_iterations for point, config in variants.items()}
    assert budgets == {"planning.budget=short": 2, "planning.budget=long": 6}
    paper = resolve(Request(sized(), profile="paper"))
    assert paper.trials[0].config.model.predictor_depth == 2
    assert paper.envs == ["push_t"]


def test_the_value_that_sets_nothing_is_the_trial_other_sweeps_have_trained(sized):
    plain = resolve(Request("lambda", grid={"loss.lam": [0.03]}, seeds=(0,)))
    assert plain.trials[0].trial_id in {t.trial_id for t in resolve(Request(sized())).trials}


def test_a_sweep_takes_further_values_but_no_other_meaning_of_one(sized, tmp_path):
    storage = Storage(tmp_path / "runs")
    first = resolve(Request(sized(), grid={"size": ["tiny"]}))
    write_record(first, storage, "command", None)
    merged = merge(resolve(Request(sized(), grid={"size": ["base"]})), storage)
    assert merged.points == ["size=base", "size=tiny"]
    assert {"axis.size.tiny", "axis.size.base"} <= set(merged.base)
    write_record(merged, storage, "command", None)
    other = SWEEP.replace('"model.predictor_mlp" = 512', '"model.predictor_mlp" = 128')
    with pytest.raises(ValueError, match=r"axis\.size\.base = .*512.*128"):
        merge(resolve(Request(sized(other), grid={"size": ["tiny", "base"]})), storage)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("size = [", "sise = ["), r"unknown key 'sise' \(did you mean 'size'\?\)"),
        (("predictor_depth", "predictor_dept"), r"did you mean 'model.predictor_depth'\?"),
        (("[axis.size.base]", '[axis."loss.lam".base]'), "that is a config key"),
        (('"model.predictor_mlp" = 512', '"planning.horizon" = 3'), "cannot be an axis"),
        (('"planning.num_iterations" = 2', '"loss.lam" = 2.0'), "evaluate: 'loss.lam' cannot"),
        (("[axis.size.base]", "[axis.size]\nbase = 3\n[set]"), "holds tables"),
    ],
)
def test_bad_axes_are_one_line(sized, change, message):
    assert change[0] in SWEEP
    with pytest.raises(ValueError, match=message):
        resolve(Request(sized(SWEEP.replace(*change))))


def test_a_setting_of_an_axis_cannot_be_set_beside_it(sized):
    with pytest.raises(ValueError, match="an axis of this sweep sets it"):
        resolve(Request(sized(), overrides={"model.predictor_mlp": 3}))


def test_axis_tables_are_checked():
    assert check_settings(SIZES, "here") is SIZES
    for wrong in (3, {"size": 3}, {"size": {"tiny": 3}}):
        with pytest.raises(ValueError, match="holds tables"):
            check_settings(wrong, "here")


def test_methods_share_no_identity_through_settings_they_do_not_read(tmp_path):
    both = resolve(Request("seeds"))
    assert [world.name for world in both.worlds] == [
        f"{method} two_room" for method in ("lewm", "pldm", "dino_wm")
    ]
    assert both.folder == "seeds-multi-quick"
    assert [both.label(t) for t in both.trials[2:4]] == ["lewm seed=2", "pldm seed=0"]
    lewm = {t.trial_id for t in resolve(Request("lambda")).trials}
    assert len(lewm & {t.trial_id for t in both.trials}) == 3
    (tmp_path / "one.toml").write_text('method = "pldm"\n[set]\n"loss.lam" = 7.0\n')
    pldm = resolve(Request(str(Path(tmp_path / "one.toml"))))
    assert pldm.trials[0].trial_id == both.trials[3].trial_id
    (tmp_path / "two.toml").write_text('method = "lewm"\n[set]\n"pldm.variance" = 7.0\n')
    (tmp_path / "three.toml").write_text('method = "lewm"\n')
    two, three = (resolve(Request(str(tmp_path / f"{n}.toml"))) for n in ("two", "three"))
    assert two.trials[0].trial_id == three.trials[0].trial_id
