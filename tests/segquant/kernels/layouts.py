"""Layers of every layout that kernels are held against the reference on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import segquant
from segquant import Method, QuantLinear, QuantScheme, QuantSpec, Segments
from segquant.kernels.backend import Backend
from segquant.kernels.reference import REFERENCE
from segquant.layers.layer import QuantLayer
from tests.segquant.support import tensor

PRECISIONS: dict[str, Any] = {
    name: name for name in ("w8a8_tensor", "w8a8", "w8a8_dynamic", "w4a8_channel", "w4a8", "w4a4", "w4a16")
} | {
    "dynamic_tensor": QuantScheme(QuantSpec("int8", "channel"), QuantSpec("int8", "tensor", dynamic=True)),
    "w8g12": QuantScheme(QuantSpec("int8", "group", 12), QuantSpec("int8", "token", dynamic=True)),
    "w8a4": QuantScheme(QuantSpec("int8", "channel"), QuantSpec("int4", "group", 24, dynamic=True)),
    "w4g6a8g4": QuantScheme(QuantSpec("int4", "group", 6), QuantSpec("int8", "group", 4, dynamic=True)),
    "w8a16": QuantScheme(QuantSpec("int8", "channel"), None),
}  # fmt: skip
"""Named ones, and groups that nothing divides."""
FLOATS: dict[str, Any] = {name: name for name in ("fp8", "fp8_dynamic")} | {
    "fp8_tensor": QuantScheme(QuantSpec("fp8", "tensor"), QuantSpec("fp8", "tensor", dynamic=True)),
    "fp8g12": QuantScheme(QuantSpec("fp8", "group", 12), QuantSpec("fp8", "group", 24, dynamic=True)),
    "fp8a16": QuantScheme(QuantSpec("fp8", "channel"), None),
}
"""e4m3, which the CPU's kernel multiplies too."""
FORMATS: dict[str, Any] = {name: name for name in ("w6a6", "w4a6", "w4a8_asym", "w2a16")} | {
    "w3a5_asym": QuantScheme(
        QuantSpec("int3", "group", 48, scale_dtype="bfloat16"), QuantSpec("uint5", "group", 24, dynamic=True)
    ),
    "w7a7_asym": QuantScheme(QuantSpec("uint7", "tensor"), QuantSpec("uint7", "tensor")),
    "w3a2_asym": QuantScheme(QuantSpec("uint3", "group", 32, scale_dtype="e4m3"), QuantSpec("int2", "tensor")),
    "w5a16": QuantScheme(QuantSpec("int5", "group", 32, scale_dtype="q0"), None),
}  # fmt: skip
"""Other widths, and each way to keep scales and zero points."""
CUTS = {
    "plain": Segments(),
    "dual": Segments(activation="gelu"),
    "pieces": Segments(input=(192, 192)),
    "mixed": Segments(input=(192, 96, 96), input_activations=(None, "silu", "gelu"), output=(13, 20)),
}
METHODS: dict[str, dict[str, Any]] = {
    "rtn": {},
    "smooth": {"optimizer": "smooth", "alpha": 0.5},
    "svd": {"optimizer": "svd", "alpha": 0.5, "rank": 3},
    "rotate": {"rotate": True},
    "rotated_svd": {"optimizer": "svd", "alpha": 0.5, "rank": 3, "rotate": True},
}


def layer_of(precision: Any, cut: Segments, size: tuple[int, int] = (384, 33), **method: Any) -> QuantLayer:
    columns, outputs = size
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(columns, outputs)
    with torch.no_grad():
        linear.weight.normal_(0, columns**-0.5, generator=generator)
        assert linear.bias is not None
        linear.bias.normal_(generator=generator)
    stats = segquant.InputStats("x", columns, keep_gram=False)
    stats.update(inputs(40, columns, seed=1), 0)
    own = Method.of("own", precision, seglinear=True, dualscale=True, **method)
    return QuantLinear.from_float(linear, own, stats, cut)


def inputs(*shape: int, seed: int = 2) -> Tensor:
    x = tensor(*shape, seed=seed)
    x[..., -3:] *= 9
    return x


def errors(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """Median and worst, of the largest value."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    apart = (found.double() - expected.double()).abs() / expected.double().abs().max().clamp_min(1e-30)
    return float(apart.median()), float(apart.max())


def both_of(backend: Backend, layer: QuantLayer, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs by the backend and by the reference."""
    layer.backend = backend
    layer.forget_packed()
    found = layer(x)
    layer.backend = REFERENCE
    layer.forget_packed()
    return found, layer(x)


def assert_close(layer: QuantLayer, found: Tensor, expected: Tensor) -> None:
    median, worst = errors(found, expected)
    # a bfloat16 output differs by a rounding where float32 ones lie on two sides of a tie
    most = {torch.float32: 1e-3, torch.float16: 2e-3, torch.bfloat16: 8e-3}[found.dtype]
    assert median < 1e-6 and worst < most, (layer.layout, median, worst)
