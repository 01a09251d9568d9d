"""Manifests that a user names: our own, and those of CLEAR-LeWM (`clear-lewm-manifest-v1`).

A CLEAR-LeWM manifest lists rows of a published file; states and actions are read from that file, which is
checked first. Its fingerprint is kept but cannot be recomputed: what `metadata-sha256` hashes is not
published. Instead the file must have as many valid starts as the manifest says, and every pair the rows,
episode and distance between start and goal that it was written with.

`python -m lewm.clear_manifest FILE` prints `describe`.
"""

import json
import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lewm.clear_rules import Table, Task, clear_protocol, clear_task
from lewm.data.episodes import INDEX_COLUMNS, EpisodeFile
from lewm.envs import Env
from lewm.manifest import SCHEMA_VERSION, Manifest, Pair, check_manifest, make_pair
from lewm.protocol import Protocol
from lewm.windows import FileColumns, Window, valid_rows

CLEAR_VERSION = "clear-lewm-manifest-v1"


def load_manifest(
    path: str | Path,
    episode_file: EpisodeFile | None,
    *,
    dataset_hash: str | None = None,
    env: str | None = None,
) -> Manifest:
    """The manifest in a file, ours or CLEAR-LeWM's, told apart by its content.

    Args:
        episode_file: what a CLEAR-LeWM manifest's rows are read from; ours holds its states itself.
        dataset_hash: identity of the dataset; refuses a manifest of ours drawn from another one.
        env: refuses a manifest of another environment.

    Raises:
        ValueError: one line: no such file, not a manifest, another version, environment or dataset, or
            a dataset that is needed and missing.
    """
    with _about(path):
        text, data = _read(path)
        if data["schema_version"] == SCHEMA_VERSION:
            manifest = Manifest.from_json(text)
            if dataset_hash is not None:
                check_manifest(manifest, dataset_hash)
        else:
            manifest = _read_clear(data, episode_file, dataset_hash)
        if env is not None and manifest.protocol.env != env:
            raise ValueError(f"it is of env {manifest.protocol.env!r}, not {env!r}")
    return manifest


def read_clear_manifest(
    path: str | Path, episode_file: EpisodeFile, *, dataset_hash: str | None = None
) -> Manifest:
    """A CLEAR-LeWM manifest over the file that its rows are of.

    The protocol is named `clear-<its name>`; `policy_seed` is the eval seed. Our names for its rules, and
    what has no counterpart here, are in `lewm.clear_rules`.

    Args:
        dataset_hash: the file's identity, kept as `source`; else the manifest's own fingerprint is.

    Raises:
        ValueError: one line: not such a manifest, another version, a key that is missing, a rule without
            counterpart, or a file with other actions, episodes, rows or states than it was written for.
    """
    with _about(path):
        return _read_clear(_read(path)[1], episode_file, dataset_hash)


def describe(path: str | Path) -> str:
    """What a manifest says, for readers without its dataset: the protocol and the rows of its pairs.

    Raises:
        ValueError: as `load_manifest`, but for the dataset.
    """
    with _about(path):
        text, data = _read(path)
        if data["schema_version"] == SCHEMA_VERSION:
            ours = Manifest.from_json(text)
            protocol, seed, source = ours.protocol, ours.eval_seed, ours.source
        else:
            protocol, seed, source = clear_protocol(data), int(data["policy_seed"]), _dataset(data)
        pairs = [(pair["pair_id"], pair["episode_id"], pair["start_row"]) for pair in data["pairs"]]
    head = f"{len(pairs)} pairs of {protocol.env}, eval seed {seed}, drawn from {source}"
    rules = [f"  {key} = {value}" for key, value in protocol.to_dict().items()]
    offset = protocol.goal_offset
    rows = [f"  {i}: episode {e}, rows {start} to {start + offset}" for i, e, start in pairs]
    return "\n".join([head, "protocol", *rules, "pairs", *rows])


