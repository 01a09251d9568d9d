"""The page of claims: what was published beside what was measured, with the verdict and its reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from markupsafe import Markup

from reports import text
from reports.paper import Paper, PaperTable
from reports.templating import TEMPLATES, template
from reports.theme import css

HEADS = (
    "what",
    "published",
    "ours",
    "95 % interval",
    "n",
    "profile",
    "same protocol",
    "verdict",
    "why",
)
VERDICTS = {
    "reproduced": "reproduced",
    "not reproduced": "not-reproduced",
    "undecided": "undecided",
    "not tested at this scale": "not-tested",
    "not run": "not-run",
}
"""Verdict → its class on the page."""
Row = dict[str, Any]
Cells = tuple[str, ...]


@dataclass(frozen=True)
class Told:
    """What the page shows.

    Attributes:
        claims: the table, in the order of its `order`.
        summary: counts and sentences.
        rules: the verdicts' rules in words, by kind.
        sweeps: those of the storage: folder, profile, command, state.
    """

    claims: pl.DataFrame
    summary: pl.DataFrame
    rules: Mapping[str, str]
    sweeps: Sequence[Row]

    def said(self, quantity: str) -> str:
        """A sentence of the summary."""
        rows = self.summary.filter(pl.col("quantity") == quantity).to_dicts()
        return str(rows[0]["text"] or "") if rows else ""

    def counts(self) -> list[tuple[str, int, str]]:
        """Verdict, how many, class."""
        found = []
        for verdict, name in VERDICTS.items():
            wanted = f"claims_{verdict.replace(' ', '_')}"
            rows = self.summary.filter(pl.col("quantity") == wanted).to_dicts()
            found.append((verdict, int(rows[0]["value"]) if rows else 0, name))
        return found

    def chapters(self) -> list[Row]:
        """Per sweep its claims, each with its rows, in the table's order."""
        chapters: dict[str, Row] = {}
        for row in self.claims.sort("order").iter_rows(named=True):
            name = row["sweep"] or ""
            chapter = chapters.setdefault(name, {"sweep": name, "commands": {}, "claims": {}})
            if row["command"]:
                chapter["commands"][row["command"]] = None
            key = row["claim"]
            claim = chapter["claims"].setdefault(key, {**row, "rows": []})
            claim["rows"].append(cells(row))
        return [
            {
                **chapter,
                "claims": list(chapter["claims"].values()),
                "commands": list(chapter["commands"]),
            }
            for chapter in chapters.values()
        ]


def cells(row: Row) -> Cells:
    """A claim's row for readers."""
    published = _value(row, row["published"])
    if row["published_spread"] is not None:
        published += f" ± {_plain(row, row['published_spread'])}"
    if row["published_n"] is not None:
        published += f" (n = {row['published_n']})"
    what = row["setting"] or row["statement"]
    if row["reevaluation"]:
        what += f"; {row['source']}"
    n = text.DASH if row["n"] is None else str(row["n"])
    if row["num_episodes"] is not None:
        n += f" ({row['num_episodes']} episodes)"
    same = row["same_protocol"]
    return (
        what,
        published,
        _value(row, row["ours"]),
        _span(row),
        n,
        row["profile"] or text.DASH,
        text.DASH if same is None else "yes" if same else "no",
        row["verdict"],
        row["text"] or text.DASH,
    )


def _value(row: Row, value: float | None) -> str:
    """A value in the row's unit; a dash for none."""
    if value is None:
        return text.DASH
    if row["unit"] == "points":
        return f"{text.points(value)} points"
    if row["unit"] == "factor":
        return f"{text.number(value)} ×"
    return _plain(row, value)


def _plain(row: Row, value: float) -> str:
    if row["unit"] == "share":
        return f"{100 * value:.1f} %".replace(".0 %", " %")
    if row["metric"] == "num_params":
        return f"{value:,.0f}"
    return text.number(value) + (" s" if row["unit"] == "s" else "")


def _span(row: Row) -> str:
    if row["ci_low"] is None:
        return text.DASH
    ends = [_value(row, row[name]).removesuffix(" points") for name in ("ci_low", "ci_high")]
    return " to ".join(ends)


def render(told: Told) -> str:
    """The page as one HTML file without scripts; the same tables give the same bytes."""
    return template("reproduction.html.j2").render(
        told=told,
        verdict=told.said("verdict"),
        scope=told.said("certainty"),
        reproduced=told.said("claims_which"),
        refuted=told.said("claims_which_not"),
        counts=told.counts(),
        chapters=told.chapters(),
        heads=HEADS,
        classes=VERDICTS,
        rules=told.rules,
        sweeps=told.sweeps,
        css=Markup(css([]) + (TEMPLATES / "report.css").read_text(encoding="utf-8")),
    )


def paper(told: Told) -> Paper:
    """The same as tables of a document."""
    tables = []
    for chapter in told.chapters():
        name = chapter["sweep"] or "no sweep"
        rows = tuple(
            (claim["statement"], *row) for claim in chapter["claims"] for row in claim["rows"]
        )
        commands = f": {'; '.join(chapter['commands'])}" if chapter["commands"] else ""
        caption = f"Claims that sweep {name} tests{commands}. The interval's n is in column n."
        tables.append(PaperTable(f"claims-{name}", caption, ("claim", *HEADS), "pplllllllp", rows))
    rules = tuple((kind, words) for kind, words in told.rules.items())
    tables.append(PaperTable("rules", "The rules of the verdicts.", ("kind", "rule"), "lp", rules))
    notes = [told.said("verdict"), told.said("certainty")]
    for words, name in (("Reproduced", "claims_which"), ("Not reproduced", "claims_which_not")):
        if told.said(name):
            notes.append(f"{words}: {told.said(name)}.")
    return Paper("The paper's claims, one by one", tuple(notes), tuple(tables))
