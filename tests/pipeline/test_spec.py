"""Sweeps, profiles and overrides resolve to the right trials; bad input is one line."""

import subprocess
import sys

import pytest

from lewm.identity import trial_id
from lewm.methods import METHODS
from lewm.overrides import make_config
from lewm.planners import PLANNERS
from pipeline import spec
from pipeline.resolve import resolve
from pipeline.spec import Request
from pipeline.stages import STAGES


def run(*args, cwd=None):
    return subprocess.run([sys.executable, "-m", *args], capture_output=True, text=True, cwd=cwd)


def test_names_known_to_the_spec_are_those_of_the_registries():
    assert set(spec.METHOD_NAMES) <= set(METHODS)
    assert set(spec.PLANNER_NAMES) == set(PLANNERS)
    assert set(spec.STAGE_NAMES) == set(STAGES)


@pytest.mark.parametrize("profile", ["quick", "small", "paper"])
@pytest.mark.parametrize("sweep", ["lambda", "smoke", "environments"])
def test_every_profile_resolves(sweep, profile):
    found = resolve(Request(sweep, profile=profile))
    assert len(found.trials) == len(found.worlds) * len(found.points) * len(found.seeds)
    where = {"environments": "multi", ("lambda", "paper"): "push_t"}
    place = where.get(sweep) or where.get((sweep, profile), "two_room")
    assert found.folder == f"{sweep}-{place}-{profile}"


def test_several_worlds_have_settings_of_their_own_and_share_trials_by_identity():
    every = resolve(Request("environments"))
    assert every.envs == ["two_room", "push_t", "reacher", "cube"] and every.points == [""]
    policies = {trial.config.data.env: trial.config.data.policy for trial in every.trials}
    assert policies["push_t"] == "weak+pusher" and policies["two_room"] == "expert"
    assert all(set(w.protocols) == {"paper", "moderate", "strict"} for w in every.worlds)
    one = resolve(Request("environments", envs=("push_t",)))
    assert one.folder == "environments-push_t-quick"
    assert {t.trial_id for t in one.trials} < {t.trial_id for t in every.trials}
    lam = {t.trial_id for t in resolve(Request("lambda")).trials}
    assert len(lam & {t.trial_id for t in every.trials}) == 3
    two = resolve(Request("environments", envs=("push_t", "cube")))
    assert two.folder.startswith("environments-multi-quick-")
    with pytest.raises(ValueError, match=r"worlds = .*two_room"):
        spec.check_base(every.base, two.base, every.folder)
    with pytest.raises(ValueError, match="one environment"):
        resolve(Request("environments", dataset="file.h5"), "fingerprint")


def test_paper_profile_is_the_published_configuration():
    config = resolve(Request("lambda", profile="paper")).trials[0].config
    assert (config.model.image_size, config.model.width, config.model.depth) == (224, 192, 12)
    assert (config.optim.lr, config.optim.batch_size, config.optim.num_epochs) == (5e-5, 128, 10)
    assert config.optim.precision == "bf16"


def test_a_further_seed_adds_trials_and_changes_none():
    three = resolve(Request("lambda"))
    four = resolve(Request("lambda", seeds=(0, 1, 2, 3)))
    ids = {trial.trial_id for trial in three.trials}
    assert ids < {trial.trial_id for trial in four.trials}
    assert len(four.trials) - len(three.trials) == len(three.points)
    assert four.folder == three.folder


def test_identity_knows_training_fields_only():
    base = make_config({})
    assert trial_id(base) == trial_id(make_config({"run.device": "cpu", "planning.num_pairs": 7}))
    assert trial_id(base) != trial_id(make_config({"loss.lam": 0.1}))
    assert trial_id(base) != trial_id(make_config({"optim.num_threads": 2}))


def test_an_override_names_another_sweep_and_later_layers_win():
    plain = resolve(Request("lambda"))
    other = resolve(Request("lambda", overrides={"optim.lr": 5e-4}))
    assert other.folder.startswith(f"{plain.folder}-")
    assert {trial.config.optim.lr for trial in other.trials} == {5e-4}
    assert resolve(Request("smoke")).trials[0].config.optim.num_steps == 40


