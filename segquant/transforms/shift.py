"""A constant taken off the input, so that signed symmetric codes fit inputs of mostly one sign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from segquant.numerics.transform import Buffers, Place, Transform
from segquant.registry import register


@register
@dataclass(frozen=True)
class Shift(Transform):
    """X − c, and W as it is; c Wᵀ is added to the product, like a bias.

    W is the weight as rounded: its error then meets X, not X − c, which is far from zero where X is small.
    Buffers `shift`: c, float32 [branches, in]; `shift_product`: c Wᵀ of all branches, float32 [out].
    """

    name: ClassVar[str] = "shift"

    def buffers(self, place: Place) -> Buffers:
        return {
            "shift": ((len(place.branches), place.in_features), torch.float32),
            "shift_product": ((sum(place.branches),), torch.float32),
        }

    def rows(self, x: Tensor, place: Place) -> Tensor:
        return x - _constant(place)

    def extremes(self, positive: Tensor, negative: Tensor, place: Place) -> tuple[Tensor, Tensor]:
        # of a range [−negative, positive] that holds 0; the shifted one may lie on one side of it
        constant = _constant(place)
        return (positive - constant).clamp_min(0), (negative + constant).clamp_min(0)

    def beside(self, x: Tensor, place: Place) -> Tensor:
        start = sum(place.branches[: place.branch])
        return place.tensors["shift_product"][start : start + place.branches[place.branch]]


def _constant(place: Place) -> Tensor:
    return place.tensors["shift"][place.branch]
