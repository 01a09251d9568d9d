"""What can be read off frozen latents: ridge and MLP probes to physical quantities (paper App. F.2).

Shapes: N frames, D latent, Q target dimensions (all quantities side by side).
"""

from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lewm.config import ProbingConfig
from lewm.envs import env_class
from pipeline.stages.loaded import LAYERS, LoadedTrial, draw_rows, embed_rows
from pipeline.tables import STAGE_SCHEMAS, make_frame

STREAM = 202


def run(trial: LoadedTrial, config: dict[str, Any]) -> pl.DataFrame:
    """One row per target dimension, layer and probe.

    Probes are fitted on frames of train episodes and judged on frames of held-out ones, both fixed
    draws. Latents and targets are standardised by the training frames, so an `mse` of 1 is what
    guessing the mean gets; `mse_std` is the standard deviation of the squared error over test
    frames, `r` Pearson's correlation (null where either side is constant).

    Args:
        config: fields of `ProbingConfig`.
    """
    settings = ProbingConfig(**config)
    rows_train = draw_rows(trial, "train", 1, settings.num_train, STREAM)
    rows_test = draw_rows(trial, "held_out", 1, settings.num_test, STREAM + 1)
    names, y_train, y_test = _targets(trial, rows_train, rows_test)
    with torch.inference_mode():
        z_train, z_test = (embed_rows(trial, rows, pooled=True) for rows in (rows_train, rows_test))
    rows = []
    for layer in LAYERS:
        x_train, x_test = _standardise(z_train[layer].double(), z_test[layer].double())
        fits = {
            "linear": fit_ridge(x_train, y_train, x_test, settings.ridge),
            "mlp": fit_mlp(x_train, y_train, x_test, settings),
        }
        for probe, predicted in fits.items():
            for index, (target, dim) in enumerate(names):
                figures = judge(predicted[:, index], y_test[:, index])
                key = {"target": target, "dim": dim, "layer": layer, "probe": probe}
                counts = {"num_train": len(rows_train), "num_test": len(rows_test)}
                rows.append({**key, **figures, **counts})
    return make_frame(rows, STAGE_SCHEMAS["probing"])


def fit_ridge(x_ND: Tensor, y_NQ: Tensor, x_test_ND: Tensor, ridge: float) -> Tensor:
    """Predictions for the test rows by ridge regression in closed form, float64.

    Minimises |y - x w|^2 + ridge |w|^2; no intercept, both sides being centred.
    """
    gram_DD = x_ND.T @ x_ND + max(ridge, 1e-9) * torch.eye(x_ND.shape[1], dtype=x_ND.dtype)
    return x_test_ND @ torch.linalg.solve(gram_DD, x_ND.T @ y_NQ)


def fit_mlp(x_ND: Tensor, y_NQ: Tensor, x_test_ND: Tensor, settings: ProbingConfig) -> Tensor:
    """Predictions for the test rows by one hidden layer (ReLU), Adam with cosine decay, all targets jointly."""
    rng = torch.Generator().manual_seed(STREAM)
    hidden = settings.mlp_hidden
    first = _linear(x_ND.shape[1], hidden, rng)
    last = _linear(hidden, y_NQ.shape[1], rng)
    model = nn.Sequential(first, nn.ReLU(), last)
    optimiser = torch.optim.Adam(model.parameters(), lr=settings.mlp_lr, foreach=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.mlp_steps)
    x, y = x_ND.float(), y_NQ.float()
    for _ in range(settings.mlp_steps):
        batch = torch.randint(len(x), (settings.mlp_batch,), generator=rng)
        optimiser.zero_grad()
        torch.autograd.backward(F.mse_loss(model(x[batch]), y[batch]))
        optimiser.step()
        schedule.step()
    with torch.inference_mode():
        return model(x_test_ND.float()).double()


def judge(predicted_N: Tensor, true_N: Tensor) -> dict[str, float | None]:
    """Mean squared error, its spread over frames, and Pearson's r of one target dimension."""
    error_N = (predicted_N - true_N).square()
    centred = predicted_N - predicted_N.mean(), true_N - true_N.mean()
    scale = float(centred[0].norm() * centred[1].norm())
    r = float(centred[0] @ centred[1]) / scale if scale > 0 else None
    return {"mse": float(error_N.mean()), "mse_std": float(error_N.std()), "r": r}


def _linear(num_in: int, num_out: int, rng: torch.Generator) -> nn.Linear:
    """A linear layer with He-normal weights and zero bias from its own generator."""
    layer = nn.Linear(num_in, num_out, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.copy_(torch.randn(num_out, num_in, generator=rng) * (2 / num_in) ** 0.5)
        layer.bias.zero_()
    return layer


def _targets(
    trial: LoadedTrial, rows_train: Any, rows_test: Any
) -> tuple[list[tuple[str, int]], Tensor, Tensor]:
    """(name, dim) of every target dimension, and the standardised targets of both parts, (N, Q)."""
    file = trial.episodes
    rows = np.concatenate([rows_train, rows_test])
    columns = {name: file.read(name, rows) for name in file.columns if name != "pixels"}
    quantities = env_class(trial.config.data.env).physical_state(columns)
    names = [(name, dim) for name, value in quantities.items() for dim in range(value.shape[1])]
    values = torch.from_numpy(np.concatenate(list(quantities.values()), axis=1)).double()
    y_train, y_test = _standardise(values[: len(rows_train)], values[len(rows_train) :])
    return names, y_train, y_test


def _standardise(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both parts by the train part's mean and standard deviation; constant columns become 0."""
    mean, std = train.mean(dim=0), train.std(dim=0)
    std = torch.where(std > 0, std, torch.ones_like(std))
    return (train - mean) / std, (test - mean) / std