def test_a_changed_base_is_refused_by_key():
    was, now = resolve(Request("lambda")), resolve(Request("lambda", overrides={"optim.lr": 1.0}))
    with pytest.raises(ValueError, match=r"optim\.lr = .*another name"):
        spec.check_base(was.base, now.base, was.folder)
    spec.check_base(was.base, was.base, was.folder)


BAD = {
    "unknown sweep": (["lamda"], "did you mean 'lambda'"),
    "unknown profile": (["lambda", "--profile", "quik"], "did you mean 'quick'"),
    "unknown env": (["lambda", "--env", "two_rom"], "did you mean 'two_room'"),
    "unknown key": (["lambda", "--set", "loss.lamb=1"], "did you mean 'loss.lam'"),
    "unknown planner": (["lambda", "--set", "planning.planner=cm"], "did you mean 'cem'"),
    "unknown protocol": (["lambda", "--set", 'planning.protocols=["strit"]'], "'strict'"),
    "out of range": (["lambda", "--grid", "loss.lam=-1"], "loss.lam"),
    "wrong type": (["lambda", "--set", "optim.lr=fast"], "optim.lr"),
    "an axis set": (["lambda", "--set", "loss.lam=0.1"], "use --grid loss.lam"),
    "no seeds": (["lambda", "--seeds", ","], "--seeds"),
    "duplicate seeds": (["lambda", "--seeds", "1,1"], "given twice"),
    "not an assignment": (["lambda", "--set", "optim.lr"], "key=value"),
    "missing file": (["none.toml"], "none.toml"),
    "missing dataset": (["lambda", "--dataset", "none.h5"], "none.h5"),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_input_is_one_line_and_leaves_nothing_behind(case, tmp_path, capsys):
    from pipeline.sweep import main

    args, expected = BAD[case]
    assert main([*args, "--storage", str(tmp_path / "runs")]) == 2
    message = capsys.readouterr().err
    assert expected in message and message.count("\n") == 1, message
    assert not (tmp_path / "runs").exists()


def test_bad_toml_names_file_and_line(tmp_path, capsys):
    from pipeline.sweep import main

    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\nseeds = [0\n[grid]\n')
    assert main([str(path), "--storage", str(tmp_path / "runs")]) == 2
    assert "mine.toml" in (message := capsys.readouterr().err) and "line 3" in message
    for text, expected in {
        'name = "x"\nstages = ["planing"]': "did you mean 'planning'",
        'name = "x"\nsedes = [0]': "did you mean 'seeds'",
        'name = "x"\nseeds = []': "seeds is empty",
        'name = "x"\n[grid]\n"loss.lam" = []': "non-empty",
    }.items():
        path.write_text(text)
        assert main([str(path), "--storage", str(tmp_path / "runs")]) == 2
        assert expected in capsys.readouterr().err


def test_unwritable_storage_is_refused(tmp_path, capsys):
    from pipeline.sweep import main

    (tmp_path / "file").write_text("")
    assert main(["smoke", "--storage", str(tmp_path / "file" / "runs")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_dry_run_and_help_import_neither_torch_nor_ray_nor_mlflow(tmp_path):
    code = (
        "import sys; from pipeline.sweep import main\n"
        f"assert main(['lambda', '--dry-run', '--storage', {str(tmp_path)!r}]) == 0\n"
        "bad = {'torch', 'ray', 'mlflow'} & set(sys.modules); assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "15 trials" in done.stdout and "estimate" in done.stdout
    helped = run("pipeline.sweep", "--help")
    assert helped.returncode == 0 and "--dry-run" in helped.stdout


def test_the_length_of_training_is_an_axis_like_any_other():
    found = resolve(Request("lambda", grid={"optim.num_steps": [100, 200]}))
    lengths = {(t.config.optim.num_steps, t.config.optim.num_epochs) for t in found.trials}
    assert lengths == {(100, None), (200, None)}
