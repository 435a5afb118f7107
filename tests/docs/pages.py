"""The written pages of the repository: their blocks of code, their commands, their links."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ("table", "comparisons")
"""Words in the names of pages that the report writes; nobody wrote them by hand."""


def is_written(path: Path) -> bool:
    """Whether a person wrote the page (docs/paper/calibration_size.md is the one table of another name)."""
    return not any(word in path.stem for word in GENERATED) and path.stem != "calibration_size"


PAGES = tuple(
    path.relative_to(ROOT).as_posix()
    for path in (*sorted(ROOT.glob("*.md")), ROOT / "examples/README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if is_written(path)
)


def read(page: str) -> str:
    """The page's text."""
    return (ROOT / page).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, the file that `title="…"` names ("" without), its text."""

    language: str
    title: str
    text: str


_FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [Block(language, title, body) for language, title, body in _FENCE.findall(text)]


def commands(text: str, program: str) -> list[str]:
    """Command lines of one program: the lines of sh blocks that start with it, and `…` in running text that does."""
    lines = [line for block in blocks(text) if block.language == "sh" for line in block.text.splitlines()]
    inline = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", _FENCE.sub("", text))]
    return [line for line in (*lines, *inline) if re.match(rf"{re.escape(program)}(\s|$)", line)]


def words(line: str) -> list[str]:
    """A command line's arguments, without comments; words with an ellipsis stand for whatever one has."""
    return [word for word in shlex.split(line, comments=True)[1:] if "…" not in word]
