"""A released `config.json` and our `ModelConfig`, both ways (facts §9.4).

The file is Hydra style: one section per part of the model, with the class that the authors' library
builds it from under `_target_`. The classes are only compared by name, never imported. A file without
`_target_` is read too.
"""

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lewm.checkpoint import first_error
from lewm.config import Config, ModelConfig
from lewm.overrides import make_config

ACTION_BLOCK = 5
"""Environment steps per action block of every release; the file holds only the block's width."""
VIT_SIZES = {
    "tiny": (192, 12, 3, 768),
    "small": (384, 12, 6, 1536),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "huge": (1280, 32, 16, 5120),
}
VIT_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
CUSTOM = "custom"
"""A size that names no preset, so that every one of `VIT_KEYS` must be given."""
LIBRARY = "stable_worldmodel.wm.lewm"
BATCH_NORM = {"_target_": "torch.nn.BatchNorm1d", "_partial_": True}

Size = Annotated[int, Field(ge=1, strict=True)]


class _Section(BaseModel):
    """A part of the file; `classes` are the names it has had in the authors' repositories."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    classes: ClassVar[tuple[str, ...]]
    target: str | None = Field(None, alias="_target_")

    @model_validator(mode="after")
    def _check_target(self) -> "_Section":
        if self.target is not None and _class_name(self.target) not in self.classes:
            raise ValueError(f"built from {self.target}, LeWM's from {self.classes[0]}")
        return self


class _Encoder(_Section):
    classes = ("vit_hf",)
    size: str
    patch_size: Size
    image_size: Size
    hidden_size: Size | None = None
    num_hidden_layers: Size | None = None
    num_attention_heads: Size | None = None
    intermediate_size: Size | None = None
    pretrained: bool = False
    use_mask_token: bool = False

    @model_validator(mode="after")
    def _check(self) -> "_Encoder":
        if self.size not in (*VIT_SIZES, CUSTOM):
            raise ValueError(f"size {self.size!r} is unknown; known: {', '.join(VIT_SIZES)}")
        if self.size == CUSTOM and None in (getattr(self, key) for key in VIT_KEYS):
            raise ValueError(f"size {CUSTOM!r} needs {', '.join(VIT_KEYS)}")
        if self.pretrained or self.use_mask_token:
            raise ValueError("pretrained and use_mask_token must be false, as in every LeWM")
        return self

    def sizes(self) -> tuple[int, ...]:
        """The values of `VIT_KEYS`."""
        preset = VIT_SIZES.get(self.size, (0,) * len(VIT_KEYS))
        return tuple(
            getattr(self, key) or default for key, default in zip(VIT_KEYS, preset, strict=True)
        )


class _Predictor(_Section):
    classes = ("Predictor", "ARPredictor")
    num_frames: Size
    input_dim: Size
    hidden_dim: Size
    output_dim: Size | None = None
    depth: Size
    heads: Size
    mlp_dim: Size
    dim_head: Size = 64
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    emb_dropout: Annotated[float, Field(ge=0, le=0)] = 0.0


class _ActionEncoder(_Section):
    classes = ("Embedder",)
    input_dim: Size
    smoothed_dim: Size = 10
    emb_dim: Size
    mlp_scale: Size = 4


class _Projector(_Section):
    classes = ("MLP",)
    input_dim: Size
    output_dim: Size | None = None
    hidden_dim: Size
    norm_fn: dict[str, Any] | None = None
    act_fn: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check(self) -> "_Projector":
        for key, value, known in (
            ("norm_fn", self.norm_fn, "BatchNorm1d"),
            ("act_fn", self.act_fn, "GELU"),
        ):
            if value is not None and _class_name(str(value.get("_target_"))) != known:
                raise ValueError(f"{key} is {value.get('_target_')}, LeWM's is {known}")
        return self


class _Release(_Section):
    classes = ("LeWM", "JEPA")
    encoder: _Encoder
    predictor: _Predictor
    action_encoder: _ActionEncoder
    projector: _Projector
    pred_proj: _Projector

    @model_validator(mode="after")
    def _check_widths(self) -> "_Release":
        latent = self.predictor.input_dim
        for key, width, wanted in (
            ("predictor.hidden_dim", self.predictor.hidden_dim, latent),
            ("predictor.output_dim", self.predictor.output_dim or latent, latent),
            ("action_encoder.emb_dim", self.action_encoder.emb_dim, latent),
            ("projector.input_dim", self.projector.input_dim, self.encoder.sizes()[0]),
            ("projector.output_dim", self.projector.output_dim or latent, latent),
            ("pred_proj.input_dim", self.pred_proj.input_dim, latent),
            ("pred_proj.output_dim", self.pred_proj.output_dim or latent, latent),
            ("pred_proj.hidden_dim", self.pred_proj.hidden_dim, self.projector.hidden_dim),
        ):
            if width != wanted:
                raise ValueError(f"{key} is {width}, this model needs {wanted}")
        if self.action_encoder.input_dim % ACTION_BLOCK:
            raise ValueError(
                f"action_encoder.input_dim is {self.action_encoder.input_dim}, not a multiple of "
                f"{ACTION_BLOCK} environment steps"
            )
        return self


def _class_name(target: str) -> str:
    return target.rpartition(".")[2]


def read_config(path: Path) -> tuple[Config, int]:
    """What a released `config.json` says.

    Returns:
        Config with the `model` section of the file, and the environment's action dimension.

    Raises:
        ValueError: no such file, not JSON, another method's, an unknown key, or a size that this
            model does not have; the key is named.
    """
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise ValueError(f"{path}: {reason}") from None
    target = data.get("_target_") if isinstance(data, dict) else None
    if target is not None and _class_name(str(target)) not in _Release.classes:
        raise ValueError(f"{path}: config of another method, {target}; only LeWM is read")
    try:
        release = _Release.model_validate(data)
        config = make_config(_model_values(release))
    except ValidationError as error:
        raise ValueError(f"{path}: not a LeWM's config: {first_error(error)}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return config, release.action_encoder.input_dim // ACTION_BLOCK


def _model_values(release: _Release) -> dict[str, Any]:
    width, depth, heads, mlp = release.encoder.sizes()
    predictor, actions = release.predictor, release.action_encoder
    values = {
        "image_size": release.encoder.image_size,
        "patch_size": release.encoder.patch_size,
        "width": width,
        "depth": depth,
        "heads": heads,
        "mlp": mlp,
        "latent_dim": predictor.input_dim,
        "projector_hidden": release.projector.hidden_dim,
        "predictor_depth": predictor.depth,
        "predictor_heads": predictor.heads,
        "predictor_head_dim": predictor.dim_head,
        "predictor_mlp": predictor.mlp_dim,
        "dropout": predictor.dropout,
        "history": predictor.num_frames,
        "action_hidden": actions.smoothed_dim,
        "action_mlp_ratio": actions.mlp_scale,
    }
    return {f"model.{key}": value for key, value in values.items()}


def make_release(model: ModelConfig, action_dim: int) -> dict[str, Any]:
    """The JSON data of a `config.json` that the authors' library builds the model from.

    Raises:
        ValueError: a shape of predictor for which the library makes another module.
    """
    latent = model.latent_dim
    if model.predictor_heads == 1 and model.predictor_head_dim == latent:
        raise ValueError("one predictor head as wide as the latent has no released form")
    return {
        "_target_": f"{LIBRARY}.LeWM",
        "encoder": _encoder(model),
        "predictor": {
            "_target_": f"{LIBRARY}.module.Predictor",
            "num_frames": model.history,
            "input_dim": latent,
            "hidden_dim": latent,
            "output_dim": latent,
            "depth": model.predictor_depth,
            "heads": model.predictor_heads,
            "mlp_dim": model.predictor_mlp,
            "dim_head": model.predictor_head_dim,
            "dropout": model.dropout,
            "emb_dropout": 0.0,
        },
        "action_encoder": _action_encoder(model, action_dim),
        "projector": _projector(model.width, model),
        "pred_proj": _projector(latent, model),
    }


def _encoder(model: ModelConfig) -> dict[str, Any]:
    """A preset by name, else "tiny" with every size overridden, because the library knows no other."""
    sizes = (model.width, model.depth, model.heads, model.mlp)
    preset = next((name for name, known in VIT_SIZES.items() if known == sizes), None)
    return {
        "_target_": "stable_pretraining.backbone.utils.vit_hf",
        "size": preset or "tiny",
        **({} if preset else dict(zip(VIT_KEYS, sizes, strict=True))),
        "patch_size": model.patch_size,
        "image_size": model.image_size,
        "pretrained": False,
        "use_mask_token": False,
    }


def _action_encoder(model: ModelConfig, action_dim: int) -> dict[str, Any]:
    fields = _ActionEncoder.model_fields
    inner = {"smoothed_dim": model.action_hidden, "mlp_scale": model.action_mlp_ratio}
    return {
        "_target_": f"{LIBRARY}.module.Embedder",
        "input_dim": ACTION_BLOCK * action_dim,
        "emb_dim": model.latent_dim,
        **{key: value for key, value in inner.items() if value != fields[key].default},
    }


def _projector(width: int, model: ModelConfig) -> dict[str, Any]:
    return {
        "_target_": f"{LIBRARY}.module.MLP",
        "input_dim": width,
        "output_dim": model.latent_dim,
        "hidden_dim": model.projector_hidden,
        "norm_fn": BATCH_NORM,
    }
