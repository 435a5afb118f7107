"""Threads that share a quantized layer."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segquant import QuantLinear, presets
from segquant.layers.layer import QuantLayer

X = torch.arange(16.0).sin().reshape(2, 8)


def quantized(dtype: torch.dtype = torch.float32) -> QuantLayer:
    torch.manual_seed(0)
    return QuantLinear.from_float(nn.Linear(8, 4, dtype=dtype), presets.rtn("w8a8_dynamic"))


class Run(dict[str, Tensor]):
    """Buffers of a layer, which runs after each change."""

    def __init__(self, layer: QuantLayer, x: Tensor) -> None:
        super().__init__(layer.tensors())
        self.layer, self.x, self.outputs = layer, x, [layer(x)]

    def __setitem__(self, name: str, value: Tensor) -> None:
        super().__setitem__(name, value)
        self.outputs.append(self.layer(self.x))

    def pop(self, name: str, *default: Any) -> Any:
        value = super().pop(name, *default)
        self.outputs.append(self.layer(self.x))
        return value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_casting_a_layer_to_what_it_is_disturbs_nobody(dtype: torch.dtype) -> None:
    """As each thread's pipe.to(device, dtype) does while others sample."""
    layer = quantized(dtype)
    runs = Run(layer, X.to(dtype))
    layer._buffers = runs  # type: ignore[assignment]
    layer.to("cpu", dtype)
    assert len(runs.outputs) > len(runs) and all(torch.equal(found, runs.outputs[0]) for found in runs.outputs)


def test_threads_pack_at_once_and_forget() -> None:
    layer = quantized()
    exact, together = layer(X), threading.Barrier(4)

    def first(_: int) -> bool:
        together.wait(timeout=60)
        layer.forget_packed()
        return torch.equal(layer(X), exact)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(first, range(100)))
