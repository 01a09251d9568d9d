"""The parts of LeWM besides the encoder: projectors, action encoder, predictor (facts §1).

Module names are chosen so that a state dict has the released weights' tensor names.

Shapes: B batch, T time, D latent, A action block (action_block x environment action dim).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KeysValues = tuple[Tensor, Tensor]
"""Keys and values (B, T, heads x head_dim) of the frames seen so far, of one block."""
_Attended = tuple[Tensor, KeysValues]


class Projector(nn.Module):
    """Linear, BatchNorm, GELU, Linear on the last axis; rows of all other axes share the batch norm.

    Used twice: `projector` after the encoder, because the encoder's final LayerNorm would hinder
    SIGReg, and `pred_proj` after the predictor.
    """

    def __init__(self, in_dim: int, hidden: int, out_dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(in_dim, hidden), nn.BatchNorm1d(hidden), nn.GELU(), nn.Linear(hidden, out_dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_dim) → (..., out_dim)."""
        return self.net(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


class ActionEncoder(nn.Module):
    """Embeds one action block per step: pointwise convolution, then a SiLU MLP."""

    def __init__(self, block_dim: int, hidden: int, latent_dim: int, mlp_ratio: int) -> None:
        super().__init__()
        self.patch_embed = nn.Conv1d(block_dim, hidden, kernel_size=1)
        self.embed = nn.Sequential(
            nn.Linear(hidden, mlp_ratio * latent_dim),
            nn.SiLU(),
            nn.Linear(mlp_ratio * latent_dim, latent_dim),
        )

    def forward(self, actions_BTA: Tensor) -> Tensor:
        """(..., A) → (..., D). The width-1 convolution is a linear map, and computed as one."""
        conv = self.patch_embed
        return self.embed(F.linear(actions_BTA, conv.weight.squeeze(-1), conv.bias))


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim
        self.dropout = dropout
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head_dim, dim), nn.Dropout(dropout))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Causal attention of every token."""
        qkv = self.to_qkv(self.norm(x_BTD)).unflatten(-1, (3, self.heads, self.head_dim))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout if self.training else 0.0, is_causal=True
        )
        return self.to_out(mixed.transpose(1, 2).flatten(2))

    def last(self, x_BTD: Tensor, past: KeysValues | None, num_out: int) -> _Attended:
        """Attention of the last `num_out` of the new tokens, which see `past` too; no dropout."""
        normed = self.norm(x_BTD)
        inner = self.heads * self.head_dim
        weight = self.to_qkv.weight
        query = F.linear(normed[:, -num_out:], weight[:inner])
        key, value = F.linear(normed, weight[inner:]).chunk(2, dim=-1)
        if past is not None:
            key = torch.cat([past[0], key], dim=1)
            value = torch.cat([past[1], value], dim=1)
        mixed = _tiny_causal_attention(query, key, value, self.heads)
        return self.to_out(mixed), (key, value)


def _tiny_causal_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Attention of the last tokens over a handful of keys: products written out, for a
    matrix product of 3 x 3 costs more to start than to compute."""
    num_out, num_keys = query.shape[1], key.shape[1]
    q, k, v = (x.reshape(*x.shape[:-1], heads, -1) for x in (query, key, value))
    scores_BOKH = (q.unsqueeze(2) * k.unsqueeze(1)).sum(-1) * q.shape[-1] ** -0.5
    if num_out > 1:
        later = torch.ones(num_out, num_keys, dtype=torch.bool, device=query.device)
        later = later.triu(diagonal=num_keys - num_out + 1)
        scores_BOKH = scores_BOKH.masked_fill(later[..., None], -torch.inf)
    weights = scores_BOKH.softmax(2).unsqueeze(-1)
    return (weights * v.unsqueeze(1)).sum(2).flatten(2)


