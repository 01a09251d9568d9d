"""The axes of a sweep: what is varied, what each value sets, and the points they span.

An axis is a config key with its values, or a *composite* axis: a name of the sweep's own whose values each
stand for several settings, spelt out under `[axis.<name>.<value>]`; a value without a table changes nothing.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lewm.overrides import known_keys
from lewm.spelling import nearest

Overrides = dict[str, Any]
Settings = dict[str, dict[str, Overrides]]
"""Of composite axes: name → value → settings."""


@dataclass(frozen=True)
class Point:
    """One value of every axis: what it sets, and the values of composite axes by name."""

    overrides: Overrides
    named: Overrides


@dataclass(frozen=True)
class Axes:
    """Axes by name with their values, and what the values of composite ones set."""

    values: Mapping[str, Sequence[Any]]
    settings: Settings

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    @property
    def plain(self) -> tuple[str, ...]:
        """Axes that are config keys."""
        return tuple(name for name in self.values if name not in self.settings)

    @property
    def keys(self) -> tuple[str, ...]:
        """Every config key that some axis sets."""
        composite = [
            key
            for name in self.values
            for settings in self.settings.get(name, {}).values()
            for key in settings
        ]
        return tuple(dict.fromkeys((*self.plain, *composite)))

    def points(self) -> Iterator[Point]:
        """All combinations, the last axis varying fastest; one point without settings for no axis."""
        for chosen in itertools.product(*self.values.values()):
            overrides: Overrides = {}
            named: Overrides = {}
            for name, value in zip(self.values, chosen, strict=True):
                if name in self.settings:
                    named[name] = value
                    overrides |= self.settings[name].get(str(value), {})
                else:
                    overrides[name] = value
            yield Point(overrides, named)

    def definitions(self) -> Overrides:
        """`axis.<name>.<value>` → what it sets, of the values in use; no two sweeps may differ in one."""
        return {
            f"axis.{name}.{value}": self.settings[name].get(str(value), {})
            for name in self.settings
            for value in self.values.get(name, ())
        }


def make_axes(grid: Overrides, settings: Settings, forbidden: Sequence[str], where: str) -> Axes:
    """Axes of a grid, checked.

    Args:
        settings: of composite axes, of this grid or another one.
        forbidden: sections of the config that no axis of this grid may set.

    Raises:
        ValueError: no list of values, a value twice, or a key that is unknown or may not be set.
    """
    keys = known_keys()
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(
                f"{where}: grid {name!r} needs a non-empty list of values, got {values!r}"
            )
        if len({repr(value) for value in values}) != len(values):
            raise ValueError(f"{where}: grid {name!r} has a value twice: {values}")
        if name not in keys and name not in settings:
            raise ValueError(
                f"{where}: grid: unknown key {name!r}{nearest(name, [*keys, *settings])}; an axis of several "
                f"settings has them in [axis.{name}.<value>]"
            )
    own = {name: table for name, table in settings.items() if name in grid}
    axes = Axes(grid, own)
    for key in axes.keys:
        if key.split(".")[0] in forbidden:
            raise ValueError(f"{where}: {key!r} cannot be an axis of this grid")
    return axes


def check_settings(settings: Any, where: str) -> Settings:
    """The `[axis]` table of a sweep.

    Raises:
        ValueError: not tables of settings by value by axis, an unknown key, or a name that is a config key.
    """
    keys = known_keys()
    tables = settings.values() if isinstance(settings, dict) else [None]
    if not all(
        isinstance(table, dict) and all(isinstance(value, dict) for value in table.values())
        for table in tables
    ):
        raise ValueError(f"{where}: [axis] holds tables [axis.<name>.<value>], got {settings!r}")
    for name, table in settings.items():
        if name in keys:
            raise ValueError(
                f"{where}: [axis.{name}]: that is a config key; give the axis another name"
            )
        for value, chosen in table.items():
            for key in chosen:
                if key not in keys:
                    raise ValueError(
                        f"{where}: [axis.{name}.{value}]: unknown key {key!r}{nearest(key, keys)}"
                    )
    checked: Settings = settings
    return checked
