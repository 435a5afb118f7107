"""MkDocs hook: pages of the site whose source lies outside docs/, and links between all of them.

Sources link as files of the repository do, so that they read well without the site too. Here a link to a file becomes
one to its page; a link to a file that the site does not have becomes plain text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "examples/README.md": "examples.md",
}
"""Source in the repository -> page of the site."""
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of OUTSIDE."""
    for source, page in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links between files of the repository into links between pages."""
    return relink(markdown, page.file.src_uri)


def relink(markdown: str, page: str) -> str:
    """`markdown` of the page with that path in the site, its links turned as the module says."""
    sources = {site: source for source, site in OUTSIDE.items()}
    folder = posixpath.dirname(sources.get(page, f"docs/{page}"))

    def turned(match: re.Match[str]) -> str:
        image, text, target, anchor = match.group(1), match.group(2), match.group(3), match.group(4) or ""
        path = posixpath.normpath(posixpath.join(folder, target))
        if "://" in target or not (ROOT / path).exists():
            return match.group(0)
        site = OUTSIDE.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if site is None:
            return text
        return f"{image}[{text}]({posixpath.relpath(site, posixpath.dirname(page) or '.')}{anchor})"

    return LINK.sub(turned, markdown)