class _FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, dim),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _Block(nn.Module):
    """AdaLN-zero transformer block, the identity at initialisation.

    Attention and MLP each begin with a further affine LayerNorm that partly undoes the modulation:
    a quirk of the published model that its weights need.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, mlp: int, dropout: float) -> None:
        super().__init__()
        self.attn = _Attention(dim, heads, head_dim, dropout)
        self.mlp = _FeedForward(dim, mlp, dropout)
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        modulation = nn.Linear(dim, 6 * dim)
        nn.init.zeros_(modulation.weight)
        nn.init.zeros_(modulation.bias)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), modulation)

    def forward(self, x_BTD: Tensor, actions_BTD: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(actions_BTD).chunk(
            6, dim=-1
        )
        x = x_BTD + gate1 * self.attn(torch.addcmul(shift1, self.norm(x_BTD), 1 + scale1))
        return x + gate2 * self.mlp(torch.addcmul(shift2, self.norm(x), 1 + scale2))

    def last(
        self, x_BTD: Tensor, modulation: Tensor, past: KeysValues | None, num_out: int
    ) -> _Attended:
        """The block for the last `num_out` of the new tokens, and all keys and values so far."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        attended, cache = self.attn.last(
            torch.addcmul(shift1, self.norm(x_BTD), 1 + scale1), past, num_out
        )
        out = slice(-num_out, None)
        x = torch.addcmul(x_BTD[:, out], gate1[:, out], attended)
        hidden = self.mlp(torch.addcmul(shift2[:, out], self.norm(x), 1 + scale2[:, out]))
        return torch.addcmul(x, gate2[:, out], hidden), cache


class _Transformer(nn.Module):
    def __init__(self, dim: int, blocks: Iterable[_Block]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(blocks)

    def blocks(self) -> list[_Block]:
        return [block for block in self.layers if isinstance(block, _Block)]


class Predictor(nn.Module):
    """Causal transformer over embeddings, conditioned per step on the action leaving that step."""

    def __init__(
        self,
        history: int,
        dim: int,
        depth: int,
        heads: int,
        head_dim: int,
        mlp: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.history = history
        self.pos_embedding = nn.Parameter(torch.randn(1, history, dim))
        self.transformer = _Transformer(
            dim, (_Block(dim, heads, head_dim, mlp, dropout) for _ in range(depth))
        )

    def forward(self, z_BTD: Tensor, actions_BTD: Tensor) -> Tensor:
        """Next embedding of every step, before `pred_proj`.

        Args:
            z_BTD: embeddings of up to `history` consecutive frames.
            actions_BTD: embedded action leaving each of them.

        Raises:
            ValueError: more frames than `history`, or another number of actions.
        """
        num_frames = z_BTD.shape[1]
        if num_frames > self.history or actions_BTD.shape[1] != num_frames:
            raise ValueError(
                f"{num_frames} frames and {actions_BTD.shape[1]} actions; the predictor takes up to "
                f"{self.history} frames with one action each"
            )
        x = z_BTD + self.pos_embedding[:, :num_frames]
        for block in self.transformer.blocks():
            x = block(x, actions_BTD)
        return self.transformer.norm(x)

    def modulations(self, actions_BTD: Tensor) -> list[Tensor]:
        """Each block's (B, T, 6D) modulation, to be computed once for a whole rollout."""
        return [block.adaLN_modulation(actions_BTD) for block in self.transformer.blocks()]

    def last(
        self, z_BTD: Tensor, modulations: list[Tensor], past: list[KeysValues] | None
    ) -> tuple[Tensor, list[KeysValues]]:
        """What `forward` gives for the last frame only, without dropout.

        Args:
            z_BTD: the frames that `past` does not hold yet.
            modulations: of the actions leaving these frames, per block.
            past: what the previous call returned, if the frames before are the same ones at the
                same positions; else None.

        Returns:
            The last frame's (B, D) output, and the keys and values of all frames so far per block.
        """
        begin = past[0][0].shape[1] if past else 0
        x = z_BTD + self.pos_embedding[:, begin : begin + z_BTD.shape[1]]
        blocks = self.transformer.blocks()
        caches = []
        for index, block in enumerate(blocks):
            num_out = 1 if index == len(blocks) - 1 else x.shape[1]
            x, cache = block.last(x, modulations[index], past[index] if past else None, num_out)
            caches.append(cache)
        return self.transformer.norm(x[:, -1]), caches
