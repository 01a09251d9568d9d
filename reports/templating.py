"""The pages' templates: where they are and how they are read."""

from pathlib import Path

import jinja2

from reports import text

TEMPLATES = Path(__file__).parent / "templates"


def template(name: str) -> jinja2.Template:
    """A template that escapes what it is given and refuses a name it is not given."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": text.cell, "bound": text.bound}
    return environment.get_template(name)
