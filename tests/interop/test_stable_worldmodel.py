"""Against an installed stable-worldmodel: weights and data, theirs read by us and ours by them.

Needs `stable-worldmodel[train,format]` in the environment that runs it, beside what `lewm` needs:

    python -m pytest -m interop tests/interop -s

At paper size (224 px, 18.03 M parameters, 303 tensors) with random weights, on the CPU, in float32.
"""

import importlib.metadata
import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lewm.config import Config
from lewm.data.clips import ClipData, Normaliser, prepare_frames
from lewm.data.episodes import EpisodeFile
from lewm.data.write import write_episodes
from lewm.methods import Method, make_method
from lewm.overrides import make_config
from lewm.released_config import make_release
from lewm.released_weights import Naming, export_released, load_released

NEEDED = ("stable_worldmodel", "stable_pretraining", "transformers", "hydra")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]

TOLERANCE = 1e-5
CASES = [(3, 2), (3, 5), (1, 2)]
"""(history, action dimension): Push-T and Reacher, Cube, the paper's Two-Room."""


@pytest.fixture(scope="module", autouse=True)
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The package, imported with a home of its own and no network."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["STABLEWM_HOME"] = str(tmp_path_factory.mktemp("home"))
    torch.set_num_threads(2)
    operators = stand_in_for_torchvision()
    import stable_pretraining
    import stable_worldmodel
    import transformers
    from stable_worldmodel.wm.utils import load_pretrained, save_pretrained

    print(
        f"\nstable-worldmodel {importlib.metadata.version('stable-worldmodel')}, stable-pretraining "
        f"{importlib.metadata.version('stable-pretraining')}, transformers "
        f"{transformers.__version__}, torch {torch.__version__}"
    )
    assert stable_pretraining and load_pretrained and save_pretrained
    yield stable_worldmodel
    del operators


def stand_in_for_torchvision() -> Any:
    """Declares the operators that a torchvision built for CUDA lacks beside a CPU torch.

    It imports only if they are declared; nothing here calls them.
    """
    operators = torch.library.Library("torchvision", "FRAGMENT")
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return operators


def library_naming() -> Naming:
    import transformers

    major = int(transformers.__version__.split(".")[0])
    return "transformers5" if major >= 5 else "transformers4"


@torch.no_grad()
def scatter(module: torch.nn.Module) -> None:
    """Moves every tensor away from its initial value, running statistics and AdaLN included."""
    generator = torch.Generator().manual_seed(5)
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(1 + 0.2 * noise.abs())
        else:
            tensor.add_((0.2 if "adaLN" in name else 0.02) * noise)


def clips(size: int, action_dim: int) -> dict[str, torch.Tensor]:
    """B = 2 clips, S = 3 candidates of 5 blocks."""
    rng = torch.Generator().manual_seed(8)
    frames = torch.randint(0, 256, (2, 4, 3, size, size), generator=rng, dtype=torch.uint8)
    return {
        "pixels": prepare_frames(frames),
        "goal": prepare_frames(frames.flip(-1))[:, -1:],
        "action": torch.randn(2, 4, 5 * action_dim, generator=rng),
        "candidates": torch.randn(2, 3, 5, 5 * action_dim, generator=rng),
    }


def by_samples(tensor: torch.Tensor, num_samples: int) -> torch.Tensor:
    """(B, ...) → (B, S, ...), as their planners hand observations over."""
    return tensor[:, None].expand(-1, num_samples, *tensor.shape[1:])


@torch.inference_mode()
def their_outputs(model: Any, inputs: dict[str, torch.Tensor], history: int) -> dict[str, Any]:
    info = model.encode({"pixels": inputs["pixels"], "action": inputs["action"]})
    z, actions = info["emb"], info["act_emb"]
    found = {"z": z, "actions": actions}
    found["predictions"] = model.predict(z[:, :history], actions[:, :history])
    for num_context in {1, history}:
        episodes = [
            their_rollout(model, {name: x[b : b + 1] for name, x in inputs.items()}, num_context)
            for b in range(len(z))
        ]
        rollouts, costs = zip(*episodes, strict=True)
        found[f"rollout from {num_context}"] = torch.cat(rollouts)
        found[f"cost from {num_context}"] = torch.cat(costs)
    return found


