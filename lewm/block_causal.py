"""The predictor of DINO-WM (arXiv 2411.04983): a transformer over the tokens of several frames, causal by frame.

Shapes: B batch, T time, F new frames, P patches, W channels of a token, I inner channels of attention.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lewm.model import KeysValues


class _Attention(nn.Module):
    """Full within a frame, causal over frames."""

    def __init__(self, dim: int, heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head_dim, dim), nn.Dropout(dropout))

    def forward(
        self, x_BFPW: Tensor, past: KeysValues | None, num_out: int
    ) -> tuple[Tensor, KeysValues]:
        """Attention of the last `num_out` of the new frames, which see `past` too."""
        normed = self.norm(x_BFPW)
        query_w, key_w, value_w = self.to_qkv.weight.chunk(3)
        query = F.linear(normed[:, -num_out:], query_w)
        key, value = F.linear(normed, key_w), F.linear(normed, value_w)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=1), torch.cat([past[1], value], dim=1)
        num_before = key.shape[1] - num_out
        mixed = torch.stack(
            [
                self._mix(query[:, i], key[:, : num_before + i + 1], value[:, : num_before + i + 1])
                for i in range(num_out)
            ],
            dim=1,
        )
        return self.to_out(mixed), (key, value)

    def _mix(self, query_BPI: Tensor, key_BTPI: Tensor, value_BTPI: Tensor) -> Tensor:
        """One frame's tokens over all tokens of the frames it may see; no mask is needed."""
        q, k, v = (
            x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)
            for x in (query_BPI, key_BTPI.flatten(1, 2), value_BTPI.flatten(1, 2))
        )
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2).flatten(2)


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, head_dim: int, mlp: int, dropout: float) -> None:
        super().__init__()
        self.attn = _Attention(dim, heads, head_dim, dropout)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, mlp),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(mlp, dim),
            nn.Dropout(dropout),
        )

    def forward(
        self, x_BFPW: Tensor, past: KeysValues | None, num_out: int
    ) -> tuple[Tensor, KeysValues]:
        mixed, cache = self.attn(x_BFPW, past, num_out)
        x = x_BFPW[:, -num_out:] + mixed
        return x + self.mlp(x), cache


class BlockCausal(nn.Module):
    """Transformer over the tokens of up to `history` frames, with a learned position per frame and patch."""

    def __init__(
        self,
        history: int,
        num_patches: int,
        dim: int,
        depth: int,
        heads: int,
        head_dim: int,
        mlp: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.history = history
        self.pos_embedding = nn.Parameter(torch.randn(1, history, num_patches, dim))
        self.layers = nn.ModuleList(
            _Block(dim, heads, head_dim, mlp, dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x_BTPW: Tensor) -> Tensor:
        """Output tokens of every frame.

        Raises:
            ValueError: more frames than `history`.
        """
        num_frames = x_BTPW.shape[1]
        if num_frames > self.history:
            raise ValueError(f"{num_frames} frames; the predictor takes up to {self.history}")
        x = x_BTPW + self.pos_embedding[:, :num_frames]
        for layer in self.layers:
            x, _ = layer(x, None, num_frames)
        return self.norm(x)

    def last(
        self, x_BFPW: Tensor, past: list[KeysValues] | None
    ) -> tuple[Tensor, list[KeysValues]]:
        """What `forward` gives for the last frame only.

        Args:
            x_BFPW: the frames that `past` does not hold yet.
            past: what the previous call returned, if the frames before are the same at the same positions.

        Returns:
            The last frame's (B, P, W) output, and the keys and values of all frames so far per layer.
        """
        begin = past[0][0].shape[1] if past else 0
        num_new = x_BFPW.shape[1]
        x = x_BFPW + self.pos_embedding[:, begin : begin + num_new]
        caches = []
        for index, layer in enumerate(self.layers):
            num_out = 1 if index == len(self.layers) - 1 else num_new
            x, cache = layer(x, past[index] if past else None, num_out)
            caches.append(cache)
        return self.norm(x[:, -1]), caches
