"""A released checkpoint as a sweep of one trial that is trained already, so that it can be evaluated.

The trial is named by the hash of its weights and lives in the storage like any other, its released
files in `trials/<id>/released/`. What is not known of it (λ, training seed) stays null in the tables.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lewm.config import Config
from lewm.identity import digest
from lewm.overrides import lay, make_config
from pipeline.cell_runner import RELEASED, RELEASED_FILES
from pipeline.cells import wanted_manifests
from pipeline.datasets.cache import absolute, local_copy
from pipeline.shipped import choice, env_names, layers, load_profile
from pipeline.spec import DEFAULT_STAGES, Spec, Trial, World, make_world
from pipeline.storage import Storage

if TYPE_CHECKING:
    from lewm.manifest import Manifest


@dataclass(frozen=True)
class Request:
    """What the command line asks of a released checkpoint."""

    weights: Path
    env: str
    profile: str = "paper"
    protocols: tuple[str, ...] | None = None
    dataset: str | None = None
    manifest: Path | None = None
    overrides: dict[str, Any] = field(default_factory=dict)


def resolve(request: Request) -> "tuple[Spec, Manifest | None]":
    """The evaluation of a released checkpoint as a sweep, and the manifest that it was given.

    With a dataset (named, or known because the weights are an export of ours) every stage runs;
    without one, what plans on generated episodes. A manifest, ours or CLEAR-LeWM's, brings its protocol
    with it.

    Raises:
        ValueError: one line: broken weights, another world's, no action units, a protocol that needs
            the training file, or a manifest of another dataset.
    """
    from lewm.data.digest import fingerprint as fingerprint_of
    from lewm.released_config import read_config
    from lewm.released_weights import load_normaliser, load_released, weights_hash

    env = choice(request.env, env_names(), "--env")
    released, _ = load_released(request.weights)
    _check_actions(env, read_config(request.weights / "config.json")[1], request.weights)
    training = _training(request.weights, env)
    fingerprint = None if request.dataset is None else fingerprint_of(local_copy(request.dataset))
    manifest = _manifest(request, fingerprint)
    config = _config(request, env, released, training, manifest)
    if manifest is None:
        world = make_world("lewm", env, (("", config),), {}, "--protocol")
    else:
        world = World("lewm", env, (("", config),), {manifest.protocol.name: _table(manifest)}, {})
    collected = training is not None and training.data.dataset is None
    has_data = fingerprint is not None or collected
    if not has_data:
        _check_without_data(request.weights, world.protocols)
    weights = weights_hash(request.weights)[:8]
    normaliser = load_normaliser(request.weights)
    units = normaliser.to_dict() if normaliser else fingerprint
    asked = {"protocols": request.protocols, "dataset": fingerprint, **request.overrides}
    asked["manifest"] = manifest and manifest.hash
    seen = [units, config.data.frame_size] if config.data.frame_size else units
    extra = _plain({"profile": request.profile, "units": units, **asked})
    spec = Spec(
        name=f"weights-{weights}",
        question=_question(request),
        profile=request.profile,
        folder=f"weights-{weights}-{env}-{digest(extra, 6)}",
        stages=DEFAULT_STAGES if has_data else ("planning", "examples"),
        worlds=(world,),
        trials=(Trial(f"weights-{weights}-{digest(seen, 4)}", config, f"weights={weights}"),),
        base={"weights": weights, **extra},
        fingerprint=fingerprint,
        released=True,
        knows_lam=training is not None,
    )
    return spec, manifest


def _manifest(request: Request, fingerprint: str | None) -> "Manifest | None":
    """The manifest named on the command line, its protocol's name made unique by its hash."""
    if request.manifest is None:
        return None
    from lewm.data.episodes import EpisodeFile
    from lewm.named_manifest import load_manifest

    if request.dataset is None:
        raise ValueError("--manifest names rows of a dataset: add --dataset FILE")
    if request.protocols is not None:
        raise ValueError("--manifest brings its own protocol; leave --protocol out")
    with EpisodeFile(local_copy(request.dataset)) as episodes:
        found = load_manifest(request.manifest, episodes, dataset_hash=fingerprint, env=request.env)
    name = f"{found.protocol.name}-{found.hash[:6]}"
    return replace(found, protocol=replace(found.protocol, name=name))


