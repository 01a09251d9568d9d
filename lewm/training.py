"""Training with exact resume; `python -m lewm.train` is its command line.

A run that is killed at any moment and started again ends in the same bits as one left alone: the
checkpoint holds weights, optimiser, generators and curve, and the data order is a function of
(seed, epoch), so the step alone says where in it we are.
"""

import contextlib
import ctypes
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lewm.checkpoint import atomic_file
from lewm.config import Config, OptimConfig
from lewm.curve import RunFiles
from lewm.data.clips import ClipData
from lewm.data.episodes import EpisodeFile
from lewm.data.loader import load_batches
from lewm.methods import Batch, Method
from lewm.run import Run, make_run, resume, save

Report = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class TrainResult:
    """How a training ended: `step` updates were made, or the next one would not have been finite."""

    status: Literal["done", "diverged"]
    step: int


def train(
    config: Config, run_dir: Path, dataset: Path, report: Report | None = None
) -> TrainResult:
    """Trains to the end, from the newest checkpoint in `run_dir` if there is one.

    Args:
        run_dir: gets config.json, checkpoint.pt, checkpoint.prev.pt, curve.jsonl, progress.json and
            train.log; no other process may use it meanwhile.
        dataset: episode file (published layout).
        report: called right after each durable checkpoint with its step and the newest values of
            the curve's columns, and again for the one that a resumed run starts from: that report
            may never have arrived, so the receiver drops steps it already has.

    Returns:
        `diverged` when a loss or gradient was not finite: the checkpoint then holds the weights
        before that update, and training again returns the same at once.

    Raises:
        ValueError: the dataset does not fit the config, or `run_dir` holds another run.
    """
    device = _setup_torch(config)
    with EpisodeFile(dataset) as file:
        run = make_run(config, run_dir, file, device)
        resumed_at, diverged = resume(run)
        with atomic_file(run_dir / "config.json") as text:
            text.write(config.model_dump_json(indent=1).encode())
        step = resumed_at or 0
        num_rows = step + (diverged or resumed_at == run.num_steps)
        frames_per_step = config.optim.batch_size * run.data.num_frames
        with RunFiles(run_dir, run.curve, num_rows, frames_per_step) as files:
            files.log(f"step {step} of {run.num_steps}: {run.describe()}")
            if resumed_at is not None and report is not None:
                report(step, run.curve.newest(step + 1))
            if resumed_at is None and not run.method.trains:
                _fit(run)
            if diverged:
                return TrainResult("diverged", step)
            batches = _batches(run, step, run.num_steps)
            updates = _Updates(run)
            while True:
                last = step == run.num_steps
                evaluates = last or step % config.optim.eval_every == 0
                saves = last or step % config.run.checkpoint_every == 0
                if evaluates or saves or updates.unread == _reads_every(device):
                    stopped_at = updates.read(files)
                    if stopped_at is not None:
                        files.log(f"step {stopped_at}: loss or gradient not finite")
                        _save(run, stopped_at, files, report, diverged=True)
                        return TrainResult("diverged", stopped_at)
                if step != resumed_at:
                    if evaluates:
                        run.curve.record(step, evaluate(run.method, run.val, config, device))
                    if last:
                        files.add_row(step)
                    if saves:
                        _save(run, step, files, report)
                if last:
                    return TrainResult("done", step)
                updates.make(step, next(batches))
                step += 1


def evaluate(
    method: Method, val: ClipData, config: Config, device: torch.device
) -> dict[str, float]:
    """Prediction loss and latent scale on a fixed set of validation clips; draws no random number.

    Returns:
        `val_pred_loss`, as in training but in evaluation mode; `mean_std`, the standard deviation of
        the projected embedding over all frames of the clips, averaged over its dimensions.
    """
    num_clips = min(config.optim.num_val_clips, len(val))
    indices = np.linspace(0, len(val) - 1, num_clips).round().astype(np.int64)
    errors, latents = [], []
    method.eval()
    with torch.inference_mode(), _autocast(config, device):
        size = config.optim.batch_size
        parts = np.split(indices, range(size, num_clips, size))
        for batch in load_batches(val, parts, device):
            z_BTD = method.embed(batch)
            pred_BTD = method.predict(z_BTD[:, :-1], batch.actions_BTA[:, :-1])
            errors.append((pred_BTD.float() - z_BTD[:, 1:].float()).square().mean(dim=(1, 2)))
            latents.append(method.pooled(z_BTD).float().flatten(0, 1))
    method.train()
    return {
        "val_pred_loss": torch.cat(errors).mean().item(),
        "mean_std": torch.cat(latents).std(dim=0).mean().item(),
    }


def learning_rate(step: int, num_steps: int, config: OptimConfig) -> float:
    """Linear from 0 over `warmup_frac` of all steps, then cosine to 0; stepped every update."""
    warmup = round(config.warmup_frac * num_steps)
    if step < warmup:
        return config.lr * step / warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup)))


