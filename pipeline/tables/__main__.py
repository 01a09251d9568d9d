"""Prints every table, column and unit as Markdown: `python -m pipeline.tables > docs/tables.md`."""

import sys

from pipeline.tables.columns import page

sys.stdout.write(page())
