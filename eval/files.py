"""Write files whole or not at all, and find them.

The library has writers of its own (`segquant.files`): eval works without the library, and the library without it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file


def save_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write safetensors atomically, creating the folder."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    publish(path, lambda temporary: _save_in_order(temporary, contiguous, dict(metadata or {})))


def _save_in_order(path: str, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    # The same bytes each time: safetensors writes metadata in no particular order.
    save_file(tensors, path, metadata=metadata)
    if len(metadata) < 2:
        return
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(metadata.items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(ordered) <= length:  # else strings were escaped in another way, and stay as they are
            file.seek(8)
            file.write(ordered.ljust(length))


def save_json(path: Path, content: Any) -> None:
    """Write indented JSON atomically; NaN and infinities are refused."""
    save_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def save_text(path: Path, text: str) -> None:
    publish(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


def save_bytes(path: Path, content: bytes) -> None:
    publish(path, lambda temporary: Path(temporary).write_bytes(content))


def find_named(folder: Path, name: str) -> list[Path]:
    """Every such file below a folder, also behind links, sorted; once each."""
    found: dict[Path, Path] = {}
    seen: set[object] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        identity = _identity(place)
        if identity in seen:  # a link leads back
            folders.clear()
            continue
        seen.add(identity)
        if name in files:
            path = Path(place, name)
            found.setdefault(path.resolve(), path)
    return sorted(found.values())


def _identity(folder: str) -> object:
    """The same for each way to a folder; a sweep has thousands, whose links would take long to follow by name."""
    try:
        found = os.stat(folder)
    except OSError:  # it has just gone
        return folder
    return (found.st_dev, found.st_ino) if found.st_ino else os.path.realpath(folder)


def publish(path: Path, write: Callable[[str], object]) -> None:
    """Let `write` fill a hidden file beside `path`, then rename it; a failure leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(temporary)
        # mkstemp makes files private; a result is for everyone whom the umask lets in.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
