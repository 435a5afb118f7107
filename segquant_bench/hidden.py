"""Files that systems leave beside others (._x.png, .DS_Store), which no reader of a folder takes for its own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def visible(paths: Iterable[Path], folder: Path) -> list[Path]:
    """Those below a folder that no part of their path hides, sorted."""
    return sorted(path for path in paths if not is_hidden(path, folder))


def is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
