"""Health of the latent space on held-out frames, for the encoder's output and the embedding.

Shapes: C clips, T time, N = C x T frames, D latent, M directions.
"""

from typing import Any

import polars as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from lewm.config import LatentsConfig
from lewm.loss import epps_pulley, unit_directions
from pipeline.stages.loaded import (
    LAYERS,
    Array,
    LoadedTrial,
    clip_actions,
    clip_rows,
    draw_rows,
    embed_rows,
    predict,
)
from pipeline.tables import STAGE_SCHEMAS, make_frame

STREAM = 101
NUM_DIRECTIONS = 256


@torch.inference_mode()
def run(trial: LoadedTrial, config: dict[str, Any]) -> pl.DataFrame:
    """One row per layer, over clips of `history + 1` frames of held-out episodes.

    The clips are a fixed draw, the same for every training seed. `collapsed` is judged on the
    projected embedding and null elsewhere; so are `pred_error`, the mean squared error of the next
    embedding predicted teacher forced, and `copy_error`, that of the embedding before it.

    Args:
        config: fields of `LatentsConfig`.
    """
    settings = LatentsConfig(**config)
    num_frames = trial.config.model.history + 1
    span = (num_frames - 1) * trial.config.data.action_block + 1
    starts = draw_rows(trial, "held_out", span, settings.num_clips, STREAM)
    frames = clip_rows(trial, starts, num_frames)
    codes = embed_rows(trial, frames)
    rows = []
    for layer in LAYERS:
        z_CTD = trial.method.pooled(codes[layer]) if layer == "projected" else codes[layer]
        row: dict[str, Any] = {"layer": layer, **measure(z_CTD.double())}
        if layer == "projected":
            row["collapsed"] = trial.method.can_collapse and is_collapsed(
                row.get("mean_std"), settings
            )
            row |= _errors(trial, codes[layer], frames)
        rows.append(row)
    return make_frame(rows, STAGE_SCHEMAS["latents"])


def _errors(trial: LoadedTrial, z_CTD: Tensor, frames: Array) -> dict[str, float | None]:
    """What predicting costs, and what copying the last frame would; a model that learnt is below it."""
    predicted = predict(trial, z_CTD[:, :-1], clip_actions(trial, frames[:, :-1]))
    errors = {
        "pred_error": (predicted - z_CTD[:, 1:]).double().square().mean(),
        "copy_error": z_CTD.diff(dim=1).double().square().mean(),
    }
    return {name: float(x) if x.isfinite() else None for name, x in errors.items()}


def measure(z_CTD: Tensor) -> dict[str, float | None]:
    """Figures of one layer; null where undefined, all of them for embeddings that are not finite.

    Returns:
        effective_rank: exp of the entropy of the normalised eigenvalues of the covariance, 1..D
            (null for a point). Scale-free: it does not see collapse.
        mean_std, min_std: over dimensions, of the standard deviation over frames.
        epps_pulley: per-sample Epps-Pulley distance to N(0, 1) (`lewm.loss`, without its factor B),
            averaged over fixed random directions; 0 for N(0, I).
        isotropy: (sum of eigenvalues)^2 / (D x sum of their squares), 1 / D..1 (null for a point).
        straightness: mean cosine between consecutive velocities z_{t+1} - z_t (paper App. H),
            -1..1; a velocity of zero counts as 0; null for clips of two frames.
    """
    z_ND = z_CTD.flatten(0, 1)
    if not z_ND.isfinite().all():
        return {}
    std_D = z_ND.std(dim=0)
    eigenvalues_D = torch.linalg.eigvalsh(torch.cov(z_ND.T).reshape(len(std_D), -1)).clamp(min=0)
    shares_D = eigenvalues_D / eigenvalues_D.sum()
    directions_DM = unit_directions(
        len(std_D), NUM_DIRECTIONS, torch.Generator().manual_seed(STREAM)
    )
    velocity = z_CTD.diff(dim=1)
    cosines = F.cosine_similarity(velocity[:, 1:], velocity[:, :-1], dim=-1)
    figures = {
        "effective_rank": (-torch.xlogy(shares_D, shares_D).sum()).exp(),
        "mean_std": std_D.mean(),
        "min_std": std_D.min(),
        "epps_pulley": epps_pulley((z_ND @ directions_DM.to(z_ND.dtype)).T).mean() / len(z_ND),
        "isotropy": 1 / (len(std_D) * shares_D.square().sum()),
        "straightness": cosines.mean(),
    }
    return {name: float(x) if x.isfinite() else None for name, x in figures.items()}


def is_collapsed(mean_std: float | None, settings: LatentsConfig) -> bool:
    """The rule for a collapsed projected embedding (effective rank alone does not see collapse).

    Collapsed when the mean per-dimension standard deviation is below `latents.collapse_std`.
    Embeddings that are not finite (no figure) count as collapsed.
    """
    return mean_std is None or mean_std < settings.collapse_std
