"""Collection: the same content for any number of workers, resumable, checked, one-line errors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lewm.data.digest import content_hash
from lewm.data.episodes import EpisodeFile
from lewm.envs import ENVS
from lewm.identity import dataset_id
from lewm.overrides import make_config
from pipeline.collect import default_policy, main, parse
from pipeline.datasets import collected as module
from pipeline.datasets.collected import collect, make_part, policy_shares
from pipeline.storage import Storage

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "pipeline.collect", "two_room"]


def ensure_dataset(config, folder, **more):
    storage = Storage(folder)
    return storage.path(module.ensure_dataset(config, storage, **more))


def read_sheet(path):
    return module.read_sheet(Storage(path.parent), path.name)


def check_dataset(path):
    return module.check_dataset(Storage(path.parent), path.name)


def config(episodes=30, **overrides):
    small = {"model.image_size": 16, "model.patch_size": 16, "data.max_steps": 20}
    return make_config(small | {"data.num_episodes": episodes} | overrides)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A dataset made in one go by one process."""
    return ensure_dataset(config(), tmp_path_factory.mktemp("unbroken"))


def test_file_and_datasheet(unbroken):
    sheet = read_sheet(unbroken)
    with EpisodeFile(unbroken) as file:
        assert (file.num_episodes, file.image_size, file.action_dim) == (30, 16, 2)
        assert file.num_rows == sheet["num_rows"] <= 30 * 21
    assert sheet["content_hash"] == content_hash(unbroken)
    assert sheet["dataset_id"] == unbroken.stem == dataset_id(config())
    assert (sheet["policy"], sheet["collect_seed"]) == ("expert", 3072)
    assert (sheet["policy_shares"], sheet["render_quality"]) == ({"expert": 1.0}, "exact")
    assert set(sheet["coverage"]) == {"crossed_door", "cells_visited", "reached_goal"}
    assert sorted(p.suffix for p in unbroken.parent.iterdir()) == [".h5", ".json"]


def test_a_second_call_changes_nothing(unbroken):
    before = {p.name: p.stat().st_mtime_ns for p in unbroken.parent.iterdir()}
    assert ensure_dataset(config(), unbroken.parents[1]) == unbroken
    assert {p.name: p.stat().st_mtime_ns for p in unbroken.parent.iterdir()} == before


def test_goes_on_from_whole_parts(unbroken, tmp_path, monkeypatch):
    stops = iter([False, False, True])
    with pytest.raises(KeyboardInterrupt):
        ensure_dataset(config(60), tmp_path, stop=lambda: next(stops))
    folder = tmp_path / "datasets" / f"{dataset_id(config(60))}.parts"
    parts = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert sorted(parts) == ["000000-000025.h5", "000025-000050.h5"]
    made = []
    monkeypatch.setattr(module, "make_part", lambda *a: made.append(a[2]) or make_part(*a))
    path = ensure_dataset(config(60), tmp_path)
    assert [key.rsplit("/", 1)[-1] for key in made] == ["000050-000060.h5"] and not folder.exists()
    with EpisodeFile(path) as long, EpisodeFile(unbroken) as short:
        rows = range(short.num_rows)
        assert (long.read("pixels", rows) == short.read("pixels")).all()


@pytest.mark.parametrize("harm", ["truncate", "alter", "no sheet"])
def test_a_broken_dataset_of_ours_is_collected_again(unbroken, tmp_path, harm, capsys):
    path = ensure_dataset(config(), tmp_path)
    if harm == "truncate":
        path.write_bytes(path.read_bytes()[:-5000])
    elif harm == "alter":
        import h5py

        with h5py.File(path, "r+") as file:
            file["proprio"][3] = 0.0
        with pytest.raises(ValueError, match=r"is not the .* of its datasheet"):
            check_dataset(path)
    else:
        path.with_suffix(".json").unlink()
    assert ensure_dataset(config(), tmp_path) == path
    assert check_dataset(path) == content_hash(path) == read_sheet(unbroken)["content_hash"]
    assert ("collecting it again" in capsys.readouterr().err) == (harm != "no sheet")


def test_a_touched_file_is_read_again_and_accepted(unbroken, tmp_path):
    path = ensure_dataset(config(), tmp_path)
    os.utime(path, (1, 1))
    assert check_dataset(path) == read_sheet(unbroken)["content_hash"]


def test_never_overwrites_a_foreign_file(tmp_path):
    target = tmp_path / "mine.h5"
    target.write_text("thesis")
    with pytest.raises(ValueError, match=r"mine\.h5 exists and holds something else"):
        collect(config(), Storage(tmp_path), target.name, 1)
    assert target.read_text() == "thesis"


