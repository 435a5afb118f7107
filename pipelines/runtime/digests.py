"""Hashes of files and of source code."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from functools import lru_cache
from pathlib import Path

from segquant_bench.pipelines.runtime.paths import PIPELINES


@lru_cache(maxsize=256)
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    """sha256 of a file; size and mtime only let one process remember what it has read."""
    if path.parent.name == "blobs" and len(path.name) == 64:
        return path.name  # the hub's cache names large files by their sha256
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's content."""
    path = path.resolve()
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns)


def tree_digest(root: Path, suffixes: tuple[str, ...]) -> str:
    """One hash of the names and contents of all files below `root` with these suffixes, hidden ones not."""
    whole = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.suffix in suffixes and path.is_file() and not hidden:
            whole.update(f"{relative.as_posix()}\0{file_digest(path)}\n".encode())
    return whole.hexdigest()[:16]


@lru_cache(maxsize=8)
def source_digest(package: str) -> str:
    """One hash of a package's Python files, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"package {package!r} is not installed")
    return tree_digest(Path(next(iter(spec.submodule_search_locations))), (".py",))


def modules_digest(*names: str) -> str:
    """One hash of modules of this package, by file name."""
    here = PIPELINES
    files = (here / f"{name.replace('.', '/')}.py" for name in names)
    return hashlib.sha256("".join(map(file_digest, files)).encode()).hexdigest()[:16]
