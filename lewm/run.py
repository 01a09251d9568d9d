"""A training run's state: made fresh from its seed, resumed from a checkpoint, saved to one."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lewm.checkpoint import load_checkpoint, load_strictly, save_checkpoint
from lewm.config import Config
from lewm.curve import Curve
from lewm.data.clips import ClipData
from lewm.data.episodes import EpisodeFile
from lewm.identity import RECIPE_VERSION, training_fields
from lewm.methods import Batch, Method, make_method

DIRECTIONS_STREAM = 1
"""SIGReg's directions have a stream of their own, apart from that of weights and dropout."""


@dataclass
class Run:
    """Everything of a run that changes while it trains, and what it needs around it."""

    config: Config
    run_dir: Path
    device: torch.device
    data: ClipData
    val: ClipData
    method: Method
    loss: Callable[[Batch, torch.Generator], dict[str, torch.Tensor]]
    """The method's, compiled if the configuration says so."""
    optimiser: torch.optim.AdamW
    directions: torch.Generator
    num_steps: int
    curve: Curve

    def describe(self) -> str:
        """One line for the log."""
        return (
            f"{self.config.method} with {self.method.num_params:,} parameters on {self.device}, "
            f"{len(self.data):,} training clips"
        )


def make_run(config: Config, run_dir: Path, file: EpisodeFile, device: torch.device) -> Run:
    """A fresh run: everything random in it comes from `config.seed`."""
    data, val = ClipData(file, config, "train"), ClipData(file, config, "val")
    steps_per_epoch = len(data) // config.optim.batch_size
    if steps_per_epoch == 0:
        raise ValueError(
            f"dataset {file.path}: {len(data)} training clips do not fill one batch of "
            f"{config.optim.batch_size} (optim.batch_size)"
        )
    num_steps = config.optim.num_steps or steps_per_epoch * (config.optim.num_epochs or 0)
    torch.manual_seed(config.seed)
    method = make_method(config, file.action_dim).to(device)
    num_steps = num_steps if method.trains else 0
    method.prepare(file, data, val)
    optim = config.optim
    return Run(
        config=config,
        run_dir=run_dir,
        device=device,
        data=data,
        val=val,
        method=method,
        loss=method.loss
        if optim.compile == "off"
        else torch.compile(method.loss, mode=optim.compile),
        optimiser=torch.optim.AdamW(
            method.parameters(), lr=optim.lr, weight_decay=optim.weight_decay, fused=True
        ),
        directions=torch.Generator().manual_seed(_stream_seed(config.seed)),
        num_steps=num_steps,
        curve=Curve(num_steps, method.terms),
    )


def _stream_seed(seed: int) -> int:
    return int(np.random.SeedSequence((seed, DIRECTIONS_STREAM)).generate_state(1)[0])


def resume(run: Run) -> tuple[int | None, bool]:
    """Puts the newest checkpoint into the run: its step (None without one), and whether it diverged.

    Raises:
        ValueError: the checkpoint is of another configuration or of other data.
    """
    run.run_dir.mkdir(parents=True, exist_ok=True)
    state = load_checkpoint(run.run_dir)
    if state is None:
        return None, False
    _check_same_run(run, state)
    load_strictly(run.method, state["method"], run.run_dir)
    run.optimiser.load_state_dict(state["optimiser"])
    run.curve.table[: len(state["curve"])] = state["curve"]
    run.directions.set_state(state["rng"]["directions"])
    torch.set_rng_state(state["rng"]["torch"])
    if run.device.type != "cpu" and state["rng"]["device"] is not None:
        torch.get_device_module(run.device).set_rng_state(state["rng"]["device"], run.device)
    return state["step"], state["diverged"]


def _check_same_run(run: Run, state: dict[str, Any]) -> None:
    was = _training_values(json.loads(state["config"]))
    now = _training_values(run.config.model_dump(mode="json"))
    for key, value in now.items():
        if key in was and was[key] != value:
            raise ValueError(
                f"{run.run_dir} holds a run with {key} = {was[key]!r}, asked for {value!r}; "
                "use another run directory"
            )
    if state["num_clips"] != len(run.data):
        raise ValueError(
            f"{run.run_dir} holds a run on {state['num_clips']} training clips, "
            f"this dataset has {len(run.data)}; use another run directory"
        )


def _training_values(fields: dict[str, Any]) -> dict[str, Any]:
    """`section.key` → value of what decides the weights; the dataset's path does not."""
    values = {}
    decodes = fields["loss"].get("reconstruction", 0.0) > 0
    for name in training_fields(fields["method"]):
        if name not in fields or (name == "decoder" and not decodes):
            continue  # a run from before there was the section, or one without a decoder
        if isinstance(fields[name], dict):
            values.update({f"{name}.{key}": value for key, value in fields[name].items()})
        else:
            values[name] = fields[name]
    values.pop("data.dataset")
    return values


def save(run: Run, step: int, diverged: bool = False) -> None:
    """Writes a durable checkpoint of the run after `step` updates."""
    on_device = run.device.type != "cpu"
    module = torch.get_device_module(run.device) if on_device else None
    state = {
        "config": run.config.model_dump_json(),
        "recipe": RECIPE_VERSION,
        "action_dim": run.data.action_width // run.data.block,
        "normaliser": run.data.normaliser.to_dict(),
        "method": run.method.state_dict(),
        "step": step,
        "diverged": diverged,
        "optimiser": run.optimiser.state_dict(),
        "rng": {
            "torch": torch.get_rng_state(),
            "directions": run.directions.get_state(),
            "device": module.get_rng_state(run.device) if module is not None else None,
        },
        "curve": run.curve.table[: step + 1].clone(),
        "num_clips": len(run.data),
    }
    save_checkpoint(run.run_dir, state)
