"""A paper's tables as GitHub Markdown."""

import re

from reports.paper import Paper, PaperTable


def render(paper: Paper) -> str:
    """One Markdown document: title, notes, then every table under its caption."""
    blocks = [f"# {escape(paper.title)}", *(escape(note) for note in paper.notes)]
    for number, table in enumerate(paper.tables, 1):
        blocks += [f"**Table {number}.** {escape(table.caption)}", _table(table)]
    return "\n\n".join(blocks) + "\n"


def _table(table: PaperTable) -> str:
    rule = ["--:" if letter == "r" else ":--" for letter in table.align]
    lines = [[escape(cell) for cell in row] for row in (table.heads, *table.rows)]
    lines.insert(1, rule)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def escape(words: str) -> str:
    """Text that stands for itself, on one line."""
    words = re.sub(r"([\\`*\[\]<>|#$~])", r"\\\1", " ".join(words.split()))
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", words)
