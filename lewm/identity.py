"""What makes two trainings, evaluations or datasets the same: hashes of the settings that decide them."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from lewm.config import OBJECTIVES, Config

RECIPE_VERSION = 2
"""Raised by any change that alters the bits of a trained model; part of every trial's identity."""

TRAINING_FIELDS = ("method", "seed", "model", "loss", "decoder", "pldm", "dino", "data", "optim")
EVALUATION_FIELDS = (
    "latents",
    "planning",
    "probing",
    "surprise",
    "examples",
    "timing",
    "reconstruction",
)


def training_fields(method: str) -> tuple[str, ...]:
    """The top-level fields that decide a method's trained weights."""
    special = {section for sections in OBJECTIVES.values() for section in sections}
    own = OBJECTIVES.get(method, ())
    return tuple(name for name in TRAINING_FIELDS if name in own or name not in special)


def non_default(config: Config, fields: Iterable[str]) -> dict[str, Any]:
    """The chosen top-level fields as JSON data, without what equals its default."""
    found = config.model_dump(mode="json", include=set(fields), exclude_defaults=True)
    if found.get("data", {}).get("frame_size") == config.model.image_size:
        del found["data"]["frame_size"]  # which is what None says
        if not found["data"]:
            del found["data"]
    return found


def digest(data: Any, length: int = 12) -> str:
    """Short stable SHA-256 of JSON data."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def trial_id(config: Config, fingerprint: str | None = None) -> str:
    """Identity of a trained model: hash of its non-default training fields and the recipe version.

    Args:
        fingerprint: of the named file `data.dataset`; it stands in for the path, which is no identity.
    """
    fields = non_default(config, training_fields(config.method))
    if config.loss.reconstruction == 0:  # no decoder is trained
        fields.pop("decoder", None)
    if config.data.dataset is not None:
        fields["data"] = {**fields["data"], "dataset": fingerprint}
    return digest({"recipe": RECIPE_VERSION, "config": fields})


def dataset_id(config: Config) -> str:
    """Name of the collected dataset: `<env>-<policy>-<hash of its spec>`."""
    data = config.data
    spec = {
        "recipe": RECIPE_VERSION,
        "env": data.env,
        "policy": data.policy,
        "num_episodes": data.num_episodes,
        "max_steps": data.max_steps,
        "collect_seed": data.collect_seed,
        "image_size": config.frame_size,
    }
    if data.render_quality != "exact":
        spec["render_quality"] = data.render_quality
    return f"{data.env}-{data.policy}-{digest(spec)}"
