"""Where a report's files lie in the folder of its sweep, by format."""

PAGE, FIGURES = "report/index.html", "report/figures"
FORMATS = {"html": PAGE, "md": "report/tables.md", "latex": "report/tables.tex", "png": FIGURES}
