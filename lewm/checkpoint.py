"""Checkpoints that survive kills, and the released weights in and out.

A run directory holds `checkpoint.pt` and the one before it, `checkpoint.prev.pt`. A checkpoint is a
dict of tensors and plain data, read with `weights_only=True`:

    config, recipe, action_dim, normaliser, method      what `load_method` needs
    step, diverged, optimiser, rng, curve, num_clips    what resuming needs besides
"""

import json
import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from pydantic import ValidationError
from torch import Tensor

from lewm.config import RECIPE_VERSION, Config, make_config
from lewm.data.clips import Normaliser
from lewm.methods import Method, make_method

CHECKPOINT = "checkpoint.pt"
PREVIOUS = "checkpoint.prev.pt"
FOR_USE = frozenset({"config", "recipe", "action_dim", "normaliser", "method"})
FOR_RESUMING = frozenset({"step", "diverged", "optimiser", "rng", "curve", "num_clips"})
KEYS = FOR_USE | FOR_RESUMING


@contextmanager
def atomic_file(path: Path, durable: bool = True, keep: Path | None = None) -> Iterator[BinaryIO]:
    """A file that appears under its name only when it is complete.

    Written as `<name>.tmp` beside it, then renamed; with `durable` it survives a power cut too.

    Args:
        keep: where the file that had the name goes; a kill in between leaves it only there.
    """
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        yield file
        file.flush()
        if durable:
            os.fsync(file.fileno())
    if keep is not None and path.exists():
        path.replace(keep)
    temporary.replace(path)
    if durable:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def save_checkpoint(run_dir: Path, state: Mapping[str, Any]) -> Path:
    """Writes `checkpoint.pt` durably and keeps the one before as `checkpoint.prev.pt`.

    At every moment a kill leaves at least one complete checkpoint, if there was one.
    """
    assert set(state) == KEYS, set(state) ^ KEYS
    path = run_dir / CHECKPOINT
    with atomic_file(path, keep=run_dir / PREVIOUS) as file:
        torch.save(dict(state), file)
    return path


def load_checkpoint(run_dir: Path) -> dict[str, Any] | None:
    """The newest complete checkpoint of a run of ours, or None where there is none.

    A torn `checkpoint.pt` is passed over for `checkpoint.prev.pt`, with a warning.

    Raises:
        ValueError: it was written under another recipe version, so it cannot be continued.
    """
    for name in (CHECKPOINT, PREVIOUS):
        path = run_dir / name
        if not path.exists():
            continue
        try:
            state = read_checkpoint(path)
        except ValueError as error:
            warnings.warn(f"{error}; trying an older one", stacklevel=2)
            continue
        if state["recipe"] != RECIPE_VERSION:
            raise ValueError(
                f"{path}: written by recipe {state['recipe']}, this is recipe {RECIPE_VERSION}; "
                "use another run directory"
            )
        return state
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """One checkpoint file, tensors on the CPU.

    Raises:
        ValueError: there is no such file, or it is torn, or no checkpoint of ours.
    """
    state = _read_tensors(path)
    if not isinstance(state, dict) or set(state) != KEYS:
        raise ValueError(f"{path}: not a checkpoint of this program")
    return state


def _read_tensors(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        if zipfile.is_zipfile(path):  # torch.load itself does not look at the checksums
            with zipfile.ZipFile(path) as archive:
                if (name := archive.testzip()) is not None:
                    raise ValueError(f"{name} has a wrong checksum")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its zip reader or unpickler stumbles over
        reason = str(error).split("\n")[0][:120]
        raise ValueError(f"{path}: broken or cut off ({type(error).__name__}: {reason})") from None


def load_method(
    path: Path, device: str | torch.device = "cpu"
) -> tuple[Config, Method, Normaliser, dict[str, Any]]:
    """A trained method in evaluation mode with what it was trained with.

    Args:
        path: a checkpoint file.
        device: where the method shall live.

    Returns:
        Config, method, action normaliser and info: step, diverged, action_dim, recipe, num_params.

    Raises:
        ValueError: the file is missing, broken or no checkpoint of ours.
    """
    state = read_checkpoint(path)
    try:
        config = Config.model_validate_json(state["config"])
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path}: its config does not fit: {key}: {first['msg']}") from None
    method = make_method(config, state["action_dim"])
    load_strictly(method, state["method"], path)
    info = {key: state[key] for key in ("step", "diverged", "action_dim", "recipe")}
    info["num_params"] = method.num_params
    return config, method.to(device).eval(), Normaliser.from_dict(state["normaliser"]), info


