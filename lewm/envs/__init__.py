"""Gymnasium environments with a physics contract (`lewm.envs.base.Env`), made by name.

To add one: write `lewm/envs/<name>.py`, add its line to `ENVS` and a `sweeps/protocols/<name>.toml`.
"""

import importlib
from collections.abc import Callable
from typing import Any

import gymnasium

from lewm.envs.base import Behaviour, Env
from lewm.spelling import nearest

__all__ = ["ENVS", "GYM_IDS", "Behaviour", "Env", "env_class", "make_env"]

ENVS = {
    "two_room": "lewm.envs.two_room:TwoRoomEnv",
    "push_t": "lewm.envs.push_t:PushTEnv",
    "reacher": "lewm.envs.reacher:ReacherEnv",
    "cube": "lewm.envs.cube:CubeEnv",
}
GYM_IDS = {
    "two_room": "lewm/TwoRoom-v0",
    "push_t": "lewm/PushT-v0",
    "reacher": "lewm/Reacher-v0",
    "cube": "lewm/Cube-v0",
}

for _name, _id in GYM_IDS.items():
    if _id not in gymnasium.registry:
        gymnasium.register(id=_id, entry_point=ENVS[_name])


def env_class(name: str) -> type[Env]:
    """The class of an environment; its simulator is imported here, not before.

    Raises:
        ValueError: an unknown name (lists the known ones and the nearest), or a simulator that is
            not installed (names the extra to install).
    """
    if name not in ENVS:
        raise ValueError(
            f"unknown env {name!r}{nearest(name, ENVS)}; known: {', '.join(sorted(ENVS))}"
        )
    module, _, attribute = ENVS[name].partition(":")
    try:
        found: type[Env] = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("lewm"):
            raise
        raise ValueError(
            f"env {name!r} needs {error.name}, which is not installed: pip install 'lewm-sweep[envs]'"
        ) from None
    return found


def make_env(name: str, *, image_size: int = 224, **options: Any) -> Env:
    """A bare environment (no Gymnasium wrappers around it).

    Args:
        image_size: pixels per side of its frames.
        options: further constructor options, `render_quality` or such as Two-Room's `collision`.

    Raises:
        ValueError: an unknown name, or an option out of range.
    """
    factory: Callable[..., Env] = env_class(name)
    return factory(image_size=image_size, **options)
