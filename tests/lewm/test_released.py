"""Released weights in and out: both namings, strictly, and what cannot be read says so in a line."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lewm.checkpoint import load_method
from lewm.config import Config
from lewm.data.clips import Normaliser
from lewm.data.write import write_episodes
from lewm.methods import Method, make_method
from lewm.methods.lewm import LeWM
from lewm.overrides import make_config
from lewm.released import main
from lewm.released_weights import (
    export_released,
    load_normaliser,
    load_released,
    rename,
    weights_hash,
)
from lewm.training import train
from tests.lewm.test_train import make_episodes, tiny

GOLDEN = Path(__file__).parents[1] / "goldens" / "lewm_small"
WEIGHTS = {"transformers4": "weights.pt", "transformers5": "weights_transformers5.pt"}
NAMINGS = list(WEIGHTS)
UNIT = Normaliser(np.zeros(2, np.float32), np.ones(2, np.float32))

torch.set_num_threads(1)


def read(folder: Path, name: str = "config.json") -> Any:
    return json.loads((folder / name).read_text())


def tensors(folder: Path, name: str = "weights.pt") -> dict[str, torch.Tensor]:
    return torch.load(folder / name, weights_only=True)


def make(action_dim: int = 2, **changes: Any) -> tuple[Config, Method]:
    """A tiny LeWM none of whose tensors, batch norm included, is at its initial value."""
    torch.manual_seed(3)
    config = tiny(**changes)
    method = make_method(config, action_dim).eval()
    for tensor in method.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.1)
    return config, method


@torch.inference_mode()
def behaviour(method: Method, action_dim: int) -> list[torch.Tensor]:
    """Embeddings, predictions and costs on fixed inputs."""
    generator = torch.Generator().manual_seed(0)
    size = method.encoder.embeddings.image_size
    frames = torch.randn(2, method.history, 3, size, size, generator=generator)
    actions = torch.randn(2, 3, method.history + 2, 5 * action_dim, generator=generator)
    z = method.encode(frames)["z"]
    prediction = method.predict(z, actions[:, 0, : method.history])
    cost = method.plan_cost(frames[:, :1], frames[:, -1:])
    return [z, prediction, method.rollout(z, actions), cost(actions)]


def assert_behave_alike(left: Method, right: Method, action_dim: int = 2) -> None:
    for one, other in zip(behaviour(left, action_dim), behaviour(right, action_dim), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("action_dim", [2, 5])
@pytest.mark.parametrize("history", [1, 3])
def test_round_trip_is_exact(history: int, action_dim: int, naming: str, tmp_path: Path) -> None:
    config, method = make(action_dim, model__history=history)
    export_released(tmp_path, config, method, naming=naming)
    assert any("q_proj" in name for name in tensors(tmp_path)) == (naming == "transformers5")
    assert read(tmp_path)["predictor"]["num_frames"] == history
    assert read(tmp_path)["action_encoder"]["input_dim"] == 5 * action_dim
    again, loaded = load_released(tmp_path)
    assert again.model == config.model
    assert list(loaded.state_dict()) == list(method.state_dict())
    assert_behave_alike(method, loaded, action_dim)


@pytest.mark.parametrize("action_dim, num_params", [(2, 18_034_478), (5, 18_034_628)])
def test_paper_size_is_the_released_one(action_dim: int, num_params: int, tmp_path: Path) -> None:
    method = make_method(make_config({}), action_dim)
    assert method.num_params == num_params
    assert len(method.state_dict()) == 303
    export_released(tmp_path, make_config({}), method, naming="transformers5")
    config, loaded = load_released(tmp_path)
    assert config == make_config({})
    same = zip(method.state_dict().items(), loaded.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in same)
    assert read(tmp_path)["encoder"] == {
        "_target_": "stable_pretraining.backbone.utils.vit_hf",
        "size": "tiny",
        "patch_size": 14,
        "image_size": 224,
        "pretrained": False,
        "use_mask_token": False,
    }


@pytest.mark.parametrize("naming", NAMINGS)
def test_export_is_what_was_imported(naming: str, tmp_path: Path) -> None:
    config, method = load_released(GOLDEN, WEIGHTS[naming])
    export_released(tmp_path, config, method, naming=naming)
    original, exported = tensors(GOLDEN, WEIGHTS[naming]), tensors(tmp_path)
    assert list(exported) == list(original)
    assert all(torch.equal(exported[name], original[name]) for name in original)
    for section, values in read(GOLDEN).items():
        ours = read(tmp_path)[section]
        assert {key: ours[key] for key in values if key != "size"} == {
            key: value for key, value in values.items() if key != "size"
        }
        assert ours["_target_"]
    assert load_released(tmp_path)[0] == config


def test_names_of_both_versions_are_one_to_one() -> None:
    four, five = tensors(GOLDEN), tensors(GOLDEN, WEIGHTS["transformers5"])
    assert [rename(name, "transformers5") for name in four] == list(five)
    assert [rename(name, "transformers4") for name in five] == list(four)
    assert [rename(name, "transformers4") for name in four] == list(four)


def test_hash_names_the_weights_and_nothing_else(tmp_path: Path) -> None:
    config, method = make()
    folders = {name: tmp_path / name for name in (*NAMINGS, "trained", "other", "longer")}
    for naming in NAMINGS:
        export_released(folders[naming], config, method, naming=naming)
    export_released(folders["trained"], config, method, UNIT, config)
    hashes = {weights_hash(folders[name]) for name in (*NAMINGS, "trained")}
    assert len(hashes) == 1 and len(next(iter(hashes))) == 64
    shutil.copytree(folders["transformers4"], folders["longer"])
    release = read(folders["longer"])
    release["predictor"]["dropout"] = 0.3
    (folders["longer"] / "config.json").write_text(json.dumps(release))
    method.state_dict()["projector.net.1.running_mean"][0] += 1e-6
    export_released(folders["other"], config, method)
    assert len(hashes | {weights_hash(folders[name]) for name in ("other", "longer")}) == 3


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_episodes(folder / "data.h5", make_episodes(4, 26))
    train(tiny(optim__num_steps=4), folder, folder / "data.h5")
    return folder


@pytest.mark.parametrize("naming", NAMINGS)
def test_trained_checkpoint_through_the_command_line(
    naming: str, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "release"
    assert main(["export", str(run_dir), str(out), "--naming", naming]) == 0
    config, method, normaliser, _ = load_method(run_dir / "checkpoint.pt")
    assert_behave_alike(method, load_released(out)[1])
    loaded = load_normaliser(out)
    assert loaded is not None
    assert loaded.to_dict() == normaliser.to_dict() == read(out, "normaliser.json")["action"]
    assert Config.model_validate_json((out / "training.json").read_text()) == config
    capsys.readouterr()
    assert main(["check", str(out)]) == 0
    said = capsys.readouterr().out
    for fact in (f"{method.num_params:,}", "16 px", "2-d", weights_hash(out)):
        assert fact in said
    assert main(["export", str(run_dir / "checkpoint.pt"), str(out)]) == 2
    assert "another directory" in capsys.readouterr().err


def damage(folder: Path, change: dict[str, torch.Tensor | None]) -> Path:
    """The golden with tensors replaced, added, or removed."""
    weights = tensors(GOLDEN)
    for name, tensor in change.items():
        if tensor is None:
            del weights[name]
        else:
            weights[name] = tensor
    torch.save(weights, folder / "weights.pt")
    (folder / "config.json").write_bytes((GOLDEN / "config.json").read_bytes())
    return folder


def message_of(folder: Path) -> str:
    with pytest.raises(ValueError, match=r"json|weights") as caught:
        load_released(folder)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


def test_import_is_strict(tmp_path: Path) -> None:
    wrong: dict[str, torch.Tensor | None] = {
        "encoder.layernorm.bias": None,
        "head.bias": torch.zeros(1),
        "predictor.pos_embedding": torch.zeros(1, 5, 32),
        "projector.net.0.bias": torch.zeros(64, dtype=torch.float64),
    }
    message = message_of(damage(tmp_path, wrong))
    assert "missing encoder.layernorm.bias;" in message
    assert "unknown head.bias;" in message
    assert "misshapen predictor.pos_embedding (1, 5, 32), not (1, 3, 32);" in message
    assert "mistyped projector.net.0.bias torch.float64, not torch.float32" in message


def test_many_wrong_tensors_are_counted(tmp_path: Path) -> None:
    gone = [name for name in tensors(GOLDEN) if name.startswith("predictor.")]
    message = message_of(damage(tmp_path, dict.fromkeys(gone)))
    assert f"{gone[0]}, {gone[1]}, {gone[2]} and {len(gone) - 3} more" in message
    assert gone[3] not in message


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"encoder.layers.0.attention.q_proj.bias": torch.zeros(48)}, "twice, under both"),
        ({"encoder.layernorm.bias": torch.full((48,), torch.nan)}, "layernorm.bias holds values"),
        ({"note": "a string"}, "not a state dict"),
    ],
)
def test_wrong_content(change: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    assert complaint in message_of(damage(tmp_path, change))


def test_broken_files(tmp_path: Path) -> None:
    assert "config.json: no such file" in message_of(tmp_path)
    damage(tmp_path, {})
    whole = (tmp_path / "weights.pt").read_bytes()
    (tmp_path / "weights.pt").write_bytes(whole[: len(whole) // 2])
    assert "broken or cut off" in message_of(tmp_path)
    middle = len(whole) // 2
    (tmp_path / "weights.pt").write_bytes(
        whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    )
    assert "wrong checksum" in message_of(tmp_path)
    (tmp_path / "weights.pt").unlink()
    assert "weights.pt: no such file" in message_of(tmp_path)
    (tmp_path / "config.json").write_text('{"encoder": ')
    assert "config.json" in message_of(tmp_path)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def test_pickled_code_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    damage(tmp_path, {})
    torch.save({"model": Bomb()}, "weights.pt")
    assert "pickled objects, which are not executed" in message_of(tmp_path)
    Path("weights.pt").write_bytes(pickle.dumps(Bomb(), protocol=2))
    message_of(tmp_path)
    assert not Path("executed").exists()


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "another method": (
        {"_target_": "stable_worldmodel.wm.pldm.PLDM"},
        "another method, stable_worldmodel.wm.pldm.PLDM",
    ),
    "DINO-WM": ({"_target_": "stable_worldmodel.wm.prejepa.PreJEPA"}, "prejepa.PreJEPA"),
    "another part": ({"predictor._target_": "wm.CausalPredictor"}, "predictor: built from wm"),
    "another norm": (
        {"projector.norm_fn": {"_target_": "torch.nn.LayerNorm"}},
        "norm_fn is torch.nn.LayerNorm",
    ),
    "mask token": ({"encoder.use_mask_token": True}, "use_mask_token"),
    "unknown key": ({"predictor.gate": 1}, "predictor.gate: Extra inputs"),
    "missing key": ({"predictor.depth": None}, "predictor.depth"),
    "unknown size": ({"encoder.size": "giant"}, "'giant' is unknown; known: tiny"),
    "wide predictor": ({"predictor.hidden_dim": 64}, "predictor.hidden_dim is 64"),
    "odd block": ({"action_encoder.input_dim": 12}, "12, not a multiple of 5"),
    "bad patches": ({"encoder.patch_size": 13}, "56 is not a multiple of patch_size 13"),
    "other size": ({"predictor.depth": 3}, "missing predictor.transformer.layers.2"),
    "wider": ({"encoder.intermediate_size": 128}, "misshapen encoder.encoder.layer.0"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_do_not_fit(case: str, tmp_path: Path) -> None:
    changes, complaint = CONFIGS[case]
    damage(tmp_path, {})
    release = read(tmp_path)
    for key, value in changes.items():
        section, _, leaf = key.rpartition(".")
        (release[section] if section else release)[leaf] = value
    (tmp_path / "config.json").write_text(json.dumps(release))
    assert complaint in message_of(tmp_path)


def test_names_of_the_first_release_are_read(tmp_path: Path) -> None:
    """Hydra paths of the paper's own repository, before the classes moved into the library."""
    damage(tmp_path, {})
    release = {"_target_": "jepa.JEPA", **read(tmp_path)}
    release["predictor"]["_target_"] = "module.ARPredictor"
    release["projector"]["norm_fn"] = {"_target_": "torch.nn.BatchNorm1d", "_partial_": True}
    (tmp_path / "config.json").write_text(json.dumps(release))
    assert load_released(tmp_path)[0] == load_released(GOLDEN)[0]


