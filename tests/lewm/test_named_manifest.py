import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from lewm.clear_rules import TASKS, clear_protocol
from lewm.config import DataConfig
from lewm.data.episodes import EpisodeFile
from lewm.envs import env_class
from lewm.manifest import Manifest, make_manifest
from lewm.named_manifest import describe, load_manifest, read_clear_manifest
from lewm.protocol import protocol_from_dict
from lewm.windows import FileColumns

GOLDENS = Path(__file__).parents[1] / "goldens" / "manifests"
STRICT, MODERATE = (
    GOLDENS / name
    for name in ("clear_tworoom_strict_seed42.json", "clear_pusht_moderate_seed42.json")
)
WIDTHS = {"tworoom": ("proprio", 2, "ep_idx"), "pusht": ("state", 7, "episode_idx")}


def golden(path: Path) -> dict:
    return json.loads(path.read_text())


def write_dataset(path: Path, data: dict, pairs: list[dict]) -> None:
    """A file with the episodes, starts and goals of the pairs where the manifest says they are."""
    column, width, index = WIDTHS[data["task"]]
    begins = [0]
    for pair in pairs:
        begin = pair["start_row"] - pair["start_step"]
        between = pair["episode_id"] - len(begins) + 1
        begins += np.linspace(begins[-1], begin, between + 1).astype(int).tolist()[1:]
    num_rows = begins[-1] + pairs[-1]["goal_step"] + 2
    lengths = np.diff([*begins, num_rows])
    rng = np.random.default_rng(0)
    state = rng.uniform(30, 90, (num_rows, width))
    for pair in pairs:
        start, goal = state[pair["start_row"]], state[pair["goal_row"]]
        goal[:] = start[:] = 0.0
        if data["task"] == "tworoom":
            start[:], goal[:] = (95.0, 49.0), (95.0 + pair["euclidean_distance"], 49.0)
        else:
            start[:4], goal[:4] = 150.0, 150.0
            goal[0] += pair["position_distance"]
    action = rng.uniform(-1, 1, (num_rows, 2)).astype(np.float32)
    action[np.cumsum(lengths) - 1] = np.nan
    with h5py.File(path, "w") as file:
        file.create_dataset("pixels", (num_rows, 8, 8, 3), np.uint8, chunks=(1, 8, 8, 3))
        file["action"], file[column] = action, state
        file[index] = np.repeat(np.arange(len(lengths)), lengths)
        file["ep_len"], file["ep_offset"] = lengths.astype(np.int32), np.array(begins)


def subset(source: Path, folder: Path, num: int = 3) -> tuple[dict, Path]:
    """The first pairs of a golden manifest, and the dataset they fit."""
    data = golden(source)
    data["pairs"] = data["pairs"][:num]
    path = folder / f"{data['task']}.h5"
    write_dataset(path, data, data["pairs"])
    with EpisodeFile(path) as file:
        data["statistics"]["valid_pairs_all_splits"] = int(np.maximum(file.ep_len - 25, 0).sum())
    return data, path


@pytest.fixture(scope="module")
def tworoom(tmp_path_factory):
    data, path = subset(STRICT, tmp_path_factory.mktemp("tworoom"))
    with EpisodeFile(path) as file:
        yield data, file


def written(folder: Path, data: dict) -> Path:
    path = folder / "manifest.json"
    path.write_text(json.dumps(data))
    return path


def changed(data: dict, *keys, value) -> dict:
    """A copy with one entry set, or deleted if the value is None."""
    copy = json.loads(json.dumps(data))
    place = copy
    for key in keys[:-1]:
        place = place[key]
    if value is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return copy


TWO_ROOM = {"distance_px": 8.0, "cross_room": True, "goal_side": True}


@pytest.mark.parametrize(
    ("source", "task", "env", "success", "hold", "options"),
    [
        (STRICT, "tworoom", "two_room", TWO_ROOM, 1, {"collision": "swept"}),
        (
            MODERATE,
            "tworoom",
            "two_room",
            {"distance_px": 16.0, "cross_room": True, "goal_side": False},
            1,
            {"collision": "swept"},
        ),
        (
            STRICT,
            "pusht",
            "push_t",
            {"position_px": 10.0, "angle_deg": 10.0, "block_only": True},
            3,
            {"setter": "paper"},
        ),
        (
            MODERATE,
            "pusht",
            "push_t",
            {"position_px": 20.0, "angle_deg": 20.0, "block_only": False},
            1,
            {"setter": "paper"},
        ),
        (STRICT, "reacher", "reacher", {"endpoint": True, "endpoint_m": 0.01}, 2, {}),
        (MODERATE, "reacher", "reacher", {"joint_rad": 0.05, "shoulder_periodic": True}, 1, {}),
        (STRICT, "cube", "cube", {"distance_m": 0.03, "angle_deg": 15.0}, 3, {}),
        (MODERATE, "cube", "cube", {"distance_m": 0.04}, 1, {}),
    ],
)
def test_protocols_of_all_tasks_have_our_names(source, task, env, success, hold, options):
    rule = clear_protocol({**golden(source), "task": task})
    assert rule.name == ("clear-strict" if source == STRICT else "clear-moderate")
    assert (rule.env, rule.success, rule.hold, rule.options) == (env, success, hold, options)
    assert (rule.episodes, rule.sampling, rule.pre_solved) == (
        "train",
        "one_per_episode",
        "dropped",
    )
    assert (rule.goal_offset, rule.budget, rule.history) == (25, 50, 1)


