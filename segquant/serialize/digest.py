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

KEY = "segquant_sha256"
"""Of the header's metadata. One alone: safetensors writes several in an order that changes from file to file.

Two digests with a space between: of names, dtypes and shapes (if these differ, another tool changed the file),
and of the bytes of all tensors, by name.
"""


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Metadata of a file of these tensors, or of each of the files that they are split into."""
    return {KEY: f"{_kinds(tensors, tensors.__getitem__)} {_values(tensors, tensors.__getitem__)}"}


def is_digested(file: str | Path) -> bool:
    with safetensors.safe_open(file, "pt") as opened:
        return KEY in (opened.metadata() or {})


def check_digests(files: Iterable[str | Path], folder: object) -> None:
    """Raise if these files, together, hold other values than were written; those that have no digests are let through.

    Raises:
        QuantizationError: they are damaged, or of several models.
    """
    with ExitStack() as stack:
        opened = [stack.enter_context(safetensors.safe_open(file, "pt")) for file in files]
        told = [(file.metadata() or {}).get(KEY, "").split(" ") for file in opened]
        if not told or any(len(each) != 2 for each in told):
            return
        places = {name: file for file in opened for name in file.keys()}  # noqa: SIM118

        def tensor(name: str) -> Tensor:
            found: Tensor = places[name].get_tensor(name)
            return found

        kinds, values = told[0]
        if any(each[0] != kinds for each in told) or _kinds(places, tensor) != kinds:
            return
        if any(each[1] != values for each in told):
            raise QuantizationError(f"the files in {folder} are of several models; save or copy the whole folder again")
        if _values(places, tensor) != values:
            raise QuantizationError(
                f"the weights in {folder} are damaged: their SHA-256 is not the one that they were saved with; save or "
                f"copy them again, or drop {KEY} from the file's metadata if they were changed on purpose"
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
