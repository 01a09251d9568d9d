import dataclasses
import tomllib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from lewm.config import LatentsConfig, ProbingConfig
from lewm.data.clips import Normaliser, prepare_frames, split_episodes
from lewm.data.collect import collect_episode
from lewm.data.episodes import EpisodeFile
from lewm.data.write import write_episodes
from lewm.envs.two_room import TwoRoomEnv
from lewm.manifest import make_manifest
from lewm.methods import Method, make_method
from lewm.overrides import make_config
from lewm.protocol import protocol_from_dict
from pipeline.stages import STAGES, load_stage
from pipeline.stages.latents import is_collapsed, measure
from pipeline.stages.loaded import LoadedTrial, draw_rows, embed_rows
from pipeline.stages.planning import FLOORS, run_floor
from pipeline.stages.probing import fit_mlp, fit_ridge, judge
from pipeline.tables import STAGE_SCHEMAS

PROTOCOLS = tomllib.loads(
    (Path(__file__).parents[2] / "sweeps/protocols/two_room.toml").read_text()
)
CONFIG = make_config(
    {
        "model.image_size": 32,
        "model.patch_size": 8,
        "model.width": 16,
        "model.depth": 1,
        "model.heads": 2,
        "model.mlp": 32,
        "model.latent_dim": 16,
        "model.projector_hidden": 32,
        "model.predictor_depth": 1,
        "model.predictor_heads": 2,
        "model.predictor_head_dim": 8,
        "model.predictor_mlp": 32,
        "data.num_episodes": 20,
        "planning.num_samples": 8,
        "planning.num_elites": 2,
        "planning.num_iterations": 2,
        "planning.chunk": 3,
    }
)
CELL = CONFIG.planning.model_dump(mode="json", exclude={"protocols", "eval_seeds", "num_pairs"})
CONFIGS = {
    "latents": {"num_clips": 40},
    "planning": {**CELL, "protocol": "strict", "eval_seed": 42},
    "probing": {"num_train": 200, "num_test": 100, "mlp_steps": 30, "mlp_hidden": 16},
    "surprise": {"num_clips": 12},
    "examples": {**CELL, "protocol": "strict", "eval_seed": 42, "num_examples": 2},
    "reconstruction": {
        "num_train": 60,
        "num_steps": 5,
        "num_clips": 6,
        "num_pictures": 2,
        "decoder": {"width": 16, "depth": 1},
    },
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@contextmanager
def trial_of(config, path):
    size = config.frame_size
    write_episodes(path, (collect_episode(config.data, size, index) for index in range(20)))
    torch.manual_seed(0)
    method = make_method(config, 2).eval()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    with EpisodeFile(path) as episodes:
        manifests = {}
        for name in ("paper", "strict"):
            protocol = protocol_from_dict("two_room", name, PROTOCOLS[name])
            manifests[name, 42] = make_manifest(protocol, 42, 4, config.data, episodes)
        normaliser = Normaliser.fit(episodes.read("action"))
        yield LoadedTrial(config, method, normaliser, episodes, torch.device("cpu"), manifests)


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    with trial_of(CONFIG, tmp_path_factory.mktemp("data") / "episodes.h5") as made:
        yield made


def steady(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.drop(["plan_s"], strict=False)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_gives_its_columns_and_the_same_rows_whatever_the_training_seed(trial, name):
    frame = load_stage(name)(trial, CONFIGS[name])
    assert dict(frame.schema) == STAGE_SCHEMAS[name] and frame.height > 0
    torch.manual_seed(1)
    other = dataclasses.replace(trial, config=CONFIG.model_copy(update={"seed": 7}), planned={})
    assert steady(load_stage(name)(other, CONFIGS[name])).equals(steady(frame))


def test_every_stage_has_frames_of_another_size_resized(tmp_path, monkeypatch):
    data = CONFIG.data.model_copy(update={"frame_size": 64})
    config = CONFIG.model_copy(update={"data": data})
    rows = np.arange(0, 60, 7)
    sizes, render = set(), TwoRoomEnv.render_state

    def spy(env, *args, **options):
        frame = render(env, *args, **options)
        sizes.add(len(frame))
        return frame

    with trial_of(config, tmp_path / "large.h5") as large:
        monkeypatch.setattr(TwoRoomEnv, "render_state", spy)
        for name in STAGES:
            frame = load_stage(name)(large, CONFIGS[name])
            assert dict(frame.schema) == STAGE_SCHEMAS[name] and frame.height > 0
        assert sizes == {64}
        frames = torch.from_numpy(large.episodes.read("pixels", rows)).movedim(-1, -3)
        assert frames.shape[-1] == 64
        with torch.inference_mode():
            expected = large.method.encode(prepare_frames(frames, 32).unsqueeze(1))["z"][:, 0]
        torch.testing.assert_close(embed_rows(large, rows)["projected"].detach(), expected)
        other = dataclasses.replace(large, config=CONFIG)
        with pytest.raises(ValueError, match="frames of 64 px, 32 are expected"):
            embed_rows(other, rows)


def test_pictures_show_the_episodes_of_the_table_whether_it_was_made_before_or_not(
    trial, monkeypatch
):
    before, alone = (dataclasses.replace(trial, planned={}) for _ in range(2))
    pictures = load_stage("examples")(alone, CONFIGS["examples"])
    load_stage("planning")(before, {**CELL, "protocol": "strict", "eval_seed": 42})
    monkeypatch.setattr("pipeline.stages.loaded.run_planner", None)
    assert load_stage("examples")(before, CONFIGS["examples"]).equals(pictures)


def test_an_unknown_stage_names_the_nearest():
    with pytest.raises(
        ValueError, match=r"'plannin' \(did you mean 'planning'\?\); known: latents"
    ):
        load_stage("plannin")


def test_drawn_rows_keep_to_their_part_and_do_not_depend_on_their_number(trial):
    file = trial.episodes
    train, held_out = split_episodes(20, 0.1, CONFIG.data.split_seed)
    for part, allowed in (("train", train), ("held_out", held_out)):
        rows = draw_rows(trial, part, 16, 10**6, 1)
        episode = np.searchsorted(file.ep_offset, rows, side="right") - 1
        assert set(episode) <= set(allowed.tolist())
        assert (rows + 15 < file.ep_offset[episode] + file.ep_len[episode]).all()
        assert len(set(rows)) == len(rows) == (file.ep_len[allowed] - 15).clip(0).sum()
        np.testing.assert_array_equal(draw_rows(trial, part, 16, 9, 1), rows[:9])
    with pytest.raises(ValueError, match="no train episode has 1000 rows"):
        draw_rows(trial, "train", 1000, 5, 1)


def test_embeddings_do_not_depend_on_how_many_frames_are_embedded(trial):
    rows = np.arange(150)
    with torch.inference_mode():
        whole, part = embed_rows(trial, rows), embed_rows(trial, rows[:70].reshape(7, 10))
    for layer in ("encoder", "projected"):
        assert torch.equal(whole[layer][:70].reshape(7, 10, -1), part[layer])


def gaussian(num: int = 2000, dim: int = 16) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(num // 4, 4, dim, generator=rng, dtype=torch.float64)


def test_latent_figures_of_known_clouds():
    z = gaussian()
    healthy = measure(z)
    assert healthy["effective_rank"] > 15.8 and healthy["isotropy"] > 0.98
    assert abs(healthy["mean_std"] - 1) < 0.02 and healthy["epps_pulley"] < 0.002
    assert abs(healthy["straightness"] + 0.5) < 0.03
    tiny = measure(0.01 * z)
    assert abs(tiny["effective_rank"] - healthy["effective_rank"]) < 1e-6
    assert tiny["epps_pulley"] > 0.4 and tiny["min_std"] < 0.011
    line = measure(z[..., :1] * torch.ones(16))
    assert abs(line["effective_rank"] - 1) < 1e-6 and abs(line["isotropy"] - 1 / 16) < 1e-6
    straight = torch.arange(4.0).reshape(1, 4, 1) * z[:, :1] + z[:, 1:2]
    assert abs(measure(straight)["straightness"] - 1) < 1e-9
    point = measure(torch.ones(10, 4, 16, dtype=torch.float64))
    assert point["effective_rank"] is None and point["mean_std"] == 0
    assert measure(z * float("nan")) == {}


@pytest.mark.parametrize(
    ("scale", "shift", "collapsed"),
    [(1.0, 0.0, False), (3.0, 0.0, False), (0.07, 0.0, False), (0.01, 1.0, True), (0.0, 0.0, True)],
)
def test_collapse_rule(scale, shift, collapsed):
    figures = measure(scale * gaussian() + shift)
    assert is_collapsed(figures["mean_std"], LatentsConfig()) is collapsed


def test_collapse_rule_uses_its_settings_and_takes_infinite_embeddings_for_collapsed():
    assert is_collapsed(0.3, LatentsConfig(collapse_std=0.31))
    assert not is_collapsed(0.3, LatentsConfig())
    assert is_collapsed(None, LatentsConfig())
    stored = {"collapse_std": 0.2, "collapse_epps_pulley": 0.5}
    assert LatentsConfig.model_validate(stored) == LatentsConfig(collapse_std=0.2)


def test_ridge_finds_a_linear_map_and_shrinks_with_its_penalty():
    x = gaussian(4000)[:, 0]
    y = x @ gaussian(64)[:, 0, :2]
    exact = fit_ridge(x[:500], y[:500], x[500:], 0.0)
    torch.testing.assert_close(exact, y[500:], rtol=1e-6, atol=1e-6)
    expected = torch.linalg.lstsq(
        torch.cat([x[:500], 10 * torch.eye(16, dtype=x.dtype)]),
        torch.cat([y[:500], torch.zeros(16, 2, dtype=x.dtype)]),
    ).solution
    torch.testing.assert_close(fit_ridge(x[:500], y[:500], x[500:], 100.0), x[500:] @ expected)


def test_mlp_probe_reads_what_a_linear_one_cannot():
    x = gaussian(8000, 4).flatten(0, 1)
    y = x[:, :2].square() - 1
    settings = ProbingConfig(mlp_steps=400, mlp_hidden=64, mlp_lr=5e-3)
    guesses = fit_mlp(x[:6000], y[:6000], x[6000:], settings)
    linear = fit_ridge(x[:6000], y[:6000], x[6000:], 1.0)
    for dim in range(2):
        assert judge(guesses[:, dim], y[6000:, dim])["r"] > 0.95
        assert judge(linear[:, dim], y[6000:, dim])["r"] < 0.3
    assert torch.equal(guesses, fit_mlp(x[:6000], y[:6000], x[6000:], settings))


def test_judge_is_mse_spread_and_pearson():
    true = torch.tensor([0.0, 1.0, 2.0, 5.0], dtype=torch.float64)
    guess = torch.tensor([0.0, 1.0, 3.0, 4.0], dtype=torch.float64)
    figures = judge(guess, true)
    assert figures["mse"] == 0.5 and abs(figures["mse_std"] - np.std([0, 0, 1, 1], ddof=1)) < 1e-12
    assert abs(figures["r"] - np.corrcoef(guess, true)[0, 1]) < 1e-12
    assert judge(torch.zeros(4, dtype=torch.float64), true)["r"] is None


def test_probing_has_a_row_per_target_dimension_layer_and_probe(trial):
    frame = load_stage("probing")(trial, CONFIGS["probing"])
    keys = set(frame.select("target", "dim", "layer", "probe").iter_rows())
    assert keys == {
        ("agent_position", dim, layer, probe)
        for dim in (0, 1)
        for layer in ("encoder", "projected")
        for probe in ("linear", "mlp")
    }
    assert frame["num_train"].unique().to_list() == [200] and frame["num_test"].max() <= 100


class Seer(Method):
    """Sees where the agent is, whatever its colour, and knows how it moves off the walls."""

    def encode(self, frames_BTCHW):
        colour = (frames_BTCHW[:, :, 0] - frames_BTCHW[:, :, 2]).abs()
        colour = torch.where(colour > 0.5, colour, 0.0)
        grid = (torch.arange(colour.shape[-1]) + 0.5) * 224 / colour.shape[-1]
        total = colour.sum((2, 3)).clamp(min=1e-6)
        x, y = (colour.sum(2) * grid).sum(-1), (colour.sum(3) * grid).sum(-1)
        z = torch.stack([x / total, y / total], -1)
        return {"z": z, "cls": z}

    def predict(self, z_BTD, actions_BTA):
        return z_BTD + 5 * actions_BTA.unflatten(-1, (5, 2)).clamp(-1, 1).sum(2)


def test_teleport_surprises_one_who_sees_and_a_new_colour_does_not(trial):
    unit = Normaliser(np.zeros(2, np.float32), np.ones(2, np.float32))
    seer = dataclasses.replace(trial, method=Seer(), normaliser=unit)
    frame = load_stage("surprise")(seer, {"num_clips": 40})
    teleport = frame.filter(event="teleport")
    assert teleport["kind"].unique().to_list() == ["physical"] and teleport.height == 40
    control = teleport["surprise_control"].median()
    assert control < 20 and (teleport["surprise"] > 1000).all()
    colour = frame.filter(event="colour")
    assert colour["kind"].unique().to_list() == ["visual"]
    np.testing.assert_allclose(colour["surprise"], colour["surprise_control"], atol=5, rtol=0.1)
    assert frame["event_step"].unique().to_list() == [15]


def test_surprise_of_a_clip_does_not_depend_on_the_number_of_clips(trial):
    run = load_stage("surprise")
    whole, part = run(trial, {"num_clips": 30}), run(trial, {"num_clips": 5})
    assert part.height == 10
    joined = part.join(whole, on=["start_row", "event"], how="inner")
    assert joined.height == 10
    assert (joined["surprise"] == joined["surprise_right"]).all()
    late = run(trial, {"num_clips": 5, "event_frame": 6})
    assert late["event_step"].unique().to_list() == [30]


def test_planning_rows_carry_settings_and_manifest(trial):
    frame = load_stage("planning")(trial, CONFIGS["planning"])
    manifest = trial.manifests["strict", 42]
    assert frame["pair_id"].to_list() == [0, 1, 2, 3]
    assert frame["manifest_hash"].unique().to_list() == [manifest.hash]
    assert frame.row(0)[:2] == ("cem", "strict")
    assert frame.select("num_samples", "num_iterations", "num_elites", "horizon", "history").row(
        0
    ) == (8, 2, 2, 5, 1)
    unsolved = frame.filter(~pl.col("success"))
    assert unsolved["steps_to_success"].null_count() == unsolved.height
    pictures = load_stage("examples")(trial, CONFIGS["examples"])
    shown = pictures.select("pair_id", "success").unique().sort("pair_id")
    assert shown.equals(frame.select("pair_id", "success").head(2))
    assert all(png.startswith(b"\x89PNG") for png in pictures["png"])
    for _, rows in pictures.group_by("pair_id"):
        assert rows["kind"].to_list().count("goal") == 1 and rows["frame"].max() <= 50
    with pytest.raises(ValueError, match="no manifest for protocol 'strict' and eval seed 43"):
        load_stage("planning")(trial, {**CONFIGS["planning"], "eval_seed": 43})


@pytest.mark.parametrize("protocol", ["paper", "strict"])
def test_floors_need_no_model(trial, protocol):
    manifest = trial.manifests[protocol, 42]
    for planner in FLOORS:
        frame = run_floor(planner, manifest)
        assert dict(frame.schema) == STAGE_SCHEMAS["planning"] and frame.height == 4
        assert frame["planner"].unique().to_list() == [planner]
        assert frame["num_samples"].null_count() == 4
        assert steady(run_floor(planner, manifest)).equals(steady(frame))
    assert run_floor("oracle", manifest)["success"].all()
    with pytest.raises(ValueError, match="floor must be one of random, zero, oracle"):
        run_floor("cem", manifest)


@pytest.mark.ci
def test_every_stage_takes_dino_wm(tmp_path_factory):
    """Its latents are hundreds of patch channels: stages measure and probe their mean over patches."""
    config = make_config(
        {
            "method": "dino_wm",
            "model.image_size": 28,
            "model.patch_size": 14,
            "dino.proprio": True,
            "dino.predictor_depth": 1,
            "dino.predictor_heads": 2,
            "dino.predictor_head_dim": 8,
            "dino.predictor_mlp": 16,
            "data.num_episodes": 10,
        }
    )
    path = tmp_path_factory.mktemp("data") / "episodes.h5"
    write_episodes(path, (collect_episode(config.data, 28, index) for index in range(10)))
    method = make_method(config, 2, random_weights=True).eval()
    protocol = protocol_from_dict("two_room", "strict", PROTOCOLS["strict"])
    with EpisodeFile(path) as episodes:
        manifests = {("strict", 42): make_manifest(protocol, 42, 2, config.data, episodes)}
        unit = Normaliser.fit(episodes.read("action"))
        device = torch.device("cpu")
        dino = LoadedTrial(config, method, unit, episodes, device, manifests)
        small = {
            "latents": {"num_clips": 3},
            "planning": {**CONFIGS["planning"], "num_samples": 4, "num_iterations": 1},
            "probing": {**CONFIGS["probing"], "num_train": 12, "num_test": 6, "mlp_steps": 3},
            "surprise": {"num_clips": 2},
        }
        for name, chosen in small.items():
            frame = load_stage(name)(dino, chosen)
            assert dict(frame.schema) == STAGE_SCHEMAS[name] and frame.height > 0
            if name == "latents":
                assert frame.filter(layer="projected")["collapsed"].to_list() == [False]
                assert frame["effective_rank"].null_count() == 0
