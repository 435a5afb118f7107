"""Python on the pages and in examples/ runs as it stands."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, blocks, read

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
WITH_PYTHON = [
    page
    for page in PAGES
    if page != "CONTRIBUTING.md" and any(block.language == "python" for block in blocks(read(page)))
]


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page, one after the other, in one namespace."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks(read(page)):
        if block.language == "python":
            exec(compile(block.text, page, "exec"), names)
    assert (tmp_path / "out" / "quantized.safetensors").is_file()


def test_readme_has_eight_lines() -> None:
    (block,) = [block for block in blocks(read("README.md")) if block.language == "python"]
    assert len([line for line in block.text.splitlines() if line]) <= 8


SLOW = ("engines",)


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] if path.stem in SLOW else [], id=path.stem) for path in EXAMPLES],
)
def test_examples_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [path.name])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short_and_listed(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40 and ast.get_docstring(ast.parse(text))
    assert f"`python examples/{path.name}`" in read("examples/README.md")
