"""What a sweep has to evaluate: its manifests, its cells, and which of them are done.

A cell is trial x stage x one resolved stage config, so a further eval seed or planner adds cells and
redoes none. A cell is done when its marker says so and its Parquet part is whole.
"""

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lewm.config import Config
from lewm.identity import dataset_id, digest
from pipeline.datasets.cache import local_copy
from pipeline.spec import Spec, Trial
from pipeline.storage import Storage
from pipeline.tables import SCHEMA_VERSION, BrokenTable, read_part

FLOORS = ("random", "zero", "oracle")
PLANS = ("planning", "examples")
"""Stages that plan: their cells have a manifest."""


@dataclass(frozen=True)
class Cell:
    """One unit of evaluation and where its rows go."""

    env: str
    stage: str
    cell_id: str
    folder: str
    config: dict[str, Any]
    eval_point: str
    manifest: str | None = None
    manifest_hash: str | None = None

    @property
    def part(self) -> str:
        """Key of the Parquet part."""
        return f"{self.folder}/{self.stage}-{self.cell_id}.parquet"

    @property
    def marker(self) -> str:
        """Key of the marker that makes it done."""
        return f"{self.folder}/{self.stage}-{self.cell_id}.json"


@dataclass(frozen=True)
class ManifestRef:
    """A frozen start/goal manifest in the storage."""

    key: str
    hash: str
    protocol: dict[str, Any]
    name: str
    eval_seed: int
    num_pairs: int


Manifests = dict[tuple[str, str, int, int], ManifestRef]
"""By (dataset name, protocol, eval_seed, num_pairs)."""


def dataset_name(config: Config, fingerprint: str | None) -> str:
    """The name under which a trial's dataset is known: its spec's hash, or the file's fingerprint."""
    return dataset_id(config) if config.data.dataset is None else f"file-{fingerprint}"


def ensure_manifests(
    spec: Spec,
    storage: Storage,
    datasets: Mapping[str, str],
    hashes: Mapping[str, str],
    progress: Callable[[str, int, int], None],
) -> Manifests:
    """Every manifest the sweep's planning cells need, made once and kept in the storage.

    Args:
        datasets: paths or URIs by dataset name.
        hashes: their content hashes or fingerprints.
        progress: told the manifest's name, and how many of its pairs are found and asked for.

    Raises:
        ValueError: too few pairs, or a stored manifest whose pairs came from another dataset.
    """
    from lewm.data.episodes import EpisodeFile
    from lewm.manifest import Manifest, check_manifest, make_manifest
    from lewm.protocol import protocol_from_dict

    for config, want in wanted_manifests(spec):
        name = dataset_name(config, spec.fingerprint)
        if _stored_hash(storage, want.key) is None:
            protocol = protocol_from_dict(config.data.env, want.name, want.protocol)
            path = datasets.get(name)
            with nullcontext() if path is None else EpisodeFile(local_copy(path)) as episodes:
                manifest = make_manifest(
                    protocol,
                    want.eval_seed,
                    want.num_pairs,
                    config.data,
                    episodes,
                    dataset_hash=hashes.get(name),
                    progress=partial(progress, f"{protocol.env} {protocol.name}"),
                )
            storage.write_bytes(want.key, manifest.to_json().encode())
        stored = Manifest.from_json(storage.read_bytes(want.key).decode())
        check_manifest(stored, hashes.get(name, ""))
    return known_manifests(spec, storage)


def known_manifests(spec: Spec, storage: Storage) -> Manifests:
    """The same, from storage alone.

    Raises:
        ValueError: one is missing or unreadable.
    """
    found: Manifests = {}
    for config, want in wanted_manifests(spec):
        stored = _stored_hash(storage, want.key)
        if stored is None:
            raise ValueError(f"no whole manifest {storage.where(want.key)}")
        name = dataset_name(config, spec.fingerprint)
        found[name, want.name, want.eval_seed, want.num_pairs] = replace(want, hash=stored)
    return found


def _stored_hash(storage: Storage, key: str) -> str | None:
    """The hash of a manifest in the storage; None if it is missing or torn, and so to be made again."""
    from lewm.manifest import Manifest

    try:
        return Manifest.from_json(storage.read_bytes(key).decode()).hash
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def wanted_manifests(spec: Spec) -> Iterator[tuple[Config, ManifestRef]]:
    """A config of each dataset with every manifest that its planning cells need, hashes unknown."""
    if not set(PLANS) & set(spec.stages):
        return
    configs = {dataset_name(t.config, spec.fingerprint): t for t in spec.trials}
    for name, trial in configs.items():
        world = spec.world(trial)
        for _, variant in world.variants:
            planning = variant.planning
            for protocol, eval_seed in itertools.product(planning.protocols, planning.eval_seeds):
                table = world.protocols[protocol]
                identity = digest([table, name, eval_seed, planning.num_pairs], 8)
                key = f"manifests/{world.env}-{protocol}-seed{eval_seed}-{identity}.json"
                ref = ManifestRef(key, "", table, protocol, eval_seed, planning.num_pairs)
                yield trial.config, ref


