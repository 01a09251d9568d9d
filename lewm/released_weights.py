"""The released form of a LeWM, in and out; `python -m lewm.released` is its command line.

A release is a folder (facts §9.4):

    weights.pt        state dict, float32; 303 tensors at the paper's size
    config.json       sizes of encoder, predictor, action_encoder, projector and pred_proj
    normaliser.json   {"action": {"mean": [A numbers], "std": [A numbers]}}, the environment's units
    training.json     the `Config` it was trained with

The authors publish the first two, and stable-worldmodel reads no others; exports of ours hold all four.
The encoder's tensors are named as by transformers before version 5 (the published files) or since; both
are read, and either is written.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lewm.checkpoint import CHECKPOINT, atomic_file, load_method, load_strictly, read_tensors
from lewm.config import Config
from lewm.data.clips import Normaliser
from lewm.identity import digest, non_default
from lewm.methods import Method, make_method
from lewm.released_config import ACTION_BLOCK, make_release, read_config

Naming = Literal["transformers4", "transformers5"]

WEIGHTS = "weights.pt"
CONFIG = "config.json"
NORMALISER = "normaliser.json"
TRAINING = "training.json"

_MODULES = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
"""What transformers 5 renamed within a layer of the encoder."""
_BEFORE_5 = {new: old for old, new in _MODULES.items()}
_LAYER = {
    "transformers4": re.compile(r"encoder\.encoder\.layer\.(\d+)\.(.+)\.(weight|bias)"),
    "transformers5": re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)"),
}


def rename(name: str, naming: Naming) -> str:
    """A tensor's name in the wanted naming; a name that is in it already stays."""
    other: Naming = "transformers5" if naming == "transformers4" else "transformers4"
    match = _LAYER[other].fullmatch(name)
    if match is None:
        return name
    layer, module, leaf = match.groups()
    if naming == "transformers4":
        return f"encoder.encoder.layer.{layer}.{_BEFORE_5.get(module, module)}.{leaf}"
    return f"encoder.layers.{layer}.{_MODULES.get(module, module)}.{leaf}"


def load_released(directory: str | Path, weights: str = WEIGHTS) -> tuple[Config, Method]:
    """A released LeWM on the CPU, in evaluation mode.

    Args:
        directory: holds `config.json` and the weights.
        weights: name of the weights' file.

    Returns:
        Config whose `model` section is the file's (all else is the defaults), and the method.

    Raises:
        ValueError: in one line: a file is missing or broken, the config is another method's or has a
            size this model does not support, or tensors are missing, unknown, misshapen, of another
            type or not finite.
    """
    directory = Path(directory)
    config, action_dim = read_config(directory / CONFIG)
    tensors = _read_weights(directory / weights)
    method = make_method(config, action_dim)
    load_strictly(method, tensors, directory / weights)
    return config, method.eval()


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The file's tensors by their names before transformers 5."""
    found = read_tensors(path)
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise ValueError(f"{path}: not a state dict")
    tensors: dict[str, Tensor] = {}
    for name, tensor in found.items():
        old_name = rename(str(name), "transformers4")
        if old_name in tensors:
            raise ValueError(f"{path}: {old_name} is there twice, under both namings")
        if not tensor.isfinite().all():
            raise ValueError(f"{path}: {name} holds values that are not finite")
        tensors[old_name] = tensor
    return tensors


def load_normaliser(directory: str | Path) -> Normaliser | None:
    """The action normaliser of a release; None where it has none, as those of the authors.

    Raises:
        ValueError: `normaliser.json` is broken, or of another width than the weights' actions.
    """
    path = Path(directory) / NORMALISER
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text())["action"]
        mean, std = (np.array(values[key], np.float32) for key in ("mean", "std"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path}: not {{"action": {{"mean": [...], "std": [...]}}}} '
            f"({type(error).__name__}: {error})"
        ) from None
    action_dim = read_config(path.with_name(CONFIG))[1]
    if mean.shape != (action_dim,) or std.shape != (action_dim,):
        raise ValueError(
            f"{path}: mean {mean.shape} and std {std.shape} for weights of {action_dim}-d actions"
        )
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise ValueError(f"{path}: mean and std must be finite, and std positive")
    return Normaliser(mean, std)


