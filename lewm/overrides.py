"""Settings laid over the defaults by their names."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from lewm.config import Config, Frozen
from lewm.spelling import nearest


def known_keys() -> list[str]:
    """Every settable key as `section.field`, plus `method` and `seed`."""
    keys = []
    for name, field in Config.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Frozen):
            keys += [f"{name}.{leaf}" for leaf in section.model_fields]
        else:
            keys.append(name)
    return keys


EXCLUSIVE = {
    "optim.num_steps": "optim.num_epochs",
    "optim.num_epochs": "optim.num_steps",
}
"""Setting one of a pair unsets the other."""


def lay(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Layers of overrides as one, the later winning, and unsetting what excludes it."""
    laid: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            laid[key] = value
            rival = EXCLUSIVE.get(key)
            if rival is not None and value != "none" and rival not in layer:
                laid[rival] = "none"
    return laid


def make_config(overrides: Mapping[str, Any]) -> Config:
    """The defaults with `{"section.field": value}` laid over them.

    Raises:
        ValueError: an unknown key (names the nearest), a wrong type or a value out of range.
    """
    tree: dict[str, Any] = {}
    keys = known_keys()
    for key, value in lay(overrides).items():
        if key not in keys:
            raise ValueError(f"unknown key {key!r}{nearest(key, keys)}")
        section, _, leaf = key.rpartition(".")
        value = None if value == "none" else tuple(value) if isinstance(value, list) else value
        (tree.setdefault(section, {}) if section else tree)[leaf] = value
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ValueError(_one_line(error)) from None


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    got = "" if first["type"] == "value_error" else f", got {first['input']!r}"
    return f"{key}: {message}{got}" if key else message
