"""DINOv2's ViT-S/14 as published: a frozen encoder of patches, read from its weights file.

Names of tensors, LayerScale and the way positions are interpolated are those of the published model
(Oquab et al. 2023, arXiv 2304.07193). Inputs are RGB / 255 under ImageNet mean and standard deviation,
which is what `lewm.data.clips.prepare_frames` gives.

Shapes: B images, N tokens (CLS first), P patches, W width, H heads.
"""

import hashlib
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lewm.checkpoint import load_strictly, read_tensors
from lewm.config import Config

FILE_NAME = "dinov2_vits14_pretrain.pth"
URL = f"https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/{FILE_NAME}"
VARIABLE = "LEWM_DINOV2_WEIGHTS"
WIDTHS = {384: "ViT-S/14", 768: "ViT-B/14", 1024: "ViT-L/14", 1536: "ViT-g/14"}
"""Published sizes by width."""
WIDTH, DEPTH, HEADS, PATCH = 384, 12, 6, 14
GRID = 37
"""Patches per side of the stored position embedding: 518 px."""
OFFSET = 0.1
"""Added to the new grid's side when positions are interpolated: a published quirk that shifts values."""
LAYER_NORM_EPS = 1e-6
GPU_CHUNK = 64
"""Frames that an accelerator encodes at a time; the last chunk is padded to it."""


class _Patches(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BNW: Tensor) -> Tensor:
        query, key, value = (
            self.qkv(x_BNW).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = _Attention(width, heads)
        self.ls1 = _LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = _MLP(width)
        self.ls2 = _LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class DINOv2(nn.Module):
    """The published architecture; sizes are those of ViT-S/14 unless given.

    Args:
        grid: patches per side of the stored position embedding.
    """

    def __init__(
        self,
        width: int = WIDTH,
        depth: int = DEPTH,
        heads: int = HEADS,
        patch: int = PATCH,
        grid: int = GRID,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.grid = grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, grid * grid + 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.patch_embed = _Patches(width, patch)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def positions(self, side: int) -> Tensor:
        """(1, 1 + side^2, W) position embedding of CLS and of side x side patches, bicubic from `grid`."""
        if side == self.grid:
            return self.pos_embed
        cls, patches = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        scale = (side + OFFSET) / self.grid
        image = patches.reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        resized = F.interpolate(image, scale_factor=(scale, scale), mode="bicubic")
        assert resized.shape[-2:] == (side, side), resized.shape
        return torch.cat([cls, resized.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Tokens (B, 1 + P, W) after the final LayerNorm, CLS first, patches row by row.

        Raises:
            ValueError: frames that are not square or no whole number of patches.
        """
        batch, _, height, width = images_BCHW.shape
        side, rest = divmod(height, self.patch)
        if height != width or rest or not side:
            raise ValueError(
                f"frames are {height}x{width} px, DINOv2 takes squares of a multiple of {self.patch}"
            )
        patch = self.patch
        patches = images_BCHW.reshape(batch, 3, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5)
        project = self.patch_embed.proj
        x = F.linear(
            patches.reshape(batch, side * side, 3 * patch * patch),
            project.weight.flatten(1),
            project.bias,
        )
        x = torch.cat([self.cls_token.expand(batch, -1, -1), x], dim=1) + self.positions(side)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    @torch.no_grad()
    def encode(self, images_BCHW: Tensor) -> Tensor:
        """`forward` without gradients, in its own precision outside any autocast, rounded to float16 values.

        A frame's tokens are the same bits in any company: a CPU encodes one frame at a time, an accelerator
        padded chunks of one size. Rounded, they take half the room where they are kept.
        """
        with torch.autocast(images_BCHW.device.type, enabled=False):
            size = 1 if images_BCHW.device.type == "cpu" else GPU_CHUNK
            parts = []
            for begin in range(0, len(images_BCHW), size):
                chunk = images_BCHW[begin : begin + size].to(self.cls_token.dtype)
                missing = size - len(chunk)
                padded = F.pad(chunk, (0, 0, 0, 0, 0, 0, 0, missing)) if missing else chunk
                parts.append(self(padded)[: len(chunk)].half())
            return torch.cat(parts).to(self.cls_token.dtype)


def weights_path(config: Config) -> Path | None:
    """The weights file: `run.dino_weights`, else the environment variable's, whichever is there."""
    for given in (config.run.dino_weights, os.environ.get(VARIABLE)):
        if given and Path(given).expanduser().is_file():
            return Path(given).expanduser()
    return None


def missing_weights(config: Config) -> str:
    """One line for the absence of the weights: where they come from and where to put them."""
    given = config.run.dino_weights or os.environ.get(VARIABLE)
    what = f"{given} is not there" if given else "none are named"
    return (
        f"dino_wm needs the DINOv2 ViT-S/14 weights, and {what}: download {URL} and name the file in "
        f"{VARIABLE} or run.dino_weights"
    )


def weights_sha256(path: Path) -> str:
    """SHA-256 of a weights file."""
    stat = path.stat()
    return _sha256(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4)
def _sha256(path: str, size: int, modified_ns: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_dinov2(path: Path) -> DINOv2:
    """The published ViT-S/14 from its file, frozen, in evaluation mode; draws no random number.

    Raises:
        ValueError: no state dict, DINOv2 of another size or with registers (named), or tensors that are
            missing, unknown or misshapen.
    """
    state = read_tensors(path)
    if not isinstance(state, Mapping) or not all(isinstance(x, Tensor) for x in state.values()):
        raise ValueError(f"{path}: not a state dict of DINOv2; wanted is {URL}")
    found = variant(state)
    if found not in (None, "ViT-S/14"):
        raise ValueError(f"{path}: holds DINOv2 {found}, dino_wm takes ViT-S/14; wanted is {URL}")
    model = _empty()
    load_strictly(model, state, path)
    return model.requires_grad_(False).eval()


def variant(state: Mapping[str, Any]) -> str | None:
    """Which published DINOv2 a state dict is of, such as `ViT-B/14 with registers`; None for no known one."""
    cls = state.get("cls_token")
    if not isinstance(cls, Tensor) or "patch_embed.proj.weight" not in state:
        return None
    name = WIDTHS.get(cls.shape[-1])
    if name is None:
        return f"of width {cls.shape[-1]}"
    return f"{name} with registers" if "register_tokens" in state else name


def random_dinov2(seed: int = 0) -> DINOv2:
    """The architecture with random weights from a stream of its own: good for timing and nothing else."""
    model = _empty()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".gamma" in name or (name.endswith("weight") and "norm" in name):
                weight.fill_(1.0)
            else:
                weight.copy_(0.02 * torch.randn(weight.shape, generator=rng))
    return model.requires_grad_(False).eval()


def _empty() -> DINOv2:
    with torch.device("meta"):
        model = DINOv2()
    return model.to_empty(device="cpu")
