"""The λ axis: logarithmic, with a slot of its own for λ = 0, which has no logarithm."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

LAM_KEY = "loss.lam="


@dataclass(frozen=True)
class Slot:
    """A point's place on the axis."""

    point: str
    label: str
    name: str
    at: float


@dataclass(frozen=True)
class PointAxis:
    """Where the points of one world stand, in plot units.

    Attributes:
        gap: the smallest distance between neighbours.
        break_at: where the zero slot ends, or None.
        ordered: whether the places are values of λ, so that a line between them means something.
        numbered: whether the points have numbers for names, as their settings are many.
    """

    slots: tuple[Slot, ...]
    title: str
    gap: float
    break_at: float | None
    ordered: bool = True
    numbered: bool = False

    def at(self, point: str) -> float:
        """The place of a point."""
        return next(slot.at for slot in self.slots if slot.point == point)

    def name(self, point: str) -> str:
        """The point for readers, e.g. `λ = 0.1`."""
        return next((slot.name for slot in self.slots if slot.point == point), point)

    @property
    def domain(self) -> list[float]:
        """Ends of the axis."""
        return [self.slots[0].at - 0.45 * self.gap, self.slots[-1].at + 0.45 * self.gap]

    @property
    def dodge(self) -> float:
        """How wide the marks of one point may spread."""
        low, high = self.domain
        return min(self.gap, 0.22 * (high - low))

    def encoding(self) -> dict[str, Any]:
        """The Vega-Lite channel `x`, read from the field `at`."""
        places = [slot.at for slot in self.slots]
        labels = [slot.label for slot in self.slots]
        return {
            "field": "at",
            "type": "quantitative",
            "title": self.title,
            "scale": {"domain": self.domain, "nice": False, "zero": False},
            "axis": {
                "values": places,
                "labelExpr": f"{labels!r}[indexof({places!r}, datum.value)]",
                "grid": False,
                "labelOverlap": True,
                "labelSeparation": 4,
            },
        }


MAX_NAMED = 3
"""Points of more settings than this are numbered, not named by them."""


def settings_of(point: str) -> dict[str, str]:
    """The swept parameters of a point, named for readers."""
    pairs = (part.partition("=") for part in point.split())
    return {
        "λ"
        if f"{key}=" == LAM_KEY
        else key.rpartition(".")[2].replace("_", " "): value.removesuffix(".0")
        for key, _, value in pairs
    }


def category_axis(names: Iterable[str], title: str) -> PointAxis:
    """Names one beside the other, in their order."""
    places = enumerate(dict.fromkeys(names))
    slots = tuple(Slot(name, name, name, float(place)) for place, name in places)
    return PointAxis(slots, title, 1.0, None, ordered=False)


def make_axis(points: Iterable[tuple[str, float | None]], begun: Iterable[str] = ()) -> PointAxis:
    """The axis over (point, lam) pairs: λ where λ alone is swept, else one equal step per point.

    Args:
        begun: points in the order in which the sweep names them; they stand so unless they are numbers.
    """
    order = {point: place for place, point in enumerate(dict.fromkeys(begun))}

    def rank(pair: tuple[str, float | None]) -> tuple[Any, ...]:
        point, lam = pair
        return lam is None, lam or 0.0, _numbers(point), order.get(point, len(order)), point

    known = sorted(set(points), key=rank)
    if len(known) == 1 and known[0][1] is not None and not known[0][0]:
        label = f"{known[0][1]:g}"
        only = Slot("", label, f"λ = {label}", 0.0)
        return PointAxis((only,), "λ, weight of SIGReg (one value)", 1.0, None, ordered=False)
    lams = [lam for point, lam in known if lam is not None and point.startswith(LAM_KEY)]
    if len(lams) < len(known) or any(" " in point for point, _ in known) or not known:
        return _unordered([point for point, _ in known])
    logs = [round(math.log10(lam), 6) for lam in lams if lam > 0]
    gap = min((b - a for a, b in itertools.pairwise(logs)), default=0.5)
    places = logs
    break_at = None
    if lams[0] == 0:
        zero = round((logs[0] if logs else 0.0) - max(1.15 * gap, 0.3), 6)
        places = [zero, *logs]
        break_at = (zero + logs[0]) / 2 if logs else None
    slots = tuple(
        Slot(point, f"{lam:g}", f"λ = {lam:g}", place)
        for (point, lam), place in zip(known, places, strict=True)
        if lam is not None
    )
    title = "λ, weight of SIGReg (log scale" + ("; 0 apart)" if break_at is not None else ")")
    return PointAxis(slots, title, gap, break_at)


def _numbers(point: str) -> tuple[float, ...]:
    """The values of a point's settings, if all of them are numbers."""
    try:
        return tuple(float(part.partition("=")[2]) for part in point.split())
    except ValueError:
        return ()


def _unordered(points: list[str]) -> PointAxis:
    """One equal step per point, named by its settings; numbered where those are many."""
    found = [settings_of(point) for point in points]
    if any(len(settings) > MAX_NAMED for settings in found):
        slots = tuple(
            Slot(point, str(place), f"configuration {place}", float(place))
            for place, point in enumerate(points, 1)
        )
        return PointAxis(slots, "configuration", 1.0, None, ordered=False, numbered=True)
    keys = list(dict.fromkeys(key for settings in found for key in settings))
    slots = tuple(
        Slot(
            point,
            ", ".join(settings.values()) or "all",
            ", ".join(f"{key} = {value}" for key, value in settings.items()) or "the only point",
            float(place),
        )
        for place, (point, settings) in enumerate(zip(points, found, strict=True))
    )
    return PointAxis(slots, ", ".join(keys) or "the only point", 1.0, None, ordered=False)
