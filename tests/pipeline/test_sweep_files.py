"""Every sweep that ships: it resolves in every profile, and runs from end to end at profile tiny."""

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from pipeline.shipped import load_toml, package_folder
from pipeline.spec import Request, resolve
from pipeline.tables import read_table

HIDDEN = {"published", "smoke"}
SWEEPS = sorted({path.stem for path in package_folder().glob("*.toml")} - HIDDEN)
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


@pytest.mark.ci
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", SWEEPS)
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
    assert not read_table(folder, "summary").filter(pl.col("quantity") == "verdict").is_empty()
