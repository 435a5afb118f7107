"""Smoothing (SmoothQuant, arXiv 2211.10438)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from segquant.numerics.transform import Buffers, Place, Transform
from segquant.registry import register


@register
@dataclass(frozen=True)
class Smoothing(Transform):
    """X / s and s W. Buffer `smooth`: s > 0, float32 [branches, in]."""

    name: ClassVar[str] = "smoothing"

    def buffers(self, place: Place) -> Buffers:
        return {"smooth": ((len(place.branches), place.in_features), torch.float32)}

    def rows(self, x: Tensor, place: Place) -> Tensor:
        return x / _vector(place)

    def weight(self, weight: Tensor, place: Place) -> Tensor:
        return weight * _vector(place)

    def undo(self, weight: Tensor, place: Place) -> Tensor:
        return weight / _vector(place)

    def gram(self, gram: Tensor, place: Place) -> Tensor:
        vector = _vector(place)
        return gram / vector / vector[:, None]

    def extremes(self, positive: Tensor, negative: Tensor, place: Place) -> tuple[Tensor, Tensor]:
        vector = _vector(place)
        return positive / vector, negative / vector


def _vector(place: Place) -> Tensor:
    return place.tensors["smooth"][place.branch]