def their_rollout(
    model: Any, inputs: dict[str, torch.Tensor], num_context: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """One episode's rollout and cost; `get_cost` of 0.1.1 mixes up the goals of several."""
    num_samples = inputs["candidates"].shape[1]
    past = by_samples(inputs["action"][:, : num_context - 1], num_samples)
    info = {
        "pixels": by_samples(inputs["pixels"][:, :num_context], num_samples),
        "goal": by_samples(inputs["goal"], num_samples),
        "action": by_samples(inputs["action"][:, :num_context], num_samples),
    }
    cost = model.get_cost(info, torch.cat([past, inputs["candidates"]], dim=2))
    return info["predicted_emb"], cost


@torch.inference_mode()
def our_outputs(method: Method, inputs: dict[str, torch.Tensor], history: int) -> dict[str, Any]:
    z = method.encode(inputs["pixels"])["z"]
    found = {"z": z, "actions": method.action_encoder(inputs["action"])}
    found["predictions"] = method.predict(z[:, :history], inputs["action"][:, :history])
    num_samples = inputs["candidates"].shape[1]
    for num_context in {1, history}:
        known = inputs["action"][:, : num_context - 1]
        blocks = torch.cat([by_samples(known, num_samples), inputs["candidates"]], dim=2)
        found[f"rollout from {num_context}"] = method.rollout(z[:, :num_context], blocks)
        past = known if num_context > 1 else None
        cost = method.plan_cost(inputs["pixels"][:, :num_context], inputs["goal"], past)
        found[f"cost from {num_context}"] = cost(inputs["candidates"])
    return found


def assert_equal_outputs(theirs: Any, ours: Method, config: Config, action_dim: int) -> None:
    """To `TOLERANCE`, relative to the largest value where that is above 1."""
    history = config.model.history
    print(f"\n{ours.num_params:,} parameters, history {history}, {action_dim}-d actions")
    inputs = clips(config.model.image_size, action_dim)
    expected = their_outputs(theirs, inputs, history)
    found = our_outputs(ours, inputs, history)
    assert set(found) == set(expected)
    for name, wanted in expected.items():
        assert found[name].shape == wanted.shape, name
        difference = (found[name] - wanted).abs().max().item()
        scale = max(1.0, wanted.abs().max().item())
        print(f"  {name}: values to {wanted.abs().max():.3g}, difference {difference:.2g}")
        assert difference <= TOLERANCE * scale, name
    assert expected["cost from 1"].std(dim=1).min() > 100 * TOLERANCE  # actions matter


@pytest.mark.parametrize("history, action_dim", CASES)
def test_their_weights_here(history: int, action_dim: int, tmp_path: Path) -> None:
    """Built and saved by the library, read by `load_released`."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf
    from stable_worldmodel.wm.lewm import LeWM
    from stable_worldmodel.wm.utils import save_pretrained

    config = make_config({"model.history": history})
    release = OmegaConf.create(make_release(config.model, action_dim))
    torch.manual_seed(1)
    theirs = instantiate(release)
    assert type(theirs) is LeWM
    scatter(theirs)
    save_pretrained(theirs, "theirs", release, cache_dir=tmp_path)
    folder = tmp_path / "checkpoints" / "theirs"
    assert len(torch.load(folder / "weights.pt", weights_only=True)) == 303
    ours = load_released(folder)[1]
    assert ours.num_params == sum(parameter.numel() for parameter in theirs.parameters())
    assert_equal_outputs(theirs.eval(), ours, config, action_dim)


SMALL = {
    "model.image_size": 64,
    "model.patch_size": 32,
    "model.width": 48,
    "model.depth": 3,
    "model.heads": 4,
    "model.mlp": 80,
    "model.latent_dim": 32,
    "model.projector_hidden": 64,
    "model.predictor_depth": 2,
    "model.predictor_heads": 2,
    "model.predictor_head_dim": 16,
    "model.predictor_mlp": 48,
    "model.action_hidden": 7,
    "model.action_mlp_ratio": 3,
}


@pytest.mark.parametrize(
    "history, action_dim, size", [(*case, {}) for case in CASES] + [(2, 3, SMALL)]
)
def test_our_weights_there(
    history: int, action_dim: int, size: dict[str, Any], tmp_path: Path
) -> None:
    """Exported here, built and loaded strictly by the library's own `load_pretrained`."""
    from stable_worldmodel.wm.utils import load_pretrained

    config = make_config({"model.history": history, **size})
    torch.manual_seed(0)
    ours = make_method(config, action_dim).eval()
    scatter(ours)
    unit = Normaliser(np.zeros(action_dim, np.float32), np.ones(action_dim, np.float32))
    folder = tmp_path / "checkpoints" / "ours"
    export_released(folder, config, ours, unit, config, library_naming())
    theirs = load_pretrained("ours", cache_dir=tmp_path)
    assert_equal_outputs(theirs.eval(), ours, config, action_dim)


def make_episodes(lengths: list[int], size: int = 32) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(4)
    episodes = []
    for length in lengths:
        action = rng.normal(0.3, 0.7, (length, 2)).astype(np.float32)
        action[-1] = np.nan
        pixels = rng.integers(0, 256, (length, size, size, 3)).astype(np.uint8)
        state = rng.normal(size=(length, 4))
        episodes.append({"pixels": pixels, "action": action, "state": state})
    return episodes


def assert_equal_clips(path: Path) -> int:
    """Every clip of a file, read and normalised by the library and by us; returns their number."""
    from stable_worldmodel.data import ZScoreScaler, load_dataset

    block, num_frames = 5, 4
    raw = load_dataset(str(path))
    scaler = ZScoreScaler().fit(raw.get_col_data("action"))

    def normalise(steps: dict[str, Any]) -> dict[str, Any]:
        scores = torch.nan_to_num(scaler(steps["action"]), 0.0)
        return {**steps, "action": scores}

    theirs = load_dataset(
        str(path),
        frameskip=block,
        num_steps=num_frames,
        transform=normalise,
        keys_to_load=["pixels", "action"],
    )
    with EpisodeFile(path) as file:
        size = {"model.image_size": file.image_size, "model.patch_size": 8}
        config = make_config({**size, "data.split": "clip", "model.history": num_frames - 1})
        parts = [ClipData(file, config, part) for part in ("train", "val")]
        np.testing.assert_allclose(parts[0].normaliser.mean, scaler.mean[0], rtol=1e-6)
        np.testing.assert_allclose(parts[0].normaliser.std, scaler.std[0], rtol=1e-6)
        rows = [file.ep_offset[episode] + start for episode, start in theirs.clip_indices]
        place = {int(row): index for index, row in enumerate(rows)}
        assert sum(len(part) for part in parts) == len(theirs) == len(place)
        worst = 0.0
        for part in parts:
            frames, actions = part.get(np.arange(len(part)))
            for index, row in enumerate(part.starts):
                clip = theirs[place[int(row)]]
                assert torch.equal(clip["pixels"], frames[index])
                worst = max(worst, (clip["action"] - actions[index]).abs().max().item())
    print(f"\n{len(theirs)} clips of {path.name}: frames equal, actions differ by {worst:.2g}")
    assert worst <= 1e-6
    return len(theirs)


def test_our_data_there(tmp_path: Path) -> None:
    path = tmp_path / "ours.h5"
    write_episodes(path, make_episodes([31, 20, 25]))
    assert assert_equal_clips(path) == 12 + 1 + 6


def test_their_data_here(tmp_path: Path) -> None:
    """Written by the library's writer from the same episodes: equal to what our own writer stores."""
    from stable_worldmodel.data import get_format

    episodes = make_episodes([31, 20, 25])
    write_episodes(tmp_path / "ours.h5", episodes)
    with get_format("hdf5").open_writer(tmp_path / "theirs.h5") as writer:
        writer.write_episodes(episodes)
    assert assert_equal_clips(tmp_path / "theirs.h5") == 12 + 1 + 6
    with EpisodeFile(tmp_path / "ours.h5") as ours, EpisodeFile(tmp_path / "theirs.h5") as theirs:
        assert np.array_equal(ours.ep_len, theirs.ep_len)
        assert set(theirs.columns) == {"pixels", "action", "state"} < set(ours.columns)
        for name in theirs.columns:
            np.testing.assert_array_equal(ours.read(name), theirs.read(name))


@pytest.mark.filterwarnings("ignore")
def test_their_collected_data_here(library: Any, tmp_path: Path) -> None:
    """Rolled out in one of the library's own worlds, stored with whatever columns it likes."""
    world = library.World("swm/TwoRoom-v1", 2, image_shape=(64, 64), max_episode_steps=30)
    world.set_policy(library.policy.RandomPolicy(seed=0))
    path = tmp_path / "collected.h5"
    world.collect(path, episodes=3, seed=1, format="hdf5", progress=False)
    assert assert_equal_clips(path) == 3 * 11
    with EpisodeFile(path) as file:
        assert file.num_episodes == 3 and file.image_size == 64 and file.action_dim == 2
        moves = np.diff(file.read("state", file.rows(0)), axis=0)
        leaving = file.read("action", file.rows(0)[:-1])
        assert np.median(np.abs(moves - 5 * leaving)) < 1e-3  # speed 5; a wall stops some steps