@pytest.mark.parametrize(
    ("task", "name", "expected"),
    [
        (
            "cube",
            "library_cube",
            lambda c: np.linalg.norm(np.subtract(*c["privileged_block_0_pos"][[9, 0]])),
        ),
        ("reacher", "published_reacher", lambda c: np.abs(np.subtract(*c["qpos"][[9, 0]])).max()),
        (
            "pusht",
            "published_pusht",
            lambda c: np.linalg.norm(np.subtract(*c["state"][[9, 0], :4])),
        ),
        (
            "tworoom",
            "published_tworoom",
            lambda c: np.linalg.norm(np.subtract(*c["proprio"][[9, 0]])),
        ),
    ],
)
def test_distances_of_our_states_are_those_of_the_published_columns(task, name, expected):
    with EpisodeFile(GOLDENS.parent / "datasets" / f"{name}.h5") as file:
        columns = FileColumns(file)
        env = env_class(TASKS[task].env)
        start, goal = (env.state_from_columns(columns, row) for row in (0, 9))
        assert TASKS[task].distance(start, goal) == pytest.approx(
            float(expected(columns)), rel=1e-6
        )


def test_the_official_protocol_of_the_first_manifests_is_the_published_one():
    """Its fields as in CLEAR-LeWM's manifests/tworoom/official-seed42-n100.json, which has fewer."""
    spec = {
        "name": "official",
        "sampling": "row-uniform",
        "split": "all",
        "exclude_initial_success": False,
        "goal_offset": 25,
        "eval_budget": 50,
        "success_mode": "upstream",
        "sustained_steps": 1,
        "reproduce_upstream_off_by_one": True,
        "tworoom_distance_threshold": 16.0,
    }
    rule = clear_protocol({"task": "tworoom", "protocol": spec})
    assert (rule.sampling, rule.pre_solved, rule.success) == ("rows_old", "kept", {})
    assert rule.options == {"collision": "endpoint"} and rule.hold == 1


def test_two_room_pairs_are_the_rows_the_manifest_names(tworoom, tmp_path):
    data, file = tworoom
    manifest = read_clear_manifest(written(tmp_path, data), file)
    assert manifest.eval_seed == 42 and manifest.protocol.name == "clear-strict"
    assert manifest.source == (
        "tworoom.h5 (metadata-sha256 "
        "1ce8390b591dd31f7c09373448fccf4d40d39cbb27b8a8ccdffb6cb2858722a4)"
    )
    assert [p.start_row for p in manifest.pairs] == [38974, 58456, 59930]
    assert [p.episode_id for p in manifest.pairs] == [425, 639, 657]
    for pair in manifest.pairs:
        rows = np.arange(pair.start_row, pair.start_row + 25)
        np.testing.assert_array_equal(pair.actions, file.read("action", rows))
        np.testing.assert_array_equal(pair.start_state, file.read("proprio", [rows[0]])[0])
        np.testing.assert_array_equal(pair.goal_state, file.read("proprio", [rows[0] + 25])[0])
        assert not pair.initial_success
    again = load_manifest(written(tmp_path, data), file, dataset_hash="abc", env="two_room")
    assert again.source == "abc" and again.pairs[0].to_dict() == manifest.pairs[0].to_dict()
    assert Manifest.from_json(manifest.to_json()).hash == manifest.hash


