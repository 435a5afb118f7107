"""What backends packed: whether it is still right, whether two are the same, their bytes, and room for them."""

from __future__ import annotations

import dataclasses
import logging
import weakref
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from segquant.kernels.backend import Backend
from segquant.modules.memory import has_room
from segquant.modules.tensors import version_of
from segquant.numerics.layout import Layout

log = logging.getLogger(__name__)
_PLAIN = (type(None), bool, int, float, str, bytes, torch.dtype, torch.device, torch.Size)
ROWS = 4
"""Of the input on which packs are compared that hold more than tensors."""


Versions = tuple[tuple["weakref.ref[Tensor]", int], ...]


def versions(tensors: Mapping[str, Tensor]) -> Versions:
    """Which tensors these are, and how often each was written to."""
    return tuple((weakref.ref(tensor), version_of(tensor)) for tensor in tensors.values())


def is_unchanged(before: Versions | None, tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are still the tensors of `versions`."""
    if before is None or len(before) != len(tensors):
        return False
    pairs = zip(before, tensors.values(), strict=True)
    return all(of() is tensor and version == version_of(tensor) for (of, version), tensor in pairs)


def has_place(backend: Backend, layout: Layout, device: torch.device) -> bool:
    """Whether memory has room for what the backend packed, as far as that is a float copy of the weight."""
    size = backend.float_bytes(layout)
    kept = not size or has_room(size, device)
    if not kept:
        _tell_once(device.type)
    return kept


@lru_cache(maxsize=8)
def _tell_once(device: str) -> None:
    log.warning(
        "memory of the %s is short: float weights of quantized layers are made at every call, which is slower; "
        "keep_packed=True of a layer keeps its weight",
        device,
    )


def held_bytes(tensors: Mapping[str, Tensor], pack: Any) -> int:
    """Of the memory behind these tensors and those of a pack, each piece counted once."""
    leaves = [leaf for leaf in _leaves([tensors, pack]) if isinstance(leaf, Tensor)]
    storages = [leaf.untyped_storage() for leaf in leaves]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def keep_sizes(pack: Any) -> None:
    """Tell torch.compile that a pack's sizes are constants, as a module's buffers' are.

    With dynamic=True it would else take one that equals the first batch's for the batch, and compile the next anew.
    """
    leaves = [leaf for leaf in _leaves(pack) if isinstance(leaf, Tensor)]
    for leaf in (*leaves, *(leaf._base for leaf in leaves if leaf._base is not None)):
        torch._dynamo.mark_static(leaf)


def is_same_pack(one: Any, other: Any, layout: Layout, backend: Backend) -> bool:
    """By the bits of their tensors; where a pack hides what it holds (objects of kernels), by what they compute."""
    pairs = list(zip(_leaves(one), _leaves(other), strict=True))
    if not all(_is_same(a, b) for a, b in pairs if _is_open(a)):
        return False
    if all(_is_open(a) for a, _ in pairs):
        return True
    device = next((leaf.device for leaf, _ in pairs if isinstance(leaf, Tensor)), torch.device("cpu"))
    rows = torch.randn(
        ROWS, layout.in_features, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu"
    ).to(device)
    with torch.no_grad():
        return torch.equal(*(backend.linear(rows, layout, pack) for pack in (one, other)))


def _is_open(leaf: Any) -> bool:
    return isinstance(leaf, _PLAIN) or (isinstance(leaf, Tensor) and leaf.layout is torch.strided)


def _leaves(pack: Any) -> Iterator[Any]:
    if dataclasses.is_dataclass(pack) and not isinstance(pack, type):
        pack = {field.name: getattr(pack, field.name) for field in dataclasses.fields(pack)}
    if isinstance(pack, Mapping):
        pack = list(pack.values())
    if isinstance(pack, (list, tuple)) and not isinstance(pack, torch.Size):
        for entry in pack:
            yield from _leaves(entry)
    else:
        yield pack


def _is_same(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return bool(a == b)
    if (a.dtype, a.shape, a.device) != (b.dtype, b.shape, b.device):
        return False
    return torch.equal(*(tensor.detach().contiguous().flatten().view(torch.uint8) for tensor in (a, b)))
