"""Checkpoints of our own that survive kills; the released form is in `lewm.released_weights`.

A run directory holds `checkpoint.pt` and the one before it, `checkpoint.prev.pt`. A checkpoint is a
dict of tensors and plain data, read with `weights_only=True`:

    config, recipe, action_dim, normaliser, method      what `load_method` needs
    step, diverged, optimiser, rng, curve, num_clips    what resuming needs besides
"""

import os
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from lewm.config import Config
from lewm.data.clips import Normaliser
from lewm.identity import RECIPE_VERSION
from lewm.methods import Method, make_method

CHECKPOINT = "checkpoint.pt"
PREVIOUS = "checkpoint.prev.pt"
FOR_USE = frozenset({"config", "recipe", "action_dim", "normaliser", "method"})
FOR_RESUMING = frozenset({"step", "diverged", "optimiser", "rng", "curve", "num_clips"})
KEYS = FOR_USE | FOR_RESUMING
NUM_NAMED = 3
"""Wrong tensors of a kind that an error names; the others are counted."""


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
    state = read_tensors(path)
    if not isinstance(state, dict) or set(state) != KEYS:
        raise ValueError(f"{path}: not a checkpoint of this program")
    return state


def read_tensors(path: Path) -> Any:
    """What a file of tensors and plain data holds, on the CPU; pickled code is never executed.

    Raises:
        ValueError: there is no such file, or it is torn, or it holds other objects.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        is_whole = zipfile.is_zipfile(path)
        if is_whole:  # torch.load itself does not look at the checksums
            with zipfile.ZipFile(path) as archive:
                if (name := archive.testzip()) is not None:
                    raise ValueError(f"{name} has a wrong checksum")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its zip reader or unpickler stumbles over
        if isinstance(error, pickle.UnpicklingError) and is_whole:
            what = "holds pickled objects, which are not executed; a state dict is wanted"
        else:
            reason = str(error).split("\n")[0][:120]
            what = f"broken or cut off ({type(error).__name__}: {reason})"
        raise ValueError(f"{path}: {what}") from None


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
        raise ValueError(f"{path}: its config does not fit: {first_error(error)}") from None
    method = make_method(config, state["action_dim"])
    load_strictly(method, state["method"], path)
    info = {key: state[key] for key in ("step", "diverged", "action_dim", "recipe")}
    info["num_params"] = method.num_params
    return config, method.to(device).eval(), Normaliser.from_dict(state["normaliser"]), info


def first_error(error: ValidationError) -> str:
    """The first of a validation's complaints, as `key: what is wrong`."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else message


def load_strictly(method: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Copies weights into a method, or another module.

    Raises:
        ValueError: naming tensors that are missing, unknown, or of another shape or type, a few of
            each kind and how many more, in one line.
    """
    own = method.state_dict()
    both = [name for name in own if name in weights]
    wrong = {
        "missing": [name for name in own if name not in weights],
        "unknown": [name for name in weights if name not in own],
        "misshapen": [
            f"{name} {tuple(weights[name].shape)}, not {tuple(own[name].shape)}"
            for name in both
            if weights[name].shape != own[name].shape
        ],
        "mistyped": [
            f"{name} {weights[name].dtype}, not {own[name].dtype}"
            for name in both
            if weights[name].dtype != own[name].dtype
        ],
    }
    if any(wrong.values()):
        listed = (f"{kind} {_few(names)}" for kind, names in wrong.items() if names)
        raise ValueError(f"{path}: {'; '.join(listed)}")
    method.load_state_dict(weights)


def _few(names: list[str]) -> str:
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more
