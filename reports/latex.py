r"""A paper's tables as LaTeX with booktabs, to be read into a paper with \input."""

import unicodedata

from reports.paper import Paper, PaperTable

PREAMBLE = r"\usepackage{booktabs,longtable}"
LONG = 40
"""Tables of more rows break over pages (longtable)."""
BEGIN = r"\footnotesize\setlength{\tabcolsep}{3.5pt}"


def render(paper: Paper) -> str:
    r"""A file for `\input`, no document of its own; the notes stand in it as comments.

    Captions are above the tables, labels are `tab:<label>`. Plain ASCII but for accented letters, so
    that every engine reads it.
    """
    lines = [
        paper.title,
        r"Read it into a paper with \input{tables}; the preamble needs",
        f"  {PREAMBLE}",
        *paper.notes,
    ]
    blocks = [_long(table) if len(table.rows) > LONG else _float(table) for table in paper.tables]
    comments = "\n".join(f"% {_comment(line)}" for line in lines)
    return "\n\n".join([comments, *blocks]) + "\n"


def _comment(line: str) -> str:
    return line if line.isascii() and "\n" not in line else escape(" ".join(line.split()))


def _float(table: PaperTable) -> str:
    body = [r"\toprule", _row(table.heads), r"\midrule", *map(_row, table.rows), r"\bottomrule"]
    return "\n".join(
        [
            r"\begin{table}[htbp]",
            rf"\centering{BEGIN}",
            _caption(table),
            rf"\begin{{tabular}}{{{_columns(table)}}}",
            *body,
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _long(table: PaperTable) -> str:
    head = [r"\toprule", _row(table.heads), r"\midrule", r"\endhead", r"\bottomrule", r"\endfoot"]
    return "\n".join(
        [
            rf"\begingroup{BEGIN}",
            rf"\begin{{longtable}}{{{_columns(table)}}}",
            _caption(table) + r"\\",
            *head,
            *map(_row, table.rows),
            r"\end{longtable}",
            r"\endgroup",
        ]
    )


def _caption(table: PaperTable) -> str:
    return rf"\caption{{{escape(table.caption)}}}\label{{tab:{table.label}}}"


def _columns(table: PaperTable) -> str:
    """The column letters; running text shares what other columns are taken to leave of the line."""
    texts = table.align.count("p")
    if not texts:
        return table.align
    width = max(0.25, 0.84 - 0.13 * (len(table.align) - texts)) / texts
    return table.align.replace("p", rf"p{{{width:.2f}\linewidth}}")


def _row(cells: tuple[str, ...]) -> str:
    return " & ".join(escape(cell) for cell in cells) + r" \\"


SYMBOLS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    '"': "''",
    "λ": r"$\lambda$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "±": r"$\pm$",
    "−": "$-$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "≈": r"$\approx$",
    "→": r"$\to$",
    "–": "--",
    "—": "---",
    "…": r"\dots{}",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    **{char: rf"\{char}" for char in "{}$&#%_"},
    **{char: f"$^{{{plain}}}$" for char, plain in zip("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")},
}


def escape(words: str) -> str:
    """Text that stands for itself; a character that no font is sure to have is named by its number."""
    words = " ".join(words.split())
    return "".join(_symbol(char, words[at + 1 : at + 2]) for at, char in enumerate(words))


def _symbol(char: str, following: str) -> str:
    if char in SYMBOLS:
        return SYMBOLS[char]
    if char == following == "-":
        return "-{}"  # two hyphens would become a dash
    if char.isascii() or ("\u00c0" <= char <= "\u017f" and unicodedata.category(char)[0] == "L"):
        return char
    return f"(U+{ord(char):04X})"
