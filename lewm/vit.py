"""Vision transformer encoder with the semantics and tensor names of Hugging Face's `ViTModel`.

Shapes: B images, N tokens (CLS first), W width, H heads, K width per head.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INIT_STD = 0.02
LAYER_NORM_EPS = 1e-12
CPU_CHUNK_TOKENS = 2048
"""About how many tokens a CPU encodes at a time: activations stay in the cache and clear of page
faults, which makes a training step up to a quarter faster. Images do not interact."""


class _Patches(nn.Module):
    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)


class _Embeddings(nn.Module):
    """Patches, a CLS token and learned positions."""

    def __init__(self, image_size: int, patch_size: int, width: int) -> None:
        super().__init__()
        num_patches = (image_size // patch_size) ** 2
        self.image_size = image_size
        self.patch_size = patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, num_patches + 1, width))
        self.patch_embeddings = _Patches(width, patch_size)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        projection = self.patch_embeddings.projection
        batch, _, height, width = images_BCHW.shape
        if (height, width) != (self.image_size, self.image_size):
            raise ValueError(
                f"frames are {height}x{width} px, the model takes {self.image_size}x{self.image_size}"
            )
        side, patch = self.image_size // self.patch_size, self.patch_size
        # A convolution whose stride is its kernel is one matrix product over flattened patches.
        patches = images_BCHW.reshape(batch, 3, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5)
        x = F.linear(
            patches.reshape(batch, side * side, 3 * patch * patch),
            projection.weight.flatten(1),
            projection.bias,
        )
        cls = self.cls_token.to(x.dtype).expand(batch, 1, -1)
        return torch.cat([cls, x], dim=1) + self.position_embeddings


class _SelfAttention(nn.Module):
    """The three input projections, each its own tensor as released."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)


class _Dense(nn.Module):
    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.dense = nn.Linear(in_dim, out_dim)


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = _SelfAttention(width)
        self.output = _Dense(width, width)


class _Layer(nn.Module):
    """Pre-norm attention and MLP with exact GELU."""

    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention = _Attention(width)
        self.layernorm_before = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.layernorm_after = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.intermediate = _Dense(width, mlp)
        self.output = _Dense(mlp, width)

    def forward(self, x_BNW: Tensor, num_queries: int | None = None) -> Tensor:
        """The layer's output for the first `num_queries` tokens (all of them by default)."""
        project = self.attention.attention
        normed = self.layernorm_before(x_BNW)
        query, key, value = (
            module(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for module, tokens in (
                (project.query, normed[:, :num_queries]),
                (project.key, normed),
                (project.value, normed),
            )
        )
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x_BNW[:, :num_queries] + self.attention.output.dense(mixed)
        hidden = F.gelu(self.intermediate.dense(self.layernorm_after(x)))
        return x + self.output.dense(hidden)


class _Layers(nn.Module):
    def __init__(self, width: int, depth: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(width, heads, mlp) for _ in range(depth))


class ViT(nn.Module):
    """Encoder of single frames: the CLS token of the last layer after the final LayerNorm."""

    def __init__(
        self, image_size: int, patch_size: int, width: int, depth: int, heads: int, mlp: int
    ) -> None:
        super().__init__()
        self.embeddings = _Embeddings(image_size, patch_size, width)
        self.encoder = _Layers(width, depth, heads, mlp)
        self.layernorm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self._init_weights()

    def _init_weights(self) -> None:
        """Truncated normals of std 0.02 and zero biases, as `ViTModel` draws them."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.embeddings.cls_token, std=INIT_STD)
        nn.init.trunc_normal_(self.embeddings.position_embeddings, std=INIT_STD)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """CLS embeddings (B, W) of normalised float images (B, 3, image_size, image_size).

        Only CLS leaves the encoder, so the last layer computes no other token's output.

        Raises:
            ValueError: the images have another size.
        """
        num_chunks = 1
        if images_BCHW.device.type == "cpu":
            num_tokens = len(images_BCHW) * self.embeddings.position_embeddings.shape[1]
            num_chunks = max(1, round(num_tokens / CPU_CHUNK_TOKENS))
        return torch.cat([self._encode(part) for part in torch.chunk(images_BCHW, num_chunks)])

    def _encode(self, images_BCHW: Tensor) -> Tensor:
        x = self.embeddings(images_BCHW)
        *body, last = self.encoder.layer
        for layer in body:
            x = layer(x)
        return self.layernorm(last(x, num_queries=1)[:, 0])
