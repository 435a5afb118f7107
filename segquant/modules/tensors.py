"""Tensors in a model's output, parameters and buffers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from segquant.checks import checked


def is_wrapper(tensor: Tensor) -> bool:
    """Whether the subclass holds other tensors (codes, scales) instead of values."""
    return hasattr(type(tensor), "__tensor_flatten__")


def plain(tensor: Tensor) -> Tensor:
    """The tensor's values, dequantized if needed."""
    return tensor.dequantize() if is_wrapper(tensor) else tensor


def device_of(model: nn.Module) -> torch.device:
    """Of the first parameter that has values."""
    return next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))


def version_of(tensor: Tensor) -> int:
    """Count of in-place changes; inference tensors have none."""
    return 0 if tensor.is_inference() else tensor._version


def tensors_of(output: Any) -> list[Tensor]:
    """Float tensors of an output (tensor, tuple, dict, diffusers output), in order."""
    if isinstance(output, Tensor):
        return [plain(output)] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        return [tensor for entry in output for tensor in tensors_of(entry)]
    return []


@checked()
def model_weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers as stored: shared ones once, tensor subclasses by what is inside."""
    return sum(tensor.numel() * tensor.element_size() for tensor in stored_tensors(model))


def stored_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Every plain parameter and buffer tensor once, subclasses unpacked."""
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
