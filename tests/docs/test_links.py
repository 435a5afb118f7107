"""Links between pages lead somewhere, and the site that is made of them builds without a warning."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, read

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def _anchor(heading: str) -> str:
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_of_the_repository(page: str) -> None:
    text = re.sub(r"^```.*?^```$", "", read(page), flags=re.DOTALL | re.MULTILINE)
    for target in _LINK.findall(text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(_anchor, headings), f"{page} links to {target}"


@pytest.mark.parametrize(
    ("page", "link", "turned"),
    [
        ("index.md", "[a](docs/demo/README.md)", "[a](demo/README.md)"),
        ("index.md", "![a](docs/demo/grid.png)", "![a](demo/grid.png)"),
        ("models.md", "[a](../CONTRIBUTING.md#a-data-set)", "[a](contributing.md#a-data-set)"),
        ("demo/README.md", "[a](../../README.md)", "[a](../index.md)"),
        ("demo/README.md", "[a](table.md)", "[a](table.md)"),
        ("examples.md", "[a](sweep.py)", "a"),
        ("index.md", "[a](LICENSE)", "a"),
        ("index.md", "PRESETS[name](model)", "PRESETS[name](model)"),
        ("index.md", "[a](https://arxiv.org/abs/2507.14811)", "[a](https://arxiv.org/abs/2507.14811)"),
    ],
)
def test_links_of_the_site(page: str, link: str, turned: str) -> None:
    pytest.importorskip("mkdocs", reason="the site needs pip install '.[docs]'")
    relink = runpy.run_path(str(ROOT / "docs" / "build_pages.py"))["relink"]
    assert relink(f"see {link}.", page) == f"see {turned}."


def test_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the site needs pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    site = tmp_path / "site"
    pages = list(site.rglob("*.html"))
    assert (site / "api" / "segquant.html").is_file() and len(pages) > 20
    for page in pages:  # nothing is loaded from elsewhere
        loaded = re.findall(r'(?:src|<link[^>]* href)="(https?://[^"]+)"', page.read_text(encoding="utf-8"))
        assert not loaded, (page.name, loaded)
    assert "quantize_" in (site / "api" / "segquant.html").read_text(encoding="utf-8")