def load_strictly(method: Method, weights: Mapping[str, Tensor], path: Path) -> None:
    """Copies weights into a method.

    Raises:
        ValueError: naming every tensor that is missing, unknown or of another shape, in one line.
    """
    own = method.state_dict()
    wrong = [f"missing {name}" for name in own if name not in weights]
    wrong += [f"unknown {name}" for name in weights if name not in own]
    wrong += [
        f"{name} has shape {tuple(weights[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if wrong:
        raise ValueError(f"{path}: {'; '.join(wrong)}")
    method.load_state_dict(weights)


# The released weights (facts §9.4): config.json and weights.pt, 303 tensors in the paper's size.

VIT_SIZES = {"tiny": (192, 12, 3, 768), "small": (384, 12, 6, 1536), "base": (768, 12, 12, 3072)}
VIT_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
ACTION_BLOCK = 5
_RENAMED_IN_TRANSFORMERS_5 = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def rename_transformers5(name: str) -> str:
    """The released name of an encoder tensor that carries its name since transformers 5."""
    match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if match is None:
        return name
    layer, module, leaf = match.groups()
    module = _RENAMED_IN_TRANSFORMERS_5.get(module, module)
    return f"encoder.encoder.layer.{layer}.{module}.{leaf}"


def load_released(directory: Path, weights: str = "weights.pt") -> tuple[Config, Method]:
    """A released LeWM: `config.json` and weights, named as before or since transformers 5.

    Returns:
        Config with the `model` section of the file, and the method in evaluation mode. The action
        normaliser is not part of a release; fit it on the dataset it was trained on.

    Raises:
        ValueError: a file is missing or broken, a size is not supported, or tensors do not fit.
    """
    path = directory / weights
    tensors = _read_tensors(path)
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise ValueError(f"{path}: not a state dict")
    tensors = {rename_transformers5(name): tensor for name, tensor in tensors.items()}
    config, action_dim = _released_config(directory / "config.json", tensors)
    method = make_method(config, action_dim)
    load_strictly(method, tensors, path)
    return config, method.eval()


def _released_config(path: Path, tensors: Mapping[str, Tensor]) -> tuple[Config, int]:
    """Sizes from the file; the action encoder's inner ones, which it leaves out, from its tensors."""
    try:
        sizes = json.loads(path.read_text())
        encoder, predictor = sizes["encoder"], sizes["predictor"]
        preset = VIT_SIZES.get(encoder["size"], (None,) * len(VIT_KEYS))
        width, depth, heads, mlp = (
            encoder.get(key, default) for key, default in zip(VIT_KEYS, preset, strict=True)
        )
        latent_dim, block_dim = predictor["input_dim"], sizes["action_encoder"]["input_dim"]
        unsupported = (
            {predictor["hidden_dim"], predictor["output_dim"]} != {latent_dim}
            or sizes["projector"]["hidden_dim"] != sizes["pred_proj"]["hidden_dim"]
            or predictor.get("emb_dropout", 0.0) != 0.0
            or block_dim % ACTION_BLOCK != 0
        )
        values = {
            "image_size": encoder["image_size"],
            "patch_size": encoder["patch_size"],
            "width": width,
            "depth": depth,
            "heads": heads,
            "mlp": mlp,
            "latent_dim": latent_dim,
            "projector_hidden": sizes["projector"]["hidden_dim"],
            "predictor_depth": predictor["depth"],
            "predictor_heads": predictor["heads"],
            "predictor_head_dim": predictor["dim_head"],
            "predictor_mlp": predictor["mlp_dim"],
            "dropout": predictor["dropout"],
            "history": predictor["num_frames"],
        }
    except (OSError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: not a released config ({type(error).__name__}: {error})"
        ) from None
    if unsupported:
        raise ValueError(f"{path}: sizes this model does not support")
    if (conv := tensors.get("action_encoder.patch_embed.weight")) is not None:
        values["action_hidden"] = conv.shape[0]
    if (linear := tensors.get("action_encoder.embed.0.weight")) is not None:
        values["action_mlp_ratio"] = linear.shape[0] // latent_dim
    try:
        config = make_config({f"model.{key}": value for key, value in values.items()})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return config, block_dim // ACTION_BLOCK


def export_released(directory: Path, config: Config, method: Method) -> None:
    """Writes `config.json` and `weights.pt` as released, readable by the authors' code.

    Raises:
        ValueError: another method than `lewm`.
    """
    if config.method != "lewm":
        raise ValueError(f"only lewm has a released form, not {config.method!r}")
    model = config.model
    weights = {name: tensor.cpu() for name, tensor in method.state_dict().items()}
    encoder_sizes = (model.width, model.depth, model.heads, model.mlp)
    size = next((name for name, sizes in VIT_SIZES.items() if sizes == encoder_sizes), "custom")
    latent = dict.fromkeys(("input_dim", "hidden_dim", "output_dim"), model.latent_dim)
    hidden = {"output_dim": model.latent_dim, "hidden_dim": model.projector_hidden}
    sizes = {
        "encoder": {
            "size": size,
            **({} if size in VIT_SIZES else dict(zip(VIT_KEYS, encoder_sizes, strict=True))),
            "patch_size": model.patch_size,
            "image_size": model.image_size,
        },
        "predictor": {
            "num_frames": model.history,
            **latent,
            "depth": model.predictor_depth,
            "heads": model.predictor_heads,
            "mlp_dim": model.predictor_mlp,
            "dim_head": model.predictor_head_dim,
            "dropout": model.dropout,
            "emb_dropout": 0.0,
        },
        "action_encoder": {
            "input_dim": weights["action_encoder.patch_embed.weight"].shape[1],
            "emb_dim": model.latent_dim,
        },
        "projector": {"input_dim": model.width, **hidden},
        "pred_proj": {"input_dim": model.latent_dim, **hidden},
    }
    directory.mkdir(parents=True, exist_ok=True)
    with atomic_file(directory / "weights.pt") as file:
        torch.save(weights, file)
    with atomic_file(directory / "config.json") as file:
        file.write(json.dumps(sizes, indent=1).encode())
