"""Colours and chart settings, light and dark; colour-blind safe (Okabe & Ito), state also by shape."""

from typing import Any

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
STATES = ("healthy", "collapsed", "diverged")
SHAPES = ("circle", "triangle-down", "cross")
DASHES = ([1, 0], [5, 3], [1, 3])

_LIGHT = {
    "ink": "#1d2329",
    "muted": "#5b6570",
    "grid": "#e4e7ea",
    "paper": "#ffffff",
    "states": ["#0072b2", "#d55e00", "#a3488f"],
    "band": "#8b949e",
    "plateau": "#009e73",
    "strategies": ["#5b6570", "#b07aa1", "#0072b2", "#d55e00"],
    "lams": [(0x8C, 0xC5, 0xBE), (0x2C, 0x7F, 0xB8), (0x14, 0x2A, 0x6E)],
}
_DARK = {
    "ink": "#e6e9ec",
    "muted": "#9aa5b1",
    "grid": "#2b3138",
    "paper": "#15191d",
    "states": ["#56b4e9", "#f2854a", "#d99ad0"],
    "band": "#7d8792",
    "plateau": "#3fbf95",
    "strategies": ["#9aa5b1", "#d99ad0", "#56b4e9", "#f2854a"],
    "lams": [(0x2F, 0x6F, 0x9F), (0x6F, 0xB5, 0xD9), (0xE3, 0xF0, 0xD0)],
}


def palette(dark: bool) -> dict[str, Any]:
    """Named colours of one theme."""
    return _DARK if dark else _LIGHT


def lam_colours(lams: list[float], dark: bool) -> list[str]:
    """One colour per λ in ascending order: a lightness ramp; λ = 0, the control, in the warning hue."""
    chosen = palette(dark)
    positive = [lam for lam in lams if lam > 0]
    ramp = [_between(chosen["lams"], i / max(len(positive) - 1, 1)) for i in range(len(positive))]
    return [chosen["states"][1]] * (len(lams) - len(positive)) + ramp


def _between(stops: list[tuple[int, int, int]], share: float) -> str:
    place = share * (len(stops) - 1)
    index = min(int(place), len(stops) - 2)
    mixed = (
        round(a + (b - a) * (place - index))
        for a, b in zip(stops[index], stops[index + 1], strict=True)
    )
    return "#" + "".join(f"{part:02x}" for part in mixed)


def chart_config(dark: bool, lams: list[float]) -> dict[str, Any]:
    """Vega-Lite `config` of one theme; specs name styles and ranges, never colours."""
    chosen = palette(dark)
    states = chosen["states"]
    return {
        "background": "transparent",
        "font": FONT,
        "view": {"stroke": None},
        "axis": {
            "labelColor": chosen["muted"],
            "titleColor": chosen["ink"],
            "gridColor": chosen["grid"],
            "domainColor": chosen["muted"],
            "tickColor": chosen["muted"],
            "labelFontSize": 11,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "titlePadding": 8,
        },
        "title": {"color": chosen["ink"], "fontSize": 13, "fontWeight": 600, "anchor": "start"},
        "range": {
            "category": states,
            "ordinal": lam_colours(lams, dark),
            "strategies": chosen["strategies"],
        },
        "style": {
            "plateau": {"color": chosen["plateau"], "opacity": 0.13 if dark else 0.1},
            "floor-band": {"color": chosen["band"], "opacity": 0.22},
            "floor-line": {"color": chosen["muted"], "strokeDash": [5, 4], "strokeWidth": 1.2},
            "floor-label": {"color": chosen["muted"], "fontSize": 11},
            "slot": {"color": chosen["muted"], "opacity": 0.45, "strokeDash": [2, 4]},
            "trend": {"color": chosen["ink"], "strokeWidth": 1.2, "opacity": 0.3},
            "interval": {"color": chosen["ink"], "strokeWidth": 1.3, "opacity": 0.75},
            "mean": {"color": chosen["ink"], "opacity": 1},
            "run": {"fillOpacity": 0.85, "stroke": chosen["paper"], "strokeWidth": 0.8},
        },
    }
