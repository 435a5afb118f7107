"""CONTRIBUTING's recipes as packages on disk.

Blocks with `title="FILE"` are their files, sh blocks their commands.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.docs.pages import blocks, words


@dataclass(frozen=True)
class Recipe:
    """One section: its heading, its files by path, its `segquant` command lines."""

    name: str
    files: dict[str, str]
    commands: tuple[str, ...]

    def write(self, folder: Path) -> None:
        """Put the files below `folder`."""
        for path, text in self.files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")


def recipes(text: str, section: str = "Add your own") -> list[Recipe]:
    """The recipes (### headings) of a ## section.

    Raises:
        ValueError: two blocks of a recipe name the same file, or a file lies outside of the recipe's folder.
    """
    body = re.split(r"^## ", text, flags=re.MULTILINE)
    (found,) = [part for part in body if part.startswith(section)]
    return [_recipe(part) for part in re.split(r"^### ", found, flags=re.MULTILINE)[1:]]


def _recipe(text: str) -> Recipe:
    name = text.splitlines()[0].strip()
    files: dict[str, str] = {}
    lines: list[str] = []
    for block in blocks(text):
        if block.language == "sh":
            lines += [line for line in block.text.splitlines() if line.startswith("segquant ")]
        if not block.title:
            continue
        if block.title in files or Path(block.title).is_absolute() or ".." in Path(block.title).parts:
            raise ValueError(f"recipe {name!r}: {block.title} is there twice, or not a path inside of it")
        files[block.title] = block.text
    return Recipe(name, files, tuple(lines))


def overrides(line: str, base: list[str]) -> list[str]:
    """The command line's arguments, then those of `base` whose group it does not set itself."""
    own = words(line)
    groups = {word.partition("=")[0].lstrip("+").partition(".")[0] for word in own if "=" in word}
    return [*own, *(word for word in base if word.partition("=")[0].partition(".")[0] not in groups)]
