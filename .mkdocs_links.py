"""A hook of the documentation site: the notebook's links lead to its pages, and each page is looked through."""

from __future__ import annotations

import re
from typing import Any


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """Make links to `name.md` in the notebook those of the site; refuse what is left of Markdown in any page."""
    if page.file.src_uri.endswith(".ipynb"):
        output = re.sub(r'href="([\w-]+)\.md((?:#[\w-]+)?)"', r'href="\1.html\2"', output)
    body = re.sub(r"<script.*?</script>", "", output, flags=re.DOTALL)
    if "```" in body or re.search(r'href="(?!https?:)[^"]*\.md[#"]', body):
        raise SystemExit(f"{page.file.src_uri}: a code block that does not end, or a link to a Markdown file.")
    return output
