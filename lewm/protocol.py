"""Evaluation protocols as data: which episodes are planned, and what counts as success.

A protocol is a table of `sweeps/protocols/<env>.toml`, printed in every report. The pairs that a protocol
and an eval seed give are a manifest (`lewm.manifest`). Imports no torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from lewm.envs import Env, env_class, make_env
from lewm.spelling import nearest

CHOICES: dict[str, tuple[str, ...]] = {
    "episodes": ("train", "held_out"),
    "pre_solved": ("kept", "dropped"),
    "sampling": ("rows", "rows_old", "one_per_episode"),
}
COUNTS = ("hold", "goal_offset", "budget", "history")


@dataclass(frozen=True)
class Protocol:
    """How start/goal pairs are chosen and judged (design §3).

    Attributes:
        name: `paper`, `strict` ...
        env: environment it belongs to.
        episodes: `train` (all of the training file's, as published) or `held_out` (generated from
            the eval seed for data of our own; of a named file the held-out ones of its split).
        pre_solved: whether starts that satisfy the success rule already are `kept` or `dropped`.
        sampling: `rows` (uniform over valid rows, the published code's current form), `rows_old`
            (its former form, which never draws the last valid row) or `one_per_episode`. A row is
            valid if `goal_offset` more steps of its episode were recorded.
        success: parameters of `Env.success` and `Env.admits`.
        hold: consecutive steps that the rule must hold.
        goal_offset: environment steps from start to goal in the recorded episode.
        budget: environment steps an attempt may take.
        options: constructor options of the environment, such as Two-Room's `collision`.
        history: context frames that a plan starts from, the current one included.
    """

    name: str
    env: str
    episodes: str
    pre_solved: str
    sampling: str
    success: Mapping[str, float | bool]
    hold: int
    goal_offset: int
    budget: int
    options: Mapping[str, str] = field(default_factory=dict)
    history: int = 1

    def to_dict(self) -> dict[str, Any]:
        """JSON data of every field."""
        return asdict(self)

    def make_env(self, image_size: int = 64, **options: str) -> Env:
        """The environment under the protocol's rules, with further constructor options."""
        return make_env(self.env, image_size=image_size, **self.options, **options)


_KEYS = tuple(f.name for f in fields(Protocol) if f.name not in ("name", "env"))
_OPTIONAL = ("options", "history")


def protocol_from_dict(env: str, name: str, table: Mapping[str, Any]) -> Protocol:
    """The protocol of a TOML table.

    Args:
        table: every field of `Protocol` but `name` and `env`; those with a default may be left out.

    Raises:
        ValueError: a key is missing, unknown (names the nearest), of the wrong type or out of range.
    """
    where = f"protocol {env}.{name}"
    _check_keys(where, table, _KEYS)
    missing = [key for key in _KEYS if key not in table and key not in _OPTIONAL]
    if missing:
        raise ValueError(f"{where}: missing {', '.join(missing)}")
    for key, allowed in CHOICES.items():
        if table[key] not in allowed:
            raise ValueError(
                f"{where}: {key} must be one of {', '.join(allowed)}, got {table[key]!r}"
            )
    for key in COUNTS:
        if key in table and (type(table[key]) is not int or table[key] < 1):
            raise ValueError(f"{where}: {key} must be a whole number >= 1, got {table[key]!r}")
    if table["episodes"] == "held_out" and table["sampling"] != "one_per_episode":
        raise ValueError(f"{where}: episodes held_out needs sampling one_per_episode")
    if not isinstance(table.get("options", {}), Mapping):
        raise ValueError(f"{where}: options must be a table, got {table['options']!r}")
    success = _check_success(where, table["success"], env_class(env).success_rule)
    protocol = Protocol(**{**table, "success": success, "name": name, "env": env})
    try:
        protocol.make_env().close()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: options {dict(protocol.options)}: {error}") from None
    return protocol


def _check_keys(where: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            raise ValueError(
                f"{where}: unknown key {key!r}{nearest(key, known)}; allowed: {', '.join(known)}"
            )


def _check_success(
    where: str, table: Any, rule: Mapping[str, float | bool]
) -> dict[str, float | bool]:
    if not isinstance(table, Mapping):
        raise ValueError(f"{where}: success must be a table, got {table!r}")
    _check_keys(f"{where}.success", table, tuple(rule))
    checked: dict[str, float | bool] = {}
    for key, value in table.items():
        flag = isinstance(rule[key], bool)
        if isinstance(value, bool) != flag or not isinstance(value, int | float):
            kind = "true or false" if flag else "a number"
            raise ValueError(f"{where}: success.{key} must be {kind}, got {value!r}")
        if not flag and not 0 < value < float("inf"):
            raise ValueError(f"{where}: success.{key} must be above 0 and finite, got {value!r}")
        checked[key] = value if flag else float(value)
    return checked
