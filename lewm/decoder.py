"""Frames drawn from embeddings: a diagnostic, and the auxiliary loss of paper Table 7 (facts §7).

Shapes: N embeddings, D latent, P patches, W width.
"""

import torch
from torch import Tensor, nn

from lewm.config import DecoderConfig

MLP_RATIO = 4
QUERY_STD = 0.02
MAX_PATCH, MIN_PATCHES_PER_SIDE = 16, 8


def patch_of(image_size: int) -> int:
    """Pixels per side of a drawn patch: the largest divisor up to 16 that leaves at least 8 a side.

    16 at 224 px, as published; 8 at 64 px.
    """
    most = max(min(MAX_PATCH, image_size // MIN_PATCHES_PER_SIDE), 1)
    return next(size for size in range(most, 0, -1) if image_size % size == 0)


class _Block(nn.Module):
    """Cross-attention to the embedding, then an MLP.

    The embedding is the only key, so every query's attention to it is 1 and what it gives is one linear
    map of the embedding, the same for all queries, however many heads there are.
    """

    def __init__(self, latent_dim: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(latent_dim)
        self.attended = nn.Linear(latent_dim, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, MLP_RATIO * width),
            nn.GELU(),
            nn.Linear(MLP_RATIO * width, width),
        )

    def forward(self, x_NPW: Tensor, z_ND: Tensor) -> Tensor:
        x = x_NPW + self.attended(self.norm(z_ND)).unsqueeze(1)
        return x + self.mlp(x)


class Decoder(nn.Module):
    """Learned queries, one per patch, that read an embedding and are projected to pixels.

    Args:
        latent_dim: D, of the embeddings it draws.
        image_size: pixels per side.
        config: width and depth; those of the author's public sketch, as the published ones are unknown.
    """

    def __init__(self, latent_dim: int, image_size: int, config: DecoderConfig) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.patch = patch_of(image_size)
        self.side = image_size // self.patch
        self.queries_PW = nn.Parameter(QUERY_STD * torch.randn(self.side**2, config.width))
        self.blocks = nn.ModuleList(_Block(latent_dim, config.width) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.to_pixels = nn.Linear(config.width, 3 * self.patch**2)

    def forward(self, z_ND: Tensor) -> Tensor:
        """Normalised frames (N, 3, image_size, image_size).

        Raises:
            ValueError: embeddings of another size.
        """
        if z_ND.shape[-1] != self.latent_dim:
            raise ValueError(
                f"this decoder draws embeddings of {self.latent_dim} numbers, got {z_ND.shape[-1]}"
            )
        x = self.queries_PW.expand(len(z_ND), -1, -1)
        for block in self.blocks:
            x = block(x, z_ND)
        pixels = self.to_pixels(self.norm(x))
        grid = pixels.reshape(len(z_ND), self.side, self.side, 3, self.patch, self.patch)
        size = self.side * self.patch
        return grid.permute(0, 3, 1, 4, 2, 5).reshape(len(z_ND), 3, size, size)
