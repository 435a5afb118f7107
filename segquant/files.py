"""Write files whole or not at all.

eval has writers of its own (`segquant_bench.eval.files`): it works without the library, and the library without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

NAMED = 200
"""Characters of a name that a hidden one keeps; file systems take 255."""


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON; NaN and infinities raise ValueError."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    from safetensors.torch import save_file  # torch takes seconds to import, and many write text alone

    write_whole(path, lambda partial: save_file(dict(tensors), partial, metadata))


def write_whole(path: Path, write: Callable[[Path], object], *, settled: bool = False) -> None:
    """Let `write` fill a hidden file beside `path`, then rename it. Makes the folder; a failure leaves the old file.

    Args:
        settled: the disk has the content before the name, so that a machine that is lost leaves no empty file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name[:NAMED]}.{secrets.token_hex(4)}")
    # made by us, so that the umask says who may read it: some writers (safetensors) make private files
    handle = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        mode = os.fstat(handle).st_mode & 0o777
        os.close(handle)
        write(partial)
        partial.chmod(mode)
        if settled:
            sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Let the disk have a file, or a folder's entries."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder_beside(path: Path) -> Path:
    """A new hidden folder beside `path`, readable for whom the umask lets in."""
    folder = path.with_name(f".{path.name[:NAMED]}-{secrets.token_hex(4)}")
    folder.mkdir()
    return folder


def publish(folder: Path, target: Path) -> None:
    """Give a folder beside `target` its name; what was there goes."""
    if not target.exists():
        os.replace(folder, target)
        return
    old = make_folder_beside(target)
    os.replace(target, old / "was")
    os.replace(folder, target)
    shutil.rmtree(old)


def order_metadata(path: Path) -> None:
    """Put the keys of a safetensors file's metadata in order, in place; safetensors writes several in a random one."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        if len(ordered) == size:  # as long as safetensors writes JSON as Python does
            file.seek(8)
            file.write(ordered)