def trial_cells(spec: Spec, trial: Trial, manifests: Manifests) -> list[Cell]:
    """All cells of one trial, in the order of the sweep's stages."""
    folder = f"trials/{trial.trial_id}/cells"
    name = dataset_name(trial.config, spec.fingerprint)
    cells: dict[str, Cell] = {}
    world = spec.world(trial)
    for eval_point, variant in world.variants:
        for stage in spec.stages:
            own = _own_axes(eval_point, stage)
            for config, ref in _resolve(stage, variant, name, manifests):
                identity = {
                    "trial": trial.trial_id,
                    "stage": stage,
                    "config": config,
                    "schema": SCHEMA_VERSION,
                    "manifest": ref.hash if ref else None,
                }
                cell_id = digest(identity)
                cells.setdefault(
                    cell_id,
                    Cell(
                        world.env,
                        stage,
                        cell_id,
                        folder,
                        config,
                        own,
                        ref.key if ref else None,
                        ref.hash if ref else None,
                    ),
                )
    return list(cells.values())


def _own_axes(eval_point: str, stage: str) -> str:
    """The part of an `eval_point` that concerns a stage."""
    section = "planning" if stage in PLANS else stage
    return " ".join(part for part in eval_point.split(" ") if part.startswith(f"{section}."))


ADDED_LATER = {
    "planning": {"gradient_optimiser": "adam", "precision": "fp32", "compile": "off"},
}
"""Settings younger than the first stored cells, by section: while default they are no part of an identity."""


def section_of(variant: Config, name: str) -> dict[str, Any]:
    """A stage's settings as they enter a cell's identity."""
    values: dict[str, Any] = getattr(variant, name).model_dump(mode="json")
    later = ADDED_LATER.get(name, {})
    return {k: v for k, v in values.items() if k not in later or v != later[k]}


def _resolve(
    stage: str, variant: Config, name: str, manifests: Manifests
) -> list[tuple[dict[str, Any], ManifestRef | None]]:
    """The stage's configs, one per cell, with the manifest of each."""
    section = section_of(variant, stage)
    if stage == "reconstruction":
        section["decoder"] = variant.decoder.model_dump(mode="json")
    if stage not in PLANS:
        return [(section, None)]
    planning = section_of(variant, "planning")
    shared = {k: v for k, v in planning.items() if k not in ("protocols", "eval_seeds")}
    pairs = list(itertools.product(planning["protocols"], planning["eval_seeds"]))
    if stage == "examples":
        shared["num_examples"] = section["num_pairs"]
        pairs = [(planning["protocols"][-1], planning["eval_seeds"][0])]
    chosen = [manifests[name, *pair, planning["num_pairs"]] for pair in pairs]
    return [(shared | _manifest_fields(ref), ref) for ref in chosen]


def _manifest_fields(ref: ManifestRef) -> dict[str, Any]:
    return {"protocol": ref.name, "protocol_table": ref.protocol, "eval_seed": ref.eval_seed}


def floor_cells(spec: Spec, manifests: Manifests) -> list[Cell]:
    """The floors: per manifest one cell for each of `FLOORS`.

    Datasets that differ in their pictures only have the same pairs: those are played once.
    """
    if "planning" not in spec.stages:
        return []
    cells: dict[str, Cell] = {}
    envs = {dataset_name(t.config, spec.fingerprint): t.config.data.env for t in spec.trials}
    for (name, protocol, eval_seed, num_pairs), ref in manifests.items():
        entry = digest([name, protocol, eval_seed])
        for planner in FLOORS:
            config = {
                "planner": planner,
                "protocol": protocol,
                "protocol_table": ref.protocol,
                "eval_seed": eval_seed,
                "num_pairs": num_pairs,
            }
            cell_id = digest([config, SCHEMA_VERSION, ref.hash])
            folder = f"baselines/{entry}"
            place = (envs[name], "planning", cell_id, folder)
            cells.setdefault(cell_id, Cell(*place, config, "", ref.key, ref.hash))
    return list(cells.values())


def is_done(storage: Storage, cell: Cell) -> bool:
    """Whether a cell has a marker that says so and a whole part behind it."""
    marker = storage.read_json(cell.marker)
    if marker is None or marker["status"] != "done":
        return False
    try:
        read_part(storage, cell.part)
    except (BrokenTable, FileNotFoundError) as error:
        print(f"warning: {error}; the cell is done again", file=sys.stderr)
        return False
    return True


def cell_status(storage: Storage, cell: Cell) -> dict[str, Any]:
    """The marker of a cell, or one that says `pending`."""
    return storage.read_json(cell.marker) or {"status": "pending", "error": None, "wall_s": None}
