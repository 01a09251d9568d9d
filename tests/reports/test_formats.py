import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

sys.path.append(str(Path(__file__).parents[1]))

from synthetic_sweep import META, make_tables

from pipeline.stages import stability
from pipeline.tables import SCHEMAS
from reports import latex, markdown
from reports.paper import Paper, PaperTable, paper

Frames = dict[str, pl.DataFrame]
NASTY = r"50 % of_it & #1 <b> {x} ~ ^ \ | -- λ 10⁻⁷ é 中 $"


@pytest.fixture(scope="module")
def tables() -> Frames:
    made = make_tables(pending=((0.1, 2),))
    return made | stability.run(made)


@pytest.fixture(scope="module")
def made(tables: Frames) -> Paper:
    return paper(tables, META)


def one(made: Paper, label: str) -> PaperTable:
    return next(table for table in made.tables if table.label == label)


def test_a_paper_has_its_tables(made: Paper) -> None:
    labels = [table.label for table in made.tables]
    assert len(labels) == len(set(labels))
    wanted = {"success", "conclusions", "differences", "floors", "training", "latents"}
    assert wanted | {"protocols", "trials", "provenance"} <= set(labels)
    for table in made.tables:
        assert all(len(row) == len(table.heads) == len(table.align) for row in table.rows)


def test_captions_name_n_and_the_method_of_their_intervals(made: Paper, tables: Frames) -> None:
    words = one(made, "success").caption
    assert "2–3 seeds of 30 episodes each" in words
    assert "Intervals: 95 % over seeds and pairs." in words
    assert "none (all episodes alike)" in words
    assert "95 % Wilson over start/goal pairs" in one(made, "floors").caption
    assert "95 % t over seeds" in one(made, "latents").caption
    assert (
        "Holm" in one(made, "differences").caption
        and "10 points" in one(made, "differences").caption
    )
    methods = tables["summary"].filter(pl.col("quantity") == "best_success")["ci_method"]
    assert methods[0] in one(made, "conclusions").caption


def test_numbers_are_cells_of_the_tables(made: Paper, tables: Frames) -> None:
    best = tables["stability"].filter(
        pl.col("metric") == "success",
        pl.col("point") == "loss.lam=0.1",
        pl.col("protocol") == "strict",
        pl.col("runs") == "all",
    )
    row = best.row(0, named=True)
    cells = next(cells for cells in one(made, "success").rows if cells[0] == "λ = 0.1")
    span = f"{100 * row['ci_low']:.0f}–{100 * row['ci_high']:.0f} %"
    assert cells[1:5] == (str(row["num_seeds"]), "60", f"{100 * row['mean']:.0f} %", span)
    trials = {(cells[0], cells[1]): cells[2:] for cells in one(made, "trials").rows}
    assert trials["λ = 0.3", "1"] == ("done", "000bb8000001", "000bb8000001")
    assert trials["λ = 1", "2"][0] == "failed" and trials["λ = 0.03", "2"][0] == "diverged"


def test_an_unfinished_sweep_says_what_is_missing(made: Paper) -> None:
    assert any("Not complete: no result from 2 of 15 trials" in note for note in made.notes)
    for rendered in (markdown.render(made), latex.render(made)):
        assert "no result from 2 of 15 trials (1 failed, 1 pending)" in rendered


def test_without_results_there_are_no_empty_tables() -> None:
    empty = {name: pl.DataFrame(schema=dict(schema)) for name, schema in SCHEMAS.items()}
    assert "no trials yet" in markdown.render(paper(empty, META))
    failed = make_tables(lams=(0.1,), failed=((0.1, 0), (0.1, 1), (0.1, 2)), diverged=())
    found = paper(failed | stability.run(failed), META)
    assert {table.label for table in found.tables} == {
        "floors",
        "protocols",
        "trials",
        "provenance",
    }
    assert "no trial has planning results" in found.notes[0]


def test_markdown_rows_have_as_many_cells_as_heads(made: Paper) -> None:
    nasty = PaperTable("x", "Of $5 | 6*", ("a", "b|c"), "lr", ((NASTY, "two\nlines"),))
    rendered = markdown.render(Paper("x", ("__init__ is <i>",), (*made.tables, nasty)))
    for block in re.findall(r"(?:^\|.*\n?)+", rendered, re.M):
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.strip().splitlines()}
        assert len(counts) == 1
    assert r"\_\_init\_\_ is \<i\>" in rendered and "b\\|c" in rendered and "two lines" in rendered
    assert "two_room" in rendered


def test_latex_is_escaped_and_balanced(made: Paper) -> None:
    rendered = latex.render(made)
    assert rendered.isascii()
    body = re.sub(r"(?m)^%.*$", "", rendered)
    begun, ended = (re.findall(rf"\\{word}{{(\w+)}}", body) for word in ("begin", "end"))
    assert sorted(begun) == sorted(ended) and set(begun) == {"table", "tabular"}
    for rule in ("toprule", "midrule", "bottomrule"):
        assert body.count(f"\\{rule}") == len(made.tables)
    for table in made.tables:
        block = body.split(rf"\label{{tab:{table.label}}}")[1].split(r"\bottomrule")[0]
        rows = [line for line in block.splitlines() if line.endswith(r" \\")]
        assert len(rows) == len(table.rows) + 1
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(table.align) - 1}
    assert not re.search(r"(?<!\\)[#_]", re.sub(r"\\(label|begin|end){[^}]*}", "", body))


def test_latex_stands_for_every_character() -> None:
    assert latex.escape(NASTY) == (
        r"50 \% of\_it \& \#1 $<$b$>$ \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{} $|$ "
        r"-{}- $\lambda$ 10$^{-}$$^{7}$ é (U+4E2D) \$"
    )


def test_long_tables_break_over_pages() -> None:
    rows = tuple((str(number),) for number in range(latex.LONG + 1))
    rendered = latex.render(Paper("x", (), (PaperTable("long", "Long.", ("n",), "r", rows),)))
    assert r"\begin{longtable}{r}" in rendered and r"\endhead" in rendered
    assert "longtable" in latex.PREAMBLE and rendered.count(r" \\") == len(rows) + 1


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX on this machine")
def test_latex_compiles(made: Paper, tmp_path: Path) -> None:
    (tmp_path / "tables.tex").write_text(latex.render(made))
    document = rf"\documentclass{{article}}{latex.PREAMBLE}\begin{{document}}\input{{tables}}\end{{document}}"
    (tmp_path / "paper.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_the_same_tables_give_the_same_bytes(made: Paper, tables: Frames) -> None:
    for render in (markdown.render, latex.render):
        assert render(made) == render(paper(tables, META))