@pytest.mark.parametrize(
    "content, complaint",
    [
        ('{"action": {"mean": [0], "std": [1]}}', r"mean \(1,\).* 2-d actions"),
        ('{"action": {"mean": [0, 0], "std": [1, 0]}}', "std positive"),
        ('{"action": {"mean": [0, NaN], "std": [1, 1]}}', "finite"),
        ('{"action": {"mean": [0, "a"], "std": [1, 1]}}', "not {"),
        ('{"mean": [0, 0], "std": [1, 1]}', "not {"),
        ("[]", "not {"),
    ],
)
def test_wrong_normaliser_is_one_line(content: str, complaint: str, tmp_path: Path) -> None:
    damage(tmp_path, {})
    assert load_normaliser(tmp_path) is None
    (tmp_path / "normaliser.json").write_text(content)
    with pytest.raises(ValueError, match=rf"normaliser\.json: .*{complaint}"):
        load_normaliser(tmp_path)


def test_what_has_no_released_form(tmp_path: Path) -> None:
    config, method = make()
    refused = {
        "only lewm": make_config({"method": "pldm"}),
        "action_block is 4": tiny(data__action_block=4),
        "one predictor head": tiny(model__predictor_heads=1, model__predictor_head_dim=8),
    }
    for complaint, other in refused.items():
        with pytest.raises(ValueError, match=complaint):
            export_released(tmp_path / "out", other, method)
    method.state_dict()["projector.net.0.bias"][0] = torch.inf
    with pytest.raises(ValueError, match="not finite"):
        export_released(tmp_path / "out", config, method)
    assert not (tmp_path / "out").exists()


def test_command_line_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for arguments in (
        ["check", str(tmp_path / "none")],
        ["export", str(tmp_path / "none.pt"), str(tmp_path / "out")],
        ["export", str(tmp_path), str(tmp_path / "out")],
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
    assert isinstance(load_released(str(GOLDEN))[1], LeWM)
