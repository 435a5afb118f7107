"""Finished pieces of a long computation, kept on disk so that one that was killed goes on behind them."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from segquant.errors import first_line
from segquant.files import write_whole
from segquant.modules.memory import free_bytes

log = logging.getLogger(__name__)

SHARE = 0.1
"""Of the time, what snapshots of running sums may take; pieces that are finished are always kept."""
SUFFIX = ".safetensors"
_ABOUT = "about"
_DAMAGE = (
    SafetensorError, OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, RecursionError,
)  # fmt: skip
"""What reading a damaged piece raises."""


@dataclass(frozen=True)
class Piece:
    """What was kept under a name: tensors on the CPU, and JSON."""

    tensors: dict[str, Tensor]
    about: Any


class Keeper:
    """Pieces in a folder, one file each.

    The folder belongs to one computation: this very model, method and data. Whoever makes a Keeper sees to that, as the
    names of pieces say nothing of it. Where the disk has no room for pieces beside what they will become, they are not
    kept, which is said once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._sizes: dict[Path, int] = {}
        self._is_full = False

    def within(self, name: str) -> Keeper:
        """Pieces of a part, which do not meet those of others."""
        part = Keeper(self.folder / _file_name(name))
        part._sizes = self._sizes  # together they must leave room
        return part

    def get(self, name: str) -> Piece | None:
        """A piece, unless there is none or its file cannot be read."""
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
                found = json.loads((file.metadata() or {})[_ABOUT])
            if found["name"] != name:
                raise ValueError(f"it is a piece {found['name']!r}")
            for key, stride in found["strides"].items():  # they decide the order of sums
                tensors[key] = _permuted(tensors[key], stride)
            piece = Piece(tensors, found[_ABOUT])
        except _DAMAGE as error:
            log.warning("what was kept of %s cannot be read (%s); it is made again", name, first_line(error))
            return None
        self._sizes[path] = path.stat().st_size
        return piece

    def put(self, name: str, tensors: Mapping[str, Tensor], about: Any = None) -> bool:
        """Keep a finished piece, in the place of an older one of that name; whether there was room.

        Args:
            about: JSON types.
        """
        path, size = self._path(name), sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if not self._has_room(path, size):
            return False
        found = {key: _own(tensor.detach().cpu().contiguous()) for key, tensor in tensors.items()}
        strides = {key: tensor.stride() for key, tensor in tensors.items() if _is_permuted(tensor)}
        text = json.dumps({"name": name, "strides": strides, _ABOUT: about})
        try:
            write_whole(path, lambda partial: save_file(found, partial, {_ABOUT: text}), settled=True)
        except Exception as error:
            if not _is_disk_full(error):
                raise
            return self._tell_full()  # a quota, which the free space does not show
        self._sizes[path] = path.stat().st_size
        return True

    def has(self, name: str) -> bool:
        return self._path(name).is_file()

    def drop(self, name: str) -> None:
        """Forget a piece, if there is one."""
        self._path(name).unlink(missing_ok=True)
        self._sizes.pop(self._path(name), None)

    def _path(self, name: str) -> Path:
        return self.folder / f"{_file_name(name)}{SUFFIX}"

    def _has_room(self, path: Path, size: int) -> bool:
        """Whether as much as all pieces take stays free: what they become needs that."""
        free = free_bytes(torch.device("cpu"))
        if self._is_full or (free is not None and 2 * size > free):  # writing takes a copy
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        others = sum(each for key, each in self._sizes.items() if key != path)
        return shutil.disk_usage(self.folder).free >= others + 2 * size or self._tell_full()

    def _tell_full(self) -> bool:
        self._is_full = True
        log.warning(
            "%s has too little room to keep what is finished: a run that is killed begins this part again", self.folder
        )
        return False


class Pace:
    """When to take snapshots, so that these take SHARE of the time at most."""

    def __init__(self) -> None:
        self._next = -math.inf

    def is_due(self) -> bool:
        return time.monotonic() >= self._next

    def took(self, seconds: float) -> None:
        self._next = time.monotonic() + seconds * (1 / SHARE - 1)


def _is_permuted(tensor: Tensor) -> bool:
    """Without gaps, in another order of memory (channels_last)."""
    return not tensor.is_contiguous() and torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def _permuted(tensor: Tensor, stride: list[int]) -> Tensor:
    """The same values in another order of memory, without gaps; ValueError for strides that would need more."""
    found = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device="meta")
    if torch.empty_like(found).stride() != found.stride():
        raise ValueError(f"strides {stride} leave gaps")
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor)


def _own(tensor: Tensor) -> Tensor:
    """With memory of its own: files take no views."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _is_disk_full(error: Exception) -> bool:
    """safetensors says so in its text alone."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left on device" in str(error)


def _file_name(name: str) -> str:
    """Of fixed length, whatever characters are in it."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]