def pick_device(name: str) -> torch.device:
    """The device of a `run.device` setting; `auto` is an accelerator where there is one.

    Raises:
        ValueError: the named device cannot be used here.
    """
    try:
        if name == "auto":
            device = torch.accelerator.current_accelerator(check_available=True)
            return device or torch.device("cpu")
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"run.device {name!r} cannot be used here: {reason}") from None
    return device


def _setup_torch(config: Config) -> torch.device:
    """Device and the process-wide settings that the bits depend on."""
    device = pick_device(config.run.device)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(config.optim.num_threads)
    keep_freed_memory()
    # With `warn_only` attention takes its faster backward, which is not deterministic; a ResNet's pooling has
    # no other on a GPU.
    warn_only = device.type != "cpu" and config.model.encoder == "resnet18"
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return device


def keep_freed_memory() -> None:
    """Lets glibc keep what is freed: on a CPU a tenth of a plan's time else goes into page faults."""
    trim_threshold, mmap_threshold = -1, -3
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, 1 << 29)
        libc.mallopt(mmap_threshold, 1 << 25)


def _save(
    run: Run, step: int, files: RunFiles, report: Report | None, diverged: bool = False
) -> None:
    """A durable checkpoint, then the live files, then the report."""
    save(run, step, diverged)
    values = run.curve.newest(step + 1)
    files.log(f"step {step}: " + " ".join(f"{key}={value:.4g}" for key, value in values.items()))
    files.show(step)
    if report is not None:
        report(step, values)


def _fit(run: Run) -> None:
    """One epoch at most, in the order in which a training would see it."""
    one_epoch = len(run.data) // run.config.optim.batch_size
    asked = run.config.optim.num_steps or one_epoch
    with torch.no_grad(), _autocast(run.config, run.device):
        run.method.fit(lambda: _batches(run, 0, min(asked, one_epoch)))


def _batches(run: Run, first: int, end: int) -> Iterator[Batch]:
    """Batches of steps `first` .. `end` - 1; an epoch's last short batch is dropped."""
    size, seed = run.config.optim.batch_size, run.config.seed
    steps_per_epoch = len(run.data) // size

    @lru_cache(maxsize=1)
    def order_of(epoch: int) -> npt.NDArray[np.int64]:
        return run.data.order(np.random.default_rng((seed, epoch)))

    def clips_of(step: int) -> npt.NDArray[np.int64]:
        epoch, position = divmod(step, steps_per_epoch)
        return order_of(epoch)[position * size : (position + 1) * size]

    threads = 0 if run.device.type == "cpu" else run.config.run.loader_threads
    return load_batches(run.data, map(clips_of, range(first, end)), run.device, threads)


def _autocast(config: Config, device: torch.device) -> torch.autocast:
    return torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=config.optim.precision == "bf16"
    )


def _reads_every(device: torch.device) -> int:
    """Steps between looks at what was measured; an accelerator waits at each for the host."""
    return 1 if device.type == "cpu" else 16


class _Updates:
    """The updates of a run. After a loss or gradient that was not finite none moves a weight, so that
    what was measured can be read some steps later, all at once."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._parameters = list(run.method.parameters())
        self._terms: list[str] = []
        self._measured: list[tuple[int, float, Tensor]] = []
        self._stopped = torch.zeros((), device=run.device)
        run.optimiser.found_inf = self._stopped  # type: ignore[attr-defined]  # as GradScaler says it

    @property
    def unread(self) -> int:
        """Updates made since the last `read`."""
        return len(self._measured)

    def make(self, step: int, batch: Batch) -> None:
        """One update, unless an earlier one or this is not finite."""
        run = self._run
        with _autocast(run.config, run.device):
            terms = run.loss(batch, run.directions)
        run.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(terms["loss"])
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, run.config.optim.grad_clip)
        self._terms = [*terms, "grad_norm"]
        values = torch.stack([*terms.values(), norm]).detach()
        self._stopped.clamp_(min=(~values.isfinite().all()).float())
        lr = learning_rate(step, run.num_steps, run.config.optim)
        self._measured.append((step, lr, values))
        run.optimiser.param_groups[0]["lr"] = lr
        run.optimiser.step()

    def read(self, files: RunFiles) -> int | None:
        """Adds a row of the curve per unread update; the step of the first that was not made, if any."""
        if not self._measured:
            return None
        rows = torch.stack([values for _, _, values in self._measured]).tolist()  # the only wait
        stopped_at = None
        for (step, lr, _), values in zip(self._measured, rows, strict=True):
            self._run.curve.record(step, {**dict(zip(self._terms, values, strict=True)), "lr": lr})
            files.add_row(step)
            if not all(map(math.isfinite, values)):
                self._run.optimiser.param_groups[0]["lr"] = lr
                stopped_at = step
                break
        self._measured.clear()
        return stopped_at