def test_push_t_pairs_are_the_rows_the_manifest_names(tmp_path):
    data, path = subset(MODERATE, tmp_path, num=2)
    with EpisodeFile(path) as file:
        manifest = load_manifest(written(tmp_path, data), file)
        assert [p.start_row for p in manifest.pairs] == [96019, 145064]
        state = file.read("state", [96019, 96044])
        np.testing.assert_array_equal(manifest.pairs[0].start_state[:7], state[0])
        np.testing.assert_array_equal(manifest.pairs[0].goal_state[:7], state[1])
        assert manifest.pairs[0].actions.shape == (25, 2)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("schema_version",), "clear-lewm-manifest-v2", r"'clear-lewm-manifest-v2'; known: .*-v1"),
        (("task",), "twroom", r"unknown task 'twroom' \(did you mean 'tworoom'\?\); known: cube,"),
        (("task",), None, "no 'task'"),
        (("pairs", 1, "goal_row"), None, "no 'goal_row'"),
        (("protocol", "tworoom_distance_threshold"), None, "no 'tworoom_distance_threshold'"),
        (("protocol", "eval_budget"), 50.5, "budget must be a whole number"),
        (("protocol", "sampling"), "uniform", "protocol.sampling is 'uniform'; known here: epis"),
        (("protocol", "success_mode"), "cube-pose", "success_mode is 'cube-pose'; known here: t"),
        (("protocol", "tworoom_collision_mode"), "official", "without swept collision"),
        (("statistics", "valid_pairs_all_splits"), 670809, r"670809 valid starts; .*\.h5 has \d+"),
        (("pairs", 0, "start_row"), 38975, r"pair 0 \(rows 38975 to 38999\): not 25 rows apart"),
        (("pairs", 0, "episode_id"), 424, r"episode 424, steps 42 to 67 .* has episode 425 of"),
        (("pairs", 0, "start_step"), 41, "episode 425, steps 41 to 67 in the manifest"),
        (("pairs", 2, "euclidean_distance"), 90.0, r"pair 2 .*distance 90\.0000 in the manifest"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tworoom, tmp_path, keys, value, message):
    data, file = tworoom
    path = written(tmp_path, changed(data, *keys, value=value))
    with pytest.raises(ValueError, match=message) as caught:
        load_manifest(path, file)
    assert str(caught.value).startswith(f"manifest {path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("task", "key", "value", "message"),
    [
        ("reacher", "reacher_wrap_angles", True, "both joints periodic"),
        ("cube", "cube_symmetry_aware", False, "counts no symmetry"),
    ],
)
def test_rules_without_counterpart_are_refused(task, key, value, message):
    data = {**changed(golden(STRICT), "protocol", key, value=value), "task": task}
    with pytest.raises(ValueError, match=message):
        clear_protocol(data)


def test_files_that_cannot_be_it_are_refused(tworoom, tmp_path):
    _, file = tworoom
    with pytest.raises(ValueError, match=r"drawn from tworoom\.h5 .* 670809 valid starts; .* has"):
        read_clear_manifest(STRICT, file)
    with pytest.raises(ValueError, match=r"rows of tworoom\.h5 .*: name that file as the dataset"):
        load_manifest(STRICT, None)
    cube = {**golden(STRICT), "task": "cube"}
    with pytest.raises(ValueError, match=r"env .cube. with actions of width 5; those of .* have 2"):
        load_manifest(written(tmp_path, cube), file)
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    for path in (broken, tmp_path / "absent.json"):
        with pytest.raises(ValueError, match="not readable as JSON"):
            load_manifest(path, file)


def test_our_own_manifests_are_told_by_their_content(tmp_path):
    table = {
        "episodes": "held_out",
        "pre_solved": "dropped",
        "sampling": "one_per_episode",
        "success": {},
        "hold": 1,
        "goal_offset": 25,
        "budget": 50,
    }
    rule = protocol_from_dict("two_room", "own", table)
    manifest = make_manifest(rule, 3, 2, DataConfig(), None)
    path = tmp_path / "own.json"
    path.write_text(manifest.to_json())
    assert load_manifest(path, None, dataset_hash="abc", env="two_room").hash == manifest.hash
    with pytest.raises(ValueError, match=r"own\.json: it is of env 'two_room', not 'push_t'"):
        load_manifest(path, None, env="push_t")
    elsewhere = Manifest(rule, 3, manifest.pairs, "def")
    path.write_text(elsewhere.to_json())
    assert load_manifest(path, None).source == "def"
    with pytest.raises(ValueError, match=r"own\.json: .* drawn from def, not from dataset abc"):
        load_manifest(path, None, dataset_hash="abc")
    assert "2 pairs of two_room, eval seed 3, drawn from def" in describe(path)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (STRICT, ["100 pairs of two_room, eval seed 42", "tworoom.h5", "'distance_px': 8.0"]),
        (MODERATE, ["100 pairs of push_t, eval seed 42", "8dabf1078", "'position_px': 20.0"]),
    ],
)
def test_a_manifest_can_be_read_without_its_dataset(path, words):
    text = describe(path)
    assert all(word in text for word in words)
    pairs = golden(path)["pairs"]
    lines = text.splitlines()[-len(pairs) :]
    for pair, line in zip(pairs, lines):
        numbers = (pair["pair_id"], pair["episode_id"], pair["start_row"], pair["goal_row"])
        assert line == "  {}: episode {}, rows {} to {}".format(*numbers)
