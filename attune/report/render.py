"""The templates of the pages and model cards: Jinja2 files in `templates/`."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from attune.report.tables import escape

FOLDER = Path(__file__).parent / "templates"


def render(name: str, **values: Any) -> str:
    """The template `name` with `values`: text is escaped in .html, and by the filter `md` in .md.

    Raises:
        jinja2.UndefinedError: the template uses a value that is not given.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["md"] = escape
    return environment.get_template(name).render(**values) + "\n"


def script(name: str) -> tuple[str, str]:
    """A script of the templates, and its source in a content security policy that lets no other script run.

    Returns:
        The script's text and `'sha256-…'`.
    """
    text = (FOLDER / name).read_text(encoding="utf-8")
    return text, hash_source(text)


def hash_source(text: str) -> str:
    """The source of a script in a content security policy: `'sha256-…'`."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
