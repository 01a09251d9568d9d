"""The programme of all sweeps: costs count shared trials once; a subset runs, and goes on when one fails."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from lewm.spelling import nearest
from pipeline import programme, sweep
from pipeline.dry_run import num_steps
from pipeline.programme import Cost, choose, costs, wall_hours
from pipeline.resolve import resolve
from pipeline.shipped import load_programme, package_folder
from pipeline.spec import Request
from pipeline.storage import Storage
from pipeline.tables import read_table

THERE = [name for name in load_programme() if (package_folder() / f"{name}.toml").is_file()]


class Sweeps:
    """Stands for the processes: what was asked of them, and how they end."""

    def __init__(self, ends: dict[str, tuple[int, str]]) -> None:
        self.ends = ends
        self.commands: list[list[str]] = []

    def __call__(self, words: Sequence[str]) -> tuple[int, str]:
        self.commands.append(list(words))
        return self.ends.get(words[0], (0, ""))


def run(words: list[str], sweeps: Sweeps) -> int:
    return programme.main(sweep.parse(["paper", *words]), sweeps)


def _hours(name: str, method: str, num_trials: int) -> float:
    """Of a method's trials as its profile prices them, with one evaluation each."""
    spec = resolve(Request(name))
    trial = next(t for t in spec.trials if t.config.method == method)
    price = spec.world(trial).estimate
    seconds = num_steps(trial.config) * price["seconds_per_step"] + price["evaluate_s"]
    return float(num_trials * seconds / 3600)


