import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lewm.checkpoint import load_method, read_checkpoint
from lewm.config import Config, OptimConfig
from lewm.curve import COLUMNS
from lewm.data.clips import ClipData
from lewm.data.episodes import EpisodeFile
from lewm.data.write import write_episodes
from lewm.methods.pldm import TERMS
from lewm.overrides import make_config
from lewm.train import main
from lewm.training import evaluate, learning_rate, train
from lewm.vit import ViT

torch.set_num_threads(1)

TINY = {
    "model.image_size": 16,
    "model.patch_size": 8,
    "model.width": 12,
    "model.depth": 2,
    "model.heads": 2,
    "model.mlp": 16,
    "model.latent_dim": 8,
    "model.projector_hidden": 16,
    "model.predictor_depth": 2,
    "model.predictor_heads": 2,
    "model.predictor_head_dim": 4,
    "model.predictor_mlp": 16,
    "loss.num_directions": 16,
    "optim.lr": 1e-3,
    "optim.batch_size": 8,
    "optim.num_epochs": None,
    "optim.num_steps": 12,
    "optim.precision": "fp32",
    "optim.num_threads": 1,
    "optim.eval_every": 5,
    "optim.num_val_clips": 20,
    "run.checkpoint_every": 4,
    "run.device": "cpu",
}


def tiny(**changes: object) -> Config:
    return make_config({**TINY, **{k.replace("__", "."): v for k, v in changes.items()}})


def make_episodes(
    num_episodes: int, length: int, size: int = 16
) -> Iterator[dict[str, np.ndarray]]:
    """A bright square pushed about by the actions."""
    rng = np.random.default_rng(0)
    for _ in range(num_episodes):
        action = rng.uniform(-1, 1, (length, 2)).astype(np.float32)
        position = size / 2 + np.cumsum(action, axis=0)
        pixels = np.zeros((length, size, size, 3), dtype=np.uint8)
        for frame, (x, y) in zip(pixels, np.clip(position, 2, size - 3).astype(int), strict=True):
            frame[y - 2 : y + 2, x - 2 : x + 2] = 255
        action[-1] = np.nan
        yield {"pixels": pixels, "action": action, "proprio": position.astype(np.float32)}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tiny.h5"
    write_episodes(path, make_episodes(6, 26))
    return path


