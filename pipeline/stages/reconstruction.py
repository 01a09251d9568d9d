"""Frames drawn from embeddings, seen and imagined, by a decoder fitted to the frozen embeddings (facts §7).

A diagnostic: what the decoder cannot draw, the embedding may have forgotten; nothing is trained through it.
Shapes: N frames, C clips, T time, D latent.
"""

import io
import math
from typing import Any

import numpy as np
import polars as pl
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lewm.config import DecoderConfig, ReconstructionConfig
from lewm.data.clips import IMAGENET_MEAN, IMAGENET_STD, prepare_frames, resize
from lewm.decoder import Decoder
from pipeline.stages.loaded import (
    BATCH,
    Array,
    LoadedTrial,
    clip_actions,
    clip_rows,
    draw_rows,
    embed_rows,
)
from pipeline.tables import STAGE_SCHEMAS, make_frame

TRAIN_STREAM, CLIP_STREAM = 104, 105
MAX_PICTURE = 112
"""Pixels per side of a stored picture, at most."""


def run(trial: LoadedTrial, config: dict[str, Any]) -> pl.DataFrame:
    """Pictures and their errors on held-out clips, one row per clip, frame and kind.

    Kinds: `real`; `reconstructed` from the frame's own embedding; `imagined` from an open-loop rollout of the
    recorded actions after the context; `mean_frame`, the mean training frame, which a decoder that reads
    nothing would draw. Errors are mean squared differences of pixels in 0..1.

    Args:
        config: fields of `ReconstructionConfig`, and `decoder`.
    """
    decoder_config = DecoderConfig(**config["decoder"])
    settings = ReconstructionConfig(**{k: v for k, v in config.items() if k != "decoder"})
    decoder, mean_CHW = fit_decoder(trial, settings, decoder_config)
    num_context, size = trial.config.model.history, trial.config.model.image_size
    num_frames = num_context + settings.horizon
    span = (num_frames - 1) * trial.config.data.action_block + 1
    starts = draw_rows(trial, "held_out", span, settings.num_clips, CLIP_STREAM)
    rows = clip_rows(trial, starts, num_frames)
    with torch.no_grad():
        imagined_CTD = _imagine(trial, rows, num_context)
        drawn = {
            "reconstructed": _draw(decoder, embed_rows(trial, rows, pooled=True)["projected"]),
            "imagined": _draw(decoder, imagined_CTD),
        }
    found = []
    episodes = np.searchsorted(trial.episodes.ep_offset, rows[:, 0], side="right") - 1
    for clip, own in enumerate(rows):
        real = _as_seen(torch.from_numpy(trial.episodes.read("pixels", own)).float() / 255, size)
        keys = {"clip": clip, "episode_id": int(episodes[clip]), "start_row": int(own[0])}
        kept = clip < settings.num_pictures
        for frame in range(num_frames):
            at = keys | {"frame": frame, "ahead": frame - num_context + 1}
            pictures = {"real": real[frame], "mean_frame": mean_CHW}
            pictures["reconstructed"] = drawn["reconstructed"][clip, frame]
            if frame >= num_context:
                pictures["imagined"] = drawn["imagined"][clip, frame - num_context]
            for kind, picture in pictures.items():
                error = None if kind == "real" else float(np.square(picture - real[frame]).mean())
                shown = kept and (kind != "mean_frame" or (clip == 0 and frame == 0))
                png = _png(picture) if shown else None
                found.append(at | {"kind": kind, "mse": error, "png": png})
    return make_frame(found, STAGE_SCHEMAS["reconstruction"])


def fit_decoder(
    trial: LoadedTrial, settings: ReconstructionConfig, config: DecoderConfig
) -> tuple[Decoder, Array]:
    """A decoder of the trial's embeddings, fitted on training episodes, and the mean frame (H, W, 3) in 0..1.

    AdamW with a cosine to 0; the draw of frames, initial weights and batches are the same for every seed of
    training, so that trials differ by their embeddings only.
    """
    rows = draw_rows(trial, "train", 1, settings.num_train, TRAIN_STREAM)
    with torch.no_grad():
        z_ND = embed_rows(trial, rows, pooled=True)["projected"]
    frames = torch.from_numpy(np.ascontiguousarray(trial.episodes.read("pixels", rows)))
    size = trial.config.model.image_size
    mean = _as_seen((frames.float().mean(dim=0) / 255.0).unsqueeze(0), size)[0]
    generator = torch.Generator().manual_seed(TRAIN_STREAM)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(TRAIN_STREAM)
        decoder = Decoder(z_ND.shape[-1], size, config).to(trial.device)
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=settings.lr, fused=True)
    for step in range(settings.num_steps):
        chosen = torch.randint(len(rows), (settings.batch_size,), generator=generator)
        target = prepare_frames(frames[chosen].to(trial.device).movedim(-1, -3), size)
        loss = F.mse_loss(decoder(z_ND[chosen].to(trial.device)), target)
        optimiser.param_groups[0]["lr"] = (
            settings.lr * 0.5 * (1 + math.cos(math.pi * step / settings.num_steps))
        )
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()
    return decoder.eval(), mean


def _as_seen(images_NHWC: Tensor, size: int) -> Array:
    """Images in 0..1 at the model's size."""
    if images_NHWC.shape[1] == size:
        return images_NHWC.numpy()
    return resize(images_NHWC.movedim(-1, -3), size).movedim(-3, -1).numpy()


def _imagine(trial: LoadedTrial, rows: Array, num_context: int) -> Tensor:
    """Pooled embeddings (C, horizon, D) of open-loop rollouts after the context, in padded batches."""
    z_CTD = embed_rows(trial, rows[:, :num_context])["projected"]
    actions_CTA = clip_actions(trial, rows[:, :-1])
    out = []
    for begin in range(0, len(rows), BATCH):
        z, actions = (x[begin : begin + BATCH] for x in (z_CTD, actions_CTA))
        missing = (0, 0, 0, 0, 0, BATCH - len(z))
        padded = [F.pad(x, missing).to(trial.device) for x in (z, actions)]
        path = trial.method.rollout(padded[0], padded[1].unsqueeze(1))[: len(z), 0, num_context:]
        out.append(trial.method.pooled(path).float().cpu())
    return torch.cat(out)


def _draw(decoder: Decoder, z_CTD: Tensor) -> Array:
    """Pictures (C, T, H, W, 3) in 0..1, in padded batches."""
    device = next(decoder.parameters()).device
    mean = torch.tensor(IMAGENET_MEAN).reshape(3, 1, 1)
    std = torch.tensor(IMAGENET_STD).reshape(3, 1, 1)
    flat, out = z_CTD.flatten(0, 1), []
    for begin in range(0, len(flat), BATCH):
        part = flat[begin : begin + BATCH]
        padded = F.pad(part, (0, 0, 0, BATCH - len(part))).to(device)
        frames = decoder(padded)[: len(part)].float().cpu() * std + mean
        out.append(frames.clamp(0.0, 1.0).movedim(-3, -1))
    pictures: Array = torch.cat(out).numpy()
    return pictures.reshape(*z_CTD.shape[:2], *pictures.shape[1:])


def _png(picture: Array) -> bytes:
    image = Image.fromarray((255.0 * picture).round().astype(np.uint8))
    if image.width > MAX_PICTURE:
        image = image.resize((MAX_PICTURE, MAX_PICTURE), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
