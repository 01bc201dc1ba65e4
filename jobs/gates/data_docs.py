"""Makes Great Expectations' pages readable without a network: the pages load styles and scripts from five CDNs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import jinja2

from lte_models.files import write_atomically

TEMPLATES = Path(__file__).parent / "templates"

# Parts that need the network or a script: styles, scripts, the logo, the filter buttons, the newsletter.
_REMOTE = re.compile(
    r"<script\b.*?</script>|<link\b[^>]*>|<img\b[^>]*>|<footer>.*?</footer>"
    r'|<div class="card mb-3">\s*<div class="card-header p-2">\s*<strong>Actions</strong>.*?(?:</div>\s*){5}',
    re.DOTALL,
)

_STYLE = re.compile(r"<style>.*?</style>", re.DOTALL)


def make_readable(folder: Path, pages: Sequence[dict[str, object]], title: str) -> None:
    """Remove everything remote from the pages of a site, and add a local style and an index page with a table.

    Args:
        folder: Folder of the site.
        pages: Per validation its ``name``, ``page`` (relative address), ``n`` and ``n_failed``.
        title: Title of the index page.
    """
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True)
    style = (TEMPLATES / "data_docs.css").read_text(encoding="utf-8")
    head = environment.get_template("data_docs_head.html.j2").render(style=style)
    for path in folder.rglob("*.html"):
        write_atomically(path, readable(path.read_text(encoding="utf-8"), head))
    shutil.rmtree(folder / "static", ignore_errors=True)
    index = environment.get_template("data_docs_index.html.j2").render(style=style, pages=pages, title=title)
    write_atomically(folder / "index.html", index)


def readable(page: str, head: str) -> str:
    """The page without its remote parts, with ``head`` in the place of its styles."""
    bare = _STYLE.sub("", _REMOTE.sub("", page))
    return bare.replace("</head>", head + "</head>", 1)