def test_command_line_and_out(tmp_path, capsys):
    size = ["--image-size", "16", "--max-steps", "20", "--workers", "1"]
    out = tmp_path / "a" / "b.h5"
    command = ["two_room", "--episodes", "30", *size, "--out", str(out)]
    assert main(command) == 0
    assert "content_hash" in capsys.readouterr().out
    assert main(command) == 0
    assert "there already" in capsys.readouterr().out
    assert main([*command, "--seed", "1"]) == 2
    assert json.loads(out.with_suffix(".json").read_text())["num_episodes"] == 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["two_rom"], "unknown env 'two_rom' (did you mean 'two_room'?)"),
        (["two_room", "--policy", "exprt"], "unknown policy 'exprt' (did you mean 'expert'?)"),
        (["two_room", "--episodes", "0"], "data.num_episodes"),
        (["two_room", "--episodes", "many"], "--episodes"),
        (["two_room", "--image-size", "512"], "image_size must be within 8..224"),
        (["two_room", "--workers", "0"], "--workers must be at least 1"),
        (["two_room", "--storage", "gs://bucket"], "s3://bucket"),
        (["two_room", "--storage", "/proc/none"], "cannot be written"),
        (["two_room", "--what"], "--what"),
        (["two_room", "--render-quality", "fast"], "render_quality"),
        (["two_room", "--render-quality", "quick"], "data.render_quality"),
        (["two_room", "--policy", "expert+exprt"], "unknown policy 'exprt'"),
        (["two_room", "--repack", "x.h5"], "either an environment or --repack"),
        ([], "either an environment or --repack"),
        (["--repack", "none.h5"], "none.h5: no such file"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments, message, tmp_path, capsys):
    extra = [] if "--storage" in arguments else ["--storage", str(tmp_path)]
    extra += [] if "--workers" in arguments else ["--workers", "1"]
    assert main([*arguments, *extra]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not any(tmp_path.rglob("*.h5"))


def test_every_world_has_a_policy_of_its_own_by_default():
    wanted = {"two_room": "expert", "push_t": "weak+pusher"}
    wanted |= {"reacher": "random+ik", "cube": "markov+plan"}
    assert {name: default_policy(name) for name in ENVS} == wanted
    assert parse(["cube"]).policy is None
    assert policy_shares("a+b+a+c") == {"a": 0.5, "b": 0.25, "c": 0.25}


def test_a_mixture_gives_the_same_content_in_any_division(unbroken, tmp_path, monkeypatch):
    size = ["--image-size", "16", "--max-steps", "20", "--episodes", "30", "--workers", "1"]
    command = ["two_room", "--policy", "expert+random", *size]
    sheets = []
    for part_episodes in (30, 7):
        monkeypatch.setattr(module, "PART_EPISODES", part_episodes)
        assert main([*command, "--storage", str(tmp_path / str(part_episodes))]) == 0
        (path,) = tmp_path.glob(f"{part_episodes}/datasets/two_room-expert+random-*.h5")
        sheets.append(read_sheet(path))
        assert content_hash(path) == sheets[-1]["content_hash"]
    assert sheets[0]["content_hash"] == sheets[1]["content_hash"]
    assert sheets[0]["policy_shares"] == {"expert": 0.5, "random": 0.5}
    assert sheets[0]["content_hash"] != read_sheet(unbroken)["content_hash"]


def test_help_teaches_and_imports_nothing_heavy():
    code = (
        "import sys; from pipeline.collect import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "assert not {'ray', 'torch', 'mlflow'} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "--episodes 500" in shown.stdout and "content hash" in shown.stdout


def test_sigkill_then_the_same_command(unbroken, tmp_path):
    size = ["--image-size", "16", "--max-steps", "20"]
    storage = ["--storage", str(tmp_path), "--workers", "1"]
    command = [*COMMAND, "--episodes", "30", *size, *storage]
    long = [*COMMAND, "--episodes", "3000", *size, *storage]
    process = subprocess.Popen(long, cwd=ROOT, stderr=subprocess.DEVNULL)
    folder = tmp_path / "datasets"
    while len(list(folder.glob("*.parts/*.h5"))) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    path = folder / f"{dataset_id(config())}.h5"
    assert content_hash(path) == read_sheet(unbroken)["content_hash"]


def test_sigterm_ends_with_143_and_says_how_to_go_on(tmp_path):
    command = [*COMMAND, "--episodes", "3000", "--image-size", "16", "--workers", "1"]
    process = subprocess.Popen(
        [*command, "--storage", str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while not list(tmp_path.glob("datasets/*.parts/*.h5")):
        time.sleep(0.02)
    process.terminate()
    _, error = process.communicate(timeout=30)
    assert process.returncode == 143 and "the same command goes on" in error
    assert not list(tmp_path.glob("datasets/*.owner.json"))


@pytest.mark.ci
@pytest.mark.parametrize("policy", ["expert", "expert+random"])
def test_ray_workers_give_the_same_content(policy, tmp_path):
    size = ["--image-size", "16", "--max-steps", "20", "--episodes", "30", "--policy", policy]
    hashes = []
    for workers in ("1", "2"):
        storage = ["--storage", str(tmp_path / workers)]
        command = [*COMMAND, *size, "--workers", workers, *storage]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        (path,) = (tmp_path / workers / "datasets").glob("*.h5")
        hashes.append(read_sheet(path)["content_hash"])
    assert hashes[0] == hashes[1]
