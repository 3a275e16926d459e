"""How Sphinx makes the documentation: `make docs`. The pages are Markdown that reads as well on a forge."""

import posixpath
import re
from importlib import metadata
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring

project = "isoflop"
author = "The isoflop authors"
release = metadata.version("isoflop")
FORGE = "https://github.com/isoflop/isoflop/blob/main/"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"isoflop {release}"
html_copy_source = False
highlight_language = "text"
default_role = "code"  # docstrings quote code with single backticks
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
suppress_warnings = ["misc.highlighting_failure"]

LINK = re.compile(r"(\]\()((?:\.\./)+[^)#]+)")


def out_of_the_folder(app: Sphinx, page: str, source: list[str]) -> None:
    """Links to files outside of docs/, which work on a forge, go to the forge."""

    def replaced(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), match[2]))
        return match[0] if target.startswith("docs/") else f"{match[1]}{FORGE}{target}"

    source[0] = LINK.sub(replaced, source[0])


def sections(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Args, Raises and Attributes of docstrings. Those of attributes are one sentence, in which a colon is a colon."""
    if what in ("module", "class", "exception", "function", "method"):
        lines[:] = GoogleDocstring(lines, Config(), app, what, name, obj, options).lines()


def setup(app: Sphinx) -> None:
    app.connect("source-read", out_of_the_folder)
    app.connect("autodoc-process-docstring", sections)
