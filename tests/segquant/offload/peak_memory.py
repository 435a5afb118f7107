"""How much memory block-wise quantization takes, worked out on the meta device: no weights, no data, no computation."""

from __future__ import annotations

import dataclasses
import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from segquant.modules.calls import call
from segquant.modules.layers import as_linear, quantizable
from segquant.observers.gram import ENTRY_BYTES
from segquant.offload.weights import blocks

RESERVOIR = 512
"""Rows that `observe` keeps of a layer's input."""
SOLVER_MATRICES = 4
"""Float64 matrices of a layer's input width that GPTQ holds at once: the sum, its damped copy, inverse and factor."""
SOLVER_WEIGHTS = 4
"""Float32 copies of a layer's weight while it is solved: smoothed, rounded, what is left, and the low-rank branch."""


@dataclass(frozen=True)
class OffloadPeak:
    """Bytes on the device that runs the blocks, by what takes them; `total` is what they may come to together.

    Args:
        resident: everything that is in no block, and all buffers.
        block: the largest block's parameters.
        waiting: activations of all batches while they stand before a block, where they take most.
        running: what one forward pass makes on top while a block runs.
        statistics: ranges and kept rows of the layers of one block.
        solving: what the largest layer takes while it is solved; with Gram matrices, of one at a time.
    """

    resident: int
    block: int
    waiting: int
    running: int
    statistics: int
    solving: int

    @property
    def total(self) -> int:
        """An upper bound: no two of these are always there together."""
        return sum(dataclasses.astuple(self))


def offload_peak(model: nn.Module, batch: Any, batches: int, *, gram: bool = True) -> OffloadPeak:
    """Memory of `quantize_offloaded_` on a model of this shape.

    Args:
        model: on the meta device, in the dtype that it will run in.
        batch: arguments of its forward on the meta device, of the shapes that a calibration batch has.
        batches: how many there will be.
        gram: whether the method needs Gram matrices (GPTQ).

    Returns:
        bytes; activations as a forward pass on the meta device makes them, which for attention may be the whole
        matrix where a device has a kernel that needs none.
    """
    parts = blocks(model)
    inside = {id(p) for block in parts.values() for p in block.parameters()}
    resident = _bytes(p for p in model.parameters() if id(p) not in inside) + _bytes(model.buffers())
    waiting, running = _activations(model, parts.values(), batch)
    return OffloadPeak(
        resident=resident,
        block=max((_bytes(block.parameters()) for block in parts.values()), default=0),
        waiting=waiting * batches,
        running=max(0, running - waiting),
        statistics=max((_statistics(block) for block in parts.values()), default=_statistics(model)),
        solving=max((_solving(layer, gram) for layer in quantizable(model, True).values()), default=0),
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in {id(t): t for t in tensors}.values())


def _statistics(block: nn.Module) -> int:
    """Kept rows in the input's dtype; per channel two float32 ranges and two float64 sums in each of four folds."""
    total = 0
    for layer in quantizable(block, True).values():
        linear = as_linear(layer)
        total += linear.in_features * (RESERVOIR * linear.weight.element_size() + 4 * (2 * 4 + 2 * 8))
    return total


def _solving(layer: nn.Module, gram: bool) -> int:
    linear = as_linear(layer)
    width, rows = linear.in_features, linear.out_features
    matrices = max(ENTRY_BYTES, 8 * SOLVER_MATRICES) * width * width if gram else 0
    return matrices + 4 * SOLVER_WEIGHTS * width * rows


def _activations(model: nn.Module, parts: Iterable[nn.Module], batch: Any) -> tuple[int, int]:
    """Most bytes of activations before any block, and at any time, of one forward pass."""
    live = _Live([*model.parameters(), *model.buffers()], tree_leaves(batch))
    before: list[int] = [live.bytes]
    handles = [part.register_forward_pre_hook(lambda *_: before.append(live.bytes)) for part in parts]
    try:
        with torch.no_grad(), live:
            call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return max(before), live.most


class _Live(TorchDispatchMode):
    """Counts the bytes of tensors that are still there, views once.

    Args:
        weights: that are not counted, nor are views of them.
        given: that are counted from the start; others are those that operators make.
    """

    def __init__(self, weights: Iterable[Tensor], given: Iterable[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes, self.most = 0, 0
        self._users: Counter[int] = Counter(tensor.untyped_storage()._cdata for tensor in weights)
        for value in given:
            if isinstance(value, Tensor):
                self._add(value)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._add(value)
        self.most = max(self.most, self.bytes)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if not self._users[key]:
            self.bytes += size
        self._users[key] += 1
        weakref.finalize(tensor, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]
            self.bytes -= size
