"""Weights that a format finds hard, and how a layer keeps them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segquant import PRECISIONS, QuantLinear, QuantScheme, QuantSpec, presets
from segquant.numerics.fake_quant import dequantize_weight, weight_codes, weight_scales
from segquant.numerics.layout import Layout
from segquant.numerics.weight_grid import WeightScales

KINDS = ("random", "heavy", "denormal", "constant", "huge", "negative", "ties", "zeros")


def draw(kind: str, rows: int, columns: int, seed: int = 0) -> Tensor:
    """float32 [rows, columns] of one of KINDS."""
    noise = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    match kind:
        case "heavy":  # neighbouring blocks whose sizes differ by far
            return noise * torch.exp2(
                4 * torch.randn(rows, columns // 16, generator=torch.Generator().manual_seed(1))
            ).repeat_interleave(16, dim=1)
        case "denormal":
            return noise * 1e-39
        case "constant":
            return torch.full_like(noise, 0.3)
        case "huge":
            return noise * 1e37
        case "negative":
            return -noise.abs() - 0.1
        case "ties":  # sixteenths up to 8, so that quotients by powers of two are often halves
            return (noise * 32).round().clamp(-128, 128) / 16
        case "zeros":  # blocks of nothing beside others
            return noise * (torch.arange(columns) // 32 % 2)
        case _:
            return noise


@dataclass(frozen=True)
class Kept:
    """A weight as a layer keeps it."""

    layout: Layout
    buffers: dict[str, Tensor]

    @property
    def codes(self) -> Tensor:
        """[out, in], one in a byte."""
        return weight_codes(self.layout, self.buffers)

    @property
    def scales(self) -> WeightScales:
        return weight_scales(self.layout, self.buffers)

    @property
    def values(self) -> Tensor:
        return dequantize_weight(self.layout, self.buffers)


def kept(weight: Tensor, precision: str | QuantSpec) -> Kept:
    """A weight rounded to nearest at a precision of PRECISIONS, or in a format; inputs stay floats."""
    spec = PRECISIONS[precision].weight if isinstance(precision, str) else precision
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
    layer = QuantLinear.from_float(linear, presets.rtn(QuantScheme(spec, None)))
    return Kept(layer.layout, dict(layer.named_buffers()))


def by_block(weight: Tensor, size: int) -> Tensor:
    """[out, in] as [out, blocks, size]."""
    return weight.unflatten(1, (-1, size))


def same_but_for_the_sign_of_zero(first: Tensor, second: Tensor, bits: int) -> Tensor:
    """Where codes of a small float, sign first, mean the same value."""
    magnitude = (1 << (bits - 1)) - 1
    return (first == second) | (((first | second) & magnitude) == 0)


def is_halfway(quotient: Tensor, values: Tensor, tolerance: float) -> Tensor:
    """Whether a number lies in the middle of two neighbours of `values`, but for a share of itself."""
    steps = values.double().unique()
    middles = (steps[1:] + steps[:-1]) / 2
    distance = (quotient.double()[..., None] - middles).abs().amin(-1)
    return distance <= tolerance * quotient.double().abs()
