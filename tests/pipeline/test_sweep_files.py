"""Every sweep that ships: it resolves in every profile, and runs from end to end at profile tiny."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.claims import VERDICTS
from pipeline.resolve import resolve
from pipeline.shipped import load_toml, package_folder
from pipeline.spec import Request, Trial
from pipeline.tables import read_table

HIDDEN = {"published", "paper", "smoke"}
SWEEPS = sorted({path.stem for path in package_folder().glob("*.toml")} - HIDDEN)
ALIKE = {
    *("dropout", "embedding_dim", "encoder", "knots", "lambda", "lambda_bisect", "lambda_optuna"),
    *("predictor_size", "probing", "projections", "straightening", "surprise"),
}
"""Sweeps whose machinery others run too: half a minute each, by hand (`pytest -m slow`)."""
PROFILES = sorted(path.stem for path in (package_folder() / "profiles").glob("*.toml"))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_resolves_in_every_profile(name: str, profile: str) -> None:
    table = load_toml(package_folder() / f"{name}.toml")
    assert table["name"] == name and table["question"].endswith("?")
    spec = resolve(Request(name, profile))
    assert spec.profile == profile and spec.question == table["question"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One storage: the sweeps share what they have in common."""
    return tmp_path_factory.mktemp("runs")


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in ALIKE else pytest.mark.ci) for n in SWEEPS],
)
def test_a_sweep_ends_in_its_report_at_profile_tiny(name: str, runs: Path) -> None:
    command = [sys.executable, "-m", "pipeline.sweep", name, "--profile", "tiny"]
    done = subprocess.run([*command, "--storage", str(runs)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    spec = resolve(Request(name, "tiny"))
    folder = runs / "sweeps" / spec.folder
    assert (folder / "report" / "index.html").stat().st_size > 100_000
    trials = read_table(folder, "trials")
    assert trials.height >= len(spec.trials)
    assert set(trials["status"]) <= {"done", "stopped", "unavailable"}
    told = set(read_table(folder, "summary")["quantity"])
    assert ("plan_seconds" if spec.times else "verdict") in told


@pytest.mark.ci
@pytest.mark.timeout(120)
def test_the_programme_ends_in_the_page_of_claims(runs: Path) -> None:
    """What the sweeps above have trained is not trained again."""
    words = ["paper", "--sweeps", "seeds", "--profile", "tiny", "--storage", str(runs)]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.sweep", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = read_table(runs / "reproduction", "claims")
    assert set(found["profile"].drop_nulls()) == {"tiny"}
    numbers = found.filter(kind="absolute", claim="seeds")
    assert set(numbers["verdict"]) == {"not tested at this scale"}  # Two-Room, not Push-T
    learns = found.filter(claim="learns-two_room").row(0, named=True)
    assert learns["ours"] is not None and learns["n"] == 2
    assert learns["verdict"] in VERDICTS[:3]


ABLATIONS = (
    "predictor_size",
    "encoder",
    "dropout",
    "planners",
    "embedding_dim",
    "projections",
    "knots",
    "probing",
    "surprise",
    "straightening",
)
QUICK_BUDGET_S = 8 * 60
AT_ONCE = 2
"""Trials side by side on the 2 cores that the profile's estimate was measured on."""


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_names_the_table_or_figure_it_asks_about(name: str) -> None:
    text = (package_folder() / f"{name}.toml").read_text()
    head = "".join(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines(True)))
    assert re.search(r"(Tables? \d|Fig\. \d|App\. [A-Z])", head)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_shares_the_default_trials(name: str, profile: str) -> None:
    """Those of `seeds`, in the worlds they have in common; an ablation of evaluation trains no other."""
    seeds = _trials("seeds", profile)
    own = {t.config.method for t in resolve(Request(name, profile)).trials}
    shared = {i for i, trial in seeds.items() if trial.config.method in own}
    assert shared and shared <= set(_trials(name, profile))
    if name == "planners":
        assert shared == set(_trials(name, profile))


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_costs_quick_eight_minutes_beyond_shared_trials(name: str) -> None:
    before = ("seeds", "probing") if name == "surprise" else ("seeds",)
    shared = {key for other in before for key in _trials(other, "quick")}
    spec = resolve(Request(name, "quick"))
    cost_s = 0.0
    for trial in spec.trials:
        estimate = spec.world(trial).estimate
        cost_s += estimate["evaluate_s"]
        if trial.trial_id not in shared:
            cost_s += (trial.config.optim.num_steps or 0) * estimate["seconds_per_step"]
    assert cost_s / AT_ONCE <= QUICK_BUDGET_S


@pytest.mark.parametrize("profile", sorted(set(PROFILES) - {"tiny"}))
def test_predictor_sizes_halve_and_double_the_profiles_own(profile: str) -> None:
    sizes = {
        trial.point.removeprefix("predictor="): trial.config.model
        for trial in resolve(Request("predictor_size", profile)).trials
    }
    tiny, small, base = (sizes[size] for size in ("tiny", "small", "base"))
    assert tiny.predictor_depth == small.predictor_depth // 2
    assert base.predictor_depth == small.predictor_depth * 2
    assert tiny.predictor_mlp * 2 == small.predictor_mlp == base.predictor_mlp // 2


def _trials(name: str, profile: str) -> dict[str, Trial]:
    return {trial.trial_id: trial for trial in resolve(Request(name, profile)).trials}


def test_every_tiny_sweep_of_lewm_trains_the_same_default() -> None:
    assert set(_trials("lambda", "tiny")) & set(_trials("seeds", "tiny"))