@pytest.fixture(scope="module")
def run_dir(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    assert train(tiny(), path, dataset).status == "done"
    return path


def plain_sigreg(z_TBD: torch.Tensor, directions_DM: torch.Tensor, *_: object) -> torch.Tensor:
    """Eq. 2-3 as they stand, all knots at once, the slope left to autograd."""
    nodes = torch.linspace(0, 3, 17)
    weights = 2 * (3 / 16) * torch.exp(-nodes.square() / 2)
    weights[[0, -1]] /= 2
    angles = (z_TBD @ directions_DM).unsqueeze(-1) * nodes
    real = angles.cos().mean(1) - torch.exp(-nodes.square() / 2)
    gaps = real.square() + angles.sin().mean(1).square()
    return (gaps @ weights).mean() * z_TBD.shape[1]


def plain_encoder(vit: ViT, images_BCHW: torch.Tensor) -> torch.Tensor:
    """Patches by a convolution, every token through every layer, all images at once."""
    inputs = vit.embeddings
    patches = inputs.patch_embeddings.projection(images_BCHW).flatten(2).transpose(1, 2)
    cls = inputs.cls_token.expand(len(patches), -1, -1)
    x = torch.cat([cls, patches], dim=1) + inputs.position_embeddings
    for layer in vit.encoder.layer:
        x = layer(x)
    return vit.layernorm(x)[:, 0]


def test_the_fast_step_trains_as_the_plain_one(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same curves to 0.1 %: rounding differs, and a step amplifies it little in so few."""
    config = tiny(optim__num_steps=40)
    assert train(config, tmp_path / "fast", dataset).status == "done"

    class PlainAdamW(torch.optim.AdamW):
        """Parameter by parameter; only the fused one heeds a flag."""

        found_inf = property(lambda self: None, lambda self, flag: None)

        def __init__(self, *args: Any, fused: bool, **options: Any) -> None:
            super().__init__(*args, foreach=False, **options)

    monkeypatch.setattr("lewm.methods.lewm.sigreg", plain_sigreg)
    monkeypatch.setattr(ViT, "forward", plain_encoder)
    monkeypatch.setattr(torch.optim, "AdamW", PlainAdamW)
    assert train(config, tmp_path / "plain", dataset).status == "done"
    fast, plain = read_curve(tmp_path / "fast"), read_curve(tmp_path / "plain")
    assert fast != plain and fast[-2]["loss"] < 0.9 * fast[0]["loss"]
    for name in ("pred_loss", "sigreg_loss", "grad_norm"):
        for ours, theirs in zip(fast, plain, strict=True):
            if theirs[name] is not None:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-3), (name, ours["step"])


def read_curve(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "curve.jsonl").read_text().splitlines()]


def test_files_of_a_run(run_dir: Path) -> None:
    names = {path.name for path in run_dir.iterdir()}
    assert names == {
        *("config.json", "checkpoint.pt", "checkpoint.prev.pt"),
        *("curve.jsonl", "progress.json", "train.log"),
    }
    assert Config.model_validate_json((run_dir / "config.json").read_text()) == tiny()
    progress = json.loads((run_dir / "progress.json").read_text())
    assert (progress["step"], progress["num_steps"]) == (12, 12)
    assert progress["frames_per_s"] > 0
    assert "step 12" in (run_dir / "train.log").read_text()


def test_curve_has_a_row_per_step_and_evaluations_where_asked(run_dir: Path) -> None:
    rows = read_curve(run_dir)
    assert [row["step"] for row in rows] == list(range(13))
    assert all(list(row) == ["step", *COLUMNS] for row in rows)
    evaluated = [row["step"] for row in rows if row["val_pred_loss"] is not None]
    assert (
        evaluated == [row["step"] for row in rows if row["mean_std"] is not None] == [0, 5, 10, 12]
    )
    for row in rows[:-1]:
        total = row["pred_loss"] + tiny().loss.lam * row["sigreg_loss"]
        assert row["loss"] == pytest.approx(total, rel=1e-5)
        assert row["grad_norm"] > 0
        assert row["lr"] == learning_rate(row["step"], 12, tiny().optim)
    assert rows[-1]["loss"] is None


def test_reports_follow_durable_checkpoints(dataset: Path, tmp_path: Path) -> None:
    reports = []

    def report(step: int, metrics: dict[str, float]) -> None:
        assert read_checkpoint(tmp_path / "checkpoint.pt")["step"] == step
        assert len(read_curve(tmp_path)) >= step
        reports.append((step, metrics))

    train(tiny(), tmp_path, dataset, report)
    assert [step for step, _ in reports] == [0, 4, 8, 12]
    assert set(reports[0][1]) == {"val_pred_loss", "mean_std"}
    assert set(reports[-1][1]) == set(COLUMNS)
    rows = read_curve(tmp_path)
    assert reports[-1][1]["loss"] == rows[11]["loss"]
    assert reports[1][1]["mean_std"] == rows[0]["mean_std"]


def test_it_learns(dataset: Path, tmp_path: Path) -> None:
    config = tiny(loss__lam=1.0, optim__num_steps=120, optim__lr=5e-3)
    train(config, tmp_path, dataset)
    rows = read_curve(tmp_path)
    losses = [row["loss"] for row in rows[:-1]]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    assert rows[-1]["mean_std"] > 0.3


def test_loaded_method_is_the_trained_one(run_dir: Path, dataset: Path) -> None:
    config, method, normaliser, info = load_method(run_dir / "checkpoint.pt", "cpu")
    assert config == tiny()
    assert not method.training
    assert (info["step"], info["diverged"], info["action_dim"]) == (12, False, 2)
    assert info["num_params"] == method.num_params
    with EpisodeFile(dataset) as file:
        data, val = ClipData(file, config, "train"), ClipData(file, config, "val")
        np.testing.assert_array_equal(normaliser.mean, data.normaliser.mean)
        np.testing.assert_array_equal(normaliser.std, data.normaliser.std)
        before = torch.get_rng_state()
        again = evaluate(method, val, config, torch.device("cpu"))
        assert torch.equal(torch.get_rng_state(), before)
    assert again == {key: read_curve(run_dir)[-1][key] for key in again}


def test_intervals_of_saving_change_no_bit(run_dir: Path, dataset: Path, tmp_path: Path) -> None:
    train(tiny(run__checkpoint_every=7), tmp_path, dataset)
    ours, other = (read_checkpoint(path / "checkpoint.pt") for path in (run_dir, tmp_path))
    assert all(torch.equal(ours["method"][name], other["method"][name]) for name in ours["method"])
    assert torch.equal(ours["curve"].nan_to_num(-1), other["curve"].nan_to_num(-1))


@pytest.mark.parametrize("method", ["lewm", "pldm"])
def test_bf16_trains_alike_and_keeps_float32_weights(
    method: str, dataset: Path, tmp_path: Path
) -> None:
    """The same curve to 5 %: eight bits of mantissa, 12 updates."""
    for precision in ("fp32", "bf16"):
        config = tiny(method=method, optim__precision=precision)
        assert train(config, tmp_path / precision, dataset).status == "done"
    state = read_checkpoint(tmp_path / "bf16" / "checkpoint.pt")
    floats = [tensor for tensor in state["method"].values() if tensor.is_floating_point()]
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in floats)
    wide, half = (read_curve(tmp_path / precision) for precision in ("fp32", "bf16"))
    assert wide != half
    for row, other in zip(wide[:-1], half[:-1], strict=True):
        assert other["loss"] == pytest.approx(row["loss"], rel=0.05), row["step"]


def test_learning_rate_warms_up_from_zero_then_follows_a_cosine_to_zero() -> None:
    config = OptimConfig(lr=2.0, warmup_frac=0.1)
    rates = [learning_rate(step, 100, config) for step in range(101)]
    assert rates[0] == 0.0
    assert rates[5] == pytest.approx(1.0)
    assert rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(0, 100, OptimConfig(lr=2.0, warmup_frac=0.0)) == 2.0


def test_divergence_is_a_result_and_is_not_retried(dataset: Path, tmp_path: Path) -> None:
    config = tiny(optim__lr=1e30, optim__num_steps=30)
    result = train(config, tmp_path, dataset)
    assert result.status == "diverged"
    assert 0 < result.step < 30
    state = read_checkpoint(tmp_path / "checkpoint.pt")
    assert (state["diverged"], state["step"]) == (True, result.step)
    rows = read_curve(tmp_path)
    assert len(rows) == result.step + 1
    assert not all(math.isfinite(row) for row in state["curve"][-1][[0, 4]].tolist())
    assert rows[-1]["loss"] is None or rows[-1]["grad_norm"] is None
    stamp = (tmp_path / "checkpoint.pt").stat().st_mtime_ns
    assert train(config, tmp_path, dataset) == result
    assert (tmp_path / "checkpoint.pt").stat().st_mtime_ns == stamp
    assert read_curve(tmp_path) == rows


def test_a_finished_run_returns_at_once(run_dir: Path, dataset: Path) -> None:
    before, curve = (run_dir / "checkpoint.pt").stat().st_mtime_ns, read_curve(run_dir)
    reports: list[int] = []
    assert train(tiny(), run_dir, dataset, lambda step, _: reports.append(step)).step == 12
    assert (run_dir / "checkpoint.pt").stat().st_mtime_ns == before
    assert read_curve(run_dir) == curve
    assert reports == [12]  # once more: it may never have arrived


def test_bad_input_is_one_line(run_dir: Path, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds a run with loss\.lam = 0\.09, asked for 0\.5"):
        train(tiny(loss__lam=0.5), run_dir, dataset)
    with pytest.raises(ValueError, match=r"do not fill one batch of 4000 \(optim\.batch_size\)"):
        train(tiny(optim__batch_size=4000), tmp_path, dataset)
    with pytest.raises(ValueError, match=r"run\.device 'tpuu' cannot be used here"):
        train(tiny(run__device="tpuu"), tmp_path, dataset)
    other = tmp_path / "other.h5"
    write_episodes(other, make_episodes(9, 26))
    with pytest.raises(ValueError, match="holds a run on 35 training clips, this dataset has 56"):
        train(tiny(), run_dir, other)


def test_epochs_set_the_number_of_steps(dataset: Path, tmp_path: Path) -> None:
    result = train(tiny(optim__num_steps=None, optim__num_epochs=2), tmp_path, dataset)
    assert result.step == 2 * (35 // 8)


def test_command_line(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [f"--set={key}={json.dumps(value).strip(chr(34))}" for key, value in TINY.items()]
    settings = [text.replace("=null", "=none") for text in settings]
    arguments = ["--dataset", str(dataset), "--run-dir", str(tmp_path / "run"), *settings]
    assert main(arguments) == 0
    assert "done at step 12" in capsys.readouterr().out
    for wrong, says in {
        "optim.lrr=1": "unknown key 'optim.lrr' (did you mean 'optim.lr'?)",
        "loss.lam=-1": "loss.lam",
        "loss.lam": "--set takes KEY=VALUE",
    }.items():
        assert main([*arguments, "--set", wrong]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert says in error
    assert main([*arguments, "--dataset", str(tmp_path / "none.h5")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_one_run_needs_only_a_few_packages() -> None:
    script = (
        "import sys, lewm.train, lewm.training\n"
        "unwanted = {'ray', 'mlflow', 'pyarrow', 'polars', 'scipy', 'pipeline', 'gymnasium'}\n"
        "sys.exit(str(unwanted & set(sys.modules)) if unwanted & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_methods_own_terms_are_in_its_curve(dataset: Path, tmp_path: Path) -> None:
    config = tiny(method="pldm")
    train(config, tmp_path, dataset)
    rows = read_curve(tmp_path)
    assert all(list(row) == ["step", *COLUMNS, *TERMS] for row in rows)
    for row in rows[:-1]:
        weighted = sum(getattr(config.pldm, name) * row[name] for name in TERMS)
        assert row["loss"] == pytest.approx(row["pred_loss"] + weighted, rel=1e-4)
        assert row["sigreg_loss"] is None
    before = (tmp_path / "curve.jsonl").read_bytes()
    (tmp_path / "checkpoint.pt").unlink()  # go on from the checkpoint before
    train(config, tmp_path, dataset)
    assert (tmp_path / "curve.jsonl").read_bytes() == before


@pytest.mark.parametrize("method", ["copy_last", "linear_dynamics"])
def test_what_does_not_train_is_fitted_once_and_loads_like_any_other(
    method: str, dataset: Path, tmp_path: Path
) -> None:
    config = tiny(method=method)
    reports = []
    result = train(config, tmp_path, dataset, lambda step, values: reports.append((step, values)))
    assert (result.status, result.step, len(reports)) == ("done", 0, 1)
    (row,) = read_curve(tmp_path)
    assert row["step"] == 0 and row["loss"] is None and row["val_pred_loss"] > 0
    _, loaded, _, info = load_method(tmp_path / "checkpoint.pt", "cpu")
    assert info["step"] == 0
    with EpisodeFile(dataset) as file:
        val = ClipData(file, config, "val")
        again = evaluate(loaded, val, config, torch.device("cpu"))
    assert again["val_pred_loss"] == row["val_pred_loss"]
    before = (tmp_path / "checkpoint.pt").read_bytes()
    assert train(config, tmp_path, dataset).step == 0
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_random_encoders_predictor_learns_on_it(dataset: Path, tmp_path: Path) -> None:
    config = tiny(method="random_encoder", optim__num_steps=60, optim__lr=5e-3)
    train(config, tmp_path, dataset)
    losses = [row["val_pred_loss"] for row in read_curve(tmp_path) if row["val_pred_loss"]]
    assert losses[-1] < 0.9 * losses[0]
