"""The tensors behind a model's output, parameters and buffers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import Tensor, nn


def is_wrapper(tensor: Tensor) -> bool:
    """Whether a tensor is a subclass that holds other tensors (codes, scales) instead of its own values."""
    return hasattr(type(tensor), "__tensor_flatten__")


def plain(tensor: Tensor) -> Tensor:
    """Values of a tensor, dequantized where a tool hands quantized tensors from layer to layer."""
    return tensor.dequantize() if is_wrapper(tensor) else tensor


def tensors_of(output: Any) -> list[Tensor]:
    """The float tensors in a model's output (tensor, tuple, dict, or a diffusers output), in order."""
    if isinstance(output, Tensor):
        return [plain(output)] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        return [tensor for entry in output for tensor in tensors_of(entry)]
    return []


def model_weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, shared ones once; quantized layers count what they store.

    Tensor subclasses (as torchao and optimum-quanto use them for weights) count the tensors inside.
    """
    return sum(tensor.numel() * tensor.element_size() for tensor in stored_tensors(model))


def stored_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Every plain tensor behind a model's parameters and buffers, once each, tensor subclasses unpacked."""
    found: dict[int, Tensor] = {}
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        found.update((id(inner), inner) for inner in _unpacked(tensor))
    yield from found.values()


def _unpacked(tensor: Tensor) -> Iterator[Tensor]:
    if not is_wrapper(tensor):
        yield tensor
        return
    names, _ = cast(Any, tensor).__tensor_flatten__()
    for name in names:
        yield from _unpacked(getattr(tensor, name))