def test_trials_of_earlier_sweeps_are_shared_by_identity(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    first, second = costs(["lambda", "seeds"], "quick", storage)
    of = {name: {t.trial_id for t in resolve(Request(name)).trials} for name in ("lambda", "seeds")}
    both = of["lambda"] & of["seeds"]
    assert len(both) == 3  # LeWM at the middle of the plateau
    assert (first.num_shared, second.num_shared) == (0, len(both))
    assert (first.num_trials, second.num_trials) == (len(of["lambda"]), len(of["seeds"]))
    alone = costs(["seeds"], "quick", storage)[0]
    assert alone.num_shared == 0 and alone.hours is not None and second.hours is not None
    lewm = _hours("seeds", "lewm", 3)  # trained and evaluated alike by `lambda`
    assert second.hours == pytest.approx(alone.hours - lewm)
    assert sum(one.hours or 0 for one in (first, second)) == pytest.approx(
        sum(one.hours or 0 for one in costs(["seeds", "lambda"], "quick", storage))
    )


def test_what_is_done_costs_nothing(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    before = costs(["seeds"], "quick", storage)[0]
    trials = resolve(Request("seeds")).trials
    storage.write_json(f"trials/{trials[0].trial_id}/done.json", {"status": "done"})
    storage.write_json(f"trials/{trials[1].trial_id}/done.json", {"status": "failed"})
    after = costs(["seeds"], "quick", storage)[0]
    assert (before.num_done, after.num_done) == (0, 1)
    assert before.hours is not None and after.hours is not None
    assert after.hours == pytest.approx(before.hours - _hours("seeds", trials[0].config.method, 1))


def test_a_search_costs_its_whole_budget(tmp_path: Path) -> None:
    found = costs(["pldm"], "quick", Storage(tmp_path))[0]
    assert found.num_trials == 8 and found.hours == pytest.approx(8 * found.longest_hours)


def test_gpus_do_not_make_a_trial_shorter() -> None:
    found = [Cost("a", None, hours=80.0, longest_hours=5.0), Cost("b", None, hours=6.0, longest_hours=6.0)]  # fmt: skip
    assert wall_hours(found, 1) == 86.0
    assert wall_hours(found, 8) == 10.0 + 6.0
    assert wall_hours(found, 1000) == 5.0 + 6.0


@pytest.mark.parametrize("profile", ["quick", "paper"])
def test_the_dry_run_lists_the_whole_programme(
    profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["paper", "--dry-run", "--profile", profile, "--storage", str(tmp_path), "--gpus", "16"]
    assert sweep.main(words) == 0
    told = capsys.readouterr().out
    for name in load_programme():
        assert re.search(rf"^{name} +\d+ ", told, re.M)
    for name in set(load_programme()) - set(THERE):
        assert re.search(rf"^{name} .*unknown '{name}'", told, re.M)
    assert ("16 GPUs" in told) == (profile == "paper")
    assert ("GPU-hours" if profile == "paper" else "CPU-hours") in told
    lines = {line.split()[0]: line.split() for line in told.splitlines()}
    numbers = [lines[name] for name in THERE]
    assert int(lines["total"][2]) == sum(int(words[2]) for words in numbers)
    assert not list(tmp_path.iterdir())


def test_a_subset_runs_in_the_programmes_order_and_ends_in_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweeps = Sweeps({})
    words = ["--sweeps", "pldm,lambda", "--storage", str(tmp_path), "--address", "auto"]
    assert run(words, sweeps) == 0
    assert [command[0] for command in sweeps.commands] == ["lambda", "pldm"]
    assert sweep.parse(sweeps.commands[0]).address == "auto"
    assert sweep.parse(sweeps.commands[0]).storage == str(tmp_path)
    assert (tmp_path / "reproduction/report/index.html").is_file()
    assert set(read_table(tmp_path / "reproduction", "claims")["verdict"]) == {"not run"}
    assert "reproduction/report/index.html" in capsys.readouterr().out


def test_a_failing_sweep_is_told_at_the_end_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweeps = Sweeps({"lambda": (2, "error: the disk is full"), "seeds": (1, "")})
    words = ["--sweeps", "lambda,seeds,pldm", "--storage", str(tmp_path)]
    assert run(words, sweeps) == 1
    assert [command[0] for command in sweeps.commands] == ["lambda", "seeds", "pldm"]
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "failed   lambda (exit code 2): error: the disk is full"
    assert told[1].startswith("failed   seeds (exit code 1)")
    assert (tmp_path / "reproduction/report/index.html").is_file()


@pytest.mark.parametrize(("code", "expected"), [(130, 130), (-15, 143)])
def test_an_interrupt_ends_the_programme(code: int, expected: int, tmp_path: Path) -> None:
    sweeps = Sweeps({"lambda": (code, "")})
    assert run(["--sweeps", "lambda,seeds", "--storage", str(tmp_path)], sweeps) == expected
    assert len(sweeps.commands) == 1


def test_a_process_gives_its_code_and_its_last_error_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, error = programme.run_process(["lambdda", "--storage", str(tmp_path)])
    assert code == 2 and error.startswith("error: sweep: unknown 'lambdda'")
    assert error in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["paper", "--sweeps", "lamda"], "did you mean 'lambda'?"),
        (["paper", "--sweeps", "smoke"], "'smoke' is not of the programme"),
        (["paper", "--grid", "loss.lam=0.1"], "--grid does not go with `paper`"),
        (["paper", "--seeds", "0-4"], "--seeds does not go with `paper`"),
        (["paper", "--gpus", "4"], "--gpus goes with --dry-run"),
        (["lambda", "--sweeps", "seeds"], "--sweeps goes with `paper`"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep.main([*words, "--storage", str(tmp_path / "runs")]) == 2
    told = capsys.readouterr().err
    assert expected in told and told.count("\n") == 1 and not (tmp_path / "runs").exists()


def test_choose_keeps_the_order_and_knows_all() -> None:
    assert choose(None) == load_programme() and len(set(load_programme())) == len(load_programme())
    assert choose("seeds, lambda") == ("lambda", "seeds")
    assert nearest("plannig_time", load_programme()) == " (did you mean 'planning_time'?)"


def test_the_dry_run_imports_neither_torch_nor_ray(tmp_path: Path) -> None:
    check = (
        "import sys; from pipeline import sweep; "
        f"assert sweep.main(['paper', '--dry-run', '--storage', {str(tmp_path)!r}]) == 0; "
        "print([m for m in ('torch', 'ray', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