def weights_hash(directory: str | Path) -> str:
    """SHA-256 of a release's sizes and tensors, the same for both namings.

    Neither how the files are written nor `normaliser.json` matters.

    Raises:
        ValueError: as `load_released`.
    """
    return _hash(*load_released(directory))


def _hash(config: Config, method: Method) -> str:
    total = hashlib.sha256(digest(non_default(config, ("model",)), 64).encode())
    for name, tensor in sorted(method.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def export_released(
    directory: str | Path,
    config: Config,
    method: Method,
    normaliser: Normaliser | None = None,
    training: Config | None = None,
    naming: Naming = "transformers4",
) -> None:
    """Writes a release that `load_released` and the authors' library read.

    Args:
        directory: made if need be; must not hold a release yet. `config.json` appears last.
        config: its `model` and `data.action_block` are used; a decoder it was trained with stays behind.
        normaliser: of the actions it was trained on, into `normaliser.json`.
        training: the whole of its config, into `training.json`.
        naming: which transformers the reader of the encoder's tensors has.

    Raises:
        ValueError: another method than `lewm`, a shape without a released form, weights that are not
            finite, or a directory that holds a release.
    """
    directory = Path(directory)
    if config.method != "lewm":
        raise ValueError(f"only lewm has a released form, not {config.method!r}")
    if config.data.action_block != ACTION_BLOCK:
        raise ValueError(
            f"data.action_block is {config.data.action_block}, releases have {ACTION_BLOCK}"
        )
    state = {k: v for k, v in method.state_dict().items() if not k.startswith("decoder.")}
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise ValueError("the weights are not finite (a diverged run?)")
    block_dim = state["action_encoder.patch_embed.weight"].shape[1]
    release = make_release(config.model, block_dim // ACTION_BLOCK)
    for name in (WEIGHTS, CONFIG):
        if (directory / name).exists():
            raise ValueError(f"{directory} holds a {name} already; name another directory")
    directory.mkdir(parents=True, exist_ok=True)
    with atomic_file(directory / WEIGHTS) as file:
        tensors = {rename(name, naming): tensor.cpu() for name, tensor in state.items()}
        torch.save(tensors, file)
    if normaliser is not None:
        _write_json(directory / NORMALISER, {"action": normaliser.to_dict()})
    if training is not None:
        _write_json(directory / TRAINING, training.model_dump(mode="json"))
    _write_json(directory / CONFIG, release)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    with atomic_file(path) as file:
        file.write(json.dumps(data, indent=1, allow_nan=False).encode())


def export_checkpoint(path: Path, directory: Path, naming: Naming = "transformers4") -> None:
    """Exports a checkpoint of ours, with its normaliser and its config.

    Args:
        path: checkpoint file, or a run's directory.

    Raises:
        ValueError: no such checkpoint, broken, diverged, or see `export_released`.
    """
    checkpoint = path / CHECKPOINT if path.is_dir() else path
    config, method, normaliser, info = load_method(checkpoint)
    if info["diverged"]:
        raise ValueError(f"{checkpoint}: this run diverged at step {info['step']}")
    export_released(directory, config, method, normaliser, config, naming)


def describe(directory: Path) -> str:
    """What a release is, in lines for the terminal.

    Raises:
        ValueError: it cannot be used; see `load_released` and `load_normaliser`.
    """
    config, method = load_released(directory)
    model, normaliser = config.model, load_normaliser(directory)
    action_dim = read_config(directory / CONFIG)[1]
    units = "none; evaluate with --dataset FILE"
    if normaliser is not None:
        pairs = zip(normaliser.mean, normaliser.std, strict=True)
        units = ", ".join(f"{mean:.4g} ± {std:.4g}" for mean, std in pairs)
    lines = {
        "parameters": f"{method.num_params:,}",
        "tensors": f"{len(method.state_dict())}",
        "image": f"{model.image_size} px",
        "history": f"{model.history}",
        "actions": f"{action_dim}-d, {ACTION_BLOCK} steps per block",
        "latent": f"{model.latent_dim}-d",
        "normaliser": units,
        "hash": _hash(config, method),
    }
    return "\n".join(f"{key:11} {value}" for key, value in lines.items())
