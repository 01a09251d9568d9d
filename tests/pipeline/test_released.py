"""A released checkpoint is evaluated without a sweep, and as the sweep it was trained in evaluated it."""

import json
import shutil

import polars as pl
import pytest

from lewm.overrides import make_config
from lewm.released_weights import export_checkpoint
from lewm.training import train
from pipeline import evaluate
from pipeline.datasets.collected import ensure_dataset
from pipeline.storage import Storage
from pipeline.tables import read_table

SMALL = {
    "model.image_size": 32,
    "model.patch_size": 16,
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "model.mlp": 16,
    "model.latent_dim": 16,
    "model.projector_hidden": 16,
    "model.predictor_depth": 1,
    "model.predictor_heads": 2,
    "model.predictor_head_dim": 8,
    "model.predictor_mlp": 16,
    "loss.num_directions": 16,
    "data.num_episodes": 30,
    "optim.num_steps": 5,
    "optim.batch_size": 8,
    "optim.precision": "fp32",
    "optim.num_threads": 1,
    "optim.num_val_clips": 8,
}
PLANNING = ("num_pairs=3", "num_samples=8", "num_elites=2", "num_iterations=1")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    config = make_config(SMALL)
    storage = Storage(folder / "runs")
    dataset = storage.path(ensure_dataset(config, storage))
    run = folder / "run"
    run.mkdir()
    train(config, run, dataset)
    export_checkpoint(run, folder / "weights")
    return folder / "weights", folder / "runs", dataset


def call(weights, storage, *more):
    settings = [text for part in PLANNING for text in ("--set", f"planning.{part}")]
    base = ["--weights", str(weights), "--env", "two_room", "--profile", "quick"]
    return evaluate.main([*base, "--storage", str(storage), *settings, *more])


BAD = {
    "another world": (["--env", "cube"], "take 2-d actions, cube has 5-d"),
    "unknown world": (["--env", "two_rom"], "did you mean 'two_room'"),
    "unknown protocol": (["--protocol", "strit"], "did you mean 'strict'"),
    "unknown planner": (["--set", "planning.planner=cm"], "did you mean 'cem'"),
    "a sweep beside it": (["lambda"], "no sweep beside it"),
    "no such dataset": (["--dataset", "none.h5"], "none.h5"),
    "a manifest without data": (["--manifest", "pairs.json"], "add --dataset FILE"),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_input_is_one_line(case, exported, tmp_path, capsys):
    args, expected = BAD[case]
    assert call(exported[0], tmp_path / "runs", *args) == 2
    message = capsys.readouterr().err
    assert expected in message and message.count("\n") == 1, message
    assert not (tmp_path / "runs").exists()


def test_without_units_or_data_it_says_what_is_missing(exported, tmp_path, capsys):
    bare = tmp_path / "bare"
    shutil.copytree(exported[0], bare)
    (bare / "training.json").unlink()
    assert call(bare, tmp_path / "runs", "--protocol", "paper") == 2
    assert "add --dataset FILE" in capsys.readouterr().err
    (bare / "normaliser.json").unlink()
    assert call(bare, tmp_path / "runs", "--protocol", "strict") == 2
    assert "no normaliser.json" in capsys.readouterr().err
    (bare / "config.json").write_text(json.dumps({"encoder": 1}))
    assert call(bare, tmp_path / "runs", "--protocol", "strict") == 2
    assert "config.json" in capsys.readouterr().err


@pytest.mark.ci
def test_an_export_is_evaluated_with_and_without_its_data(exported, tmp_path):
    weights, storage, dataset = exported
    assert call(weights, storage, "--protocol", "paper,strict", "--only", "planning,examples") == 0
    (folder,) = (storage / "sweeps").glob("weights-*-two_room-*")
    planning = read_table(folder, "planning").filter(pl.col("trial_id").is_not_null())
    assert planning.height == 6 and (folder / "report" / "index.html").stat().st_size > 1e5
    assert read_table(folder, "examples")["kind"].to_list().count("goal") == 3
    bare = tmp_path / "bare"
    shutil.copytree(weights, bare)
    (bare / "training.json").unlink()
    assert call(bare, tmp_path / "runs", "--protocol", "strict") == 0
    (other,) = (tmp_path / "runs" / "sweeps").glob("weights-*")
    rows = read_table(other, "planning").filter(pl.col("trial_id").is_not_null())
    assert rows["lam"].null_count() == rows.height == 3
    assert rows["success"].to_list() == planning.filter(protocol="strict")["success"].to_list()
    assert not list((tmp_path / "runs" / "datasets").glob("*"))
    (manifest,) = (storage / "manifests").glob("two_room-strict-*.json")
    given = ("--manifest", str(manifest), "--dataset", str(dataset), "--only", "planning")
    assert call(weights, tmp_path / "given", *given) == 0
    (third,) = (tmp_path / "given" / "sweeps").glob("weights-*")
    again = read_table(third, "planning").filter(pl.col("trial_id").is_not_null())
    assert again["protocol"].unique().to_list()[0].startswith("strict-")
    assert again["success"].to_list() == rows["success"].to_list()
