"""Colours and chart settings, light and dark; colour-blind safe (Okabe & Ito), state also by shape.

Charts on the page name CSS variables, so that one drawing serves light, dark and paper; a file of its own
gets the light theme's colours.
"""

from typing import Any

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
STATES = ("healthy", "collapsed", "diverged")
SHAPES = ("circle", "triangle-down", "cross")
DASHES = ([1, 0], [5, 3], [1, 3])
NUM_STRATEGIES = 4

_LIGHT = {
    "paper": "#ffffff",
    "ink": "#1d2329",
    "muted": "#57616b",
    "rule": "#dfe3e7",
    "soft": "#f5f7f8",
    "accent": "#0067a3",
    "warn": "#a84400",
    "warn-soft": "#fdf3ea",
    "healthy": "#0072b2",
    "collapsed": "#d55e00",
    "diverged": "#a3488f",
    "band": "#8b949e",
    "plateau": "#009e73",
    "strategy-0": "#57616b",
    "strategy-1": "#a3488f",
    "strategy-2": "#0072b2",
    "strategy-3": "#d55e00",
}
_DARK = {
    "paper": "#14181c",
    "ink": "#e7eaed",
    "muted": "#a0abb6",
    "rule": "#2c333a",
    "soft": "#1c2227",
    "accent": "#6cbdf0",
    "warn": "#f59a68",
    "warn-soft": "#2a211b",
    "healthy": "#56b4e9",
    "collapsed": "#f2854a",
    "diverged": "#d99ad0",
    "band": "#7d8792",
    "plateau": "#3fbf95",
    "strategy-0": "#a0abb6",
    "strategy-1": "#d99ad0",
    "strategy-2": "#56b4e9",
    "strategy-3": "#f2854a",
}
_RAMPS = {
    False: [(0x44, 0xA6, 0x9C), (0x2C, 0x7F, 0xB8), (0x14, 0x2A, 0x6E)],
    True: [(0x3D, 0x7F, 0xB0), (0x7C, 0xBE, 0xDD), (0xE3, 0xF0, 0xD0)],
}


def css(lams: list[float]) -> str:
    """The chart's colours as CSS variables: light, dark where the reader prefers it, light on paper.

    Those of the page itself (`report.css`) have the same names and values.
    """
    light, dark = (_declarations(colours(lams, dark)) for dark in (False, True))
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def _declarations(named: dict[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in named.items())


def colours(lams: list[float], dark: bool) -> dict[str, str]:
    """Every colour of a theme by name, `lam-0` and so on for the points in ascending λ.

    A lightness ramp; λ = 0, the control, in the warning hue.
    """
    chosen = _DARK if dark else _LIGHT
    positive = sum(lam > 0 for lam in lams)
    ramp = [_between(_RAMPS[dark], i / max(positive - 1, 1)) for i in range(positive)]
    points = [chosen["collapsed"]] * (len(lams) - positive) + ramp
    return chosen | {f"lam-{i}": colour for i, colour in enumerate(points)}


def _between(stops: list[tuple[int, int, int]], share: float) -> str:
    place = share * (len(stops) - 1)
    index = min(int(place), len(stops) - 2)
    mixed = (
        round(a + (b - a) * (place - index))
        for a, b in zip(stops[index], stops[index + 1], strict=True)
    )
    return "#" + "".join(f"{part:02x}" for part in mixed)


def page_config(lams: list[float]) -> dict[str, Any]:
    """Vega-Lite `config` whose colours are the page's CSS variables: one drawing for every theme."""
    return _config({name: f"var(--{name})" for name in colours(lams, False)}, len(lams))


def chart_config(dark: bool, lams: list[float]) -> dict[str, Any]:
    """Vega-Lite `config` of one theme; specs name styles and ranges, never colours.

    Args:
        lams: one per point, ascending.
    """
    return _config(colours(lams, dark), len(lams))


def _config(c: dict[str, str], num_points: int) -> dict[str, Any]:
    return {
        "aria": False,
        "background": "transparent",
        "font": FONT,
        "view": {"stroke": None},
        "axis": {
            "labelColor": c["muted"],
            "titleColor": c["ink"],
            "gridColor": c["rule"],
            "domainColor": c["muted"],
            "tickColor": c["muted"],
            "labelFontSize": 11,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "titlePadding": 8,
        },
        "title": {"color": c["ink"], "fontSize": 13, "fontWeight": 600, "anchor": "start"},
        "range": {
            "category": [c[state] for state in STATES],
            "ordinal": [c[f"lam-{i}"] for i in range(num_points)],
            "strategies": [c[f"strategy-{i}"] for i in range(NUM_STRATEGIES)],
        },
        "style": {
            "plateau": {"color": c["plateau"], "opacity": 0.12},
            "floor-band": {"color": c["band"], "opacity": 0.22},
            "floor-line": {"color": c["muted"], "strokeDash": [5, 4], "strokeWidth": 1.2},
            "floor-label": {"color": c["muted"], "fontSize": 11},
            "published": {"color": c["diverged"], "strokeDash": [2, 2], "strokeWidth": 1.4},
            "slot": {"color": c["muted"], "opacity": 0.45, "strokeDash": [2, 4]},
            "trend": {"color": c["ink"], "strokeWidth": 1.2, "opacity": 0.3},
            "interval": {"color": c["ink"], "strokeWidth": 1.3, "opacity": 0.75},
            "mean": {"color": c["ink"], "opacity": 1},
            "run": {"fillOpacity": 0.85, "stroke": c["paper"], "strokeWidth": 0.8},
            "cell": {"color": c["healthy"], "stroke": c["paper"], "strokeWidth": 2},
            "cell-label": {"color": c["ink"], "fontSize": 12},
            "end-label": {"color": c["muted"], "fontSize": 10.5},
        },
    }
