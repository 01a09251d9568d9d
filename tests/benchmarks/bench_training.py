"""One update of LeWM: profile `quick` (batch 32 x 4 frames), and published sizes at a batch that a CPU bears.

The floor does the counted operations of our step as matrix products; elementwise work comes on top.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lewm.config import Config
from lewm.data.clips import prepare_frames
from lewm.loss import sigreg, unit_directions
from lewm.methods import Batch, make_method
from pipeline.resolve import resolve
from pipeline.spec import Request
from tests.benchmarks.plugin import Measure, count_flops, matrix_products

SIZES = {"quick": 32, "paper": 8}
"""Profile → batch; the published one is 128."""


def parametrised(function: Any) -> Any:
    groups = [
        pytest.param(size, marks=pytest.mark.benchmark(group=f"training step, {size} sizes"))
        for size in SIZES
    ]
    return pytest.mark.parametrize("size", groups)(function)


def config_of(size: str) -> Config:
    trials = resolve(Request("lambda", profile=size, envs=("two_room",))).trials
    return next(trial.config for trial in trials if trial.config.loss.lam > 0)


def batch_of(config: Config, num_clips: int) -> Batch:
    torch.manual_seed(0)
    size = config.model.image_size
    shape = (num_clips, config.model.history + 1)
    frames = torch.randint(0, 256, (*shape, 3, size, size), dtype=torch.uint8)
    return Batch(prepare_frames(frames), torch.randn(*shape, 2 * config.data.action_block))


def our_step(size: str) -> Callable[[], object]:
    config = config_of(size)
    batch = batch_of(config, SIZES[size])
    method = make_method(config, 2)
    parameters = list(method.parameters())
    optimiser = torch.optim.AdamW(parameters, fused=True)
    directions = torch.Generator().manual_seed(0)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(method.loss(batch, directions)["loss"])
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()

    return step


@parametrised
def bench_ours(size: str, measure: Measure) -> None:
    measure(our_step(size), 1, "steps", 30 if size == "quick" else 5)


@parametrised
def bench_floor(size: str, measure: Measure) -> None:
    flops = count_flops(our_step(size))
    measure(matrix_products(flops), 1, "steps", 30 if size == "quick" else 5, gflop=flops / 1e9)


@parametrised
def bench_rival(size: str, measure: Measure, rival: str) -> None:
    """The library's LeWM and SIGReg; the sum of the two losses, the optimiser and the batch are as ours."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf
    from stable_worldmodel.wm.loss import SIGReg

    from lewm.released_config import make_release

    config = config_of(size)
    batch = batch_of(config, SIZES[size])
    model = instantiate(OmegaConf.create(make_release(config.model, 2)))
    regulariser = SIGReg(17, config.loss.num_directions)
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        info = model.encode({"pixels": batch.frames_BTCHW, "action": batch.actions_BTA})
        z, actions = info["emb"], info["act_emb"]
        predicted = model.predict(z[:, :-1], actions[:, :-1])
        loss = (predicted - z[:, 1:]).square().mean()
        (loss + config.loss.lam * regulariser(z.transpose(0, 1))).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    measure(step, 1, "steps", 30 if size == "quick" else 5, rival=rival)


SHAPES = {"quick": (4, 32, 64, 256), "paper": (4, 128, 192, 1024)}
"""T, B, D and M of SIGReg's input."""


def sigreg_groups(function: Any) -> Any:
    groups = [
        pytest.param(size, marks=pytest.mark.benchmark(group=f"SIGReg and its slope, {size} sizes"))
        for size in SHAPES
    ]
    return pytest.mark.parametrize("size", groups)(function)


def backward(loss: Callable[[torch.Tensor], torch.Tensor], size: str) -> Callable[[], object]:
    z_TBD = torch.randn(SHAPES[size][:3], requires_grad=True)
    return lambda: torch.autograd.grad(loss(z_TBD), z_TBD)


@sigreg_groups
def bench_sigreg_ours(size: str, measure: Measure) -> None:
    generator, (dim, num) = torch.Generator().manual_seed(0), SHAPES[size][2:]
    call = backward(lambda z: sigreg(z, unit_directions(dim, num, generator)), size)
    measure(call, 1, "calls", 12)


@sigreg_groups
def bench_sigreg_rival(size: str, measure: Measure, rival: str) -> None:
    from stable_worldmodel.wm.loss import SIGReg

    measure(backward(SIGReg(17, SHAPES[size][3]), size), 1, "calls", 12, rival=rival)