def _table(manifest: "Manifest") -> dict[str, Any]:
    table = manifest.protocol.to_dict()
    return {key: value for key, value in table.items() if key not in ("name", "env")}


def _question(request: Request) -> str:
    text = f"What does the checkpoint {request.weights.name} reach in {request.env}?"
    if request.dataset is not None:
        text += (
            f" Whoever trained it may have trained on every episode of {Path(request.dataset).name}, "
            "the held-out ones of our split included."
        )
    return text


def _plain(extra: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in extra.items() if value is not None}
    plain: dict[str, Any] = json.loads(json.dumps(kept))
    return plain


def _check_actions(env: str, action_dim: int, weights: Path) -> None:
    from lewm.envs import env_class

    wanted = env_class(env).action_dim
    if action_dim != wanted:
        raise ValueError(
            f"{weights}: these weights take {action_dim}-d actions, {env} has {wanted}-d ones"
        )


def _training(weights: Path, env: str) -> Config | None:
    """The config that an export of ours was trained with."""
    path = weights / "training.json"
    if not path.is_file():
        return None
    try:
        config = Config.model_validate_json(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from None
    if config.data.env != env:
        raise ValueError(f"{weights}: trained in {config.data.env}, not in {env} (--env)")
    return config


def _config(
    request: Request,
    env: str,
    released: Config,
    training: Config | None,
    manifest: "Manifest | None",
) -> Config:
    """Sizes from the weights, data and identity from the training if known, the rest from the profile."""
    known: dict[str, Any] = {}
    if training is not None:
        data = training.data.model_dump(exclude={"dataset"})
        known = {f"data.{key}": value for key, value in data.items()}
        known |= {"loss.lam": training.loss.lam, "seed": training.seed}
    sizes = {f"model.{key}": value for key, value in released.model.model_dump().items()}
    chosen: dict[str, Any] = {}
    if request.protocols is not None:
        chosen["planning.protocols"] = list(request.protocols)
    if request.dataset is not None:
        chosen["data.dataset"] = absolute(request.dataset)
    if manifest is not None:
        chosen["planning.protocols"] = [manifest.protocol.name]
        chosen["planning.eval_seeds"] = [manifest.eval_seed]
        chosen["planning.num_pairs"] = len(manifest.pairs)
    profile = layers(load_profile(request.profile), env, "lewm")
    return make_config(lay(*profile, {"data.env": env}, known, sizes, chosen, request.overrides))


def _check_without_data(weights: Path, protocols: dict[str, dict[str, Any]]) -> None:
    for name, table in protocols.items():
        if table["episodes"] == "train":
            raise ValueError(
                f"protocol {name!r} takes its pairs from the training file: add --dataset FILE, or "
                "choose others with --protocol"
            )
    if not (weights / "normaliser.json").is_file():
        raise ValueError(
            f"{weights} has no normaliser.json, so the units of its actions are unknown: add "
            "--dataset FILE (the file it was trained on)"
        )


def store(spec: Spec, storage: Storage, weights: Path, manifest: "Manifest | None") -> None:
    """Copies the released files into the storage, as a trial that is done, and the manifest."""
    from lewm.released_weights import load_released

    if manifest is not None:
        for _, want in wanted_manifests(spec):
            storage.write_bytes(want.key, manifest.to_json().encode())

    (trial,) = spec.trials
    key = f"trials/{trial.trial_id}"
    for name in RELEASED_FILES:
        if (weights / name).is_file():
            storage.put(weights / name, f"{key}/{RELEASED}/{name}")
    if storage.read_json(f"{key}/done.json") is None:
        _, method = load_released(weights)
        storage.write_json(
            f"{key}/done.json",
            {
                "status": "done",
                "error": None,
                "num_params": method.num_params,
                "checkpoint_hash": trial.trial_id.removeprefix("weights-"),
            },
        )
