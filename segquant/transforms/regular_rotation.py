"""Rotation by regular Hadamard matrices in groups (ConvRot, arXiv 2512.03673)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from segquant.checks import check_fields
from segquant.numerics.hadamard import regular_block, rotate_regular
from segquant.numerics.transform import Place, Transform
from segquant.registry import register


@register
@dataclass(frozen=True)
class RegularRotation(Transform):
    """X Q and W Q, Q block-diagonal of one regular Hadamard matrix; no buffers.

    Args:
        group: its size, a power of four; where it does not divide the layer, the next smaller one that does.
    """

    group: int
    name: ClassVar[str] = "regular_rotation"
    mixes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)
        regular_block(self.group, self.group)

    def rows(self, x: Tensor, place: Place) -> Tensor:
        return rotate_regular(x, regular_block(place.in_features, self.group))

    def weight(self, weight: Tensor, place: Place) -> Tensor:
        return self.rows(weight, place)

    def undo(self, weight: Tensor, place: Place) -> Tensor:
        return self.rows(weight, place)  # it is its own inverse

    def gram(self, gram: Tensor, place: Place) -> Tensor:
        return self.rows(self.rows(gram, place).T, place)

    def operations(self, place: Place) -> float:
        """log2(n) additions per channel in groups of n."""
        block = regular_block(place.in_features, self.group)
        return float(len(place.branches) * place.in_features * (block.bit_length() - 1))
