"""Digests in a weights file's own header: they go with it under any name, in shards and to the Hub."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from segquant.errors import QuantizationError

VALUES = "segquant_sha256"
"""Of the header's metadata: over the bytes of all tensors, by name."""
KINDS = "segquant_tensors"
"""Over names, dtypes and shapes: if another tool changed these, it changed values on purpose."""


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Metadata of a file of these tensors, or of each of the files that they are split into."""
    return {KINDS: _kinds(tensors, tensors.__getitem__), VALUES: _values(tensors, tensors.__getitem__)}


def check_digests(files: Iterable[str | Path], folder: object) -> None:
    """Raise if these files, together, hold other values than were written; those that have no digests are let through.

    Raises:
        QuantizationError: they are damaged, or of several models.
    """
    with ExitStack() as stack:
        opened = [stack.enter_context(safetensors.safe_open(file, "pt")) for file in files]
        told = [file.metadata() or {} for file in opened]
        if not told or not all(VALUES in each and KINDS in each for each in told):
            return
        places = {name: file for file in opened for name in file.keys()}  # noqa: SIM118

        def tensor(name: str) -> Tensor:
            found: Tensor = places[name].get_tensor(name)
            return found

        if any(each[KINDS] != told[0][KINDS] for each in told) or _kinds(places, tensor) != told[0][KINDS]:
            return
        if any(each[VALUES] != told[0][VALUES] for each in told):
            raise QuantizationError(f"the files in {folder} are of several models; save or copy the whole folder again")
        if _values(places, tensor) != told[0][VALUES]:
            raise QuantizationError(
                f"the weights in {folder} are damaged: their SHA-256 is not the one that they were saved with; save or "
                f"copy them again, or drop {VALUES} from the file's metadata if they were changed on purpose"
            )


def _kinds(names: Iterable[str], tensor: Callable[[str], Tensor]) -> str:
    """Hex digest."""
    lines = (f"{name} {(found := tensor(name)).dtype} {tuple(found.shape)}\n" for name in sorted(names))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _values(names: Iterable[str], tensor: Callable[[str], Tensor]) -> str:
    """Hex digest; one tensor after the other is in memory."""
    found = hashlib.sha256()
    for name in sorted(names):
        found.update(tensor(name).contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
