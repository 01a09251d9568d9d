"""CLEAR-LeWM's protocols in our terms: what its tasks, rules and samplings are called here."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lewm.protocol import Protocol, protocol_from_dict
from lewm.spelling import nearest
from lewm.windows import State

Table = Mapping[str, Any]

DEFAULTS: dict[str, Any] = {
    "success_mode": "upstream",
    "sustained_steps": 1,
    "reproduce_upstream_off_by_one": False,
    "pusht_block_only": False,
    "cube_orientation_threshold_deg": None,
    "cube_symmetry_aware": False,
    "reacher_success_mode": "joint",
    "reacher_angle_mode": None,
    "reacher_wrap_angles": False,
    "tworoom_collision_mode": "official",
    "tworoom_crossroom_only": False,
    "tworoom_goal_side_required": False,
    "tworoom_route_required": False,
}
"""What a protocol field means in manifests that were written before it existed."""


def _push_t_rule(spec: Table) -> dict[str, Any]:
    return {
        "position_px": spec["pusht_position_threshold"],
        "angle_deg": spec["pusht_angle_threshold_deg"],
        "block_only": spec["pusht_block_only"],
    }


def _two_room_rule(spec: Table) -> dict[str, Any]:
    if spec["tworoom_route_required"] and spec["tworoom_collision_mode"] != "swept":
        raise ValueError("tworoom_route_required without swept collision has no counterpart here")
    return {
        "distance_px": spec["tworoom_distance_threshold"],
        "cross_room": spec["tworoom_crossroom_only"],
        "goal_side": spec["tworoom_goal_side_required"],
    }


def _reacher_rule(spec: Table) -> dict[str, Any]:
    if spec["reacher_wrap_angles"]:
        raise ValueError("reacher_wrap_angles (both joints periodic) has no counterpart here")
    if spec["reacher_success_mode"] == "endpoint":
        return {"endpoint": True, "endpoint_m": spec["reacher_endpoint_threshold_m"]}
    return {
        "joint_rad": spec["reacher_joint_threshold_rad"],
        "shoulder_periodic": spec["reacher_angle_mode"] == "shoulder-periodic",
    }


def _cube_rule(spec: Table) -> dict[str, Any]:
    rule = {"distance_m": spec["cube_position_threshold_m"]}
    angle = spec["cube_orientation_threshold_deg"]
    if angle is None:
        return rule
    if not spec["cube_symmetry_aware"]:
        raise ValueError("a cube orientation that counts no symmetry has no counterpart here")
    return {**rule, "angle_deg": angle}


@dataclass(frozen=True)
class Task:
    """What a task of CLEAR-LeWM is here.

    Attributes:
        rule: success table of its corrected protocols; its `upstream` mode is our default rule.
        options: constructor options with which CLEAR-LeWM runs it (Push-T keeps the authors' setter).
        distance_key: the distance between start and goal that its pairs carry.
        distance: the same between two of our states.
    """

    env: str
    rule: Callable[[Table], dict[str, Any]]
    options: Callable[[Table], dict[str, str]]
    distance_key: str
    distance: Callable[[State, State], float]


def _gap(part: slice) -> Callable[[State, State], float]:
    return lambda start, goal: float(np.linalg.norm(goal[part] - start[part]))


TASKS = {
    "pusht": Task(
        "push_t",
        _push_t_rule,
        lambda spec: {"setter": "paper"},
        "position_distance",
        _gap(slice(0, 4)),
    ),
    "tworoom": Task(
        "two_room",
        _two_room_rule,
        lambda spec: {
            "collision": "swept" if spec["tworoom_collision_mode"] == "swept" else "endpoint"
        },
        "euclidean_distance",
        _gap(slice(0, 2)),
    ),
    "reacher": Task(
        "reacher",
        _reacher_rule,
        lambda spec: {},
        "max_joint_distance_rad",
        lambda start, goal: float(np.abs(goal[:2] - start[:2]).max()),
    ),
    "cube": Task("cube", _cube_rule, lambda spec: {}, "position_distance_m", _gap(slice(14, 17))),
}
SAMPLINGS = {"row-uniform": "rows", "episode-balanced": "one_per_episode"}
SPLITS = {"all": "train", "heldout": "held_out"}


def clear_task(data: Table) -> tuple[str, Task]:
    """The manifest's task by its name there, and what it is here.

    Raises:
        ValueError, KeyError: an unknown task, none.
    """
    name = data["task"]
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}{nearest(str(name), TASKS)}; known: {_list(TASKS)}")
    return name, TASKS[name]


def clear_protocol(data: Table) -> Protocol:
    """Our protocol with the rules of the manifest's.

    Raises:
        ValueError, KeyError: an unknown value, a rule without counterpart here, a missing field.
    """
    name, task = clear_task(data)
    spec = {**DEFAULTS, **data["protocol"]}
    corrected = _known(spec, "success_mode", {"upstream": False, "task-sustained": True})
    sampling = _known(spec, "sampling", SAMPLINGS)
    if sampling == "rows" and spec["reproduce_upstream_off_by_one"]:
        sampling = "rows_old"
    hold = spec.get(f"{name}_sustained_steps")
    table = {
        "episodes": _known(spec, "split", SPLITS),
        "pre_solved": "dropped" if spec["exclude_initial_success"] else "kept",
        "sampling": sampling,
        "success": task.rule(spec) if corrected else {},
        "hold": spec["sustained_steps"] if hold is None else hold,
        "goal_offset": spec["goal_offset"],
        "budget": spec["eval_budget"],
        "options": task.options(spec),
    }
    return protocol_from_dict(task.env, f"clear-{spec['name']}", table)


def _known(spec: Table, key: str, values: Mapping[str, Any]) -> Any:
    if spec[key] not in values:
        raise ValueError(f"protocol.{key} is {spec[key]!r}; known here: {_list(values)}")
    return values[spec[key]]


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
