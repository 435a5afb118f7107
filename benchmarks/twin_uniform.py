"""Twin uniform quantization of inputs after GELU or SiLU (PTQ4ViT, arXiv 2111.12293), to compare DualScale with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Twin:
    """A grid of two ranges; one bit of a code says which range, the others count steps.

    Args:
        fine: step of x < 0.
        shift: the step of x ≥ 0 is fine · 2^shift, so that integer products of both ranges add up after a shift.
        bits: of a code.
    """

    fine: float
    shift: int
    bits: int = 8

    @property
    def coarse(self) -> float:
        """Step of x ≥ 0."""
        return self.fine * 2**self.shift

    def quantize(self, x: Tensor) -> Tensor:
        """Fake quantization, as its authors compute it: each range over all of x, then the sum."""
        half = 2 ** (self.bits - 1)
        above = (x / self.coarse).round().clamp(0, half - 1) * self.coarse
        below = (x / self.fine).round().clamp(-half, 0) * self.fine
        return above + below


def choose_twin(x: Tensor, weight: Tensor, bits: int = 8) -> Twin:
    """The grid for inputs x [rows, in] of a weight [out, in].

    x < 0 is covered just so; the shift is that of least squared error of x Wᵀ, among those up to the first that covers
    all of x ≥ 0.
    """
    half = 2 ** (bits - 1)
    lowest, highest = -float(x.amin().clamp(max=0)), float(x.amax().clamp(min=0))
    if lowest == 0:
        return Twin(highest / (half - 1) or 1.0, 0, bits)
    found, fine = [], lowest / half
    for shift in range(_covering(highest, fine * (half - 1)) + 1):
        twin = Twin(fine, shift, bits)
        found.append((float(((twin.quantize(x) - x) @ weight.T).square().sum()), shift, twin))
    return min(found)[2]


def _covering(highest: float, reach: float) -> int:
    shift = 0
    while reach * 2**shift < highest:
        shift += 1
    return shift


class TwinLinear(nn.Module):
    """A linear on twin quantized inputs, simulated in float32 as its authors do."""

    def __init__(self, twin: Twin, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.twin = twin
        self.weight = nn.Buffer(weight)
        self.bias = None if bias is None else nn.Buffer(bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return torch.nn.functional.linear(self.twin.quantize(x), self.weight, self.bias)