@contextmanager
def _about(path: str | Path) -> Iterator[None]:
    """Errors within as one line about the manifest; a missing key is one."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"manifest {path}: no {error}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"manifest {path}: {error}") from None


def _read(path: str | Path) -> tuple[str, dict[str, Any]]:
    try:
        text = Path(path).read_text()
        data = json.loads(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"not readable as JSON ({error})") from None
    known = (SCHEMA_VERSION, CLEAR_VERSION)
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version not in known:
        raise ValueError(f"schema_version is {version!r}; known: {', '.join(known)}")
    return text, data


def _dataset(data: Table) -> str:
    """`pusht_expert_train.h5 (metadata-sha256 8dab...)`."""
    dataset = data["dataset"]
    return f"{dataset['name']} ({dataset['fingerprint']['kind']} {dataset['fingerprint']['value']})"


def _read_clear(data: Table, file: EpisodeFile | None, dataset_hash: str | None) -> Manifest:
    if file is None:
        raise ValueError(f"its pairs are rows of {_dataset(data)}: name that file as the dataset")
    task, protocol = clear_task(data)[1], clear_protocol(data)
    with closing(protocol.make_env()) as env:
        _check_file(data, protocol, env, file)
        pairs = tuple(_read_pair(entry, task, protocol, env, file) for entry in data["pairs"])
    source = _dataset(data) if dataset_hash is None else dataset_hash
    return Manifest(protocol, int(data["policy_seed"]), pairs, source)


def _check_file(data: Table, protocol: Protocol, env: Env, file: EpisodeFile) -> None:
    if file.action_dim != env.action_dim:
        raise ValueError(
            f"it is of env {env.name!r} with actions of width {env.action_dim}; those of {file.path} "
            f"have {file.action_dim}"
        )
    listed = data["statistics"]["valid_pairs_all_splits"]
    found = len(valid_rows(file, protocol.goal_offset))
    if found != listed:
        raise ValueError(
            f"it was drawn from {_dataset(data)} with {listed} valid starts; {file.path} has {found}"
        )


def _read_pair(entry: Table, task: Task, protocol: Protocol, env: Env, file: EpisodeFile) -> Pair:
    """One pair, its states and actions read from the file and compared with what the manifest says."""
    start, goal = int(entry["start_row"]), int(entry["goal_row"])
    where = f"pair {entry['pair_id']} (rows {start} to {goal})"
    if not 0 <= start < goal < file.num_rows or goal - start != protocol.goal_offset:
        raise ValueError(
            f"{where}: not {protocol.goal_offset} rows apart within the {file.num_rows} rows of {file.path}"
        )
    episode = int(np.searchsorted(file.ep_offset, start, side="right")) - 1
    rows = file.rows(episode)
    index = next((name for name in INDEX_COLUMNS if name in file.columns), None)
    number = episode if index is None else int(file.read(index, [start]).item())
    steps = (start - int(rows[0]), goal - int(rows[0]))
    listed = (int(entry["episode_id"]), int(entry["start_step"]), int(entry["goal_step"]))
    if (number, *steps) != listed or goal > rows[-1]:
        raise ValueError(
            f"{where}: episode {listed[0]}, steps {listed[1]} to {listed[2]} in the manifest; "
            f"{file.path} has episode {number} of {len(rows)} steps, of which it is {steps[0]}"
        )
    columns = FileColumns(file, np.array([start, goal]))
    states = env.state_from_columns(columns, 0), env.state_from_columns(columns, 1)
    gap, told = task.distance(*states), float(entry[task.distance_key])
    if not math.isclose(gap, told, rel_tol=1e-3, abs_tol=1e-3):
        raise ValueError(
            f"{where}: {task.distance_key} {told:.4f} in the manifest, {gap:.4f} in {file.path}"
        )
    actions = file.read("action", np.arange(start, goal)).astype(np.float32)
    window = Window(episode, start, *states, actions)
    return make_pair((int(entry["pair_id"]), episode, start), window, env, protocol)
