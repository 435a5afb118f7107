"""Randomized block-diagonal Hadamard rotation (QuaRot, arXiv 2404.00456, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from segquant.numerics.hadamard import hadamard_blocks, rotate, unrotate
from segquant.numerics.transform import Buffers, Place, Transform
from segquant.registry import register


@register
@dataclass(frozen=True)
class Rotation(Transform):
    """X Q and W Q per input segment. Buffer `rotation_signs`: ±1, int8 [in], all branches."""

    name: ClassVar[str] = "rotation"
    mixes: ClassVar[bool] = True

    def blocks(self, columns: tuple[int, ...]) -> tuple[int, ...]:
        """Hadamard block sizes, summing to `sum(columns)`."""
        return tuple(block for size in columns for block in hadamard_blocks(size))

    def buffers(self, place: Place) -> Buffers:
        return {"rotation_signs": ((place.in_features,), torch.int8)}

    def rows(self, x: Tensor, place: Place) -> Tensor:
        return rotate(x, self.blocks(place.columns), place.tensors["rotation_signs"])

    def weight(self, weight: Tensor, place: Place) -> Tensor:
        return self.rows(weight, place)

    def undo(self, weight: Tensor, place: Place) -> Tensor:
        return unrotate(weight, self.blocks(place.columns), place.tensors["rotation_signs"])

    def gram(self, gram: Tensor, place: Place) -> Tensor:
        return self.rows(self.rows(gram, place).T, place)

    def operations(self, place: Place) -> float:
        """log2(n) additions per channel in blocks of n."""
        return float(len(place.branches) * sum(b * (b.bit_length() - 1) for b in self.blocks(place.columns)))
