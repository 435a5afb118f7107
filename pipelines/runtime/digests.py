from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from segquant.files import sha256_of
from segquant_bench.hidden import visible


@lru_cache(maxsize=256)
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    # size and mtime are the cache's key.
    if path.parent.name == "blobs" and len(path.name) == 64:
        return path.name  # the hub's cache names large files by their sha256
    return sha256_of(path)


def file_digest(path: Path) -> str:
    """sha256 of a file's content."""
    path = path.resolve()
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns)


def tree_digest(root: Path, suffixes: tuple[str, ...]) -> str:
    """One hash of names and contents of files with these suffixes, hidden ones left out."""
    whole = hashlib.sha256()
    for path in visible(root.rglob("*"), root):
        if path.suffix in suffixes and path.is_file():
            whole.update(f"{path.relative_to(root).as_posix()}\0{file_digest(path)}\n".encode())
    return whole.hexdigest()[:16]
